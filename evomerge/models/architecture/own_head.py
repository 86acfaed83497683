"""Heads that transformers' configuration ties and the checkpoint does not: those of T5 1.1 and FLAN.

For T5, ``tie_word_embeddings: false`` in config.json means that the decoder's outputs are not scaled; transformers
reads it so, says that all is tied, and then ties what a checkpoint does not hold twice with other values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

OWN_HEAD = "has_own_head"
"""Set on a configuration whose model has a head of its own in spite of it."""
_KEY = "tie_word_embeddings"


def says_untied(config: Any, written: Mapping[str, Any]) -> bool:
    """Whether config.json, as `written`, says that nothing is tied where transformers' configuration says it is."""
    return written.get(_KEY) is False and bool(getattr(config, _KEY, False))


def part_head(module: nn.Module) -> None:
    """Give the head of a module on the meta device a weight of its own."""
    head: Any = module.get_output_embeddings()  # type: ignore[operator]
    tied: dict[str, str] = getattr(module, "all_tied_weights_keys", {})
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter is head.weight and name.endswith("lm_head.weight"):
            tied.pop(name, None)
    head.weight = nn.Parameter(torch.empty_like(head.weight))
