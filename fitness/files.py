"""A fitness whose scores people give: candidates write after prompts, and the search waits for files of scores."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from evomerge.candidate import Part
from evomerge.errors import ConfigError, FitnessError
from evomerge.objectives import MetricShare, Objective
from evomerge.protocols import Scores
from evomerge.run.ratings.rules import METRIC, WHOLE, RatingRules
from fitness._decoders import require_decoder
from fitness._files.terms import Prompts, parse_prompts, parse_raters, read_prompts, scale_of
from fitness._lm_eval.terms import check_timeout, plain
from fitness._text_files import check_text_file
from fitness._unlabelled.terms import WriteTerm
from fitness._unlabelled.values import finite, whole

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel, ModelOutline
    from evomerge.utils.memory import MemoryPart
    from fitness._unlabelled.writing import Tokens

_MOST_TOKENS = 4096


class FilesFitness:
    """Lets a candidate write after prompts; people, or another program, score what it wrote.

    `run` gives texts alone. A search lays them out in ``rating`` of its run folder, under a name that tells nothing of
    the recipe, waits for the raters' files there and makes the objective of them: the mean of the raters for each
    text, then of the texts of each kind of prompts, then of those.

    Args:
        prompts: a file (a prompt a line, or JSONL), or by name a file or a mapping with ``file`` (and ``key`` of
            JSONL, ``prompt`` by default) or ``task`` (of lm-eval, whose documents ask), and ``limit``.
        tokens: that are written after each prompt, at most.
        temperature: 0 for the likeliest token each time.
        seed: of sampling, and of the order of texts.
        until: texts that end an answer.
        chat_template: whether the tokenizer's chat template is put around each prompt.
        raters: how many must have rated a candidate before it counts, or the names of all who must.
        by: whether raters score each ``item``, or the ``candidate`` as a whole, or say of each ``pair`` of texts, one
            of them another candidate's, which is better: the objective is then the strength after Bradley and Terry.
        scale: the lowest and the highest score; ``None`` where any finite number is one. None of pairs.
        direction: whether high scores are good, ``maximize``, or low ones, ``minimize``.
        objective: its name.
        shuffle: whether raters see the texts of each candidate in an order of its own.
        look_every: seconds between two looks at the raters' files.
        hours: after which a candidate that was not rated has failed; ``None`` for never.
        include_path: folder or folders with task YAMLs.
        batch_tokens: of a batch that is written, prompts included.
        add_special_tokens: whether the tokenizer adds its own, such as BOS.
        task_timeout: as of `LmEvalFitness`, for tasks.

    Raises:
        ConfigError: an argument out of its range, naming it.
    """

    reads: ClassVar[str] = "texts"

    def __init__(
        self,
        prompts: str | dict[str, Any],
        *,
        tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        until: str | list[str] | None = None,
        chat_template: bool = False,
        raters: int | list[str] = 1,
        by: Literal["item", "candidate", "pair"] = "item",
        scale: list[float] | None = [1.0, 5.0],  # noqa: B006  # never changed, and shown by what reads signatures
        direction: Literal["maximize", "minimize"] = "maximize",
        objective: str = "rating",
        shuffle: bool = True,
        look_every: float = 2.0,
        hours: float | None = None,
        include_path: str | list[str] | None = None,
        batch_tokens: int = 2048,
        add_special_tokens: bool = True,
        task_timeout: float | None = 30.0,
    ) -> None:
        self._terms = parse_prompts(plain(prompts))
        check_timeout(task_timeout, "task_timeout")
        how = whole(tokens, "tokens", 1, _MOST_TOKENS), 0, finite(temperature, "temperature")
        if temperature < 0:
            raise ConfigError(f"temperature is {temperature}", "0, for the likeliest token, or more")
        self._how = WriteTerm("", *how, seed=whole(seed, "seed", 0, 2**63 - 1))
        stops = plain(until) or []
        self._until: list[str] = [stops] if isinstance(stops, str) else [str(stop) for stop in stops]
        if "" in self._until:
            raise ConfigError(f"until is {stops!r}", "texts that end an answer, such as ['\\n\\n']; none may be empty")
        self._raters, self._names = parse_raters(plain(raters))
        self._by, self._scale = by, scale_of(plain(scale), by)
        if by == "pair" and direction == "minimize":
            raise ConfigError("by is 'pair', and direction 'minimize'", "what raters prefer is better: maximize")
        if not objective.isidentifier():
            raise ConfigError(f"objective is {objective!r}", "a name of letters, digits and _")
        self._objective = Objective(objective, direction)
        self._shuffle = self._how.seed if shuffle else None
        if not 0.01 <= look_every <= 3600:
            raise ConfigError(f"look_every is {look_every:g}", "seconds from 0.01 to 3600")
        if hours is not None and not finite(hours, "hours") > 0:
            raise ConfigError(f"hours is {hours:g}", "more than 0, or null to wait for as long as it takes")
        self._look_every, self._hours = look_every, hours
        paths = plain(include_path) or []
        self._include_path: list[str] = [paths] if isinstance(paths, str) else paths
        self._batch_tokens = whole(batch_tokens, "batch_tokens", 1, 2**31)
        self._special, self._chat, self._task_timeout = add_special_tokens, chat_template, task_timeout
        self._prompts: dict[str, Prompts] | None = None
        self._tokens: dict[str, list[Tokens]] | None = None

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What people say."""
        return (self._objective,)

    def rating(self) -> RatingRules:
        """What is asked of raters, with the prompts; `check` comes before."""
        prompts = {name: own.texts for name, own in self._read().items()}
        return RatingRules(
            self._objective.name,
            self._objective.direction,
            self._by,
            *self._scale,
            self._raters,
            self._names,
            {name: len(texts) for name, texts in prompts.items()},
            prompts,
            self._shuffle,
            self._look_every,
            self._hours,
        )

    def check(self) -> None:
        """Read the prompts, once.

        Raises:
            FitnessError: a file or task that is missing or cannot be read, or has no prompts.
        """
        self._read()

    def check_files(self) -> None:
        """Raise `FitnessError` for a file that is not there."""
        for term in self._terms:
            if term.file:
                check_text_file(term.file, term.where)

    def check_tokenizer(self, load: Callable[[], Any]) -> None:
        """Check that the tokenizer makes tokens of every prompt; `FitnessError` where it does not."""
        from fitness._files.answers import tokenised

        tokenised(self._read(), load(), self._special, self._chat)

    def work(self) -> dict[str, int]:
        """What a candidate asks of a model: ``documents``, ``texts`` read, and tokens ``written`` at most."""
        count = sum(len(own.texts) for own in self._read().values())
        return {"documents": count, "texts": count, "written": count * self._how.tokens}

    def shares(self) -> list[MetricShare]:
        """What every metric counts in the objective."""
        names = [WHOLE] if self._by == "candidate" else [term.name for term in self._terms]
        own = self._objective
        return [MetricShare(f"{name}/{METRIC}", 1 / len(names), own.direction, own.name) for name in names]

    def cautions(self) -> list[str]:
        """None."""
        return []

    def memory(self, model: ModelOutline) -> list[MemoryPart]:
        """What writing takes beside a model's weights: logits, keys and values of a batch; `check` comes before."""
        from fitness._files.sizes import memory

        return memory(self._read(), model, self._how.tokens, self._batch_tokens, self._special, self._chat)

    def prepare(self, model: LoadedModel) -> None:
        """Make tokens of the prompts.

        Raises:
            FitnessError: what `check` and `check_tokenizer` find; a prompt that leaves no room for what is written.
        """
        from fitness._files.answers import check_lengths, tokenised

        self._tokens = None
        if model.module is None:
            raise FitnessError("the model is held by an engine", "evaluator.engine=transformers")
        require_decoder(model)
        tokens = tokenised(self._read(), model.tokenizer, self._special, self._chat)
        check_lengths(tokens, self._how.tokens, model.module.config)
        self._tokens = tokens

    def run(self, model: LoadedModel, part: Part | None = None) -> Scores:
        """Let a model write after every prompt: `Scores` with texts as responses, and no objective yet.

        Raises:
            FitnessError: weights that are not finite; a part of the prompts, which nobody is asked for.
        """
        from fitness._files.answers import answers

        if part is not None:
            raise FitnessError("a part of the prompts was asked for", "all of them", "set search.racing.first=null")
        start = time.perf_counter()
        found = answers(model, self._ready(), self._how, self._batch_tokens, self._until)
        return Scores({}, seconds={"model": time.perf_counter() - start, "other": 0.0}, responses=found)

    def texts(self, most: int) -> dict[str, list[dict[str, str]]]:
        """The first prompts of every kind: for reports."""
        return {
            name: [{"prompt": text, "target": ""} for text in own.texts[:most]] for name, own in self._read().items()
        }

    def documents(self) -> list[tuple[str, str]]:
        """For each prompt two hashes of it; of a task's those of the document, as of `LmEvalFitness`."""
        return [document for own in self._read().values() for document in own.documents]

    def fingerprint(self) -> str:
        """``sha256:`` over prompts' tokens, how is written, the scale, and versions; raters may change in a run."""
        own = self._objective
        how = {
            "versions": {name: importlib.metadata.version(name) for name in ("transformers", "torch", "tokenizers")},
            "write": [self._how.tokens, self._how.temperature, self._how.seed, self._until, self._batch_tokens],
            "scores": [own.name, own.direction, self._by, self._scale],
            "tokens": list(self._ready().items()),
        }
        return f"sha256:{hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()}"

    def _read(self) -> dict[str, Prompts]:
        if self._prompts is None:
            self._prompts = read_prompts(self._terms, self._include_path, self._task_timeout)
        return self._prompts

    def _ready(self) -> dict[str, list[Tokens]]:
        if self._tokens is None:
            raise FitnessError("the fitness was not prepared", "prepare comes before run and fingerprint")
        return self._tokens
