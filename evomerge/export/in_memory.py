"""A recipe's model in memory: the one that transformers loads from the folder that `writer.write_model` writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from evomerge.errors import PoolError, one_line
from evomerge.export.config_json import merged_config
from evomerge.export.copied_files import inputs_folder
from evomerge.export.writer import carried_tensors, declared_tensors
from evomerge.merge.execution.notes import Notes
from evomerge.merge.execution.streaming import stream_slice
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.loading import set_generation
from evomerge.models.architecture.dense_layers import merged_layers, places
from evomerge.models.architecture.layout import skeleton
from evomerge.models.pool import Pool
from evomerge.models.progress_bars import no_progress_bar
from evomerge.models.tokenizers import load_tokenizer
from evomerge.recipes.recipe import Recipe


def merged_model(recipe: Recipe, pool: Pool, device: str | torch.device = "cpu") -> Any:
    """Merge a recipe into a transformers model, in evaluation mode; nothing is written.

    Args:
        recipe: what to merge.
        pool: the recipe's source models, open.
        device: where slices are computed and the model is.

    Returns:
        The model; its attribute ``tokenizer`` is the tokenizer, ``None`` where the pool has none.

    Raises:
        RecipeError, PoolError: the recipe cannot be carried out with this pool.
    """
    plan = make_plan(recipe, pool)
    declared = declared_tensors(plan, pool, recipe)
    tensors = {tensor.name: torch.empty(tensor.shape, dtype=tensor.dtype, device=device) for tensor in declared}
    notes = Notes(0)
    for entry in plan.slices:
        for name, begin, piece in stream_slice(entry, pool, device, notes=notes):
            tensors[name].view(-1)[begin : begin + piece.numel()] = piece
    for name, tensor in carried_tensors(plan, pool).items():
        tensors[name].copy_(tensor)
    return loaded(tensors, merged_config(recipe, pool), pool, recipe, device)


def loaded(
    tensors: Mapping[str, torch.Tensor],
    settings: Mapping[str, Any],
    pool: Pool,
    recipe: Recipe,
    device: str | torch.device,
) -> Any:
    """The transformers model of tensors, with its tokenizer, in evaluation mode.

    Args:
        tensors: by their names in a checkpoint.
        settings: of its config.json.
        pool: with the classes of its models.
        recipe: whose `config_from` and `tokenizer_from`, of the pool, give what is no weight.
        device: where the model is to be.

    Raises:
        PoolError: transformers cannot load it.
    """
    tensors = {name: own for name, own in tensors.items() if name not in places(merged_layers(pool.config))}
    config = type(pool.config).from_dict(dict(settings))
    folder = pool.folder(recipe.config_from)
    try:
        cls = type(skeleton(config, pool.trust_remote_code))
        with no_progress_bar():
            model = cls.from_pretrained(None, config=config, state_dict=dict(tensors), dtype=config.dtype)  # type: ignore[attr-defined]
        set_generation(model, str(folder), pool.vocabulary)
    except PoolError:
        raise
    except Exception as error:  # transformers raises whatever the architecture's code raises
        raise PoolError(f"transformers cannot load the merged model ({one_line(error)})") from error
    model.tokenizer = load_tokenizer(inputs_folder(recipe, pool), pool.trust_remote_code)
    return model.to(device).eval()
