"""Writes the model of a recipe: a folder that plain transformers loads, complete or not there at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from evomerge.export.auto_class import auto_class, processor_class
from evomerge.export.config_json import merged_config
from evomerge.export.copied_files import GENERATION, files_to_copy, inputs_folder
from evomerge.export.model_card import ScoreLine, model_card
from evomerge.export.output import check_output, check_space, new_folder
from evomerge.export.shards import DTYPES, Declared, ShardWriter
from evomerge.export.switch_card import switch_sections
from evomerge.merge.execution.engine import TORCH_DTYPES
from evomerge.merge.execution.notes import Notes
from evomerge.merge.execution.streaming import stream_slice
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan
from evomerge.models.architecture.dense_layers import merged_layers, places, write_dense
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.yaml_reader import dump_recipe

RECIPE_FILE = "evomerge_recipe.yaml"
MAX_SHARD_BYTES = 5 * 10**9

BATCH_NORMS = (
    "## Batch norms\n\nThe statistics of its batch norms are those that its own weights give on images of the search, "
    "not a merge of the sources'."
)
"""Section of the card of a model whose statistics were given."""

_DTYPES = {written: dtype for dtype, written in DTYPES.items()}

Progress = Callable[[int, int], None]
"""Called with the bytes written so far and their total."""


def write_model(
    recipe: Recipe,
    pool: Pool,
    out: Path,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    scores: Sequence[ScoreLine] = (),
    scores_title: str = "Held-out scores",
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    also: Callable[[Path], None] | None = None,
    sections: Sequence[str] = (),
    given: Mapping[str, torch.Tensor] | None = None,
    head_apart: bool = False,
    encoder_in: Path | None = None,
) -> Path:
    """Merge a recipe slice by slice and write the model's folder.

    The folder holds the weights (safetensors, sharded beyond `max_shard_bytes`), the configuration and generation
    configuration of `recipe.config_from`, the tokenizer of `recipe.tokenizer_from` or else of the same model, what else
    `files_to_copy` finds, a model card and the recipe. It is built beside `out` and takes its name in one step at the
    end. Memory does not grow with the model (see `streaming.stream_slice` for exceptions).

    Args:
        recipe: what to merge.
        pool: the recipe's source models, open.
        out: the folder to write; must not exist or be empty. Its parents are created.
        max_shard_bytes: largest size of one file, single larger tensors aside.
        scores: rows of the card's score table.
        scores_title: its heading.
        progress: told after every slice.
        device: where slices are computed.
        also: writes more into the folder, before it takes its name.
        sections: further ones of the card.
        given: by name tensors that are written in place of merged ones: batch-norm statistics.
        head_apart: write the head of its own into a file of its own.
        encoder_in: a folder of another task of the recipe, written with the head apart, whose other files are linked.

    Returns:
        `out`.

    Raises:
        OutputError: `out` is not empty or cannot be written, or the disk is too small.
        RecipeError, PoolError: the recipe cannot be carried out with this pool.
    """
    out = Path(out)
    check_output(out)
    plan = make_plan(recipe, pool)
    declared = declared_tensors(plan, pool, recipe)
    copied = files_to_copy(recipe, pool)
    inputs = inputs_folder(recipe, pool)
    if given:
        sections = [*(sections or switch_sections(recipe)), BATCH_NORMS]
    card = model_card(
        recipe,
        pool.layout,
        out.resolve().name,
        folders={name: pool.checkpoints[name].folders for name, _ in recipe.models},
        loading=(auto_class(pool.config), processor_class(inputs)),
        scores=scores,
        scores_title=scores_title,
        sections=sections,
    )
    apart = head_tensors(plan, pool).keys() if head_apart else ()
    dense = places(merged_layers(pool.config))
    declared = [own for own in declared if own.name not in dense]
    with new_folder(out) as folder, ShardWriter(folder, declared, max_shard_bytes, apart=apart) as shards:
        check_space(folder, out, shards.nbytes + sum(file.stat().st_size for file in copied.values()))
        if encoder_in is not None:
            shards.link(encoder_in)
        where = torch.device(device)
        behind = _write_weights(
            plan, pool, shards, progress, where, given or {}, encoder_in is not None, frozenset(dense)
        )
        for name, file in copied.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        write_dense({dense[name]: tensor for name, tensor in behind.items()}, folder)
        generation = folder / GENERATION
        if pool.vocabulary is not None and generation.is_file():
            settings = pool.vocabulary.json(json.loads(generation.read_text(encoding="utf-8")))
            generation.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        config = merged_config(recipe, pool)
        (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / RECIPE_FILE).write_text(dump_recipe(recipe), encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
        if also is not None:
            also(folder)
    return out


def declared_tensors(plan: Plan, pool: Pool, recipe: Recipe) -> list[Declared]:
    """Every tensor of the result with its dtype and shape, in the order of the slices, from headers alone."""
    reference = pool.checkpoints[recipe.config_from].tensors
    stored = pool.stored[recipe.config_from]
    dtype = TORCH_DTYPES[recipe.dtype]
    tensors = []
    for entry in plan.slices:
        for name, like in zip(entry.tensors, entry.like, strict=True):
            # Buffers of integers are copied, not merged.
            kept = dtype if pool.is_merged(like) else _DTYPES[reference[stored[like]].dtype]
            tensors.append(Declared(name, kept, tuple(pool.layout.shapes[like])))
    more = carried_tensors(plan, pool).items()
    kinds = {name: dtype if own.is_floating_point() else own.dtype for name, own in more}
    return [*tensors, *(Declared(name, kinds[name], tuple(own.shape)) for name, own in more)]


def head_tensors(plan: Plan, pool: Pool) -> dict[str, torch.Tensor]:
    """The tensors of the result's head of its own, by their names in a checkpoint, as they are stored in its source."""
    if plan.head is None or pool.heads is None:
        return {}
    return {pool.heads.names[place]: tensor for place, tensor in pool.read_head(plan.head).items()}


def carried_tensors(plan: Plan, pool: Pool) -> dict[str, torch.Tensor]:
    """The tensors of the result that are in no slice: its head's, and those that are kept, as they are stored."""
    return {**head_tensors(plan, pool), **pool.read_kept()}


def _write_weights(
    plan: Plan,
    pool: Pool,
    shards: ShardWriter,
    progress: Progress | None,
    device: torch.device,
    given: Mapping[str, torch.Tensor],
    head_only: bool,
    dense: frozenset[str],
) -> dict[str, torch.Tensor]:
    """Write all but the tensors of dense layers, which are given back."""
    done, notes, behind = 0, Notes(0), dict[str, torch.Tensor]()
    total = shards.tensor_bytes
    for entry in () if head_only else plan.slices:
        for name, begin, piece in stream_slice(entry, pool, device, notes=notes):
            if name in dense:
                whole = behind.setdefault(name, torch.empty(pool.layout.shapes[name], dtype=piece.dtype))
                whole.view(-1)[begin : begin + piece.numel()] = piece.reshape(-1).cpu()
                continue
            if name in given:
                piece = given[name].reshape(-1)[begin : begin + piece.numel()].to("cpu", piece.dtype)
            shards.write_piece(name, begin, piece)
            done += piece.nbytes
        if progress is not None:
            progress(done, total)
    for name, tensor in carried_tensors(plan, pool).items():
        shards.write(name, given.get(name, tensor).to("cpu", shards.dtype_of(name)))
        done += tensor.numel() * shards.dtype_of(name).itemsize
        if progress is not None and not head_only:
            progress(done, total)
    shards.finish()
    return behind
