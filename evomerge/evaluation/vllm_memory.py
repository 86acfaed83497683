"""How the memory of a worker is divided between vLLM's engine and what merges beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from evomerge.errors import ConfigError
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.evaluation.vllm_extension import BATCH
from evomerge.merge.execution.engine import TORCH_DTYPES
from evomerge.merge.execution.sources import NOTES_SHARE, Placement
from evomerge.merge.resident.budgets import CACHE_SHARE, layer_bytes, share_of
from evomerge.models.pool import Pool
from evomerge.utils.memory import MemoryPart, free_host_memory

SOURCES_SHARE = 0.25
"""Of what the weights leave of a GPU: at most, for sources; the rest is the engine's, for keys and values."""

HOST_CACHE = 4 << 30
"""Bytes of keys and values on the CPU, at most."""

SCRATCH = 2
"""Batches of merged slices that are there at a time: what was merged, and what the engine makes of it."""


@dataclass(frozen=True)
class EngineMemory:
    """The shares.

    Attributes:
        arguments: of ``vllm.LLM``, unless the user gives them.
        placement: of the sources; measured for ``None``.
        cache: bytes of merged slices to keep.
    """

    arguments: dict[str, Any]
    placement: Placement | None
    cache: int


def engine_memory(pool: Pool, cache: CacheSettings, gpus: int) -> EngineMemory:
    """The shares of a worker on so many GPUs, 0 for the CPU.

    Raises:
        ConfigError: torch cannot use the GPUs that Ray has given it.
    """
    host = free_host_memory() // max(cache.workers, 1)
    if not gpus:
        kept = int(host * CACHE_SHARE) if cache.memory is None else cache.memory
        space = min(HOST_CACHE, int(host * CACHE_SHARE))
        return EngineMemory({"kv_cache_memory_bytes": space}, Placement(0, 0, int(host * NOTES_SHARE)), kept)
    total = min(cache.group or (torch.cuda.mem_get_info(i)[1] for i in range(gpus)))
    if not total:
        raise ConfigError(
            "Ray gives an engine GPUs that torch cannot use on their node",
            "a build of torch and drivers for them, on every node",
            "or evaluator.gpus_per_worker=0, for workers on processors",
        )
    weights = sum(pool.info.sizes) * TORCH_DTYPES[pool.info.dtype].itemsize // gpus
    return divided(total, weights, pool.nbytes, layer_bytes(pool), host, cache)


def engine_parts(pool: Pool, cache: CacheSettings, engine: EngineSettings) -> list[MemoryPart]:
    """What an engine on the CPU takes beside its weights, for `evomerge validate`."""
    arguments = engine_memory(pool, cache, 0).arguments | dict(engine.arguments)
    nbytes = int(arguments["kv_cache_memory_bytes"])
    key = "evaluator.engine_args.kv_cache_memory_bytes"
    return [MemoryPart("engine", nbytes, "keys and values of vLLM's engine", key)]


def divided(total: int, weights: int, sources: int, layer: int, host: int, cache: CacheSettings) -> EngineMemory:
    """The shares of a worker on a GPU.

    Args:
        total: bytes of the GPU.
        weights: bytes of the model on it.
        sources: bytes of all source models, each process of an engine has its own.
        layer: of these, bytes of the slice of a layer that has most, from every model.
        host: free bytes of main memory for each of the machine's workers.
        cache: what the user asked for.
    """
    own = share_of(total if cache.gpu is None else min(cache.gpu, total), cache.sharing)
    scratch = min(SCRATCH * BATCH, SCRATCH * weights) + 2 * layer
    left = max(0, own - weights - scratch)
    on_device = min(sources, int(left * SOURCES_SHARE))
    kept = cache.memory or 0  # merging again takes less on a GPU than what keys and values lose
    share = max(0, own - scratch - on_device - kept) / total
    placement = Placement(on_device, min(sources - on_device, host // 4), int(host * NOTES_SHARE), 0, 2 * layer)
    return EngineMemory({"gpu_memory_utilization": round(share, 3)}, placement, kept)
