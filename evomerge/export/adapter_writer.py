"""Writes the result of a recipe as a LoRA adapter of its base: a folder that PEFT loads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from evomerge.errors import RecipeError
from evomerge.export.adapter_card import AdapterCard
from evomerge.export.adapter_content import AdapterContent, AdapterLoss
from evomerge.export.adapter_settings import adapter_settings
from evomerge.export.auto_class import auto_class, processor_class
from evomerge.export.model_card import ScoreLine, model_card
from evomerge.export.output import check_output, check_space, new_folder
from evomerge.export.writer import RECIPE_FILE, Progress
from evomerge.merge.adapters.places import Places, base_of
from evomerge.merge.execution.engine import TORCH_DTYPES
from evomerge.merge.methods.low_rank import Bound
from evomerge.merge.planning.plan import make_plan
from evomerge.models.checkpoints.folding import FoldedCheckpoint
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Dtype
from evomerge.recipes.yaml_reader import dump_recipe

ERRORS_FILE = "evomerge_adapter.json"
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
MAX_ERROR = 0.01
"""Of a matrix, relative, where no rank is given."""


def write_adapter(
    recipe: Recipe,
    pool: Pool,
    out: Path,
    *,
    bound: Bound | None = None,
    dtype: Dtype | None = None,
    scores: Sequence[ScoreLine] = (),
    scores_title: str = "Held-out scores",
    progress: Progress | None = None,
) -> AdapterLoss:
    """Write what a recipe's result adds to its base, as PEFT writes adapters.

    Linear weights and embeddings get factors: where a merge is a weighted sum of adapters on the base, ``sum_i c_i
    scale_i B_i A_i`` with their factors side by side, which is exact; where it is not, or its rank is beyond the bound,
    the singular value decomposition of the difference, truncated. Norms, and other small parameters that differ, are
    saved whole (PEFT's ``modules_to_save``), as are matrices that an adapter of the recipe holds whole and embeddings
    that are tied to the head; biases of linear layers are saved beside their factors. What differs by no more than
    float32 rounding is left out. Slices are merged one by one in float32; memory holds one slice, the sources' factors
    for it, and the adapter.

    Args:
        recipe: what to merge.
        pool: the recipe's source models, open.
        out: the folder to write; must not exist or be empty. Its parents are created.
        bound: rank or largest relative error of a matrix that has no exact factors, and the rank of one that has; by
            default an error of `MAX_ERROR`.
        dtype: of everything in the adapter; by default float32 for factors, the recipe's for what is saved whole.
        scores, scores_title: of the card's table.
        progress: told after every slice of the bytes that are compared so far, and of all.

    Returns:
        What the adapter loses of the difference.

    Raises:
        OutputError: `out` is not empty or cannot be written, or the disk is too small.
        RecipeError: the result has no base, is its base, or differs where no adapter can hold it; names the tensor.
        PoolError: the recipe cannot be carried out with this pool.
    """
    out = Path(out)
    check_output(out)
    if recipe.heads is not None:
        raise RecipeError(
            "the recipe has heads of their own, and an adapter of the base has no room for one",
            "",
            "write the model, without --format lora",
        )
    base = base_of(recipe, pool)
    if recipe.kept and base.name != recipe.config_from:
        raise RecipeError(
            f"the recipe keeps tensors of {recipe.config_from!r}, and its base {base.name!r} has none of them",
            "a base with all tensors of the result",
            "write the model, without --format lora",
        )
    places = Places(pool)
    unrounded = {
        name: own.unrounded() if isinstance(own, FoldedCheckpoint) else own for name, own in pool.checkpoints.items()
    }
    exact = replace(pool, checkpoints=unrounded)
    plan = make_plan(replace(recipe, dtype="float32"), exact)
    content = AdapterContent(
        base,
        places,
        exact,
        bound or Bound(error=MAX_ERROR),
        TORCH_DTYPES[dtype or "float32"],
        TORCH_DTYPES[dtype or recipe.dtype],
    )
    total = sum(base.checkpoint.tensors[name].nbytes for name in base.stored.values())
    done = 0
    for entry in plan.slices:
        content.add(entry)
        exact.release()
        exact.unmap()
        done += sum(base.checkpoint.tensors[base.stored[name]].nbytes for name in entry.tensors)
        if progress is not None:
            progress(done, total)
    if content.is_empty:
        raise RecipeError(
            f"the result is its base {base.name!r}: no weight differs", "a recipe that adds something to its base"
        )
    content.complete()
    loss = content.loss()
    settings = adapter_settings(
        base,
        places,
        pool,
        ranks=content.ranks,
        whole=content.whole,
        biases=content.has_biases,
        turned=content.has_turned,
    )
    card = model_card(
        recipe,
        pool.layout,
        out.resolve().name,
        folders={name: pool.checkpoints[name].folders for name, _ in recipe.models},
        loading=(auto_class(pool.config), processor_class(base.checkpoint.folder)),
        scores=scores,
        scores_title=scores_title,
        adapter=AdapterCard(base.ref, loss.sentence(), tuple(content.whole)),
    )
    with new_folder(out) as folder:
        check_space(folder, out, sum(tensor.nbytes for tensor in content.tensors.values()))
        save_file(content.tensors, folder / WEIGHTS, metadata={"format": "pt"})
        for name, value in ((SETTINGS, settings), (ERRORS_FILE, loss.as_json(base))):
            (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / RECIPE_FILE).write_text(dump_recipe(recipe), encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
    return loss


def rank_bound(rank: str | int | None, error: float | None) -> Bound:
    """The bound that ``--rank`` and ``--max-error`` give.

    Raises:
        RecipeError: neither a rank nor ``auto``, or both a rank and an error.
    """
    allowed = "a whole number from 1, or auto: the smallest rank within --max-error"
    if rank is None or rank == "auto":
        chosen = MAX_ERROR if error is None else error
        if not 1e-6 <= chosen < 1:
            raise RecipeError(f"--max-error is {chosen:g}", "a share of the difference from 1e-6 to below 1")
        return Bound(error=chosen)
    try:
        number = int(rank)
    except ValueError:
        raise RecipeError(f"--rank is {rank!r}", allowed) from None
    if number < 1:
        raise RecipeError(f"--rank is {number}", allowed)
    if error is not None:
        raise RecipeError(f"--rank {number} and --max-error", "one of them", "leave out --rank, or use --rank auto")
    return Bound(rank=number)
