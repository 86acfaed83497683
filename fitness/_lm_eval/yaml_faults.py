"""What of a task's YAML is to blame when lm-eval cannot load it: the key, and what would have been taken."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.registry import AGGREGATION_REGISTRY, FILTER_REGISTRY, METRIC_REGISTRY
from lm_eval.api.task import ConfigurableTask

from evomerge.errors import FitnessError, nearest

_SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")
_FILTERS = "a list of {name: NAME, filter: [{function: ...}]}"
_METRICS = "a list of {metric: NAME, aggregation: ..., higher_is_better: ...}"


def yaml_fault(config: Mapping[str, Any], label: str, error: BaseException) -> FitnessError | None:
    """The fault of a task's configuration that lm-eval tripped over; ``None`` where none is seen.

    Only for a task that could not be loaded: some of what is named here would be taken elsewhere.

    Args:
        config: as its YAML has it; functions are their paths.
        label: of the task, for messages.
        error: what lm-eval raised.
    """
    for faults in (_data_faults, _filter_faults, _metric_faults, _prompt_faults):
        for key, given, allowed in faults(config):
            do = f"correct {key.rpartition(' ')[2]} in the task's YAML"
            return FitnessError(f"task {label!r}: {key} is {_shown(given)}", allowed, do)
    if isinstance(error, IndexError) and config.get("doc_to_choice") is not None:
        return FitnessError(
            f"task {label!r}: the target of its first document is none of its choices",
            "the number of a choice, from 0, or its text",
            "look at doc_to_target and doc_to_choice of the task",
        )
    return None


def require_metrics(name: str, task: Any) -> None:
    """Raise `FitnessError` for metrics and ways to aggregate that lm-eval does not have: they fail after scoring."""
    functions = getattr(task, "_metric_fn_list", {})
    scores = type(task).process_results is ConfigurableTask.process_results and task.config.process_results is None
    for metric, function in functions.items():
        if scores and not callable(function):
            raise FitnessError(f"task {name!r}: there is no metric {metric!r}", nearest(metric, list(METRIC_REGISTRY)))
    entries = getattr(task.config, "metric_list", None)
    for entry in entries if isinstance(entries, Sequence) else []:
        given = entry.get("aggregation") if isinstance(entry, Mapping) else None
        if given is None or callable(given) or (isinstance(given, str) and given in AGGREGATION_REGISTRY):
            continue
        known = nearest(str(given), list(AGGREGATION_REGISTRY))
        raise FitnessError(f"task {name!r}: aggregation of {entry.get('metric')} is {_shown(given)}", known)


_Fault = tuple[str, Any, str]


def _data_faults(config: Mapping[str, Any]) -> Iterator[_Fault]:
    if not isinstance(config.get("dataset_path", ""), str):
        yield "dataset_path", config["dataset_path"], "a name of the hub, or a reader: json, csv"
    given = config.get("dataset_kwargs")
    arguments = given if isinstance(given, Mapping) else {}
    files = arguments.get("data_files")
    for file in data_files(files):
        for path in glob.glob(str(Path(str(arguments.get("data_dir") or ".")) / file)):
            if os.path.isfile(path) and not os.path.getsize(path):
                yield "data_files", f"{path}, which is empty", "a file with at least one document"
    for key in _SPLITS:
        split = config.get(key)
        if split is None:
            continue
        if isinstance(files, Mapping) and not (isinstance(split, str) and split in files):
            yield key, split, f"a split of data_files; {nearest(str(split), map(str, files))}"
        elif not isinstance(split, str):
            yield key, split, "the name of a split"


def data_files(value: Any) -> Iterable[str]:
    """The names in a value of ``data_files``: one, several, or some for each split."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from data_files(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from data_files(inner)


def _filter_faults(config: Mapping[str, Any]) -> Iterator[_Fault]:
    given = config.get("filter_list")
    if given is None:
        return
    if not isinstance(given, list):
        yield "filter_list", given, _FILTERS
        return
    for entry in given:
        steps = entry.get("filter") if isinstance(entry, Mapping) and "name" in entry else None
        if not isinstance(steps, list):
            yield "filter_list", given, _FILTERS
            return
        for step in steps:
            name = step.get("function") if isinstance(step, Mapping) else step
            if not isinstance(name, str) or (name not in FILTER_REGISTRY and os.sep not in name):
                yield "a function of filter_list", name, nearest(str(name), list(FILTER_REGISTRY))


def _metric_faults(config: Mapping[str, Any]) -> Iterator[_Fault]:
    given = config.get("metric_list")
    if given is None:
        return
    if not isinstance(given, list) or not all(isinstance(entry, Mapping) and "metric" in entry for entry in given):
        yield "metric_list", given, _METRICS
        return
    for entry in given:
        name = entry["metric"]
        own = callable(name) or (isinstance(name, str) and (name in METRIC_REGISTRY or os.sep in name))
        if not own and not entry.get("hf_evaluate") and config.get("process_results") is None:
            yield "a metric of metric_list", name, nearest(str(name), list(METRIC_REGISTRY))


def _prompt_faults(config: Mapping[str, Any]) -> Iterator[_Fault]:
    choices = config.get("doc_to_choice")
    if isinstance(choices, int | float) or (
        isinstance(choices, list) and not all(isinstance(choice, str) and choice for choice in choices)
    ):
        yield "doc_to_choice", choices, "a field of the documents, a template, or a list of texts"
    arguments = config.get("generation_kwargs")
    if arguments is not None and not isinstance(arguments, Mapping):
        yield "generation_kwargs", arguments, "a mapping such as {until: ['.'], max_gen_toks: 64}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) and " " in value else repr(value)
    return text if len(text) <= 160 else f"{text[:160]}..."
