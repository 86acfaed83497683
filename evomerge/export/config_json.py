"""The config.json of a merged model: that of a source, with the result's dtype and depth."""

from __future__ import annotations

from typing import Any

from evomerge.models.checkpoints.weight_files import NAMES_FILES
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe

_TEXT_PARTS = ("text_config", "decoder", "thinker_config", "llm_config", "language_config")
"""Of a configuration with several parts, those that may describe the language model."""


def merged_config(recipe: Recipe, pool: Pool) -> dict[str, Any]:
    """The configuration of `recipe.config_from` as it was saved, changed only where the merge differs.

    Lists with an entry per layer (``layer_types``) follow the layers to where they are put.
    """
    config = with_dtype(pool.checkpoints[recipe.config_from].config, recipe.dtype)
    if pool.tied is not None:
        config = _with_tie(config, pool.tied)
    if pool.vocabulary is not None:
        config = with_vocabulary(config, pool)
    found = origins(recipe)
    path = [found[layer] for layer in range(len(found))]
    text = pool.config.get_text_config()
    if [layer for _, layer in path] == list(range(pool.layout.layers)):
        return config
    key = type(text).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    own = {model: _lists(pool, model) for model in {model for model, _ in path}}
    known = _lists(pool, recipe.config_from)
    lists = {k: [own[model].get(k, known[k])[layer] for model, layer in path] for k in known}
    return with_layers(config, key, lists, len(path))


def origins(recipe: Recipe) -> dict[int, tuple[str, int]]:
    """For every output layer, the model and its layer that it starts from, through intermediates."""
    known: dict[str, dict[int, tuple[str, int]]] = {}  # of intermediates: a lineage shares ancestors
    found: dict[int, tuple[str, int]] = {}
    for name, stage in (*recipe.stages.items(), ("", recipe)):
        known[name] = found = {}
        for entry in stage.slices:
            layer = entry.slice.layer
            if layer is not None and layer not in found:
                first = entry.inputs[0]
                at = layer if first.layer is None else first.layer
                found[layer] = known[first.model][at] if first.model in known else (first.model, at)
    return found


def _lists(pool: Pool, model: str) -> dict[str, list[Any]]:
    """What a model's configuration has an entry of per layer, also where its file leaves that to transformers."""
    config = pool.config
    if model != pool.info.config_from:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(str(pool.folder(model)), trust_remote_code=pool.trust_remote_code)
    depth = pool.info.depth(model)
    values = config.get_text_config().to_dict()
    return {key: value for key, value in values.items() if isinstance(value, list) and len(value) == depth}


def with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A copy of a config.json that says `dtype`, also in its parts, and not where the model or its weights lie."""
    result = {key: value for key, value in config.items() if key not in ("_name_or_path", *NAMES_FILES)}
    for key, value in result.items():
        if isinstance(value, dict) and ("dtype" in value or "torch_dtype" in value):
            result[key] = with_dtype(value, dtype)
    # Readers before transformers 4.56 know `torch_dtype` only: a source that was saved for them keeps it.
    for key in [key for key in ("dtype", "torch_dtype") if key in result] or ["dtype"]:
        result[key] = dtype
    return result


def _with_tie(config: dict[str, Any], tied: bool) -> dict[str, Any]:
    """A copy of a config.json that ties head and embeddings or does not, also in the parts that say so."""
    key = "tie_word_embeddings"
    parts = {k: v | {key: tied} if isinstance(v, dict) and key in v else v for k, v in config.items()}
    return parts | {key: tied}


def with_vocabulary(config: dict[str, Any], pool: Pool) -> dict[str, Any]:
    """A copy of a config.json with the rows, and the ids of tokens, of a pool's vocabulary."""
    assert pool.vocabulary is not None
    found = pool.vocabulary.json(config)
    known = any("vocab_size" in part for part in (found, *(own for own in found.values() if isinstance(own, dict))))
    return found if known else found | {"vocab_size": pool.vocabulary.rows.count}  # else transformers' default


def with_layers(config: dict[str, Any], key: str, lists: dict[str, list[Any]], layers: int) -> dict[str, Any]:
    """A copy for a model with `layers`; `key` holds the number of layers, `lists` have an entry for each.

    Lists that the file does not have are added where the layers differ: what transformers makes of their number alone
    would then be wrong.
    """
    part = next((name for name in _TEXT_PARTS if isinstance(config.get(name), dict)), None)
    if key not in config and part is not None:  # other parts, what looks at images say, have depths of their own
        inner = config[part]
        whole = not any(isinstance(inner.get(name), dict) for name in _TEXT_PARTS)
        return config | {part: with_layers({key: layers, **inner} if whole else inner, key, lists, layers)}
    if key not in config:
        return {k: with_layers(v, key, lists, layers) if isinstance(v, dict) else v for k, v in config.items()}
    differing = {k: v for k, v in lists.items() if k in config or len(set(map(str, v))) > 1}
    return config | differing | {key: layers}
