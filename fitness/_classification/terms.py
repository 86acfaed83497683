"""What a user's tasks of labelled texts say, parsed and checked. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from evomerge.errors import ConfigError, nearest
from evomerge.objectives import MetricShare
from fitness._classification.metric_terms import METRICS, NUMBER_METRICS, MetricTerm, parse_metrics, parse_per_class
from fitness._unlabelled.values import finite, require_keys, whole


class Named(Protocol):
    """A task with a name."""

    @property
    def name(self) -> str:
        """Of the task."""


Term = TypeVar("Term", bound=Named)

PARTS = ("search", "validation", "held_out")
_KEYS = (
    *("task", "file", "head", "text", "pair", "label", "labels", "metrics", "per_class", "weight", "objective"),
    "limit",
)
_OF_ALL = ("batch_tokens", "max_length", "part", "split")


class CountedTerm(Protocol):
    """What metrics are made of, whatever the items are: texts or images."""

    @property
    def name(self) -> str:
        """Of the task."""

    @property
    def metrics(self) -> tuple[MetricTerm, ...]:
        """That count."""

    @property
    def weight(self) -> float:
        """Among the tasks of the objective."""

    @property
    def objective(self) -> str:
        """Its name."""

    @property
    def is_numeric(self) -> bool:
        """Whether labels are numbers."""


@dataclass(frozen=True)
class TaskTerm:
    """A task: a file of texts with labels, and what its metrics count.

    Attributes:
        name: of the task.
        file: JSONL, CSV or Parquet.
        head: the source whose head scores it; empty for the model's own.
        text, pair, label: names of columns; `pair` is empty for single texts.
        labels: label in the file -> label of the model, of those that differ.
        metrics: that count.
        weight: among the tasks of the objective.
        objective: its name.
        limit: the first so many items; ``None`` for all.
        per_class: whether the F1 of each class is told too.
    """

    name: str
    file: str
    head: str
    text: str
    pair: str
    label: str
    labels: tuple[tuple[str, str], ...]
    metrics: tuple[MetricTerm, ...]
    weight: float
    objective: str
    limit: int | None
    per_class: bool = False

    @property
    def is_numeric(self) -> bool:
        """Whether labels are numbers that a regression gives."""
        return self.metrics[0].name in NUMBER_METRICS


@dataclass(frozen=True)
class SplitTerm:
    """Which items of the files count: each text lies in one part, by its hash, however often it occurs.

    Attributes:
        part: one of `PARTS`; ``None`` for all items.
        validation, held_out: shares of the texts.
        seed: of the hash.
    """

    part: str | None = None
    validation: float = 0.0
    held_out: float = 0.0
    seed: int = 0


def parse_tasks(given: Any, per_class: bool = False) -> tuple[TaskTerm, ...]:
    """The tasks of a configuration.

    Args:
        given: by the user.
        per_class: of tasks of classes that say nothing of it.

    Raises:
        ConfigError: no tasks, an unknown key, a value out of its range or a name twice; names the key.
    """
    example = "[{task: topic, file: topic.jsonl, head: topic}]"
    return listed_tasks(given, lambda own, key: _task(own, key, per_class), example)


def listed_tasks(given: Any, read: Callable[[Any, str], Term], example: str) -> tuple[Term, ...]:
    """The tasks of a list, each as `read` makes it of its entry and the entry's key.

    Raises:
        ConfigError: no list, an empty one, or a name twice; and what `read` raises.
    """
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise ConfigError(f"tasks is {str(given)[:80]!r}", "a list of tasks", f"for example tasks={example}")
    found = [read(own, f"tasks[{number}]") for number, own in enumerate(given)]
    names = [term.name for term in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"tasks has {name!r} twice", "every name once", "give one of them another `task`")
    return tuple(found)


def _task(given: Any, key: str, per_class: bool) -> TaskTerm:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key} is {str(given)[:80]!r}", "a mapping with task and file")
    require_keys(given, _KEYS, key, _OF_ALL)
    for needed in ("task", "file"):
        if not given.get(needed):
            raise ConfigError(f"{key} has no {needed}", "a name and a file: {task: topic, file: topic.jsonl}")
    texts = {name: given.get(name, default) for name, default in _TEXTS.items()}
    for name, value in texts.items():
        if value is not None and (not isinstance(value, str) or (not value and name not in ("head", "pair"))):
            raise ConfigError(f"{key}.{name} is {value!r}", "a text")
    name = str(texts["task"])
    if "/" in name or not name.strip():
        raise ConfigError(f"{key}.task is {name!r}", "a name without /")
    labels = given.get("labels") or {}
    if not isinstance(labels, Mapping):
        raise ConfigError(f"{key}.labels is {str(labels)[:80]!r}", "labels of the file with those of the model")
    weight = finite(given.get("weight", 1.0), f"{key}.weight")
    if weight <= 0:
        raise ConfigError(f"{key}.weight is {weight:g}", "a number above 0")
    limit = given.get("limit")
    objective = given.get("objective", "score")
    if not isinstance(objective, str) or not objective.isidentifier():
        raise ConfigError(f"{key}.objective is {objective!r}", "a name of letters, digits and _")
    metrics = parse_metrics(given.get("metrics", "accuracy"), f"{key}.metrics", METRICS)
    if given.get("per_class") is not None:
        per_class = parse_per_class(given["per_class"], f"{key}.per_class")
        if per_class and metrics[0].name in NUMBER_METRICS:
            raise ConfigError(f"{key}.per_class is true, and its metrics are of numbers", "tasks of classes", "drop it")
    require_apart({own: str(texts[own] or "") for own in ("text", "pair", "label")}, key)
    return TaskTerm(
        name,
        str(texts["file"]),
        str(texts["head"] or ""),
        str(texts["text"]),
        str(texts["pair"] or ""),
        str(texts["label"]),
        tuple((str(own), str(other)) for own, other in labels.items()),
        metrics,
        weight,
        objective,
        None if limit is None else whole(limit, f"{key}.limit", 1, 2**31),
        per_class,
    )


_TEXTS = {"task": "", "file": "", "head": None, "text": "text", "pair": None, "label": "label"}


def require_apart(columns: Mapping[str, str], key: str) -> None:
    """Raise `ConfigError` where two keys of a task name one column: a model would read what it is to find out.

    Args:
        columns: by the task's keys; empty for none.
        key: of the task, for messages.
    """
    taken = dict[str, str]()
    for name, column in columns.items():
        if column and column in taken:
            what = f"{key}.{name} is {column!r}, which is the column of {taken[column]}"
            raise ConfigError(what, f"another column for each of {', '.join(columns)}")
        taken[column] = name


def parse_split(part: Any, split: Any) -> SplitTerm:
    """Which part of the files is meant.

    Raises:
        ConfigError: a part or a share that there is not, or a part without shares.
    """
    shares = split if split is not None else {}
    if not isinstance(shares, Mapping):
        raise ConfigError(f"split is {str(split)[:80]!r}", "shares: {held_out: 0.3, validation: 0.1}")
    require_keys(shares, ("validation", "held_out", "seed"), "split")
    values = {name: finite(shares.get(name, 0.0), f"split.{name}") for name in ("validation", "held_out")}
    if min(values.values()) < 0 or sum(values.values()) >= 1:
        raise ConfigError(f"split is {dict(shares)}", "shares from 0 that leave something for the search")
    if part is not None and part not in PARTS:
        raise ConfigError(f"part is {part!r}", nearest(str(part), PARTS))
    if part in values and not values[part]:
        raise ConfigError(f"part is {part!r}, of which split says nothing", "its share", f"split={{{part}: 0.3}}")
    if part is None and any(values.values()):
        raise ConfigError("split is given without a part", f"part: one of {', '.join(PARTS)}")
    return SplitTerm(
        part, values["validation"], values["held_out"], whole(shares.get("seed", 0), "split.seed", 0, 2**31)
    )


def shares_of(terms: Sequence[CountedTerm]) -> list[MetricShare]:
    """What every metric counts in its objective: tasks by their weights, their metrics by theirs."""
    weights = objective_weights(terms)
    return [
        MetricShare(
            f"{term.name}/{metric.name}",
            term.weight * metric.weight / weights[term.objective],
            metric.direction,
            term.objective,
        )
        for term in terms
        for metric in term.metrics
    ]


def objective_weights(terms: Sequence[CountedTerm]) -> dict[str, float]:
    """By objective the sum of its tasks' weights."""
    found: dict[str, float] = {}
    for term in terms:
        found[term.objective] = found.get(term.objective, 0.0) + term.weight
    return found
