"""Placement groups: the GPUs of a worker whose engine lies on several, a bundle for each.

vLLM's own Ray executor takes the group that its worker is in, and starts one process in every bundle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import get_current_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from evomerge.errors import DeviceLostError


def bundles(cpus: int, gpus: int) -> list[dict[str, float]]:
    """What a worker's group asks for: a bundle for each GPU, the worker's own with its CPUs."""
    first: dict[str, float] = {"CPU": cpus, "GPU": 1}
    return [first, *({"GPU": 1.0} for _ in range(gpus - 1))]


def make_group(cpus: int, gpus: int, strategy: str) -> tuple[Any, dict[str, Any]]:
    """A placement group, for which Ray looks from now on, and the options of an actor that is to be its first.

    The actor has no GPU: they are for the processes of its engine, which it starts in the same group.
    """
    group = placement_group(bundles(cpus, gpus), strategy=strategy)
    return group, {"num_cpus": cpus, "num_gpus": 0, "scheduling_strategy": _bundle(group, 0)}


def _bundle(group: Any, index: int) -> PlacementGroupSchedulingStrategy:
    return PlacementGroupSchedulingStrategy(group, index, placement_group_capture_child_tasks=True)


def release(group: Any) -> None:
    """Give a group's GPUs back, and end whatever still runs on them."""
    remove_placement_group(group)


def memory_of_group() -> tuple[int, ...]:
    """Bytes of every GPU of the group that this actor is in, once nobody else holds them; 0 for one torch cannot see.

    Raises:
        DeviceLostError: a bundle's machine has gone.
    """
    group = get_current_placement_group()
    assert group is not None
    remote: Any = ray.remote(num_cpus=0, num_gpus=1, max_calls=1)(_gpu_bytes)
    places = [index for index, bundle in enumerate(group.bundle_specs) if bundle.get("GPU")]
    asked = [remote.options(scheduling_strategy=_bundle(group, index)).remote() for index in places]
    try:
        return tuple(ray.get(asked))
    except RayError as error:
        raise DeviceLostError(
            f"a GPU of the worker's placement group cannot be reached ({' '.join(str(error).split())[:200]})"
        ) from error


def _gpu_bytes() -> int:
    """Bytes of the GPU that Ray gave this process, when what was ended there before has given its memory back."""
    import torch

    from evomerge.evaluation.devices import await_memory

    if not torch.cuda.is_available():
        return 0
    await_memory("cuda")
    return int(torch.cuda.mem_get_info()[1])


def workers_on(nodes: Sequence[Mapping[str, float]], cpus: int, gpus: int, strategy: str) -> list[int]:
    """How many workers begin on each of empty nodes, where each has a group of so many GPUs.

    Args:
        nodes: what each has, as Ray names it.
        cpus, gpus: of a worker.
        strategy: of its group.
    """
    heads = [int(node.get("CPU", 0) // cpus) for node in nodes]
    free = [int(node.get("GPU", 0)) for node in nodes]
    whole = [min(most, count // gpus) for most, count in zip(heads, free, strict=True)]
    if strategy != "PACK":
        return whole
    free = [count - gpus * own for count, own in zip(free, whole, strict=True)]
    found, left = list(whole), sum(free) // gpus
    for place, count in enumerate(free):  # groups over several nodes begin where a GPU and CPUs are left
        more = min(left, count, heads[place] - whole[place])
        found[place], left = found[place] + more, left - more
    return found


def described(cpus: int, gpus: int, strategy: str) -> str:
    """What a worker's group asks for, for people."""
    where = "one node" if strategy == "STRICT_PACK" else "one node or several"
    return f"{cpus} CPU{'s' * (cpus > 1)} and {gpus} GPUs of {where}"
