"""Makes the statistics of one model: slice by slice within a budget of memory, going on where it was killed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from evomerge.calibration.encoding import Item, size_of
from evomerge.calibration.experts import ExpertOutputSums, RoutingSums, expert_places
from evomerge.calibration.files import held, save
from evomerge.calibration.measurement import Measurement
from evomerge.calibration.optimizer_states import second_moments
from evomerge.calibration.places import Place, Places, input_places, parameter_places
from evomerge.calibration.second_derivatives import HessianSums
from evomerge.calibration.sums import GradientSums, InputSums, KnownMoments, SensitivitySums, Sums
from evomerge.errors import PoolError
from evomerge.merge.methods.spectral import on_one_thread
from evomerge.merge.resident.loading import load_on
from evomerge.models.pool import Pool
from evomerge.models.statistics import FORMAT, INDEX, ModelStatistics
from evomerge.recipes.calibration import OF_EXPERTS
from evomerge.recipes.slices import SliceId
from evomerge.utils.files import write_text_atomic

_PARTIAL = "partial.safetensors"
_SEEN = ("gram", "activation", *OF_EXPERTS)
"""Statistics of what is seen: where they are zero, nothing was."""
_SHARE = 50
"""A state is written as often as makes that take a fiftieth of the time, and no more often than asked."""

Progress = Callable[[int, int], None]


def measure(
    pool: Pool,
    items: Sequence[Item],
    how: Measurement,
    into: ModelStatistics,
    *,
    memory: int,
    device: str = "cpu",
    every: float = 30.0,
    progress: Progress = lambda done, total: None,
) -> None:
    """Make the statistics of the only model of a pool, unless they are there.

    What is written does not depend on `memory`, nor on how often it was interrupted. Of two processes that make the
    same, the second waits for the first.

    Args:
        pool: of one model, whose dtype is that which it computes in.
        items: what it reads, one by one; none for what is read from an optimizer's state.
        how: what is measured.
        into: where they are kept.
        memory: bytes for sums; slices that find no room take another pass over the items.
        device: where the model computes.
        every: seconds between two states that an interrupted one goes on from.
        progress: called with forwards done and all of them.

    Raises:
        PoolError: the model cannot be loaded, has no likelihood of the items, or its numbers are not finite; the
            optimizer's state is not of this model.
        OutputError: the folder cannot be written.
    """
    folder = into.folder
    with held(folder):
        if into.complete:
            return
        module = load_on(device, pool, None)
        module.config.use_cache = False  # nothing is written, all is read at once
        places, open_, width = _sums(pool, module, items, how)
        todo = [slice_ for slice_ in places.of_slice if not _file(folder, slice_).is_file()]
        groups = list(_groups(todo, places, width, memory))
        for number, group in enumerate(groups):
            shown = _Shown(progress, number * len(items), len(groups) * len(items))
            wanted = [place for slice_ in group for place in places.of_slice[slice_]]
            _pass(folder, group, places, open_(wanted), items, how, every, shown)
        (folder / _PARTIAL).unlink(missing_ok=True)
        _write_index(folder, places, items, how)


def _sums(
    pool: Pool, module: Any, items: Sequence[Item], how: Measurement
) -> tuple[Places, Callable[[Sequence[Place]], Sums], int]:
    """What there are statistics of, what sums them, and the bytes of a sum's element."""
    if how.kind in ("gram", "activation"):
        squares = how.kind == "gram"
        found = input_places(pool, module, squares and how.grams == "full")
        return found, lambda places: InputSums(module, places, items[0], squares=squares), 8
    if how.kind in OF_EXPERTS:
        sums = RoutingSums if how.kind == "routing" else ExpertOutputSums
        return expert_places(pool, module, how.kind), lambda places: sums(module, places), 8
    found = parameter_places(pool, module)
    if how.kind == "hessian":
        return found, lambda places: HessianSums(module, places, how), 4
    if how.kind == "sensitivity":
        return found, lambda places: SensitivitySums(module, places, how, len(items)), 4 * len(items)
    if how.kind == "fisher":
        return found, lambda places: GradientSums(module, places, how), 4
    (model,) = pool.stored
    moments = second_moments(pool.checkpoints[model].folder, module)
    for slice_, places in found.of_slice.items():
        for place in places:
            if place.parameter not in moments:
                found.skip(place.name, "parameters that the optimizer did not train")
        found.of_slice[slice_] = [place for place in places if place.parameter in moments]
    return found, lambda places: KnownMoments(moments, places), 4


def _groups(todo: Sequence[SliceId], places: Places, width: int, memory: int) -> Iterator[list[SliceId]]:
    """Slices whose sums have room together, in order; one at least."""
    group: list[SliceId] = []
    used = 0
    for slice_ in todo:
        size = sum(width * _count(place.shape) for place in places.of_slice[slice_] if not place.leader)
        if group and used + size > memory:
            yield group
            group, used = [], 0
        group.append(slice_)
        used += size
    if group:
        yield group


class _Shown:
    """Progress of one pass among several."""

    def __init__(self, progress: Progress, before: int, total: int) -> None:
        self._progress, self._before, self._total = progress, before, total

    def __call__(self, done: int) -> None:
        self._progress(self._before + done, self._total)


def _pass(
    folder: Path,
    group: Sequence[SliceId],
    places: Places,
    sums: Sums,
    items: Sequence[Item],
    how: Measurement,
    every: float,
    shown: Callable[[int], None],
) -> None:
    """Sum over all items, and write the slices of a group."""
    try:
        done = _restored(folder, group, sums) if items else 0
        saved, took = time.monotonic(), 0.0
        for number in range(done, len(items)):
            sums.add(number, items[number])
            shown(number + 1)
            if number + 1 < len(items) and time.monotonic() - saved >= max(every, _SHARE * took):
                begun = time.monotonic()
                save(folder / _PARTIAL, sums.sums, {"group": [str(s) for s in group], "items": number + 1})
                saved = time.monotonic()
                took = saved - begun
        for slice_ in group:
            _write_slice(folder, slice_, places.of_slice[slice_], sums, items, zeros=how.kind not in _SEEN)
    finally:
        sums.close()


def _restored(folder: Path, group: Sequence[SliceId], sums: Sums) -> int:
    """Take up the sums of an earlier pass over the same slices; how many items they are of."""
    try:
        with safe_open(str(folder / _PARTIAL), "pt") as content:
            state = json.loads(content.metadata()["state"])
            if state["group"] != [str(s) for s in group] or set(content.keys()) != set(sums.sums):
                return 0
            for name, own in sums.sums.items():
                own.copy_(content.get_tensor(name))
            return int(state["items"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError):  # none, or no longer readable
        for own in sums.sums.values():
            own.zero_()
        return 0


def _write_slice(
    folder: Path, slice_: SliceId, places: Sequence[Place], sums: Sums, items: Sequence[Item], *, zeros: bool
) -> None:
    """Write the statistics of a slice, and which tensors share one; all zeros where they say something."""
    tensors, of = {}, {}
    for place in places:
        leader = sums.shared.get(place.name, place.name)
        found = sums.sums[leader]
        if not torch.isfinite(found).all():
            raise PoolError(
                f"the statistics of tensor {place.name!r} are not finite",
                "finite gradients and activations",
                "set statistics.dtype=float32, or leave out the items that overflow",
            )
        if not zeros and not found.any():  # never reached: nothing is known of its inputs
            continue
        of[place.name] = leader
        if leader == place.name:
            tensors[leader] = sums.statistic(leader, items).float().cpu().contiguous()
    save(_file(folder, slice_), tensors, {"of": of})


def _write_index(folder: Path, places: Places, items: Sequence[Item], how: Measurement) -> None:
    """Write what makes the statistics complete."""
    tensors: dict[str, Any] = {}
    total, count = 0.0, 0
    unreached: list[str] = []
    for slice_, own in places.of_slice.items():
        file = _file(folder, slice_)
        with safe_open(str(file), "pt") as content:
            of = json.loads(content.metadata()["state"])["of"]
            for place in own:
                if place.name not in of:
                    unreached.append(place.name)
                    continue
                tensors[place.name] = {
                    "file": file.name,
                    "entry": of[place.name],
                    "axis": place.axis,
                    "shape": list(place.shape),
                }
                if how.kind in ("fisher", "curvature", "hessian"):
                    with on_one_thread():
                        total += float(content.get_tensor(place.name).double().clamp_(min=0).sum())
                    count += _count(place.shape)
    skipped = {**places.skipped, **({"never reached by an item": unreached} if unreached else {})}
    index = {
        "evomerge_statistics": FORMAT,
        "kind": how.kind,
        "items": len(items),
        "tokens": sum(size_of(item) for item in items),
        "mean": total / count if count else 1.0,
        "skipped": skipped,
        "tensors": tensors,
    }
    write_text_atomic(folder / INDEX, json.dumps(index, indent=1) + "\n")


def _count(shape: Sequence[int]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


def _file(folder: Path, slice_: SliceId) -> Path:
    return folder / f"{slice_}.safetensors"
