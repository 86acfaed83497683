"""The config.json of a merged model: that of a source, with the result's dtype and depth."""

from __future__ import annotations

from typing import Any

from evomerge.models.pool import Pool
from evomerge.recipe import Recipe


def merged_config(recipe: Recipe, pool: Pool) -> dict[str, Any]:
    """The configuration of `recipe.config_from` as it was saved, changed only where the merge differs."""
    config = with_dtype(pool.checkpoints[recipe.config_from].config, recipe.dtype)
    depth = 1 + max(entry.slice.layer for entry in recipe.slices if entry.slice.layer is not None)
    if depth == pool.layout.layers:
        return config
    origins = _origins(recipe)
    text = pool.config.get_text_config()
    key = type(text).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    return with_layers(config, key, [origins[layer] for layer in range(depth)], pool.layout.layers)


def _origins(recipe: Recipe) -> dict[int, int]:
    """For every output layer, the layer of the pool's models that it starts from, through intermediates."""
    stages, origins = dict(recipe.intermediates), dict[int, int]()
    for entry in recipe.slices:
        layer = entry.slice.layer
        if layer is not None and layer not in origins:
            first = entry.inputs[0]
            at = layer if first.layer is None else first.layer
            origins[layer] = _origins(stages[first.model])[at] if first.model in stages else at
    return origins


def with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A copy of a config.json that says `dtype`, also in its parts, and not where the model came from."""
    result = {key: value for key, value in config.items() if key != "_name_or_path"}
    for key, value in result.items():
        if isinstance(value, dict) and ("dtype" in value or "torch_dtype" in value):
            result[key] = with_dtype(value, dtype)
    # Readers before transformers 4.56 know `torch_dtype` only: a source that was saved for them keeps it.
    for key in [key for key in ("dtype", "torch_dtype") if key in result] or ["dtype"]:
        result[key] = dtype
    return result


def with_layers(config: dict[str, Any], key: str, origins: list[int], layers: int) -> dict[str, Any]:
    """A copy for a model whose layers are `origins` of a model with `layers`; `key` holds the number of layers.

    Lists with one entry per layer (``layer_types``) follow their layers.
    """
    if key not in config:  # in the part that describes the language model
        return {k: with_layers(v, key, origins, layers) if isinstance(v, dict) else v for k, v in config.items()}
    result = {
        k: [v[origin] for origin in origins] if isinstance(v, list) and len(v) == layers else v
        for k, v in config.items()
    }
    result[key] = len(origins)
    return result
