"""One task's model, from a folder that holds a shared model and the tasks' own parts (`switch_writer`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from evomerge.errors import EvomergeError, PoolError, RecipeError, nearest
from evomerge.export.config_json import merged_config
from evomerge.export.copied_files import files_to_copy
from evomerge.export.in_memory import loaded
from evomerge.export.output import check_output, check_space, new_folder
from evomerge.export.shards import ShardWriter
from evomerge.export.switch_parts import FOLDER, VERSION, part_files, unpacked
from evomerge.export.writer import MAX_SHARD_BYTES, RECIPE_FILE, Progress, declared_tensors
from evomerge.merge.execution.engine import TORCH_DTYPES
from evomerge.merge.planning.plan import make_plan
from evomerge.models.checkpoints.pins import changed_since
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.models.pool_settings import raise_all
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.switches import MASKS, SWITCHES, require_switch, task_recipe
from evomerge.recipes.yaml_reader import dump_recipe, read_recipe_file


def is_switch_folder(path: Path) -> bool:
    """Whether a folder holds a shared model and parts of tasks."""
    return (path / FOLDER / RECIPE_FILE).is_file()


@dataclass
class TaskFolder:
    """One task of such a folder, open: the shared model and, for masks, the base.

    Attributes:
        recipe: of the task's model.
        pool: the shared model as ``shared`` and perhaps the base; no source of the merge is needed.
        file: the task's own part.
        base: name of the base in the pool; ``None`` where none is needed.
    """

    recipe: Recipe
    pool: Pool
    file: Path
    base: str | None

    @property
    def shared(self) -> Recipe:
        """The shared model as it lies in the folder."""
        return self.pool.info.linear({"shared": 1.0})

    @torch.no_grad()
    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The task's tensors by name, in the order of the slices, one at a time and in the model's dtype.

        Raises:
            EvomergeError: the part cannot be read, or is of another model; names the tensor.
        """
        dtype = TORCH_DTYPES[self.recipe.dtype]
        try:
            with safe_open(self.file, framework="pt") as file:
                names = set(file.keys())
                for entry in make_plan(self.shared, self.pool).slices:
                    for name, like in zip(entry.tensors, entry.like, strict=True):
                        if self.pool.is_merged(like):
                            yield name, self._tensor(name, like, names, file).to(dtype)
                        else:
                            yield name, self.pool.read("shared", like)
                    self.pool.unmap()
        except (SafetensorError, OSError) as error:
            raise PoolError(f"{self.file} cannot be read ({error})", "", "write or download it again") from error

    def _tensor(self, name: str, like: str, names: set[str], file: Any) -> torch.Tensor:
        shared, shape = self.pool.read("shared", like).float(), tuple(self.pool.layout.shapes[like])
        own = {
            key: file.get_tensor(key)
            for kind in ("mask", "factor", "b", "a", "whole")
            if (key := f"{name}|{kind}") in names
        }
        base = None if self.base is None else self.pool.read(self.base, like).float()
        try:
            return unpacked(name, own, shape).on(shared.view(shape), None if base is None else base.view(shape))
        except (RuntimeError, ValueError, KeyError) as error:
            raise EvomergeError(
                f"tensor {name!r}: the task's part is of another shape", f"{shape}", "write the folder again"
            ) from error


def open_task(
    folder: Path, task: str, *, root: str | Path | None = None, trust_remote_code: bool = False
) -> TaskFolder:
    """Open one task of a folder.

    Args:
        folder: written by `switch_writer.write_all_tasks`.
        task: name of a task.
        root: folder that a relative location of the base is looked up in first.
        trust_remote_code: let the model run code that it brings along.

    Raises:
        RecipeError: the folder is none, or has no such task.
        PoolError: the shared model, the base or the part is missing, or is not what it was.
    """
    if not is_switch_folder(folder):
        raise RecipeError(
            f"{folder} holds no tasks (it has no {FOLDER}/{RECIPE_FILE})", "a folder of `evomerge merge --all-tasks`"
        )
    whole = read_recipe_file(folder / FOLDER / RECIPE_FILE)
    switch = require_switch(whole)
    if task not in switch.tasks:
        raise RecipeError(f"{folder} has no task {task!r}", nearest(task, switch.tasks))
    file = folder / FOLDER / part_files(switch.tasks)[task]
    _check_part(file, task)
    entry = next(entry for entry in whole.slices if entry.method in SWITCHES)
    models: dict[str, Any] = {"shared": str(folder)}
    base = None
    if entry.method in MASKS:
        assert entry.base is not None
        base = "base"
        models[base] = whole.ref(entry.base.model)
    pool = open_pool(models, None, root, whole.dtype, trust_remote_code, fingerprints=False, tokenizer_from="shared")
    if base is not None:
        raise_all(list(changed_since(base, models[base], pool.checkpoints[base])))
    return TaskFolder(task_recipe(whole, task), pool, file, base)


def _check_part(file: Path, task: str) -> None:
    """`PoolError` for a task's file that is missing, or is none."""
    if not file.is_file():
        raise PoolError(f"{file} is missing", "the part of the task", "write or download the folder again")
    try:
        with safe_open(file, framework="pt") as opened:
            about = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise PoolError(f"{file} cannot be read ({error})", "", "write or download it again") from error
    if about.get("evomerge_switch") != VERSION or about.get("task") != task:
        raise PoolError(
            f"{file} is no part of task {task!r} that this evomerge reads", f"version {VERSION}", "write it again"
        )


def load_task(folder: Path, task: str, *, root: str | Path | None = None, trust_remote_code: bool = False) -> Any:
    """One task's transformers model, in evaluation mode, with its tokenizer as ``tokenizer``; as for `open_task`."""
    opened = open_task(Path(folder), task, root=root, trust_remote_code=trust_remote_code)
    shared, tensors = opened.shared, {name: tensor.clone() for name, tensor in opened.tensors()}
    return loaded(tensors, merged_config(shared, opened.pool), opened.pool, shared, "cpu")


def write_task(
    folder: Path,
    task: str,
    out: Path,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
    root: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Write one task's model as an ordinary folder: the weights are, bit for bit, those that its recipe makes.

    Args:
        folder, task, root, trust_remote_code: as for `open_task`.
        out: the folder to write; must not exist or be empty. Its parents are created.
        max_shard_bytes, progress: as for `writer.write_model`.

    Raises:
        OutputError: `out` is not empty or cannot be written, or the disk is too small.
        RecipeError, PoolError: as for `open_task`.
    """
    out = Path(out)
    check_output(out)
    opened = open_task(folder, task, root=root, trust_remote_code=trust_remote_code)
    pool, shared = opened.pool, opened.shared
    declared = declared_tensors(make_plan(shared, pool), pool, shared)
    copied = {name: file for name, file in files_to_copy(shared, pool).items() if name.parts[0] != FOLDER}
    with new_folder(out) as partial, ShardWriter(partial, declared, max_shard_bytes) as shards:
        check_space(partial, out, shards.nbytes + sum(file.stat().st_size for file in copied.values()))
        done = 0
        for name, tensor in opened.tensors():
            shards.write(name, tensor)
            done += tensor.nbytes
            if progress is not None:
                progress(done, shards.tensor_bytes)
        shards.finish()
        for place, source in copied.items():
            target = partial / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        config = json.dumps(merged_config(shared, pool), indent=2, ensure_ascii=False) + "\n"
        (partial / "config.json").write_text(config, encoding="utf-8")
        (partial / RECIPE_FILE).write_text(dump_recipe(opened.recipe), encoding="utf-8")
        card = opened.file.with_suffix(".md")
        if card.is_file():
            shutil.copyfile(card, partial / "README.md")
    return out
