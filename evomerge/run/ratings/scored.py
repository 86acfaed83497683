"""From what raters gave to an evaluation, and what a search remembers of a candidate until it was rated."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Evaluation
from evomerge.run.ratings.bradley_terry import by_comparison
from evomerge.run.ratings.pairs import Pairs, shares_of
from evomerge.run.ratings.rules import METRIC, WHOLE, RatingRules
from evomerge.run.ratings.sheets import MOST_BYTES
from evomerge.utils.files import read_bounded, write_text_atomic


def rated(
    evaluation: Evaluation, rules: RatingRules, scores: Mapping[str, Sequence[float]], pairs: Pairs | None = None
) -> Evaluation:
    """The evaluation with what people say of it: the mean of the raters, then of items, then of tasks.

    Args:
        evaluation: of the candidate, without scores of people.
        rules: what was asked.
        scores: by rater, by item; of a candidate as a whole one each; empty for the first candidate of pairs.
        pairs: opponents, where pairs are rated: the objective is then the strength of the candidate, and items are what
            each comparison made of it.
    """
    if pairs is not None:
        mean = _strengths(rules, scores, pairs)
    else:
        mean = np.mean(np.array(list(scores.values()), dtype=np.float64), axis=0)
    items, metrics = dict(evaluation.items), dict(evaluation.metrics)
    found: list[float] = []
    if rules.by == "candidate":
        found.append(float(mean[0]))
        metrics[f"{WHOLE}/{METRIC}"] = found[0]
    else:
        begin = 0
        for task, count in rules.counts.items():
            key = f"{task}/{METRIC}"
            items[key] = mean[begin : begin + count]
            metrics[key] = float(items[key].mean())
            found.append(metrics[key])
            begin += count
    objectives = {**evaluation.objectives, rules.objective: float(np.mean(found))}
    return replace(evaluation, objectives=objectives, metrics=metrics, items=items)


def _strengths(rules: RatingRules, scores: Mapping[str, Sequence[float]], pairs: Pairs) -> NDArray[np.float64]:
    """By item what its comparison made of the strength; the mean over tasks of their means is the strength."""
    if not pairs.against:
        return np.zeros(rules.items)
    found = by_comparison(shares_of(scores), pairs.strengths, len(scores))
    parts = np.split(found, np.cumsum(list(rules.counts.values()))[:-1])
    middle = float(np.mean([part.mean() for part in parts]))
    values: NDArray[np.float64] = found + (pairs.strength(scores) - middle)
    return values


_KEPT = ("objectives", "metrics", "seconds", "merge", "tokens")


def write_unrated(path: Path, evaluation: Evaluation) -> None:
    """Keep an evaluation until it was rated; the folder must be there."""
    content: dict[str, Any] = {name: dict(getattr(evaluation, name)) for name in _KEPT}
    content["items"] = {name: values.tolist() for name, values in evaluation.items.items()}
    content["responses"] = {task: list(texts) for task, texts in evaluation.responses.items()}
    write_text_atomic(path, json.dumps({"evomerge_unrated": 1, **content}) + "\n")


def read_unrated(path: Path, evaluation: Evaluation, rules: RatingRules) -> Evaluation | None:
    """What `write_unrated` wrote, with the candidate and the split of `evaluation`; ``None`` where it is not there."""
    try:
        content = json.loads(read_bounded(path, MOST_BYTES, follow=False))
        kept = {name: {str(k): float(v) for k, v in content[name].items()} for name in _KEPT}
        items = {str(name): np.array(values, dtype=np.float64) for name, values in content["items"].items()}
        responses = {str(task): [str(text) for text in texts] for task, texts in content["responses"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if any(len(responses.get(task, ())) != count for task, count in rules.counts.items()):
        return None
    return replace(evaluation, status="ok", items=items, responses=responses, **kept)  # type: ignore[arg-type]
