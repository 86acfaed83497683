"""What seconds and threads an evaluator may be given."""

from __future__ import annotations

import math
from typing import Literal, get_args

from evomerge.errors import ConfigError, nearest

PlacementStrategy = Literal["STRICT_PACK", "PACK"]
"""Where the GPUs of a worker may lie, as Ray calls it: on one machine; on few, one if there is room."""

MOST_THREADS = 4096


def check_timeout(timeout: float | None) -> None:
    """`ConfigError` for seconds that are none."""
    if timeout is not None and not 0 < timeout < math.inf:
        raise ConfigError(f"evaluator.timeout is {timeout:g}", "seconds above 0, or null")


def check_threads(threads: int | None) -> None:
    """`ConfigError` for a number of threads that no machine has."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise ConfigError(f"evaluator.threads is {threads}", f"1 to {MOST_THREADS}, or null")


def check_workers(workers: int | str, cpus: int, tries: int, patience: float) -> None:
    """`ConfigError` for workers of a cluster, or tries of a candidate, that are none."""
    if (workers != "auto" and (not isinstance(workers, int) or workers < 1)) or cpus < 1:
        raise ConfigError(
            f"evaluator.workers={workers}, cpus_per_worker={cpus}", "at least one worker (or auto), and one CPU each"
        )
    if tries < 1 or not 0 < patience < math.inf:
        raise ConfigError(f"evaluator.tries={tries}, patience={patience}", "above 0, and finite")


def check_at_once(count: int | None, engine: str) -> None:
    """`ConfigError` for candidates at once in a model of transformers, which workers on Ray do not score."""
    if (count or 0) > 1 and engine == "transformers":
        raise ConfigError(
            f"evaluator.adapters_at_once is {count} and evaluator.engine is transformers",
            "workers on Ray score several candidates at once with vLLM only",
            "set evaluator=local, or evaluator.engine=vllm, or leave it out",
        )


def sharing(gpus: float) -> int:
    """How many workers share a GPU, when each has so many of them."""
    return int(1 / gpus + 1e-9) if 0 < gpus < 1 else 1


def check_placement(strategy: str, grouped: bool) -> None:
    """`ConfigError` for a placement of GPUs that is none, or that workers without a group of them cannot have."""
    allowed = get_args(PlacementStrategy)
    if strategy not in allowed:
        raise ConfigError(f"evaluator.placement_strategy is {strategy!r}", nearest(strategy, allowed))
    if strategy != allowed[0] and not grouped:
        raise ConfigError(
            f"evaluator.placement_strategy is {strategy}, and a worker is one process, on one machine",
            "an engine over several GPUs: evaluator.engine=vllm evaluator.gpus_per_worker=2",
            "leave it out",
        )


def check_gpus(gpus: float | None, device: str) -> None:
    """`ConfigError` for a share of GPUs that no worker can have, or that does not fit its device."""
    if gpus is None:
        return
    if not 0 <= gpus < math.inf or (gpus > 1 and gpus != int(gpus)):
        raise ConfigError(f"evaluator.gpus_per_worker is {gpus}", "a whole number, or a fraction of one")
    if not gpus and (device == "spread" or device.startswith("cuda")):
        raise ConfigError(
            f"evaluator.device is {device!r} and evaluator.gpus_per_worker is 0",
            "Ray would put every worker on the same GPU",
            "set gpus_per_worker=1, or a fraction of one to let workers share a GPU",
        )
    if gpus and device == "cpu":
        raise ConfigError(
            f"evaluator.device is 'cpu' and evaluator.gpus_per_worker is {gpus:g}",
            "workers on the processor need none",
            "leave one of them out",
        )
