"""Which candidates vLLM's engine takes as adapters, beside others in one batch. Imports nothing of vLLM."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from evomerge.errors import RecipeError
from evomerge.evaluation.engine_settings import RANKS
from evomerge.merge.adapters.exact import ADAPTER_METHODS, ExactAdapters
from evomerge.merge.adapters.places import Kind
from evomerge.merge.methods.low_rank import Factors
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan
from evomerge.models.checkpoints.folding import FoldedCheckpoint
from evomerge.models.pool import Pool


@dataclass(frozen=True)
class FoundAdapter:
    """A candidate that is an adapter.

    Attributes:
        key: of its content: equal keys, equal weights.
        factors: by module, as `ExactAdapters.of` gives them; never empty.
        slices, changed: of the model, and those of them whose plan is another than the base's own.
    """

    key: str
    factors: Mapping[str, tuple[Factors, Kind]]
    slices: int
    changed: int


class FittingAdapters:
    """Adapters that an engine takes, of a pool whose models are adapters of one base.

    Args:
        pool: the source models.
        rank: the largest that a candidate may have; ``None`` for that of a sum of all adapters of the pool.

    Attributes:
        exact: what a plan adds to the base.
        base: the plan of the base itself.
        targets: the last parts of the names of all modules that the pool's adapters change.
        rank: the largest that a candidate may have, one of `RANKS`.

    Raises:
        RecipeError: the pool is none of adapters that an engine takes; names the tensor and why.
    """

    def __init__(self, pool: Pool, rank: int | None = None) -> None:
        self.exact = ExactAdapters(pool)
        names = [name for name, _ in pool.info.refs if isinstance(pool.checkpoints[name], FoldedCheckpoint)]
        if not names:
            raise RecipeError("no model of the pool is an adapter", "models given as BASE+ADAPTER")
        plain = next((name for name, _ in pool.info.refs if name not in names), None)
        if plain is None:
            given = f"the pool has adapters and not their base, {self.exact.base.address}"
            raise RecipeError(given, "the base among pool.models")
        found = self.exact.of(make_plan(pool.info.linear({name: 1 / len(names) for name in names}), pool))
        if not found:
            raise RecipeError("the pool's adapters change nothing", "adapters with weights")
        whole: Any = self.exact.places.module
        for module in found:
            if whole.get_submodule(module) is whole.get_output_embeddings():
                raise RecipeError(
                    f"an adapter of the pool changes the head, {module}",
                    "vLLM leaves an adapter of the head out of the log-likelihoods of prompts, or ends there",
                )
        self.targets = sorted({module.rpartition(".")[2] for module in found})
        needed = max(own.rank for own, _ in found.values())
        if rank is None and needed > RANKS[-1]:
            raise RecipeError(
                f"a sum of the pool's adapters has rank {needed}",
                f"at most {RANKS[-1]}, which vLLM keeps room for",
            )
        self.rank = rank if rank is not None else next(own for own in RANKS[1:] if own >= needed)
        self._width = sum(own.b.shape[0] + own.a.shape[1] for own, _ in found.values())
        module, (factors, kind) = next(iter(found.items()))
        rows, columns = factors.b.shape[0], factors.a.shape[1]
        # Not no adapter: beside requests with one, those without get that of another on processors (vLLM 0.32).
        self._nothing = {module: (Factors(torch.zeros(rows, 1), torch.zeros(1, columns)), kind)}
        self.base = make_plan(pool.info.linear({plain: 1.0}), pool)
        self._own_keys = {entry.slice: entry.key for entry in self.base.slices}

    def nbytes(self, itemsize: int) -> int:
        """Bytes that an adapter of the largest rank takes, in numbers of so many bytes."""
        return self._width * self.rank * itemsize

    @torch.no_grad()
    def of(self, plan: Plan) -> FoundAdapter:
        """The adapter that a plan describes; of the base one that adds nothing.

        Raises:
            RecipeError: it is none by its recipe alone, or has too large a rank.
        """
        found = self.exact.of(plan)
        for module, (own, _) in found.items():
            if own.rank > self.rank:
                given = f"{module} has rank {own.rank} and the engine takes adapters of rank {self.rank} at most"
                raise RecipeError(given, ADAPTER_METHODS, "set evaluator.engine_args.max_lora_rank")
            if module.rpartition(".")[2] not in self.targets:
                raise RecipeError(f"{module} is changed, which no adapter of the pool does", ADAPTER_METHODS)
        key = hashlib.sha256("".join(entry.key for entry in plan.slices).encode()).hexdigest()
        changed = sum(self._own_keys.get(entry.slice) != entry.key for entry in plan.slices)
        return FoundAdapter(key, found or self._nothing, len(plan.slices), changed)

    def refusal(self, plan: Plan) -> str:
        """Why a plan is no such adapter; empty where it is one."""
        try:
            self.of(plan)
        except RecipeError as error:
            return error.given
        return ""
