"""The files of what models answered: for people who look at a run; nothing in a search depends on them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence

from evomerge.candidate import LIKELIHOOD, Evaluation, Items, Responses, Split
from evomerge.run.folder import RunFolder
from evomerge.run.items import MOST_BYTES, MOST_CHARACTERS
from evomerge.utils.files import read_bounded, write_text_atomic

_log = logging.getLogger(__name__)


def write_responses(folder: RunFolder, evaluation: Evaluation) -> None:
    """Write down what a model answered; that it cannot be written is no failure of the run."""
    if not evaluation.responses:
        return
    path = folder.responses_file(evaluation.candidate, evaluation.split)
    try:
        found = {task: [_short(text) for text in texts] for task, texts in evaluation.responses.items()}
        text = json.dumps({"evomerge_responses": 1, "tasks": found}, ensure_ascii=False)
        if len(text) < MOST_BYTES // 4:  # of four bytes each at most
            write_text_atomic(path, text + "\n", sync=False)
        else:
            _log.warning("%s was not written: more than %d MB of responses", path, MOST_BYTES // 4 // 2**20)
    except (OSError, TypeError, ValueError) as error:
        _log.warning("%s was not written: %s: %s", path, type(error).__name__, error)


def read_responses(folder: RunFolder, candidate: int, split: Split) -> Mapping[str, Sequence[str]]:
    """Responses by task, in document order; empty where there are none, or `write_responses` did not write the file."""
    try:
        content = json.loads(read_bounded(folder.responses_file(candidate, split), MOST_BYTES, follow=False))
        tasks = content["tasks"] if content["evomerge_responses"] == 1 else {}
        return {str(task): [str(text) for text in texts] for task, texts in tasks.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def unanswered(models: Mapping[str, tuple[Responses, Items]], better: Sequence[str]) -> str:
    """A line on models that score 0 on every item of a task, with two of one's answers; empty where there are none.

    That one model of several knows nothing of a task is no surprise; that all do, or that one knows nothing of any, is.

    Args:
        models: by name, what each answered by task, and its per-item scores by ``task/metric``.
        better: the metrics of which more is better; empty for all.
    """
    zero = {name: _all_wrong(*found, better) for name, found in models.items()}
    for name, (responses, _) in models.items():
        tasks = [task for task in zero[name] if all(task in others for others in zero.values())]
        if tasks:
            who = "every model of the pool scores" if len(models) > 1 else f"{name} scores"
        elif zero[name] and len(zero[name]) == len(responses):
            who, tasks = f"{name} scores", list(zero[name])
        else:
            continue
        shown = " and ".join(repr(" ".join(text.split())[:_SHOWN]) for text in responses[tasks[0]][:2])
        return f"{who} 0 on all items of {_listed(tasks)}; in {tasks[0]}, {name} answers {shown}"
    return ""


def _all_wrong(responses: Responses, items: Items, better: Sequence[str]) -> list[str]:
    found = []
    for task, texts in responses.items():
        if all(text.startswith(LIKELIHOOD) for text in texts):  # nothing was asked but how likely a text is
            continue
        scores = [
            values for name, values in items.items() if name.startswith(f"{task}/") and (not better or name in better)
        ]
        if scores and len(scores[0]) >= _FEWEST and not any(values.any() for values in scores):
            found.append(task)
    return found


def _listed(tasks: Sequence[str]) -> str:
    return ", ".join(tasks[:3]) + (f" and {len(tasks) - 3} more tasks" if len(tasks) > 3 else "")


_FEWEST = 4
"""Items of a task below which 0 on all of them says nothing."""

_SHOWN = 120


PICTURE = "data:image/"
"""What a picture as an answer begins with."""

_LARGEST_PICTURE = 256 * 1024


def _short(text: str) -> str:
    """Of a long answer the beginning and the end, where the result is; a small picture is kept whole."""
    if text.startswith(PICTURE):
        return text if len(text) <= _LARGEST_PICTURE else ""
    half = MOST_CHARACTERS // 2
    return text if len(text) <= MOST_CHARACTERS else f"{text[: half - 1]} … {text[1 - half :]}"
