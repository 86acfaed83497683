"""Writes a recipe with heads of their own: a folder for each task, which share the files of one encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from evomerge.errors import RecipeError
from evomerge.export.model_card import ScoreLine, score_table
from evomerge.export.output import check_output, new_folder
from evomerge.export.switch_parts import part_files
from evomerge.export.switch_writer import SwitchSizes
from evomerge.export.writer import MAX_SHARD_BYTES, RECIPE_FILE, Progress, write_model
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.switches import switch_of, task_recipe
from evomerge.recipes.yaml_reader import dump_recipe


def task_folders(tasks: Sequence[str]) -> dict[str, str]:
    """Names of the folders by task: the task's own, unless that is no name of a folder."""
    return {task: file.removesuffix(".safetensors") for task, file in part_files(tasks).items()}


def write_all_heads(
    recipe: Recipe,
    pool: Pool,
    out: Path,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    scores: Sequence[ScoreLine] = (),
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    given: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> SwitchSizes:
    """Write a folder for each task, each a complete model that transformers loads.

    The encoder is merged once. Its files lie in every folder under the same name: hard links to one file, or copies
    where the file system has no links. The head is a file of its own beside them. The recipe of all lies in `out`.

    Args:
        recipe: with heads of their own, and no switch.
        pool: the recipe's source models, open.
        out: the folder to write; must not exist or be empty. Its parents are created.
        max_shard_bytes: largest size of one file.
        scores: rows of the card's table, of each task with its own head.
        progress: told of the first model's bytes that are written.
        device: where slices are computed.
        given: by task as of `write_model`; of the encoder those of the first task count.

    Returns:
        Bytes of the ``shared`` encoder and of each task's head, by task, in ``parts``.

    Raises:
        OutputError: `out` is not empty or cannot be written, or the disk is too small.
        RecipeError, PoolError: the recipe has no heads of its own, or cannot be carried out with this pool.
    """
    out = Path(out)
    check_output(out)
    if recipe.heads is None:
        raise RecipeError("the recipe has no heads of their own", "a recipe of a pool with pool.heads")
    if switch_of(recipe) is not None:
        raise RecipeError(
            "the recipe has heads of their own and a switch: its tasks share no encoder",
            "a recipe with heads alone",
            "write each model with --task NAME",
        )
    folders = task_folders(recipe.heads.tasks)
    sizes, encoder, first = dict[str, int](), 0, next(iter(folders.values()))
    with new_folder(out) as folder:
        for task, name in folders.items():
            write_model(
                task_recipe(recipe, task),
                pool,
                folder / name,
                max_shard_bytes=max_shard_bytes,
                progress=progress if name == first else None,
                device=device,
                head_apart=True,
                given=(given or {}).get(task),
                encoder_in=None if name == first else folder / first,
            )
            sizes[task] = sum(t.numel() * _itemsize(recipe, t) for t in pool.read_head(task).values())
        files = sum(file.stat().st_size for file in (folder / first).glob("*.safetensors"))
        encoder = files - sizes[next(iter(folders))]
        (folder / RECIPE_FILE).write_text(dump_recipe(recipe), encoding="utf-8")
        (folder / "README.md").write_text(_card(out.resolve().name, folders, scores), encoding="utf-8")
    return SwitchSizes(encoder, sizes)


def _itemsize(recipe: Recipe, tensor: torch.Tensor) -> int:
    """Of a head's tensor in the result, where integers stay as they are."""
    return int(getattr(torch, recipe.dtype).itemsize if tensor.is_floating_point() else tensor.itemsize)


def _card(name: str, folders: dict[str, str], scores: Sequence[ScoreLine]) -> str:
    """What the folder holds."""
    lines = [f"- `{folder}`: {task}" for task, folder in folders.items()]
    parts = [
        f"# {name}",
        "One merged encoder with a head for each task. Every folder is a complete model, with the encoder's files in "
        "common (hard links, where the file system has them) and a card of its own:",
        "\n".join(lines),
        *(["## Held-out scores, each task with its own head", score_table(scores)] if scores else []),
        "`evomerge_recipe.yaml` holds the recipe of all of them.",
    ]
    return "\n\n".join(parts) + "\n"
