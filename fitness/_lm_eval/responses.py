"""What a model answered to every document, in words and as lm-eval writes it down."""

from __future__ import annotations

import contextlib
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.evaluator_utils import _process_results
from lm_eval.utils import handle_non_serializable, hash_string

from evomerge.candidate import LIKELIHOOD
from fitness._lm_eval.isolation import quietly
from fitness._lm_eval.loading import TaskSet
from fitness._lm_eval.scoring import RawValues, TaskScorer

MOST = 3000
"""Documents of all tasks together whose responses are kept."""


def responses(scorers: Mapping[str, TaskScorer], raw: Mapping[str, RawValues]) -> dict[str, list[str]]:
    """What the model that was scored last answered to the first documents of every task; empty where it was not asked.

    Args:
        scorers: by task, with the responses in their instances.
        raw: what was scored: instances of other documents still hold what another model answered.
    """
    share = max(1, MOST // max(1, len(scorers)))
    found = {}
    for name, scorer in scorers.items():
        asked = _places(raw.get(name, {}))
        documents = scorer.documents[:share]
        found[name] = [_in_words(scorer.task, d) if place in asked else "" for place, d in enumerate(documents)]
    return found


def samples(scorer: TaskScorer, raw: RawValues) -> list[dict[str, Any]]:
    """One task's documents with prompts, responses and metrics, as ``lm_eval --log_samples`` has them."""
    found = []
    places = sorted(_places(raw))
    for filter_name in scorer.documents[places[0]][0].filtered_resps if places else ():
        for place in places:
            instances = scorer.documents[place]
            filtered = [instance.filtered_resps[filter_name] for instance in instances]
            document = instances[0].doc
            metrics = scorer.task.process_results(document, filtered)
            target = scorer.task.doc_to_target(document)
            written = json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False)
            found.append(
                {
                    "doc_id": instances[0].doc_id,
                    "doc": document,
                    "target": target,
                    "arguments": [instance.args for instance in instances],
                    "resps": [instance.resps for instance in instances],
                    "filtered_resps": filtered,
                    "filter": filter_name,
                    "metrics": list(metrics),
                    "doc_hash": hash_string(written),
                    "prompt_hash": hash_string(instances[0].arguments[0]),
                    "target_hash": hash_string(str(target)),
                    **metrics,
                }
            )
    return found


def stock_results(
    tasks: TaskSet, scorers: Mapping[str, TaskScorer], raw: Mapping[str, RawValues], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What `lm_eval.simple_evaluate` returns for the model that was scored last, its samples included.

    Args:
        tasks: loaded.
        scorers, raw: of the evaluation.
        settings: how it was scored: goes into ``config``.
    """
    gathered: Any = {}
    for name, scorer in scorers.items():
        values: dict[tuple[str, str], list[Any]] = defaultdict(list)
        for key, by_place in raw[name].items():
            metric, _, filter_name = key.partition(",")
            values[metric, filter_name or "none"] = [by_place[place] for place in sorted(by_place)]
        gathered[name] = {"task": scorer.task, "raw_metrics": values, "logged_samples": samples(scorer, raw[name])}
    with quietly(), contextlib.redirect_stdout(io.StringIO()):  # it says that it bootstraps
        found = _process_results(gathered, tasks.groups)
    results: dict[str, Any] = dict(found._to_eval_results(samples=found.samples))
    results["config"] = {**settings}
    return results


def _places(raw: RawValues) -> set[int]:
    return {place for values in raw.values() for place in values}


def _in_words(task: Any, instances: Sequence[Any]) -> str:
    """A generated text; of choices the likeliest; else the log-likelihood."""
    first = instances[0]
    if not first.resps:
        return ""
    if first.request_type == "generate_until":
        return str(first.resps[0])
    if first.request_type == "loglikelihood_rolling":
        return f"{LIKELIHOOD}{first.resps[0]:.2f}"
    choices = task.doc_to_choice(first.doc) if task.OUTPUT_TYPE == "multiple_choice" else None
    if not choices or len(choices) > len(instances):
        value, greedy = first.resps[0]
        return f"{LIKELIHOOD}{value:.2f}; greedy decoding gives {'it' if greedy else 'something else'}"
    values = [instance.resps[0][0] for instance in instances[: len(choices)]]
    return str(choices[values.index(max(values))])
