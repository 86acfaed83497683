"""Writes the network of a recipe as one safetensors file with the names that its first authors' code gives tensors."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from evomerge.errors import OutputError, RecipeError
from evomerge.export.output import check_space
from evomerge.export.shards import Declared, ShardWriter
from evomerge.export.writer import Progress
from evomerge.merge.execution.engine import TORCH_DTYPES
from evomerge.merge.execution.notes import Notes
from evomerge.merge.execution.streaming import stream_slice
from evomerge.merge.planning.plan import make_plan
from evomerge.models.checkpoints.headers import STORED_DTYPES, TensorInfo
from evomerge.models.checkpoints.reader import TensorFiles
from evomerge.models.pipelines.original_names import original_names
from evomerge.models.pipelines.single_file import Run, SingleFile
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.yaml_reader import dump_recipe
from evomerge.run.outputs import check_output_file

_UNBOUNDED = 2**62


@dataclass(frozen=True)
class Target:
    """What a single file holds.

    Attributes:
        runs: by the network's names the rows of the file's tensors that each is.
        shapes: of the file's tensors that the network fills.
        kept: the file's other tensors, as they are in the file that they are from.
        file: that they are from; ``None`` for none.
    """

    runs: Mapping[str, tuple[Run, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, TensorInfo]
    file: Path | None


def target_of(recipe: Recipe, pool: Pool) -> Target:
    """What the single file of a recipe holds.

    The layout is that of the single file which gives the configuration, and what else it holds is kept: text encoders
    and autoencoder. Else it is that of another single file of the pool, or of a U-Net, and the network is alone.

    Raises:
        PoolError: the names in such files are not known.
        RecipeError: rows of the file are nobody's.
    """
    own = pool.checkpoints[recipe.config_from]
    known = own if isinstance(own, SingleFile) else None
    template = known or next((c for c in pool.checkpoints.values() if isinstance(c, SingleFile)), None)
    if template is None:
        names = original_names(pool.config.values, pool.layout.parameters)
        shapes = {names[name]: pool.layout.shapes[name] for name in pool.layout.parameters}
        runs = {name: ((stored, 0, (shapes[stored] or (1,))[0]),) for name, stored in names.items()}
        return Target(runs, shapes, {}, None)
    filled: dict[str, int] = {}
    for parts in template.runs.values():
        for stored, first, last in parts:
            filled[stored] = filled.get(stored, 0) + last - first
    for stored, rows in filled.items():
        if rows != (template.original[stored].shape or (1,))[0]:
            raise RecipeError(f"rows of {stored!r} in {template.folder} are none of the network's", "write a folder")
    shapes = {stored: template.original[stored].shape for stored in filled}
    kept = {name: info for name, info in template.original.items() if name not in filled} if known is not None else {}
    return Target(template.runs, shapes, kept, template.folder if kept else None)


def write_single_file(
    recipe: Recipe, pool: Pool, out: Path, *, progress: Progress | None = None, device: str | torch.device = "cpu"
) -> Path:
    """Merge the network of a recipe and write it as one file, the recipe in its header.

    Args:
        recipe: what to merge, with a network.
        pool: the recipe's source models, open.
        out: the file to write, ``.safetensors``; must not exist.
        progress: told after every slice.
        device: where slices are computed.

    Returns:
        `out`.

    Raises:
        OutputError: `out` exists, is called otherwise or cannot be written, or the disk is too small.
        RecipeError, PoolError: the recipe cannot be carried out, or the names in such files are not known.
    """
    out = Path(out)
    check_single_output(out)
    if recipe.network is None:
        raise RecipeError("the recipe merges models whole", "recipes of pipelines (pool.network)", "write a folder")
    plan, target = make_plan(recipe, pool), target_of(recipe, pool)
    dtype = TORCH_DTYPES[recipe.dtype]
    declared = [Declared(name, dtype, shape) for name, shape in target.shapes.items()]
    declared += [Declared(name, STORED_DTYPES[info.dtype], info.shape) for name, info in target.kept.items()]
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    about = {"evomerge_recipe": dump_recipe(recipe)}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with ShardWriter(out.parent, declared, _UNBOUNDED, single=temporary.name, metadata=about) as file:
            check_space(out.parent, out, file.nbytes)
            done, notes = 0, Notes(0)
            for entry in plan.slices:
                for name, begin, piece in stream_slice(entry, pool, device, notes=notes):
                    _write(file, target.runs[name], pool.layout.shapes[name], begin, piece.to(dtype))
                    done += piece.nbytes
                if progress is not None:
                    progress(done, file.tensor_bytes)
            if target.file is not None:
                source = TensorFiles(target.file, {}, target.kept)
                for name in target.kept:
                    file.write(name, source.read(name))
            file.finish()
        os.rename(temporary, out)
    except OSError as error:
        raise OutputError(
            f"{out} cannot be written: {error.strerror or error}", "a place that may be written", "name another file"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return out


def check_single_output(out: Path) -> None:
    """Raise `OutputError` unless `out` can be a new single file."""
    if out.suffix != ".safetensors":
        raise OutputError(f"{out} is to be a single file", "a name that ends in .safetensors", "name another file")
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out} is there already", "a new file", "name another file")
    check_output_file(out)


def _write(file: ShardWriter, runs: tuple[Run, ...], shape: tuple[int, ...], begin: int, piece: torch.Tensor) -> None:
    """Write elements of one of the network's tensors, from `begin` on, to the rows that they are."""
    rows, width = (shape or (1,))[0], 1
    for side in shape[1:]:
        width *= side
    offset = 0  # of a run's first row among the tensor's
    for stored, first, last in runs:
        start, end = offset * width, (offset + last - first) * width
        low, high = max(start, begin), min(end, begin + piece.numel())
        if low < high:
            file.write_piece(stored, first * width + low - start, piece.reshape(-1)[low - begin : high - begin])
        offset += last - first
    assert offset == rows, "runs are all of a tensor's rows"
