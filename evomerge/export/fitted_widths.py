"""EXPERIMENTAL. Writes a copy of a model in the widths of another, to be merged with it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import PoolError
from evomerge.export.aligned_model import ALIGNMENT_FILE, MODEL, REFERENCE, files_alongside, symmetries_of_pool
from evomerge.export.output import check_output, check_space, new_folder
from evomerge.export.shards import Declared, ShardWriter
from evomerge.export.writer import MAX_SHARD_BYTES
from evomerge.merge.alignment.orders import Experts, Heads, Symmetries
from evomerge.merge.alignment.widths import check_widths, fitted, norm_factor, take_units
from evomerge.models.architecture.layout import skeleton
from evomerge.models.checkpoints.weight_files import NAMES_FILES
from evomerge.models.compatibility import is_width
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool

_ONE_MORE = ("gemma", "gemma2", "gemma3_text")
"""Model types whose norms multiply by one more than their weight."""


@dataclass(frozen=True)
class Fitted:
    """What fitting has done.

    Attributes:
        widths: by key of config.json, what it was and is.
        narrower: whether no unit was left out: the copy then computes what the model does, but for rounding.
    """

    widths: dict[str, tuple[Any, Any]]
    narrower: bool


def fit_widths(reference: str, model: str, out: Path, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> Fitted:
    """Write a copy of a model with the widths of a reference, its units where those are that they are most like.

    See `evomerge.merge.alignment.widths`. Experimental: what is left out of a wider model is lost, and whether models
    of several widths merge well is not known.

    Args:
        reference, model: folders or hub ids of one architecture and depth, whose heads have the same dimensions.
        out: the folder to write; must not exist or be empty.
        max_shard_bytes: largest size of one file, single larger tensors aside.

    Raises:
        PoolError: another architecture or depth, heads of another kind, norms that are no root mean square; or the
            same widths.
        OutputError: `out` is not empty or cannot be written.
    """
    out = Path(out)
    check_output(out)
    pools = {REFERENCE: open_pool({REFERENCE: reference}), MODEL: open_pool({MODEL: model})}
    ours, own = (pool.config for pool in pools.values())
    if ours.model_type != own.model_type or pools[REFERENCE].info.layers != pools[MODEL].info.layers:
        told = [f"{pool.config.model_type!r} of {pool.info.layers} layers" for pool in pools.values()]
        raise PoolError(
            f"the reference is a {told[0]}, the model a {told[1]}",
            "models of one architecture and depth",
            "of other depths: search_space=layer_map",
        )
    widths = {
        key: (own.to_dict().get(key), value)
        for key, value in ours.to_dict().items()
        if is_width(key) and own.to_dict().get(key) != value
    }
    if not widths:
        raise PoolError("the two models have the same widths", "models of several widths", "leave --widths out")
    norms = [type(part).__name__ for part in skeleton(own).modules() if "norm" in type(part).__name__.lower()]
    other = next((name for name in norms if "rms" not in name.lower()), None)
    if other is not None:
        raise PoolError(f"the models have norms of the kind {other}", "norms of the root mean square", "")
    symmetries = {name: symmetries_of_pool(pool) for name, pool in pools.items()}
    check_widths(*symmetries.values())
    names = {key: {place: name for name, place in pool.layout.parameters.items()} for key, pool in pools.items()}

    def read_model(place: str) -> torch.Tensor:
        return pools[MODEL].read(MODEL, names[MODEL][place])

    taken = take_units(
        symmetries[REFERENCE],
        symmetries[MODEL],
        lambda place: pools[REFERENCE].read(REFERENCE, names[REFERENCE][place]),
        read_model,
    )
    factor = norm_factor(symmetries[REFERENCE], symmetries[MODEL], taken, read_model)
    offset = 1.0 if own.model_type in _ONE_MORE else 0.0

    def made(name: str) -> torch.Tensor:
        place = pools[MODEL].layout.parameters[name]
        tensor = pools[MODEL].read(MODEL, name)
        if place not in symmetries[MODEL].axes:
            return tensor
        axes = symmetries[REFERENCE].axes[place], symmetries[MODEL].axes[place]
        found = fitted(tensor, *axes, taken)
        over_stream = len(axes[0]) == 1 and any(part.kind == "stream" for part, _ in axes[0][0].stretches)
        if factor != 1.0 and over_stream and "norm" in place.rpartition(".")[0].rpartition(".")[2]:
            found = ((found.float() + offset) * factor - offset).to(found.dtype)
        return found

    narrower = all(len(set(order[order >= 0])) == _count(symmetries[MODEL], part) for part, order in taken.items())
    _write(pools[MODEL], out, made, widths, max_shard_bytes, {"reference": reference, "model": model})
    return Fitted(widths, narrower)


def _count(symmetries: Symmetries, part: Any) -> int:
    group = symmetries.groups[part]
    assert not isinstance(group, Experts)
    return group.groups if isinstance(group, Heads) else group.size


def _write(
    pool: Pool, out: Path, made: Any, widths: dict[str, tuple[Any, Any]], max_shard_bytes: int, record: dict[str, Any]
) -> None:
    own: dict[str, str] = {}
    for name in pool.layout.parameters:
        own.setdefault(pool.stored[MODEL][name], name)
    copied = files_alongside(pool.folder(MODEL))
    config = {key: value for key, value in pool.checkpoints[MODEL].config.items() if key not in NAMES_FILES}
    config |= {key: now for key, (_, now) in widths.items()}
    declared = [Declared(stored, (new := made(name)).dtype, tuple(new.shape)) for stored, name in own.items()]
    with new_folder(out) as folder, ShardWriter(folder, declared, max_shard_bytes) as shards:
        check_space(folder, out, shards.nbytes + sum(file.stat().st_size for file in copied.values()))
        for stored, name in own.items():
            shards.write(stored, made(name).contiguous())
        shards.finish()
        for place, file in copied.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / place)
        record = {**record, "widths": {key: list(pair) for key, pair in widths.items()}}
        for file_name, content in (("config.json", config), (ALIGNMENT_FILE, record)):
            (folder / file_name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
