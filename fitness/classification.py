"""Labelled texts as a fitness: classes and numbers, each task with its own head."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Part
from evomerge.errors import FitnessError, nearest
from evomerge.objectives import MetricShare, Objective
from evomerge.protocols import Scores
from fitness._classification.metric_terms import parse_per_class
from fitness._classification.terms import objective_weights, parse_split, parse_tasks, shares_of
from fitness._lm_eval.terms import plain
from fitness._text_files import check_text_file
from fitness._unlabelled.values import whole

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel
    from evomerge.protocols import Estimator
    from fitness._classification.prepared import Prepared, Tokenised
    from fitness._classification.tables import Table

_FEW = 5
_MOST_RESPONSES = 20


class ClassificationFitness:
    """Scores a model for sequence classification, or several heads on one encoder, on files of labelled texts.

    The objective ``score``, to be maximised, is the mean over tasks, by their weights, of the weighted sums of their
    metrics; losses and squared errors, of which less is better, count negative. Tasks that name an ``objective`` make
    one of that name instead.

    Metrics of classes are ``accuracy``, ``f1`` (macro, over the classes that the file has), ``matthews`` and ``loss``
    (the cross-entropy in nats); of numbers, which a head with one output gives, ``pearson``, ``spearman`` and
    ``squared_error``. Values by item have the metric as their mean, also of f1, matthews, pearson and spearman
    (`_classification.metrics`).

    Texts are tokenised once and read in batches of like length; scores of a text differ with those it is batched with
    by rounding only. With heads of their own (`pool.heads`) each task names its ``head``, and the merged encoder is
    scored with every one of them.

    Args:
        tasks: mappings with ``task`` (a name), ``file`` (JSONL, CSV, TSV or Parquet), ``head`` (the source whose head
            scores it), ``text``, ``pair`` and ``label`` (names of columns; ``pair`` for the second of two texts),
            ``labels`` (label in the file -> label of the model, where they differ), ``metrics`` (a name, a list, or
            name -> weight; ``accuracy`` by default), ``per_class``, ``weight``, ``objective`` and ``limit``. A label is
            a text that the model's id2label has, or the number of a class.
        batch_tokens: of a batch, padding included; a longer text is read alone.
        max_length: tokens of an item, which is cut there; the model's positions by default.
        per_class: whether metrics have the F1 of each class too, of tasks that do not say.
        part: which part of the files counts: ``search``, ``validation`` or ``held_out``; ``None`` for all items.
        split: shares of the parts: ``{held_out: 0.3, validation: 0.1, seed: 0}``. A text lies in one part, by its hash.

    Raises:
        ConfigError: an argument out of its range, naming it.
    """

    switch_key: ClassVar[str] = "head"
    reads: ClassVar[str] = "texts"
    zero_hint: ClassVar[str] = (
        "if these are names of the right classes, set labels of the task, from those of the file to the head's "
        "id2label; if they are another task's, set its head"
    )

    def __init__(
        self,
        tasks: list[dict[str, Any]],
        *,
        batch_tokens: int = 4096,
        max_length: int | None = None,
        per_class: bool = False,
        part: str | None = None,
        split: dict[str, Any] | None = None,
    ) -> None:
        self._terms = parse_tasks(plain(tasks), parse_per_class(per_class))
        self._split = parse_split(part, plain(split))
        self._batch_tokens = whole(batch_tokens, "batch_tokens", 1, 2**31)
        self._max_length = None if max_length is None else whole(max_length, "max_length", 1, 2**31)
        self._tables: dict[str, Table] | None = None
        self._gold: dict[str, NDArray[np.float64]] = {}
        self._known: dict[str, Mapping[Any, Any]] = {}
        self._tokens: Tokenised | None = None
        self._prepared: Prepared | None = None
        self._dtype = ""

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Those that tasks name, ``score`` for those that name none; all to be maximised."""
        return tuple(Objective(name, "maximize") for name in objective_weights(self._terms))

    def check(self) -> None:
        """Read the files, once; `FitnessError` for one that is missing or cannot be read, or has no items."""
        self._read()

    def check_files(self) -> None:
        """Raise `FitnessError` for a file that is not there."""
        for term in self._terms:
            check_text_file(term.file, f"tasks.{term.name}.file")

    def check_tokenizer(self, load: Callable[[], Any]) -> None:
        """Check that the tokenizer makes tokens of every text, and can pad; `FitnessError` where it does not."""
        from fitness._classification.prepared import tokenised

        self._tokens = tokenised(self._terms, self._read(), load(), self._max_length)

    def check_labels(self, labels: Callable[[str], Mapping[Any, Any]]) -> None:
        """Check the labels of every file against those of its head.

        Args:
            labels: ``id2label`` of a source by its name, of the model itself for an empty one.

        Raises:
            FitnessError: a label that the head does not have, or metrics of another kind than its outputs.
        """
        for term in self._terms:
            self._gold_of(term.name, labels(term.head))

    def items(self) -> dict[str, int]:
        """How many texts each task has; `check` comes before."""
        return {name: len(table.texts) for name, table in self._read().items()}

    def work(self) -> dict[str, int]:
        """What a candidate asks of a model: ``documents`` and ``texts`` read."""
        count = sum(self.items().values())
        return {"documents": count, "texts": count, "written": 0}

    def shares(self) -> list[MetricShare]:
        """What every metric counts in the objectives."""
        return shares_of(self._terms)

    def build_estimator(self) -> Estimator:
        """Build what tells of some texts what all would give; `check_labels` comes before.

        Raises:
            FitnessError: it did not.
        """
        from fitness._classification.estimator import PredictionsEstimator

        for name in self._read():
            if name not in self._gold:
                raise FitnessError(f"the labels of tasks.{name} are not known", "check_labels comes first")
        return PredictionsEstimator(self._terms, self.objectives, self._gold)

    def cautions(self) -> list[str]:
        """Of texts that are cut or have unknown words, and of classes with few items."""
        found = []
        for name, count in (self._tokens.cut if self._tokens is not None else {}).items():
            if count:
                of = len(self._read()[name].texts)
                found.append(f"tasks.{name}: {count} of {of} texts are longer than the model reads, and are cut")
        for term in self._terms:
            labels = self._read()[term.name].labels
            counts = {} if term.is_numeric else {label: labels.count(label) for label in dict.fromkeys(labels)}
            rare = [f"{label} ({count})" for label, count in counts.items() if count < _FEW]
            if rare:
                listed = ", ".join(rare[:5])
                found.append(f"tasks.{term.name}: classes with fewer than {_FEW} items tell little: {listed}")
        return [*found, *(self._tokens.unknown if self._tokens is not None else ())]

    def prepare(self, model: LoadedModel) -> None:
        """Tokenise and batch the texts.

        Raises:
            FitnessError: what `check` and `check_tokenizer` find; an engine holds the model.
        """
        from fitness._classification.prepared import Prepared, tokenised
        from fitness._token_rows import positions_of

        self._prepared = None
        if model.module is None:
            raise FitnessError("the model is held by an engine", "evaluator.engine=transformers")
        limits = [own for own in (self._max_length, positions_of(model.module.config)) if own is not None]
        self._tokens = tokenised(self._terms, self._read(), model.tokenizer, min(limits, default=None))
        self._dtype = str(model.dtype)
        self._prepared = Prepared(model, self._tokens.rows, self._batch_tokens)

    def run(self, model: LoadedModel, part: Part | None = None) -> Scores:
        """Score a model with the head that it has.

        Args:
            part: places of texts by task, some of every one; in batches of their own, equal to rounding.

        Raises:
            FitnessError: outputs that are not finite, naming task and item; labels that the head does not have; a part
                that is none.
        """
        return self.run_switched(lambda _: model, part)

    def switches(self) -> list[tuple[str, str | None]]:
        """Of each task, by its name, the source whose head scores it."""
        return [(term.name, term.head or None) for term in self._terms]

    def run_switched(self, switch: Callable[[str], LoadedModel], part: Part | None = None) -> Scores:
        """`run`, with the model that ``switch(source)`` gives for the tasks of each head."""
        from fitness._classification.scored import kept_items, objectives_of, score_classes, score_numbers

        if self._prepared is None:
            raise FitnessError("the fitness has no items yet", "prepare(model) comes first")
        self._check_part(part)
        start, seconds = time.perf_counter(), 0.0
        each, items, responses = dict[str, dict[str, float]](), dict[str, Any](), dict[str, list[str]]()
        model, on = None, ""
        for term in sorted(self._terms, key=lambda term: term.head):  # one head after the other
            if model is None or term.head != on:
                model, on = switch(term.head), term.head
            labels = getattr(model.module.config, "id2label", None) or {}
            gold, places = self._gold_of(term.name, labels), None if part is None else list(part[term.name])
            outputs, took = self._prepared.outputs(model, term.name, places)
            seconds += took
            right = gold if places is None else gold[places]
            if term.is_numeric:
                values, own = score_numbers(right, outputs[:, 0])
                said = [f"{value:.4g}" for value in outputs[:, 0]]
            else:
                names = [str(labels.get(number, number)) for number in range(outputs.shape[1])]
                values, own = score_classes(right.astype(np.int64), outputs, names if term.per_class else ())
                said = [names[number] for number in outputs.argmax(-1)]
            each[term.name] = {f"{term.name}/{name}": value for name, value in values.items()}
            for name, column in kept_items(term, own).items():
                items[name] = column if places is None else _spread(column, places, len(gold))
            responses[term.name] = _first(said, places, len(gold))
        timing = {"model": seconds, "other": time.perf_counter() - start - seconds}
        metrics = {name: value for term in self._terms for name, value in each[term.name].items()}
        return Scores(objectives_of(self._terms, metrics), metrics, items, timing, responses)

    def texts(self, most: int) -> dict[str, list[dict[str, str]]]:
        """The first texts of every task with their labels: for reports."""
        found = {}
        for name, table in self._read().items():
            pairs = table.pairs or [""] * len(table.texts)
            rows = list(zip(table.texts, pairs, table.labels, strict=True))[:most]
            found[name] = [{"prompt": f"{text}\n{pair}".strip(), "target": str(label)} for text, pair, label in rows]
        return found

    def documents(self) -> list[tuple[str, str]]:
        """For each item the hashes of its text with its label, and of its whole row; `check` comes before."""
        return [document for table in self._read().values() for document in table.documents]

    def fingerprint(self) -> str:
        """``sha256:`` over tokens, labels, metrics, batches, dtype and versions; not over places."""
        if self._prepared is None or self._tokens is None:
            raise FitnessError("the fitness has no items yet", "prepare(model) comes first")
        packages = ("transformers", "torch", "tokenizers", "scikit-learn", "scipy")
        how = {
            "versions": {name: importlib.metadata.version(name) for name in packages},
            "terms": [
                [t.name, t.head, t.labels, [[m.name, m.weight] for m in t.metrics], t.weight, t.objective]
                for t in self._terms
            ],
            "batch_tokens": self._batch_tokens,
            "dtype": self._dtype,
        }
        digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode())
        for name, table in self._read().items():
            digest.update(json.dumps([name, self._tokens.rows[name], list(table.labels)]).encode())
        return f"sha256:{digest.hexdigest()}"

    def _check_part(self, part: Part | None) -> None:
        if part is None:
            return
        counts = self.items()
        for task in part:
            if task not in counts:
                raise FitnessError(f"the part has items of {task!r}", nearest(task, counts))
        for task, count in counts.items():
            places = part.get(task, ())
            if not len(places) or min(places) < 0 or max(places) >= count or len(set(places)) < len(places):
                raise FitnessError(
                    f"the part of {task} is {list(places)[:5]}", f"places from 0 to {count - 1}, each once"
                )

    def _gold_of(self, name: str, labels: Mapping[Any, Any]) -> NDArray[np.float64]:
        """The labels of a task as numbers, float64: of classes their numbers in a head's ``id2label``."""
        from fitness._classification.tables import class_numbers, require_kind

        if name not in self._gold or self._known[name] != labels:
            term = next(own for own in self._terms if own.name == name)
            require_kind(term, len(labels))
            table = self._read()[name]
            given = table.labels if term.is_numeric else class_numbers(term, table.labels, labels)
            self._gold[name], self._known[name] = np.array(given, dtype=np.float64), dict(labels)
        return self._gold[name]

    def _read(self) -> dict[str, Table]:
        if self._tables is None:
            from fitness._classification.tables import read_table

            self._tables = {term.name: read_table(term, self._split) for term in self._terms}
        return self._tables


def _spread(column: NDArray[np.float64], places: list[int], count: int) -> NDArray[np.float64]:
    """Values of some items among all, NaN elsewhere."""
    found = np.full(count, np.nan)
    found[places] = column
    return found


def _first(said: list[str], places: list[int] | None, count: int) -> list[str]:
    """What the model said of the first items; empty texts for those that were not run."""
    if places is None:
        return said[:_MOST_RESPONSES]
    known = dict(zip(places, said, strict=True))
    return [known.get(place, "") for place in range(min(_MOST_RESPONSES, count))]
