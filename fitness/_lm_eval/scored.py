"""The scores of a model, from what its documents gave."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from evomerge.candidate import Part
from evomerge.protocols import Scores
from fitness._lm_eval.loading import TaskSet
from fitness._lm_eval.objective import WeighedTerm, totals
from fitness._lm_eval.prepared import Prepared
from fitness._lm_eval.response_length import add_response_lengths
from fitness._lm_eval.responses import responses
from fitness._lm_eval.scoring import RawValues, all_items

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel

Scored = tuple[dict[str, RawValues], float, dict[str, float]]
"""Values of documents by task, seconds in model calls, and tokens."""


def scores(
    ready: Prepared,
    score: Callable[[Prepared], Scored],
    part: Part | None,
    tasks: TaskSet,
    terms: Sequence[WeighedTerm],
    generators: AbstractContextManager[Any],
    response_length: bool,
) -> tuple[Scores, dict[str, RawValues]]:
    """Score, and weigh what came of it.

    Args:
        ready: what was prepared.
        score: runs the model, or models.
        part: of the documents; ``None`` for all.
        tasks, terms: of the objectives.
        generators: what groups aggregate under.
        response_length: whether the length of responses is an objective.

    Returns:
        The scores, and the values of documents.

    Raises:
        FitnessError: a score that is not finite.
    """
    start = time.perf_counter()
    raw, seconds, tokens = score(ready)
    items = all_items(ready.scorers, raw)
    with generators if tasks.groups else nullcontext():
        found, metrics = totals(tasks, terms, ready.scorers, raw)
    if response_length:
        items |= add_response_lengths(ready.scorers, ready.session.count_tokens, part, found, metrics)
    timing = {"model": seconds, "other": time.perf_counter() - start - seconds}
    return Scores(found, metrics, items, timing, responses(ready.scorers, raw), tokens), raw


def scores_together(
    ready: Prepared,
    models: Sequence[LoadedModel],
    parts: Sequence[Part | None],
    tasks: TaskSet,
    terms: Sequence[WeighedTerm],
    generators: AbstractContextManager[Any],
    response_length: bool,
) -> tuple[list[Scores | Exception], dict[str, RawValues]]:
    """`scores` of several models of one engine that are asked at once; what one raises stands in its place.

    Args:
        ready, tasks, terms, generators, response_length: as for `scores`.
        models: with an adapter each.
        parts: each one's documents; ``None`` for all.

    Returns:
        The scores, and the values of documents of the last model that has any.
    """
    found: list[Scores | Exception] = []
    raw: dict[str, RawValues] = {}
    for score, part in zip(ready.ask_together(models, parts), parts, strict=True):
        try:
            own, raw = scores(ready, score, part, tasks, terms, generators, response_length)
        except Exception as error:
            found.append(error)
        else:
            seconds = {**own.seconds, "other": own.seconds["other"] + own.seconds["model"]}
            found.append(replace(own, seconds=seconds))
    return found, raw
