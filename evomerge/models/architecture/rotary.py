"""Rotary position embeddings as transformers computes them from a configuration, whatever it spells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_LENGTHS = (None, *(2**power + 1 for power in range(8, 22, 2)))
"""Texts of these lengths are looked at: some kinds compute other frequencies for long ones."""


def rotary_of(config: Any) -> Any:
    """What enters the rotary embeddings of a model: frequencies and scale of the attention, by kind of layer.

    Args:
        config: a transformers configuration.

    Returns:
        A value that is equal for configurations that compute the same; ``None`` where there are no rotary embeddings
        or where transformers has no function for their kind.
    """
    text = config.get_text_config()
    settings = getattr(text, "rope_parameters", None)
    if not isinstance(settings, Mapping) or not settings:
        return None
    try:
        if all(isinstance(value, Mapping) for value in settings.values()):  # by kind of layer
            return {kind: _computed(text, own, kind) for kind, own in settings.items()}
        return _computed(text, settings, None)
    except Exception:  # a kind of its own, or settings that lack something: compared as they are spelled
        return None


def _computed(config: Any, settings: Mapping[str, Any], layer_type: str | None) -> Any:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = settings.get("rope_type", settings.get("type", "default"))
    # Not all models rotate the whole head, nor by a fraction that they write here.
    share = settings.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None)) or 1.0
    plain = (float(settings["rope_theta"]), float(share))
    if kind == "default":
        return plain
    options = {} if layer_type is None else {"layer_type": layer_type}
    found = []
    for length in _LENGTHS:
        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=length, **options)
        found.append((tuple(frequencies.tolist()), float(scale)))
    switch = settings.get("original_max_position_embeddings", getattr(config, "original_max_position_embeddings", None))
    return plain, (switch if kind == "longrope" else None), tuple(found)
