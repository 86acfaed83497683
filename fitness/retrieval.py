"""Embedding models as a fitness: queries that look for documents, pairs of texts that are alike or not."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from evomerge.candidate import Part
from evomerge.errors import FitnessError, PoolError
from evomerge.models.sentence_encoder import SentenceEncoder, read_encoder
from evomerge.objectives import MetricShare, Objective
from evomerge.protocols import Scores
from fitness._classification.terms import objective_weights, parse_split, shares_of
from fitness._images.parts import among, places_of
from fitness._lm_eval.terms import plain
from fitness._retrieval.terms import RetrievalTerm, parse_overrides, parse_tasks
from fitness._text_files import check_text_file
from fitness._unlabelled.values import whole

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel, ModelOutline
    from evomerge.protocols import Estimator
    from evomerge.utils.memory import MemoryPart
    from fitness._retrieval.prepared import Prepared
    from fitness._retrieval.sources import Pairs, Queries
    from fitness._retrieval.texts import Texts

_MOST_RESPONSES = 20
_SHOWN = 200  # characters of a document


class RetrievalFitness:
    """Scores a model by the embeddings that it gives texts.

    A task of queries has documents, and which of them are right for which query, in BEIR's form (``corpus.jsonl``,
    ``queries.jsonl``, ``qrels/test.tsv``). Its metrics are trec_eval's: ``ndcg@k`` (10 by default), ``mrr@k`` (10),
    ``recall@k`` (100), ``hit@k`` (1) and ``loss``, the cross-entropy of the right documents among all, of which less is
    better. A task of pairs has a number that says how like two texts are; its metrics are ``spearman`` and ``pearson``.
    The objective ``score``, to be maximised, is the mean over tasks, by their weights, of the weighted sums of their
    metrics.

    Values of items are those of queries; of pairs, values with the metric as their mean (`_classification.metrics`).

    How hidden states become embeddings is read from sentence-transformers' files in the models' folder: pooling, dense
    layers, normalisation, prompts, lengths and similarity; of PyLate's and ColBERT's kind (an embedding of every token)
    too. Without such files it is the mean of all tokens, compared by cosine. What is given here goes before.

    Texts are tokenised once, each once for all tasks, and read in the same batches every time.

    Args:
        tasks: mappings with ``task`` (a name) and ``folder``, or ``corpus``, ``queries`` and ``qrels``, which are
            looked up in it; or ``pairs`` (a table) with ``one``, ``two`` and ``label`` (columns). Both have
            ``metrics`` (a name, a list, or name -> weight), ``weight``, ``objective``, ``limit`` and ``prompts``; of
            queries ``documents`` (how many are looked through: the judged ones, then others, drawn) and
            ``ignore_identical_ids``.
        pooling: ``mean``, ``cls``, ``max``, ``last``, ``weighted``, ``mean_sqrt``, or a list; ``tokens`` for an
            embedding of every token.
        normalize: whether embeddings get length 1.
        similarity: ``cosine``, ``dot``, ``euclidean``, ``manhattan``; of tokens ``maxsim``, ``meanmaxsim``.
        prompts: role -> text before others: ``query``, ``document``, and ``text`` for pairs.
        max_length, query_length, document_length: tokens of a text, which is cut there.
        batch_tokens: of a batch, padding included; a longer text is read alone.
        part: which part of the queries and pairs counts: ``search``, ``validation`` or ``held_out``; ``None`` for all.
        split: shares of the parts: ``{held_out: 0.3, validation: 0.1, seed: 0}``. A text lies in one part, by its hash.
        seed: of the documents that are drawn.

    Raises:
        ConfigError: an argument out of its range, naming it.
    """

    reads: ClassVar[str] = "texts"
    zero_hint: ClassVar[str] = (
        "see that qrels name documents as corpus does, and that pooling, prompts and similarity are those that the "
        "models were trained with"
    )

    def __init__(
        self,
        tasks: list[dict[str, Any]],
        *,
        pooling: str | list[str] | None = None,
        normalize: bool | None = None,
        similarity: str | None = None,
        prompts: dict[str, str] | None = None,
        max_length: int | None = None,
        query_length: int | None = None,
        document_length: int | None = None,
        batch_tokens: int = 8192,
        part: str | None = None,
        split: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self._terms = parse_tasks(plain(tasks))
        self._given = parse_overrides(
            plain(pooling), normalize, similarity, plain(prompts), max_length, query_length, document_length
        )
        self._split = parse_split(part, plain(split))
        self._batch_tokens = whole(batch_tokens, "batch_tokens", 1, 2**31)
        self._seed = whole(seed, "seed", 0, 2**63 - 1)
        self._sources: dict[str, Queries | Pairs] | None = None
        self._load: Callable[[], Any] | None = None
        self._encoder = SentenceEncoder()
        self._texts: Texts | None = None
        self._prepared: Prepared | None = None

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Those that tasks name, ``score`` for those that name none; all to be maximised."""
        return tuple(Objective(name, "maximize") for name in objective_weights(self._terms))

    def check(self) -> None:
        """Read the files, once; `FitnessError` for one that is missing or cannot be read, or has no items."""
        self._read()

    def check_files(self) -> None:
        """Raise `FitnessError` for a file that is not there."""
        for place, term in enumerate(self._terms):
            for key, file in term.files.items():
                check_text_file(file, f"tasks[{place}].{key}")

    def check_tokenizer(self, load: Callable[[], Any]) -> None:
        """Take the tokenizer, which `check_encoder` lets read every text once it is known how."""
        self._load = load

    def check_encoder(self, folder: str, config: Any) -> None:
        """Check what the models' files say of embeddings, and tokenise the texts as they say; the rest comes before.

        Args:
            folder: with sentence-transformers' files; empty where there are none.
            config: the transformers configuration.

        Raises:
            FitnessError: they do not go with what was given; a tokenizer that does not read the texts.
        """
        self._encoder = self._encoder_in(folder)
        if self._load is not None:
            self._tokenise(self._encoder, self._load(), config)
            self._load = None

    def items(self) -> dict[str, int]:
        """How many queries or pairs each task has; `check` comes before."""
        return {name: len(source) for name, source in self._read().items()}

    def work(self) -> dict[str, int]:
        """What a candidate asks of a model: ``documents`` of the tasks, and ``texts`` that are read."""
        return {"documents": sum(self.items().values()), "texts": sum(self._counts()), "written": 0}

    def fixed_share(self) -> float:
        """The share of a candidate's texts that are read whatever items it is scored on: the documents."""
        documents, others = self._counts()
        return documents / (documents + others)

    def memory(self, model: ModelOutline) -> list[MemoryPart]:
        """What embeddings take beside a model's weights; `check` comes before."""
        from evomerge.utils.memory import MemoryPart

        width = int(getattr(model.config.get_text_config(), "hidden_size", 0) or 0)
        many, what = sum(self._counts()), "texts"
        if self._texts is not None and self._encoder.is_late:
            many, what = sum(map(sum, self._texts.counted)), "tokens"
        return [MemoryPart("embeddings", many * width * 4, f"{many:,} {what}", "tasks")] if width else []

    def shares(self) -> list[MetricShare]:
        """What every metric counts in the objectives."""
        return shares_of(self._terms)

    def build_estimator(self) -> Estimator:
        """Build what tells of some items what all would give; `check` comes before."""
        from fitness._classification.estimator import PredictionsEstimator
        from fitness._retrieval.sources import Pairs

        gold = {name: np.array(own.labels) for name, own in self._read().items() if isinstance(own, Pairs)}
        return PredictionsEstimator(self._terms, self.objectives, gold)

    def cautions(self) -> list[str]:
        """Of texts that are cut or have unknown words, documents that are not there, and keys that exports lack."""
        from fitness._retrieval.sources import lines_of

        found = [line for term in self._terms for line in lines_of(term, self._read()[term.name])]
        for name, count in (self._texts.cut if self._texts is not None else {}).items():
            if count:
                found.append(f"tasks.{name}: texts that are longer than the model reads, and are cut: {count}")
        keys = [key for key in ("pooling", "normalize", "similarity") if getattr(self._given, key) is not None]
        if keys:
            found.append(f"{', '.join(keys)}: exports say what the models' folders say, not what is set here")
        return [*found, *(self._texts.unknown if self._texts is not None else ())]

    def prepare(self, model: LoadedModel) -> None:
        """Tokenise and batch the texts.

        Raises:
            FitnessError: what `check` and `check_encoder` find; an engine holds the model.
        """
        from fitness._retrieval.prepared import Prepared

        self._prepared = None
        if model.module is None:
            raise FitnessError("the model is held by an engine", "evaluator.engine=transformers")
        self._encoder = self._encoder_in(model.encoder_folder or model.name_or_path)
        texts = self._tokenise(self._encoder, model.tokenizer, model.module.config)
        self._prepared = Prepared(model, self._terms, self._read(), self._encoder, texts, self._batch_tokens)

    def run(self, model: LoadedModel, part: Part | None = None) -> Scores:
        """Score a model.

        Args:
            part: places of queries and pairs by task, some of every one; all documents are looked through. In batches
                of their own, equal to rounding.

        Raises:
            FitnessError: embeddings that are not finite, naming the text; a part that is none.
        """
        from fitness._classification.scored import kept_items, objectives_of

        if self._prepared is None:
            raise FitnessError("the fitness has no items yet", "prepare(model) comes first")
        counts, start = self.items(), time.perf_counter()
        places = places_of(part, counts)
        model.module.eval()
        embeddings, seconds = self._prepared.embed(model, places)
        metrics, items, responses = dict[str, float](), dict[str, Any](), dict[str, list[str]]()
        for term in self._terms:
            found, own = self._prepared.score(term, embeddings, places[term.name]), places[term.name]
            metrics |= {f"{term.name}/{name}": value for name, value in found.metrics.items()}
            kept = kept_items(term, found.items, () if term.is_numeric else ("ndcg@10",))
            said = {place: text[:_SHOWN] for place, text in enumerate(found.said[:_MOST_RESPONSES])}
            if own is not None:
                kept = {name: among(column, own, counts[term.name]) for name, column in kept.items()}
                said = {place: text[:_SHOWN] for place, text in zip(own, found.said, strict=True)}
            items |= kept
            responses[term.name] = [said.get(i, "") for i in range(min(_MOST_RESPONSES, counts[term.name]))]
        timing = {"model": seconds, "other": time.perf_counter() - start - seconds}
        return Scores(objectives_of(self._terms, metrics), metrics, items, timing, responses)

    def texts(self, most: int) -> dict[str, list[dict[str, str]]]:
        """The first queries with a right document, and the first pairs with their labels: for reports."""
        return {term.name: _shown(term, self._read()[term.name], most) for term in self._terms}

    def documents(self) -> list[tuple[str, str]]:
        """For each item the hashes of its text with what is right, and of all of it; `check` comes before."""
        return [own for source in self._read().values() for own in source.identities]

    def fingerprint(self) -> str:
        """``sha256:`` over tokens, what is right, encoder, metrics, batches, dtype and versions; not over places."""
        if self._prepared is None:
            raise FitnessError("the fitness has no items yet", "prepare(model) comes first")
        return f"sha256:{hashlib.sha256(self._prepared.text().encode()).hexdigest()}"

    def _encoder_in(self, folder: str) -> SentenceEncoder:
        from fitness._retrieval.texts import overridden

        try:
            return overridden(read_encoder(Path(folder)) if folder else None, self._given)
        except PoolError as error:
            raise FitnessError(error.given, error.allowed, error.do) from error

    def _tokenise(self, encoder: SentenceEncoder, tokenizer: Any, config: Any) -> Texts:
        from fitness._retrieval.texts import tokenised
        from fitness._token_rows import positions_of

        prompts, positions = dict(self._given.prompts), positions_of(config.get_text_config())
        self._texts = tokenised(self._terms, self._read(), encoder, prompts, tokenizer, positions)
        return self._texts

    def _counts(self) -> tuple[int, int]:
        """Documents, and other texts."""
        from fitness._retrieval.sources import Queries

        every = self._read().values()
        documents = len({text for own in every if isinstance(own, Queries) for text in own.documents})
        return documents, sum(len(own) if isinstance(own, Queries) else 2 * len(own) for own in every)

    def _read(self) -> dict[str, Queries | Pairs]:
        if self._sources is None:
            from fitness._retrieval.sources import read_source

            self._sources = {
                term.name: read_source(term, f"tasks[{place}]", self._split, self._seed)
                for place, term in enumerate(self._terms)
            }
        return self._sources


def _shown(term: RetrievalTerm, source: Queries | Pairs, most: int) -> list[dict[str, str]]:
    from fitness._retrieval.sources import Queries

    if isinstance(source, Queries):
        answers = [source.documents[min(own)][:_SHOWN] if own else "" for own in source.right[:most]]
        return [{"prompt": text, "target": own} for text, own in zip(source.queries[:most], answers, strict=True)]
    rows = list(zip(source.one, source.two, source.labels, strict=True))[:most]
    return [{"prompt": f"{one}\n{two}", "target": f"{label:g}"} for one, two, label in rows]
