"""Fitnesses that need no labels: what a model makes of texts, alone and beside the experts and the base."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from evomerge.candidate import Part
from evomerge.errors import ConfigError, FitnessError, nearest
from evomerge.models.unknown_tokens import UnknownTokens
from evomerge.objectives import MetricShare, Objective
from evomerge.protocols import Estimator, Scores
from evomerge.utils.sizes import byte_count
from fitness._decoders import require_decoder
from fitness._lm_eval.terms import check_timeout, plain
from fitness._text_files import check_text_file
from fitness._unlabelled.terms import TextTerm, parse_texts
from fitness._unlabelled.totals import cautions, objective_weights, shares, totals
from fitness.estimators.settings import parse_estimator

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel, ModelOutline
    from evomerge.recipes.pool_info import PoolInfo
    from evomerge.utils.memory import MemoryPart
    from fitness._unlabelled.judge import JudgeFolder
    from fitness._unlabelled.prepared import Prepared
    from fitness._unlabelled.sources import Source


class UnlabelledFitness:
    """Scores a model on texts without right answers, alone or beside what models of the pool say of them.

    An item is a text; its value of a metric is the mean over the tokens that count:

    - ``perplexity`` (of items the logarithm): minus the log-likelihood of the next token, nats.
    - ``entropy``: of the prediction, nats (AdaMerging, arXiv 2310.02575).
    - ``soft_cross_entropy``: ``-sum q log p`` with ``q`` the expert's prediction, nats; ``hidden_distance``: the mean
      squared difference from the expert's hidden states over units and `hidden_layers` (the two losses of Expert
      Merging, arXiv 2509.25712, which takes the sum over units instead).
    - ``agreement``: 1 where the likeliest token is the expert's, else 0.
    - ``reward``: what a sequence classifier of the user's makes of the text with what the model writes after it, the
      likeliest token each time: the probability of a label, or the only output.
    - ``kl_to_base``: ``KL(base || model)``, nats; ``forgetting``: how much less likely the next token is than to the
      base, nats. On texts that the base wrote, at temperature 1, the one is what the other is on average.

    All but ``agreement`` and ``reward`` are better when lower, and count negative: every objective is to be maximised.
    What experts and the base say is computed once, by the worker's own model, and kept within `reference_size`: in
    float32; else in float16, renormalised; else the likeliest tokens in float32 and the probability of the rest, which
    counts as one token (`Predictions.divergence_from` says what is lost).

    Scores of a text differ with those it is batched with by rounding only: about 1e-6 of them in float32, 1e-2 in
    bfloat16. The same items are read in the same batches every time.

    Args:
        texts: by name a file, or a mapping with ``file`` (and ``key`` of JSONL), ``task`` (of lm-eval, whose prompts
            are taken without targets), ``limit``, ``write`` (a model, or ``by``, ``tokens``, ``texts``,
            ``temperature``, ``seed``: who writes texts, or goes on with those; the base by default), ``reward`` (the
            classifier's folder, or ``model``, ``tokens``, ``label``, ``reads``, ``batch_size``), ``expert``,
            ``positions`` (``all`` or ``last``), ``metrics`` (name -> weight, or -> {weight, transform, objective}),
            ``weight``, ``objective``.
            Texts without ``metrics`` count `metrics`; where there are none, those of an expert the two losses of Expert
            Merging (1 and 0.1), of a reward that alone, others the logarithm of their perplexity.
        metrics: of texts that name none.
        include_path: folder or folders with task YAMLs.
        hidden_layers: after which layers hidden states are compared: 0 is the embedding, -1 after all layers; the
            middle one by default.
        batch_tokens: of a forward, padding included; a longer text is read alone.
        max_length: tokens of a text, which is cut there; the model's positions by default.
        add_special_tokens: whether the tokenizer adds its own, such as BOS.
        reference_size: bytes for what experts and the base said.
        task_timeout: as of `LmEvalFitness`, for tasks.
        estimator: as of `LmEvalFitness`.

    Raises:
        ConfigError: an argument out of its range, naming it.
    """

    reads: ClassVar[str] = "texts"

    def __init__(
        self,
        texts: dict[str, Any],
        *,
        metrics: str | list[str] | dict[str, Any] | None = None,
        include_path: str | list[str] | None = None,
        hidden_layers: list[int] | None = None,
        batch_tokens: int = 2048,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        reference_size: str | int = "1GB",
        task_timeout: float | None = 30.0,
        estimator: str | dict[str, Any] | None = "mean",
    ) -> None:
        self._terms = parse_texts(plain(texts), plain(metrics))
        self._estimator = parse_estimator(plain(estimator))
        check_timeout(task_timeout, "task_timeout")
        if batch_tokens < 1:
            raise ConfigError(f"batch_tokens is {batch_tokens}", "a number of tokens, 1 or more")
        if max_length is not None and max_length < 2:
            raise ConfigError(f"max_length is {max_length}", "a number of tokens, 2 or more")
        if hidden_layers is not None and not hidden_layers:
            raise ConfigError("hidden_layers is empty", "numbers of layers", "null means the middle one")
        paths = plain(include_path) or []
        self._include_path: list[str] = [paths] if isinstance(paths, str) else paths
        self._layers = list(hidden_layers) if hidden_layers is not None else None
        self._batch_tokens, self._max_length, self._special = batch_tokens, max_length, add_special_tokens
        self._reference_size = byte_count(reference_size, "reference_size")
        self._task_timeout = task_timeout
        self._sources: dict[str, Source] | None = None
        self._steps: tuple[str, ...] = ()
        self._writers: dict[str, str] = {}
        self._base = ""
        self._identities: dict[str, str] = {}
        self._judges: dict[str, JudgeFolder] | None = None
        self._prepared: Prepared | None = None
        self._unknown: list[str] = []

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Those that metrics name, ``score`` for those that name none; all to be maximised."""
        return tuple(Objective(name, "maximize") for name in objective_weights(self._terms))

    def check(self) -> None:
        """Read the texts, once.

        Raises:
            FitnessError: a file or task that is missing or cannot be read, or has no texts; a classifier's folder that
                holds none.
        """
        self._read()
        self._judged()

    def check_files(self) -> None:
        """Raise `FitnessError` for a file that is not there."""
        for term in self._terms:
            if term.file:
                check_text_file(term.file, f"texts.{term.name}.file")
        self._estimator.check_files()

    def check_tokenizer(self, load: Callable[[], Any]) -> None:
        """Check that the tokenizer makes tokens of every text.

        Raises:
            FitnessError: there is none, or a text has too few tokens.
        """
        from fitness._unlabelled.prepared import tokenised

        unknown = UnknownTokens()
        tokenised(self._terms, self._read(), load(), self._max_length or 2**31, self._special, unknown)
        self._unknown = unknown.lines("texts")

    def references(self, pool: PoolInfo) -> tuple[str, ...]:
        """Names of the models of the pool that it has to see, in order: those that write, then those that say.

        Raises:
            FitnessError: a model that the pool does not have, or no base where one is needed.
        """
        known = dict(pool.refs)
        writers, readers = [], []
        for term in self._terms:
            if term.write is not None:
                self._writers[term.name] = self._model(term.write.by, f"texts.{term.name}.write.by", pool)
                writers.append(self._writers[term.name])
            if "expert" in term.needs:
                readers.append(self._model(term.expert, f"texts.{term.name}.expert", pool))
            elif term.expert:
                self._model(term.expert, f"texts.{term.name}.expert", pool)
            if "base" in term.needs:
                self._base = self._model("", f"texts.{term.name}.metrics", pool)
                readers.append(self._base)
        self._steps = (*dict.fromkeys(writers), *dict.fromkeys(readers))
        self._identities = {name: known[name].identity for name in dict.fromkeys(self._steps)}
        return self._steps

    def _model(self, name: str, key: str, pool: PoolInfo) -> str:
        known = [model for model, _ in pool.refs]
        if not name and pool.base is None:
            what = "asks for the base's predictions" if key.endswith(".metrics") else "is not set"
            raise FitnessError(f"{key} {what}, and the pool has no base", nearest("", known), "set pool.base=NAME")
        if name and name not in known:
            raise FitnessError(f"{key} is {name!r}, which is no model of the pool", nearest(name, known))
        return name or str(pool.base)

    def items(self) -> dict[str, int]:
        """How many texts each domain has; `check` comes before."""
        return {name: source.count for name, source in self._read().items()}

    def work(self) -> dict[str, int]:
        """What a candidate asks of a model: ``documents`` and ``texts`` read, and those ``written`` for a reward."""
        items = self.items()
        count = sum(items.values())
        written = sum(items[term.name] for term in self._terms if term.reward is not None)
        return {"documents": count, "texts": count, "written": written}

    def memory(self, model: ModelOutline) -> list[MemoryPart]:
        """What forwards and references take beside a model's weights; `check` comes before."""
        from fitness._unlabelled.sizes import memory

        return memory(self._terms, self._read(), model, self._how(), self._judged())

    def shares(self) -> list[MetricShare]:
        """What every metric counts in the objectives."""
        return shares(self._terms)

    def build_estimator(self) -> Estimator:
        """Build what tells of some texts what all would give; `FitnessError` for a perplexity without its logarithm."""
        return self._estimator.build(shares(self._terms, of_items=True), self.objectives, self.items())

    def cautions(self) -> list[str]:
        """That an objective is of entropy or of a reward alone; files that the tokenizer knows little of, once
        `check_tokenizer` has looked."""
        return [*cautions(self._terms), *self._unknown]

    def prepare(self, model: LoadedModel) -> None:
        """Tokenise and batch the texts. `refer` comes next, for every name that `references` gave.

        Raises:
            FitnessError: what `check` finds; texts without tokens; a `reference_size` that is too small.
        """
        from fitness._unlabelled.prepared import prepare

        self._prepared = None
        require_decoder(model)
        sources, judges = self._read(), self._judged()
        self._prepared = prepare(
            model, self._terms, sources, self._how(), self._steps, self._writers, self._base, judges
        )  # fmt: skip

    def refer(self, model: LoadedModel, name: str) -> None:
        """Let a model of the pool write its texts, or keep what it says; in the order of `references`.

        Raises:
            FitnessError: a name that is not due.
        """
        self._ready().refer(model, name)

    def run(self, model: LoadedModel, part: Part | None = None) -> Scores:
        """Score a model.

        Args:
            part: places of texts by domain, some of every one; in batches of their own, equal to rounding.

        Raises:
            FitnessError: a value that is not finite, naming the text; a part that is none; `refer` was not called.
        """
        start = time.perf_counter()
        items, seconds = self._ready().score(model, part)
        found, metrics = totals(self._terms, items)
        return Scores(found, metrics, items, {"model": seconds, "other": time.perf_counter() - start - seconds})

    def texts(self, most: int) -> dict[str, list[dict[str, str]]]:
        """The first texts of every domain: for reports. Of texts that are written what they were written after."""
        return {
            name: [{"prompt": text, "target": ""} for text in source.texts[:most]]
            for name, source in self._read().items()
            if source.texts
        }

    def documents(self) -> list[tuple[str, str]]:
        """For each text two hashes of it; of a task's prompt those of the document, as of `LmEvalFitness`."""
        return [document for source in self._read().values() for document in source.documents]

    def fingerprint(self) -> str:
        """``sha256:`` over tokens, what is written and read by whom, metrics, dtype, batches and versions."""
        ready = self._ready()
        how = {
            "versions": {name: importlib.metadata.version(name) for name in ("transformers", "torch", "tokenizers")},
            "terms": [self._content(term) for term in self._terms],
            "models": self._identities,
            "base": self._base,
            "layers": list(ready.layers),
            "batch_tokens": self._batch_tokens,
            "precision": [ready.precision.form, ready.precision.kept],
            "dtype": str(ready.dtype),
        }
        digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode())
        for name, tokens in ready.tokens.items():
            digest.update(json.dumps([name, tokens]).encode())
        return f"sha256:{digest.hexdigest()}"

    def _content(self, term: TextTerm) -> list[Any]:
        metrics = [[metric.name, metric.weight, metric.log, metric.objective] for metric in term.metrics]
        write = [self._writers.get(term.name, ""), *vars(term.write).values()] if term.write is not None else []
        found = [term.name, term.expert, term.positions, term.weight, metrics, write]
        if term.reward is not None:
            reward = {**vars(term.reward), "model": self._judged()[term.name].identity()}
            found.append(sorted(reward.items()))
        return found

    def _read(self) -> dict[str, Source]:
        if self._sources is None:
            from fitness._unlabelled.sources import read_sources

            self._sources = read_sources(self._terms, self._include_path, self._task_timeout)
        return self._sources

    def _judged(self) -> dict[str, JudgeFolder]:
        if self._judges is None:
            terms = [term for term in self._terms if term.reward is not None]
            if terms:
                from fitness._unlabelled.judge import JudgeFolder
            key = "texts.{}.reward"
            self._judges = {
                t.name: JudgeFolder.open(t.reward, key.format(t.name)) for t in terms if t.reward is not None
            }
        return self._judges

    def _how(self) -> Any:
        from fitness._unlabelled.prepared import How

        return How(self._layers, self._batch_tokens, self._max_length, self._special, self._reference_size)

    def _ready(self) -> Prepared:
        if self._prepared is None:
            raise FitnessError("the fitness has no items yet", "prepare(model) comes first")
        return self._prepared
