"""From a model's responses to lm-eval's metrics and per-item values."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api import metrics as stock
from lm_eval.api.task import ConfigurableTask
from numpy.typing import NDArray

from evomerge.errors import FitnessError
from fitness._lm_eval.task_errors import document_error, own_place, reason, said_of_document
from fitness._lm_eval.time_limit import limited, timed

_SCORED_BY = "process_results, metric_list and doc_to_target"
"""Keys of a task's YAML that responses are scored by."""

RawValues = dict[str, dict[int, Any]]
"""Metric key -> document's place -> what `process_results` gave."""


def metric_key(metric: str, filter_name: str) -> str:
    """``acc`` for the filter ``none``, else ``exact_match,strict-match``."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


class TaskScorer:
    """Turns the responses to one task's instances into raw values per document, and those into metrics.

    The task's own filters, `process_results` and aggregation are used, so that numbers are lm-eval's by
    construction. What they render from a document (targets, choices, counts) is remembered: templates are
    most of their time.

    Args:
        name: of the task.
        task: an lm-eval task whose requests are built.
        timeout: seconds that its templates, filters and metrics may take for a candidate (`time_limit`); functions
            of its own may take what they like.
    """

    def __init__(self, name: str, task: Any, timeout: float | None = None) -> None:
        self.name = name  # not task.task_name: reading that draws from Python's global generator
        self.task = task
        self._timeout = timeout
        self._has_code = has_code(task)
        by_document: dict[int, list[Any]] = {}
        for instance in task.instances:
            by_document.setdefault(instance.doc_id, []).append(instance)
        self.documents = [sorted(instances, key=lambda i: int(i.idx)) for _, instances in sorted(by_document.items())]
        _remember_renderings(task)

    def collect(self, places: Sequence[int], raw: RawValues) -> None:
        """Filter and process the responses of the documents at `places` into `raw`.

        Raises:
            FitnessError: that takes longer than it may.
        """
        with limited(self.name, self._timeout, "scoring a candidate"):
            if self._has_code:
                self._collect(places, raw)
                return
            with timed(len(places)):
                self._collect(places, raw)

    def _collect(self, places: Sequence[int], raw: RawValues) -> None:
        instances = [instance for place in places for instance in self.documents[place]]
        self.task._instances, whole = instances, self.task._instances
        try:
            with said_of_document(self.name, "its filters cannot be applied", "filter_list", lambda error: None):
                self.task.apply_filters()
        finally:
            self.task._instances = whole
        for filter_name in instances[0].filtered_resps:
            for place in places:
                document = self.documents[place]
                results = [instance.filtered_resps[filter_name] for instance in document]
                for metric, value in self._process(document[0], results).items():
                    raw.setdefault(metric_key(metric, filter_name), {})[place] = value

    def _process(self, instance: Any, results: list[Any]) -> Mapping[str, Any]:
        try:
            values: Mapping[str, Any] = self.task.process_results(instance.doc, results)
        except Exception as error:
            document = instance.doc_id, instance.doc
            raise document_error(self.name, "its response cannot be scored", _SCORED_BY, document, error) from error
        return values

    def metrics(self, raw: RawValues) -> dict[str, float]:
        """Every metric by lm-eval's own aggregation; an overflow (of a perplexity) is infinite."""
        return {key: self._aggregate(key, [values[place] for place in sorted(values)]) for key, values in raw.items()}

    def _aggregate(self, key: str, values: list[Any]) -> float:
        try:
            return float(self._aggregation(key)(values))
        except OverflowError:
            return math.inf
        except Exception as error:
            do = f"look at metric_list of the task, {own_place(error)}".rstrip(", ")
            raise FitnessError(f"task {self.name!r}: its {key} cannot be aggregated: {reason(error)}", do) from error

    def items(self, raw: RawValues) -> dict[str, NDArray[np.float64]]:
        """Per-item values of metrics for which one item has a value; NaN where an item was not run."""
        arrays = {}
        for key, values in raw.items():
            item = _item_value(self._aggregation(key), next(iter(values.values())))
            if item is not None:
                arrays[key] = np.full(len(self.documents), np.nan)
                arrays[key][list(values)] = [item(value) for value in values.values()]
        return arrays

    def log_metric(self, key: str, raw: RawValues, value: float) -> float:
        """The logarithm of a metric; of a perplexity from its log-likelihoods, which do not overflow.

        On some of the items a mean counts half an item's worth of all at least, as in estimates: that these few gave
        nothing does not mean that all would. On all items there is no logarithm of 0.
        """
        values = [raw[key][place] for place in sorted(raw[key])]
        if self._aggregation(key) is stock.perplexity:
            return -float(stock.mean(values))
        if self._aggregation(key) is stock.weighted_perplexity:
            return -float(stock.weighted_mean(values))
        if value >= 0 and len(values) < len(self.documents):
            value = max(value, 0.5 / len(self.documents))
        if not value > 0:
            raise FitnessError(f"metric {self.name}/{key} is {value}", "a number above 0 for transform: log")
        return math.log(value)

    def _aggregation(self, key: str) -> Callable[[list[Any]], Any]:
        function: Callable[[list[Any]], Any] = self.task.aggregation().get(key.split(",")[0], stock.mean)
        return function


def _item_value(aggregation: Callable[..., Any], example: Any) -> Callable[[Any], float] | None:
    """How one item's raw value becomes a number, in the direction of the metric; None where there is no such number."""
    if aggregation is stock.perplexity:
        return lambda loglikelihood: -float(loglikelihood)  # nats
    if aggregation in (stock.weighted_perplexity, stock.bits_per_byte):
        return lambda pair: -float(pair[0]) / max(pair[1], 1) / math.log(2)  # bits per word or byte
    if aggregation is stock.brier_score:
        return lambda pair: float(np.sum((pair[1] - np.eye(len(pair[1]))[pair[0]]) ** 2))
    if aggregation in (stock.f1_score, stock.matthews_corrcoef):
        return lambda pair: float(pair[0] == pair[1])
    return float if isinstance(example, int | float | np.number | np.bool_) else None


def has_code(task: Any) -> bool:
    """Whether a task brings Python functions: those of its YAML, or a class of its own."""
    if type(task) is not ConfigurableTask:
        return True
    todo: list[Any] = [vars(task.config)]
    while todo:
        value = todo.pop()
        if callable(value):
            return True
        if isinstance(value, Mapping):
            todo += value.values()
        elif isinstance(value, list | tuple):
            todo += value
    return False


_RENDERINGS = ("doc_to_text", "doc_to_target", "doc_to_choice")
_COUNTS = ("count_words", "count_bytes")


def forget_renderings(task: Any) -> None:
    """Make a task render its documents anew, before it is built again."""
    for name in (*_RENDERINGS, *_COUNTS):
        vars(task).pop(name, None)


def _remember_renderings(task: Any) -> None:
    """Make what a task renders from a document, or counts in a text, come from memory the second time."""
    for name in _RENDERINGS:
        if hasattr(task, name):
            setattr(task, name, _by_identity(getattr(task, name)))
    for name in _COUNTS:
        if hasattr(task, name):
            setattr(task, name, functools.cache(getattr(task, name)))


def _by_identity(render: Callable[..., Any]) -> Callable[..., Any]:
    remembered: dict[int, tuple[Any, Any]] = {}  # the document is kept, so that its identity is not used again

    def rendered(doc: Any, *overrides: Any, **named: Any) -> Any:
        if overrides or named:
            return render(doc, *overrides, **named)
        if id(doc) not in remembered:
            remembered[id(doc)] = (doc, render(doc))
        return remembered[id(doc)][1]

    return rendered


def all_items(scorers: Mapping[str, TaskScorer], raw: Mapping[str, RawValues]) -> dict[str, NDArray[np.float64]]:
    """``task/metric`` -> per-item values of all tasks."""
    return _flat((task, scorers[task].items(values)) for task, values in raw.items())


def all_metrics(scorers: Mapping[str, TaskScorer], raw: Mapping[str, RawValues]) -> dict[str, float]:
    """``task/metric`` -> aggregated value of all tasks."""
    return _flat((task, scorers[task].metrics(values)) for task, values in raw.items())


def _flat(tables: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    return {f"{task}/{key}": value for task, table in tables for key, value in table.items()}
