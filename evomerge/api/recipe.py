"""Recipes that can be carried out: read, merged in memory, written as models."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from evomerge.errors import RecipeError
from evomerge.export import switch_reader
from evomerge.export.adapter_content import AdapterLoss
from evomerge.export.adapter_writer import rank_bound, write_adapter
from evomerge.export.heads_writer import write_all_heads
from evomerge.export.in_memory import merged_model
from evomerge.export.model_card import ScoreLine
from evomerge.export.result import write_result
from evomerge.export.switch_writer import SwitchSizes, write_all_tasks
from evomerge.models.opening import pool_of_recipe
from evomerge.models.pool import Pool
from evomerge.recipes import recipe as plain
from evomerge.recipes.switches import task_recipe, tasks_of
from evomerge.recipes.yaml_reader import dump_recipe, read_recipe_file
from evomerge.recipes.yaml_reader import load_recipe as recipe_in
from evomerge.run.folder import RunFolder
from evomerge.run.inside import instead_of_part
from evomerge.run.outputs import check_output_file
from evomerge.session.best_recipe import best_recipe
from evomerge.utils.files import write_text_atomic
from evomerge.utils.sizes import byte_count

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


class Recipe(plain.Recipe):
    """A merged model, described: for every slice its inputs, method and parameters; `merge` and `save` make it.

    It is the frozen `evomerge.recipes.recipe.Recipe`, equal to one of the same content, with what carries it out.

    >>> recipe = evomerge.load_recipe("recipe.yaml")
    >>> model = recipe.merge()
    >>> type(model).__name__, model.config.num_hidden_layers
    ('LlamaForCausalLM', 6)
    >>> recipe.save("merged-model").name
    'merged-model'
    """

    @classmethod
    def of(cls, recipe: plain.Recipe) -> Self:
        """Any recipe, `PoolInfo.recipe`'s say, as one that can be merged and saved."""
        return cls(**{field.name: getattr(recipe, field.name) for field in fields(recipe) if field.init})

    def merge(
        self, pool: Pool | None = None, *, device: str | torch.device = "cpu", trust_remote_code: bool = False
    ) -> Any:
        """Merge in memory.

        Args:
            pool: the source models (`evomerge.load_pool`); those that the recipe names are opened otherwise.
            device: where to merge, and where the model is.
            trust_remote_code: run code that the models bring along, where they are opened here.

        Returns:
            A transformers model in evaluation mode, with its tokenizer as ``model.tokenizer``.

        Raises:
            RecipeError, PoolError: the recipe cannot be carried out, or a model is not the one it was made with.
        """
        return merged_model(self, pool or pool_of_recipe(self, trust_remote_code=trust_remote_code), device)

    def save(
        self,
        folder: str | os.PathLike[str],
        pool: Pool | None = None,
        *,
        max_shard_size: str | int = "5GB",
        scores: Sequence[ScoreLine] = (),
        device: str | torch.device = "cpu",
        trust_remote_code: bool = False,
    ) -> Path:
        """Merge and write a model's folder, as `evomerge merge` does: weights, tokenizer, model card, recipe.

        Args:
            folder: new or empty.
            pool: the source models; those that the recipe names are opened otherwise.
            max_shard_size: of one file.
            scores: rows of the card's table.
            device: where to merge.
            trust_remote_code: run code that the models bring along, where they are opened here.

        Returns:
            The folder.

        Raises:
            OutputError: the folder is not empty or cannot be written, or the disk is too small.
            RecipeError, PoolError: the recipe cannot be carried out, or a model is not the one it was made with.
        """
        size = byte_count(max_shard_size, "max_shard_size")
        opened = pool or pool_of_recipe(self, trust_remote_code=trust_remote_code)
        return write_result(self, opened, Path(folder), max_shard_bytes=size, scores=scores, device=device)

    def save_adapter(
        self,
        folder: str | os.PathLike[str],
        pool: Pool | None = None,
        *,
        rank: int | None = None,
        max_error: float | None = None,
        scores: Sequence[ScoreLine] = (),
        trust_remote_code: bool = False,
    ) -> AdapterLoss:
        """Write the result as a LoRA adapter of its base, which PEFT loads, as `evomerge merge --format lora` does.

        Args:
            folder: new or empty.
            pool: the source models; those that the recipe names are opened otherwise.
            rank: the largest rank of a matrix; ``None`` for exact sums of adapters, and `max_error` otherwise.
            max_error: the largest share of a matrix's difference from the base that may be lost; 0.01 by default.
            scores: rows of the card's table.
            trust_remote_code: run code that the models bring along, where they are opened here.

        Returns:
            What the adapter loses: ``error`` over all matrices, rank and error of every module in ``modules``.

        Raises:
            OutputError: the folder is not empty or cannot be written, or the disk is too small.
            RecipeError, PoolError: the recipe cannot be carried out, or no adapter can hold its result.
        """
        bound = rank_bound(rank, max_error)
        opened = pool or pool_of_recipe(self, trust_remote_code=trust_remote_code)
        return write_adapter(self, opened, Path(folder), bound=bound, scores=scores)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks of a recipe with a switch or heads of their own; empty where it has neither."""
        return tasks_of(self)

    def task(self, name: str) -> Recipe:
        """The recipe of one task's model; `RecipeError` where there is no such task."""
        return type(self).of(task_recipe(self, name))

    def save_tasks(
        self,
        folder: str | os.PathLike[str],
        pool: Pool | None = None,
        *,
        max_shard_size: str | int = "5GB",
        trust_remote_code: bool = False,
    ) -> SwitchSizes:
        """Write all tasks' models, as `evomerge merge --all-tasks` does.

        Of a switch, the shared model and a small part for each task; of heads of their own, a folder for each task,
        which share the encoder's files.

        Args:
            folder, pool, max_shard_size, trust_remote_code: as for `save`.

        Returns:
            Bytes of the ``shared`` model and of each task's part, by task, in ``parts``.

        Raises:
            OutputError, PoolError: as for `save`.
            RecipeError: as for `save`; the recipe has neither.
        """
        size = byte_count(max_shard_size, "max_shard_size")
        opened = pool or pool_of_recipe(self, trust_remote_code=trust_remote_code)
        if self.heads is not None:
            return write_all_heads(self, opened, Path(folder), max_shard_bytes=size)
        return write_all_tasks(self, opened, Path(folder), max_shard_bytes=size)

    def to_yaml(self, path: str | os.PathLike[str] | None = None) -> str:
        """The recipe as YAML, also written to `path` where that is given; `evomerge.load_recipe` reads it back.

        Raises:
            OutputError: `path` is a file of a run or a model, or cannot be written.
        """
        text = dump_recipe(self)
        if path is not None:
            check_output_file(Path(path))
            write_text_atomic(Path(path), text)
        return text


def load_task(folder: str | os.PathLike[str], task: str, *, trust_remote_code: bool = False) -> Any:
    """Load one task's model from a folder of `Recipe.save_tasks` or ``evomerge merge --all-tasks``.

    Args:
        folder: with the shared model and the tasks' parts; masks also need the base, where the recipe in it says.
        task: name of a task.
        trust_remote_code: run code that the model brings along.

    Returns:
        A transformers model in evaluation mode, with its tokenizer as ``model.tokenizer``.

    Raises:
        RecipeError: the folder holds no tasks, or not this one.
        PoolError: a model or the part is missing, or is not what it was.
    """
    return switch_reader.load_task(Path(folder), task, trust_remote_code=trust_remote_code)


def load_recipe(source: str | os.PathLike[str]) -> Recipe:
    """Read a recipe.

    Args:
        source: a file, a run folder (its best recipe), or the YAML itself.

    Raises:
        RecipeError: there is no such file, or it is not a recipe; names the key.

    >>> recipe = evomerge.load_recipe("recipe.yaml")
    >>> [name for name, _ in recipe.models], recipe.dtype
    (['base', 'math', 'lang'], 'float32')
    """
    if isinstance(source, str) and ("\n" in source or "evomerge_recipe:" in source):
        return Recipe.of(recipe_in(source))
    path = Path(source)
    if path.is_dir():
        folder = RunFolder.open(path)
        path = best_recipe(folder.path)
    part, give = instead_of_part(path)
    if part:
        raise RecipeError(part, "a recipe file, a run folder, or the YAML itself", give)
    if not path.is_file():
        raise RecipeError(f"there is no file or folder {path}", "a recipe file, a run folder, or the YAML itself")
    return Recipe.of(read_recipe_file(path))
