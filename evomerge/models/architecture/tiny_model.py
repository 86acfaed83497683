"""A tiny model of an architecture, to try on what holds for all of its size."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from evomerge.errors import PoolError
from evomerge.models.architecture.layout import model_class

HIDDEN, HEAD, INNER, VOCABULARY = 64, 16, 48, 64


def tiny(config: Any) -> Any:
    """A copy of a configuration with few and narrow layers of the same kinds; token ids are within the vocabulary."""
    result = copy.deepcopy(config)
    text = result.get_text_config()
    hidden, heads = text.hidden_size, getattr(text, "num_attention_heads", None)
    grouped = getattr(text, "num_key_value_heads", None)
    depth = text.num_hidden_layers
    renamed = {type(text).attribute_map.get(key, key): key for key in ("hidden_size", "num_hidden_layers")}
    for key, value in list(vars(text).items()):
        if key.startswith("_") or key in renamed:
            continue
        if key.endswith("_token_id"):
            setattr(text, key, None if value is None else 0)
        elif isinstance(value, Mapping):
            setattr(text, key, _plain_rope(value))
        elif isinstance(value, bool) or not isinstance(value, int):
            continue
        elif re.search(r"intermediate|ffn|inner", key):
            setattr(text, key, INNER)
        elif value == hidden and key not in ("vocab_size", "max_position_embeddings"):
            setattr(text, key, HIDDEN)
    text.hidden_size, text.vocab_size = HIDDEN, VOCABULARY
    if heads:
        text.num_attention_heads = HIDDEN // HEAD
        if grouped:
            text.num_key_value_heads = HIDDEN // HEAD if grouped == heads else 1 if grouped == 1 else 2
        if getattr(text, "head_dim", None):
            text.head_dim = HEAD
    kinds = getattr(text, "layer_types", None)
    kept = min(depth, 4)
    if kinds and set(kinds[:kept]) != set(kinds):
        kept = 1 + max(kinds.index(kind) for kind in set(kinds))
    text.num_hidden_layers = kept
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == depth:
            setattr(text, key, value[:kept])
    eyes = getattr(result, "vision_config", None)
    for key in ("num_hidden_layers", "depth"):  # they are built, and given no image
        if eyes is not None and isinstance(getattr(eyes, key, None), int):
            setattr(eyes, key, 1)
    return result


def _plain_rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings without what is fitted to the width of a head."""
    if "mrope_section" in values:  # positions in time, height and width; a third each, about, of half a head
        values = {**values, "mrope_section": [2, 3, 3]}
    if "rope_type" in values and values["rope_type"] != "default":
        kept = {key: values[key] for key in ("rope_theta", "partial_rotary_factor") if key in values}
        return {"rope_type": "default", **kept}
    return {key: _plain_rope(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def build(config: Any) -> nn.Module:
    """A random model of the architecture, every parameter away from zero and one; the same at every call.

    Raises:
        PoolError: transformers cannot build so small a model.
    """
    small = tiny(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            module: nn.Module = model_class(config)._from_config(small, attn_implementation="eager")
        except Exception as error:  # the class may refuse its configuration in any way
            raise PoolError(_reason(error)) from error
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.data = parameter.float() + 0.2 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
