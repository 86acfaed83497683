"""Scores of several models that are one module: of adapters of one base, say."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from evomerge.candidate import Part
from evomerge.errors import FitnessError
from evomerge.protocols import Scores
from fitness._lm_eval.scored import Scored, scores

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel, Several
    from fitness._lm_eval.loading import TaskSet
    from fitness._lm_eval.objective import WeighedTerm
    from fitness._lm_eval.prepared import Prepared


def several_scores(
    ready: Prepared,
    model: LoadedModel,
    several: Several,
    part: Part | None,
    tasks: TaskSet,
    terms: Sequence[WeighedTerm],
    generators: AbstractContextManager[Any],
    response_length: bool,
) -> list[Scores | FitnessError]:
    """Of each model its scores, or why it has none; each with its share of the seconds in model calls.

    Args:
        ready, part, tasks, terms, generators, response_length: as for `scored.scores`.
        model: with the module.
        several: the models that it is.
    """
    found: list[Scores | FitnessError] = []
    for raw, seconds, tokens in ready.score_several(model, several, part):
        if isinstance(raw, FitnessError):
            found.append(raw)
            continue
        own = raw, 0.0, tokens
        try:
            scored, _ = scores(ready, functools.partial(_given, own), part, tasks, terms, generators, response_length)
        except FitnessError as error:
            found.append(error)
        else:
            found.append(replace(scored, seconds={"model": seconds, "other": scored.seconds["other"]}))
    return found


def _given(own: Scored, _: Prepared) -> Scored:
    return own
