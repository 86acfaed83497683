"""A model inside vLLM's engine, moved from candidate to candidate. Only modules `vllm_...` here import vLLM."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import time
from collections.abc import Mapping
from typing import Any, cast

import torch

from evomerge.errors import ConfigError, DeviceLostError, InfeasibleError, RecipeError, reason_of
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.evaluation.fitting_adapters import FittingAdapters
from evomerge.evaluation.vllm_adapters import EngineAdapters, engine_arguments
from evomerge.evaluation.vllm_extension import POOLS, Failure, MergeExtension, PoolAddress
from evomerge.evaluation.vllm_memory import engine_memory
from evomerge.evaluation.vllm_paths import FixedLayers
from evomerge.evaluation.vllm_processor import mend_adapters, mend_scan
from evomerge.merge.execution.engine import TORCH_DTYPES
from evomerge.merge.execution.notes import Notes
from evomerge.merge.methods import METHODS
from evomerge.merge.planning.slice_plan import Plan
from evomerge.merge.resident.merge_count import MergeCount
from evomerge.merge.resident.merge_progress import MergeProgress
from evomerge.merge.resident.spread import SPREAD
from evomerge.models.loaded import LoadedModel
from evomerge.models.memory import give_back, out_of_memory
from evomerge.models.pool import Pool
from evomerge.models.tokenizers import load_tokenizer
from evomerge.recipes.slices import SliceId

_LOG = logging.getLogger(__name__)

SEED = 1234  # what lm-eval gives vLLM

_ENVIRONMENT = {
    # The engine's scheduler in this process, where its end is the worker's; workers of several GPUs have their own.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class VllmResident:
    """One engine for a whole search: its weights are changed in place, its graphs and its memory stay.

    Sources are opened and slices merged inside the engine's process (`vllm_extension`); what changed is handed to
    ``reload_weights`` in whole slices, and the prefix cache is reset. The layers are those of the model that gives the
    pool's configuration, in number and kind: other paths are infeasible (`vllm_paths`).

    Where the pool is a base and adapters of it, and `engine.adapters` is not 0, candidates that are adapters too may be
    asked for at once instead, on the base's own weights (`adapter_models`).

    Args:
        pool: the source models.
        device: as for `Resident`; ``spread`` for one engine over all GPUs, tensor-parallel.
        engine: arguments of ``vllm.LLM``, and how many adapters it takes at once.
        cache: of these, the bytes of merged slices, the workers of the machine, and those that share a GPU.

    Attributes:
        model: without a module; its `engine` is a ``vllm.LLM``.
        progress: how far the model is on its way to the plan that is applied.
        adapter_models: candidates as adapters; ``None`` where all of them are merged.

    Raises:
        ConfigError: vLLM cannot be started with these arguments.
    """

    full = True  # weights are never quantised

    def __init__(self, pool: Pool, device: str, engine: EngineSettings, cache: CacheSettings) -> None:
        self.pool, self._token = pool, secrets.token_hex(8)
        self._layers = FixedLayers(pool)
        self._held: dict[SliceId, str] = {}
        on_host = device == "cpu"
        if not on_host and not torch.device("cuda" if device == SPREAD else device).type == "cuda":
            raise ConfigError(f"evaluator.device is {device!r}", "cpu, cuda or spread, with evaluator.engine=vllm")
        gpus = len(cache.group) or (torch.cuda.device_count() if device == SPREAD else 1)
        memory = engine_memory(pool, cache, 0 if on_host else gpus)
        arguments = memory.arguments | dict(engine.arguments)
        if on_host:
            arguments.setdefault("enforce_eager", True)
        if cache.group:  # each of its processes in a bundle of the worker's placement group
            arguments["distributed_executor_backend"] = "ray"
        fitting = _fitting(pool, engine)
        try:
            more = engine_arguments(fitting, engine.adapters) if fitting is not None else {}
            self._llm = _start(pool, arguments | more, gpus, on_host)
        except ConfigError as error:
            if fitting is None:
                raise
            _LOG.warning("candidates are merged slice by slice, and not given to vLLM as adapters: %s", error.given)
            fitting = None
            _clean_up()
            self._llm = _start(pool, arguments, gpus, on_host)
        info = pool.info
        self.model = LoadedModel(
            cast(Any, None),
            load_tokenizer(pool.tokenizer_folder, pool.trust_remote_code),
            TORCH_DTYPES[info.dtype],
            torch.device("cpu" if on_host else "cuda" if device == SPREAD else device),
            str(pool.folder(info.config_from)),
            self.spare_memory,
            engine=self._llm,
        )
        self.progress = MergeProgress(Notes(0))
        POOLS[self._token] = pool
        modules = tuple(sorted({m for m in map(_module_of, METHODS.values()) if not m.startswith("evomerge.")}))
        address = PoolAddress(
            self._token,
            dict(info.refs),
            info.base,
            info.dtype,
            pool.trust_remote_code,
            pool.tokenizer_from,
            modules,
            os.getcwd(),
        )
        self._call("evomerge_open", address, memory.placement, memory.cache)
        self.adapter_models: EngineAdapters | None = None
        try:
            if fitting is not None:
                self.adapter_models = EngineAdapters(
                    self._llm, self.model, fitting, engine.adapters, self._hold, self.recover
                )
        except BaseException:
            self.close()
            raise

    def apply(self, plan: Plan) -> MergeCount:
        """Make the engine's model the one that `plan` describes, computing only slices that it does not hold.

        Raises:
            RecipeError: the plan's dtype is not the engine's.
            InfeasibleError: the engine has other layers.
            EvomergeError: a slice cannot be merged.
            DeviceLostError: the engine cannot be used any more.
        """
        if plan.dtype != self.pool.info.dtype:
            raise RecipeError(f"the recipe's dtype is {plan.dtype}", f"the engine's is {self.pool.info.dtype}")
        refusal = self._layers.refusal(plan)
        if refusal:
            raise InfeasibleError(refusal, "paths of its layers' number and kinds", "or evaluator.engine=transformers")
        start = time.perf_counter()
        changed = [entry for entry in plan.slices if self._held.get(entry.slice) != entry.key]
        self.progress.begin(len(changed))
        for entry in changed:
            self._held.pop(entry.slice, None)  # should merging fail, nobody knows what the model has
        try:
            count: MergeCount = self._call("evomerge_apply", changed) if changed else MergeCount()
        finally:
            self.progress.end()
            self.reset_prefix_cache()
        self._held |= {entry.slice: entry.key for entry in changed}
        count.kept = len(plan.slices) - len(changed)
        count.bytes = sum(self.pool.info.sizes) * TORCH_DTYPES[plan.dtype].itemsize
        count.seconds = time.perf_counter() - start
        return count

    def _hold(self, plan: Plan) -> MergeCount:
        """Let the engine have a plan, without requests that an earlier candidate has left: a broken-off one's."""
        if any(self._held.get(entry.slice) != entry.key for entry in plan.slices):
            return self.apply(plan)
        self._drop_requests()
        return MergeCount(kept=len(plan.slices))

    def _drop_requests(self) -> None:
        """End requests of a candidate whose scoring was broken off."""
        engine = self._llm.llm_engine
        if engine.has_unfinished_requests():
            engine.abort_request(list(engine.output_processor.request_states), internal=True)
            while engine.has_unfinished_requests():
                engine.step()

    def reset_prefix_cache(self) -> None:
        """Forget keys and values of prompts that former weights have read.

        Raises:
            DeviceLostError: the engine keeps them: its next texts would begin with another model's.
        """
        self._drop_requests()
        if not self._llm.reset_prefix_cache():
            raise DeviceLostError(
                "vLLM's prefix cache could not be reset: what it keeps is of other weights",
                "an engine without requests that still run",
                "`evomerge resume RUN` goes on; evaluator=ray replaces such a worker by itself",
            )

    def recover(self) -> None:
        """Forget what a candidate has left that could not be scored: keys and values that are NaN reach other texts.

        Raises:
            DeviceLostError: the engine cannot be used any more.
        """
        self.reset_prefix_cache()
        self._call("evomerge_forget")

    def use_room(self) -> None:
        """Nothing: the engine took its memory when it began."""

    def spare_memory(self) -> bool:
        """Let go of what is only kept to save time: merged slices and sources; says whether any was."""
        return any(self._llm.collective_rpc("evomerge_clear"))

    def close(self) -> None:
        """End the engine and give its memory back."""
        POOLS.pop(self._token, None)
        self.model.engine = None
        if self.adapter_models is not None:
            self.adapter_models.close()
            self.adapter_models = None
        llm = self.__dict__.pop("_llm", None)
        if llm is not None:
            _stop(llm)

    def _call(self, method: str, *args: Any) -> Any:
        """What the engine's processes answer to one of `MergeExtension`'s calls: the first's, they all did the same.

        Raises:
            EvomergeError: as there.
            DeviceLostError: anything else: nobody knows what weights the engine has then.
        """
        try:
            answers = self._llm.collective_rpc(method, args=args)
        except Exception as error:
            if out_of_memory(error):
                raise
            raise DeviceLostError(
                f"vLLM's engine failed to change its weights ({reason_of(error)})",
                "",
                "evaluator.engine=transformers does without it",
            ) from error
        for answer in answers:
            if isinstance(answer, Failure):
                raise answer.error
        return answers[0]


def _fitting(pool: Pool, engine: EngineSettings) -> FittingAdapters | None:
    """What the engine takes as adapters; ``None`` where it is not to, or the pool is none of adapters."""
    if not engine.adapters:
        return None
    try:
        return FittingAdapters(pool, engine.arguments.get("max_lora_rank"))
    except RecipeError:  # said where the search was checked
        return None


def _module_of(method: Any) -> str:
    """The module that a merge method was registered in."""
    made_by = method.function or method.mix
    return str(getattr(made_by, "__module__", "evomerge."))


def _start(pool: Pool, arguments: Mapping[str, Any], gpus: int, on_host: bool) -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if on_host:  # it would tie this process's threads to cores, and merging has threads of its own
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    info = pool.info
    given: dict[str, Any] = {"seed": SEED, **arguments}
    if pool.tied is not None:
        given["hf_overrides"] = {"tie_word_embeddings": pool.tied, **given.get("hf_overrides", {})}
    threads = torch.get_num_threads()
    try:
        from vllm import LLM

        if on_host:
            mend_scan()
        if on_host and arguments.get("enforce_eager") and arguments.get("enable_lora"):
            mend_adapters()
        return LLM(
            model=str(pool.folder(info.config_from)),
            tokenizer=str(pool.tokenizer_folder),
            dtype=info.dtype,
            trust_remote_code=pool.trust_remote_code,
            tensor_parallel_size=gpus,
            worker_extension_cls=f"{MergeExtension.__module__}.{MergeExtension.__qualname__}",
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **given,
        )
    except Exception as error:  # whatever vLLM and the architecture's code raise
        if out_of_memory(error):
            raise
        raise ConfigError(
            f"vLLM cannot be started with {pool.folder(info.config_from)} ({reason_of(error)})",
            "an architecture and arguments that it knows",
            "look at evaluator.engine_args, or set evaluator.engine=transformers",
        ) from error
    finally:
        torch.set_num_threads(threads)


def _stop(llm: Any) -> None:
    """End an engine in this process, so that another one can begin."""
    core = getattr(llm.llm_engine, "engine_core", None)
    if core is not None:
        core.shutdown()
    del llm, core
    _clean_up()


def _clean_up() -> None:
    """Give back what vLLM has of this process."""
    if "vllm.distributed" in sys.modules:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()
    give_back()
