"""What an evaluation says of a candidate that was scored, or that was not."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.errors import DeviceLostError, EvomergeError, FitnessError, InfeasibleError, one_line
from evomerge.merge.resident.merge_count import MergeCount
from evomerge.models.memory import device_lost, lost
from evomerge.protocols import Scores


def success(
    candidate: int, split: Split, scores: Scores, seconds: Mapping[str, float], count: MergeCount
) -> Evaluation:
    """The evaluation of a candidate that was scored.

    Args:
        candidate: its id.
        split: on which items.
        scores: what the fitness said.
        seconds: that it took, by what.
        count: of its merge.
    """
    return Evaluation(
        candidate,
        "ok",
        split,
        objectives=scores.objectives,
        metrics=scores.metrics,
        items=scores.items,
        seconds=seconds,
        merge=count.as_dict(),
        responses=scores.responses,
        tokens=scores.tokens,
    )


def failure(candidate: Candidate, split: Split, error: Exception, start: float) -> Evaluation:
    """The evaluation of a candidate that raised.

    Args:
        candidate: it.
        split: on which items.
        error: what was raised.
        start: when it began, by the clock of `time.perf_counter`.

    Raises:
        DeviceLostError: it is not the candidate's fault.
    """
    seconds = {"merge": 0.0, "model": 0.0, "other": time.perf_counter() - start}
    outcome = Evaluation(candidate.id, "failed", split, seconds=seconds)
    if isinstance(error, InfeasibleError):
        return replace(outcome, status="infeasible", error=str(error))
    if isinstance(error, DeviceLostError):  # an engine's
        raise error
    if device_lost(error):
        raise lost(error) from error
    trace = "" if isinstance(error, EvomergeError) else "".join(traceback.format_exception(error))
    return replace(outcome, error=one_line(error), traceback=trace)


def require_finite(scores: Scores) -> None:
    """Raise `FitnessError` for an objective that is not finite."""
    for name, value in scores.objectives.items():
        if not math.isfinite(value):
            raise FitnessError(f"objective {name!r} is {value}", "scores must be finite")
