"""Whether a search's candidates go to vLLM as adapters, several at once, or are merged one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.errors import RecipeError
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.protocols import Fitness, SearchSpace
from evomerge.session.engines import some_plans
from evomerge.utils.memory import MemoryPart

if TYPE_CHECKING:
    from evomerge.models.pool import Pool

_GENOMES = 4
"""How many of a search space are looked at, its start included: each reads the adapters' factors."""


@dataclass(frozen=True)
class AdapterPlan:
    """How a search's candidates go to vLLM.

    Attributes:
        at_once: how many as adapters; 0 where each is merged.
        rank: the largest that one may have.
        nbytes: that the engine keeps for all of them.
        why: each is merged; empty where they go as adapters.
    """

    at_once: int = 0
    rank: int = 0
    nbytes: int = 0
    why: str = ""

    @property
    def memory(self) -> list[MemoryPart]:
        """What the engine takes on a processor for adapters, beside its weights."""
        if not self.at_once:
            return []
        what = f"{self.at_once} adapters of rank {self.rank}, in use and as they were loaded"
        return [MemoryPart("adapters", 2 * self.nbytes, what, "evaluator.adapters_at_once")]

    def __str__(self) -> str:
        """One line for people."""
        if self.at_once:
            return f"as adapters of rank {self.rank} at most, {self.at_once} at once"
        return f"merged slice by slice, one at a time: {self.why}"


def plan_adapters(
    engine: EngineSettings,
    pool: Pool,
    spaces: Sequence[SearchSpace],
    keys: Sequence[str],
    fitnesses: Sequence[Fitness],
) -> AdapterPlan | None:
    """How candidates go to vLLM; ``None`` where another engine scores.

    They go as adapters where the pool is a base and adapters of it, all genomes that are looked at describe adapters,
    and the fitnesses score several models at once. A candidate that is none is merged all the same.

    Args:
        engine: that scores.
        pool: the source models.
        spaces, keys: search spaces, and where they stand in the configuration.
        fitnesses: all that score.
    """
    if not engine.is_vllm:
        return None
    if not engine.adapters:
        return AdapterPlan(why="evaluator.adapters_at_once is 0")
    for fitness in fitnesses:
        if not hasattr(fitness, "run_together"):
            return AdapterPlan(why=f"{type(fitness).__name__} scores one model at a time")
    from evomerge.evaluation.fitting_adapters import FittingAdapters
    from evomerge.merge.execution.engine import TORCH_DTYPES

    try:
        fitting = FittingAdapters(pool, engine.arguments.get("max_lora_rank"))
    except RecipeError as error:
        return AdapterPlan(why=error.given)
    for space, key in zip(spaces, keys, strict=True):
        for plan in some_plans(space, pool, _GENOMES):
            refusal = fitting.refusal(plan)
            if refusal:
                return AdapterPlan(why=f"{key} describes models that are no adapters: {refusal}")
    nbytes = engine.adapters * fitting.nbytes(TORCH_DTYPES[pool.info.dtype].itemsize)
    return AdapterPlan(engine.adapters, fitting.rank, nbytes)
