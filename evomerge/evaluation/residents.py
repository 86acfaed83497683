"""What holds a worker's model: this process, or an engine."""

from __future__ import annotations

from typing import Any, Protocol

from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.caching import open_shared
from evomerge.evaluation.engine_settings import EngineSettings, spread_refusal
from evomerge.merge.planning.slice_plan import Plan
from evomerge.merge.resident.merge_count import MergeCount
from evomerge.merge.resident.merge_progress import MergeProgress
from evomerge.merge.resident.model import Resident
from evomerge.merge.resident.spread import SPREAD
from evomerge.models.loaded import LoadedModel
from evomerge.models.pool import Pool


class Held(Protocol):
    """A model that is moved from plan to plan.

    One that takes several candidates at once has an attribute ``adapter_models`` that is an `AdapterModels`. One in
    which a candidate that could not be scored may leave something behind has a method ``recover() -> None``.

    Attributes:
        model: what a fitness scores.
        progress: how far it is on its way to a plan.
        full: whether the next plans are held in full precision, whatever is quantised otherwise.
    """

    model: LoadedModel
    progress: MergeProgress
    full: bool

    def apply(self, plan: Plan) -> MergeCount:
        """Make the model the one that a plan describes."""

    def use_room(self) -> None:
        """Divide what memory is left after a candidate was scored."""

    def spare_memory(self) -> bool:
        """Let go of what is only kept to save time; says whether there was anything."""

    def close(self) -> None:
        """Give all memory back."""


class AdapterModels(Protocol):
    """Candidates that are adapters of the model that is held, several of them at once.

    Attributes:
        at_once: how many.
    """

    at_once: int

    def find(self, plan: Plan) -> Any | None:
        """The adapter that a plan is; ``None`` for one that has to be merged."""

    def begin(self) -> None:
        """Let the model be the one that adapters are for."""

    def recover(self) -> None:
        """Forget what a candidate has left that could not be scored."""

    def load(self, adapter: Any) -> tuple[LoadedModel, MergeCount]:
        """The model that an adapter makes; it stays until `at_once` others have been loaded."""


def adapter_models_of(held: Held) -> AdapterModels | None:
    """What takes several candidates at once; ``None`` where each is merged."""
    found: AdapterModels | None = getattr(held, "adapter_models", None)
    return found


def hold(pool: Pool, device: str, cache: CacheSettings, engine: EngineSettings) -> Held:
    """Build what holds the model.

    Args:
        pool: the source models.
        device: one that `choose_device` gave.
        cache: what to keep of merged slices.
        engine: what scores.

    Raises:
        ConfigError, EngineError: vLLM cannot be started, or computes something else than transformers; the model
            cannot be quantised there.
        ServerError, RecipeError: a server does not take the pool's adapters, or models are no adapters of one base.
        PoolError: transformers cannot load the model.
    """
    if engine.is_vllm:
        engine.require_installed()
        from evomerge.evaluation.vllm_check import check_engine
        from evomerge.evaluation.vllm_resident import VllmResident

        held = VllmResident(pool, device, engine, cache)
        try:
            check_engine(held)
        except BaseException:
            held.close()
            raise
        return held
    if engine.quantise is not None:
        engine.require_installed()
        if device == SPREAD:
            raise spread_refusal(engine.quantise)
    if engine.server is not None:
        engine.require_installed()
        from evomerge.evaluation.server_check import check_server
        from evomerge.evaluation.server_resident import ServerResident

        served = ServerResident(pool, engine.server)
        try:
            check_server(served)
        except BaseException:
            served.close()
            raise
        return served
    shared = open_shared(cache, pool, "cuda" if device == SPREAD else device)
    return Resident(
        pool,
        device,
        cache=cache.memory,
        shared=shared,
        workers=cache.workers,
        sharing=cache.sharing,
        gpu=cache.gpu,
        states=cache.states,
        quantise=engine.quantise,
    )
