"""Where a search space says that it is good to begin: its starts, as a warm start of the first phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from evomerge.candidate import Candidate, Evaluation
from evomerge.genomes.genome import Genome
from evomerge.objectives import Objective
from evomerge.protocols import SearchSpace
from evomerge.recipes.pool_info import PoolInfo, baseline_recipes
from evomerge.recipes.recipe import Recipe
from evomerge.search.warm_start import WarmStart


def compared_recipes(pool: PoolInfo | None, space: SearchSpace) -> dict[str, Recipe]:
    """What winners are compared with, by name: the space's own baselines, else the pool's models and their average."""
    if pool is None:
        return {}
    own: Mapping[str, Recipe] = getattr(space, "baselines", {})
    return dict(own) or baseline_recipes(pool)


def begin_with(
    warm: Callable[[SearchSpace, int], WarmStart],
    space: SearchSpace,
    number: int,
    objective: Objective,
    scores: Mapping[str, Mapping[str, float]],
    scored: Sequence[tuple[Candidate, Evaluation]] = (),
) -> WarmStart:
    """What a phase begins with; the first with the space's starts, where the user names no earlier run and no recipe.

    Args:
        warm: what earlier runs and recipes of the user's say of a space and the number of its phase.
        space, number: of the phase.
        objective: by which the best start is chosen.
        scores: objectives of the baselines, by name.
        scored: the baselines with all that came of them, to be told; none where a search goes on, which has told them.
    """
    found = warm(space, number)
    starts: Mapping[str, Genome] = {} if number else getattr(space, "starts", {})
    if not starts or found.x0 is not None:
        return found
    known = {name: objective.gain(scores[name][objective.name]) for name in starts if name in scores}
    told = [
        (starts[str(candidate.name)], evaluation, f"baseline {candidate.name}")
        for candidate, evaluation in scored
        if candidate.name in known
    ]
    again = [genome for name, genome in starts.items() if name not in known]
    return WarmStart(told, again, starts[max(known, key=lambda name: known[name])] if known else again[0])
