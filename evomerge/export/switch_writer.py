"""Writes a recipe with a switch: the shared model once, and for each task a small file with its own part."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from evomerge.errors import RecipeError
from evomerge.export.auto_class import auto_class, processor_class
from evomerge.export.model_card import ScoreLine, model_card
from evomerge.export.output import check_output, check_space
from evomerge.export.shards import Declared, ShardWriter
from evomerge.export.switch_card import folder_sections
from evomerge.export.switch_parts import FOLDER, VERSION, declared_part, packed, part_files
from evomerge.export.writer import MAX_SHARD_BYTES, RECIPE_FILE, Progress, write_model
from evomerge.merge.execution.engine import TORCH_DTYPES, SliceMerge, merge_slice
from evomerge.merge.execution.sources import Placement, Sources
from evomerge.merge.methods.switches import PARTS, part_of
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import SlicePlan
from evomerge.models.pool import Pool, require_own_rows
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.switches import MASKS, SWITCHES, require_switch, shared_recipe, task_recipe
from evomerge.recipes.yaml_reader import dump_recipe


@dataclass(frozen=True)
class SwitchSizes:
    """What was written.

    Attributes:
        shared: bytes of the shared model's tensors.
        parts: of each task's file, by task.
    """

    shared: int
    parts: Mapping[str, int]


def write_all_tasks(
    recipe: Recipe,
    pool: Pool,
    out: Path,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    scores: Sequence[ScoreLine] = (),
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
) -> SwitchSizes:
    """Write the shared model's folder, which transformers loads, with a folder ``switches`` in it.

    That holds a file for each task (`switch_parts`), with a model card for the task's model, and the recipe with the
    switch. `switch_reader` gives a task's model back, bit for bit what the recipe of that task makes. Slices are
    merged one by one; memory holds the shared model's slice and the parts of one tensor.

    Args:
        recipe: with a switch, of one method.
        pool: the recipe's source models, open.
        out: the folder to write; must not exist or be empty. Its parents are created.
        max_shard_bytes: largest size of one file of the shared model.
        scores: rows of the card's table, of each task with its own switch on.
        progress: told of the shared model's bytes that are written.
        device: where slices are computed.

    Raises:
        OutputError: `out` is not empty or cannot be written, or the disk is too small.
        RecipeError, PoolError: the recipe has no switch, or cannot be carried out with this pool.
    """
    out = Path(out)
    check_output(out)
    require_own_rows(pool, "a folder of all tasks")
    switch = require_switch(recipe)
    methods = {entry.method for entry in recipe.slices if entry.method in SWITCHES}
    if len(methods) > 1:
        raise RecipeError(f"the recipe has the switches {', '.join(sorted(methods))}", "one of them in all slices")
    method, shared = methods.pop(), shared_recipe(recipe)
    if shared.dtype != recipe.dtype:
        raise RecipeError(f"the shared model is in {shared.dtype}, the recipe in {recipe.dtype}", "one dtype")
    parts = _Parts(recipe, pool, method, switch.tasks, device)
    base = next((entry.base.model for entry in recipe.slices if entry.base is not None), None)
    masked = base if method in MASKS else None
    loading = auto_class(pool.config), processor_class(pool.folder(recipe.tokenizer_from or recipe.config_from))
    sizes: dict[str, int] = {}

    def write_parts(folder: Path) -> None:
        inner = folder / FOLDER
        inner.mkdir()
        check_space(inner, out, parts.nbytes)
        parts.write(inner)
        for task, file in part_files(switch.tasks).items():
            card = model_card(
                task_recipe(recipe, task),
                pool.layout,
                f"{out.resolve().name}-{task}",
                folders={name: pool.checkpoints[name].folders for name, _ in recipe.models},
                loading=loading,
            )
            (inner / file).with_suffix(".md").write_text(card, encoding="utf-8")
            sizes[task] = (inner / file).stat().st_size
        (inner / RECIPE_FILE).write_text(dump_recipe(recipe), encoding="utf-8")

    write_model(
        shared,
        pool,
        out,
        max_shard_bytes=max_shard_bytes,
        scores=scores,
        scores_title="Held-out scores, each task with its own switch",
        progress=progress,
        device=device,
        also=write_parts,
        sections=folder_sections(switch.tasks, method, masked),
    )
    return SwitchSizes(sum(file.stat().st_size for file in out.glob("*.safetensors")), sizes)


class _Parts:
    """The tasks' files, written slice by slice."""

    def __init__(
        self, recipe: Recipe, pool: Pool, method: str, tasks: Sequence[str], device: str | torch.device
    ) -> None:
        self._pool, self._method, self._tasks = pool, method, tasks
        self._device, self._dtype = device, TORCH_DTYPES[recipe.dtype]
        self._plans = {task: make_plan(task_recipe(recipe, task), pool) for task in tasks}
        self._declared = {task: self._declare(plan.slices) for task, plan in self._plans.items()}

    @property
    def nbytes(self) -> int:
        """Of all files."""
        return sum(tensor.nbytes for own in self._declared.values() for tensor in own)

    def _declare(self, slices: Sequence[SlicePlan]) -> list[Declared]:
        found: list[Declared] = []
        for entry in slices:
            for part in entry.parts:
                method = part.method or ""
                for index in part.tensors if method in PARTS else ():
                    like = entry.like[index]
                    if self._pool.is_merged(like):
                        shape = tuple(self._pool.layout.shapes[like])
                        found += declared_part(entry.tensors[index], method, dict(part.values), shape, self._dtype)
        return found

    def write(self, folder: Path) -> None:
        """Write them."""
        with ExitStack() as stack:
            writers: dict[str, ShardWriter] = {}
            for task, file in part_files(self._tasks).items():
                about = {"evomerge_switch": VERSION, "task": task, "method": self._method}
                if not self._declared[task]:
                    save_file({}, folder / file, metadata={"format": "pt", **about})
                    continue
                writer = ShardWriter(folder, self._declared[task], sys.maxsize, single=file, metadata=about)
                writers[task] = stack.enter_context(writer)
            for place in range(len(next(iter(self._plans.values())).slices)):
                self._write_slice(place, writers)
                self._pool.release()
                self._pool.unmap()
            for writer in writers.values():
                writer.finish()

    @torch.no_grad()
    def _write_slice(self, place: int, writers: Mapping[str, ShardWriter]) -> None:
        """The parts of one slice, all tasks with the one shared slice."""
        sources = Sources(self._pool, self._device, Placement(0, 0, 0))
        made: dict[str, dict[str, torch.Tensor]] = {}

        def shared(entry: SlicePlan) -> Mapping[str, torch.Tensor]:
            if entry.key not in made:
                made[entry.key] = merge_slice(entry, self._pool, sources=sources)
            return made[entry.key]

        for task, writer in writers.items():
            entry = self._plans[task].slices[place]
            merge = SliceMerge(entry, self._pool, sources, shared)
            for part in entry.parts:
                for index in part.tensors if part.method in PARTS else ():
                    if not self._pool.is_merged(entry.like[index]):
                        continue
                    with merge.naming(index):
                        statistics = merge.statistics(part, index)
                        inputs, base = statistics.tensors
                        wide = [tensor.float().view(statistics.shape) for tensor in inputs]
                        below = None if base is None else base.float().view(statistics.shape)
                        found = part_of(str(part.method), wide, below, dict(part.values))
                    for name, tensor in packed(entry.tensors[index], found, self._dtype).items():
                        writer.write(name, tensor)
