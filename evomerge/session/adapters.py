"""Whether a search's candidates go to vLLM as adapters, several at once, or are merged one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.config.construct import to_builtin
from evomerge.errors import RecipeError
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.protocols import Fitness, SearchSpace
from evomerge.session.engines import some_plans
from evomerge.utils.memory import MemoryPart

if TYPE_CHECKING:
    from evomerge.models.pool import Pool

_GENOMES = 4
"""How many of a search space are looked at, its start included: each reads the adapters' factors."""

FULL_PROCESSOR = 16
"""Prompts of a candidate that keep a processor busy without those of others (docs/engines.md has the figures)."""


@dataclass(frozen=True)
class AdapterPlan:
    """How a search's candidates go to vLLM.

    Attributes:
        at_once: how many as adapters; 0 where each is merged.
        rank: the largest that one may have.
        nbytes: that the engine keeps for all of them.
        why: each is merged; empty where they go as adapters.
        chosen: whether they are merged because that is faster: nobody said so, and they could go as adapters.
    """

    at_once: int = 0
    rank: int = 0
    nbytes: int = 0
    why: str = ""
    chosen: bool = False

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
    evaluator: Any = None,
) -> AdapterPlan | None:
    """How candidates go to vLLM; ``None`` where another engine scores.

    They go as adapters where the pool is a base and adapters of it, all genomes that are looked at describe adapters,
    and the fitnesses score several models at once. A candidate that is none is merged all the same.

    Args:
        engine: that scores.
        pool: the source models.
        spaces, keys: search spaces, and where they stand in the configuration.
        fitnesses: all that score, that of the search first.
        evaluator: its node, by which each is merged where that is faster and nobody said how many at once; ``None``
            where that is not asked, in a run that goes on.
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
    if engine.adapters_open and (prompts := _prompts_on_processor(fitnesses[0], evaluator)) >= FULL_PROCESSOR:
        why = f"a processor is busy with the {prompts:,} prompts of one, and merging it is faster than its adapter"
        return AdapterPlan(why=f"{why} (evaluator.adapters_at_once=8 if it is not)", chosen=True)
    nbytes = engine.adapters * fitting.nbytes(TORCH_DTYPES[pool.info.dtype].itemsize)
    return AdapterPlan(engine.adapters, fitting.rank, nbytes)


def _prompts_on_processor(fitness: Any, evaluator: Any) -> int:
    """Prompts of a candidate, where it is scored on processors for all that is known; 0 where not, or nobody counts."""
    from evomerge.evaluation.devices import computes_on_host

    node = to_builtin(evaluator)
    if not isinstance(node, Mapping) or not computes_on_host(node):
        return 0
    if node.get("address") and node.get("device", "auto") == "auto" and node.get("gpus_per_worker") is None:
        return 0  # of the cluster's nodes nothing is known
    count: Callable[[], Mapping[str, int]] = getattr(fitness, "work", dict)
    return count().get("texts", 0)
