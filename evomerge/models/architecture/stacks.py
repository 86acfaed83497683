"""The lists of repeated layers of a module: one, or those of an encoder and of a decoder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from evomerge.errors import PoolError
from evomerge.models.architecture.language_part import language_prefix

Stack = tuple[str, nn.ModuleList]
"""A list's name in the module, and the list."""


def find_stacks(module: nn.Module) -> tuple[Stack, ...]:
    """The stacks of a module in the order in which they compute: one, or an encoder's and a decoder's.

    Raises:
        PoolError: there is none.
    """
    config: Any = getattr(module, "config", None)
    if not getattr(config, "is_encoder_decoder", False):
        return (find_layers(module),)
    parts = {id(part): name for name, part in module.named_modules()}
    found = []
    for part in (module.get_encoder(), module.get_decoder()):  # type: ignore[operator]
        name, layers = find_layers(part)
        found.append((f"{parts[id(part)]}.{name}", layers))
    return tuple(found)


def find_layers(module: nn.Module) -> Stack:
    """The list of repeated layers and its name: of the outermost lists the one with the most parameters.

    One of the depth that the configuration says comes first: of a text model's; of a model of images and texts in one
    space, as CLIP is, of its image tower's. Of a model that sees it is one of its language model; of one that makes
    masks of prompts, as SAM does, of its image encoder.

    Raises:
        PoolError: there is none.
    """
    architecture, config = type(module).__name__, getattr(module, "config", None)
    lists: dict[str, nn.ModuleList] = {}
    for name, child in module.named_modules():
        nested = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(child, nn.ModuleList) and len(child) and not nested:
            lists[name] = child
    prefix = "vision_encoder" if hasattr(module, "mask_decoder") else language_prefix(module)
    within = {name: own for name, own in lists.items() if prefix and name.startswith(f"{prefix}.")}
    lists = within or lists
    if not lists:
        raise PoolError(f"{architecture} has no list of layers", "an architecture of repeated layers")
    text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    tower = getattr(config, "vision_config", None) if hasattr(module, "logit_scale") else None
    depth = getattr(tower or text, "num_hidden_layers", None)

    def rank(name: str) -> tuple[bool, int]:
        return len(lists[name]) == depth, sum(p.numel() for p in lists[name].parameters())

    best = max(lists, key=rank)
    return best, lists[best]


def layer_place(place: str, stacks: Sequence[Stack]) -> tuple[int, str, str] | None:
    """Number of the layer that holds a parameter, the parameter's name in it, and the stack's; ``None`` outside.

    Layers are counted through all stacks.
    """
    before = 0
    for prefix, layers in stacks:
        if place.startswith(f"{prefix}."):
            number, _, inner = place.removeprefix(f"{prefix}.").partition(".")
            return before + int(number), inner, prefix
        before += len(layers)
    return None


def passed_by(place: str, stacks: Sequence[Stack], passed: Collection[str]) -> bool:
    """Whether a parameter outside the layers comes after those of its own stack, or after all where it is of none.

    Args:
        passed: names of the stacks whose layers came before.
    """
    own = [prefix for prefix, _ in stacks if place.startswith(f"{prefix.rpartition('.')[0]}.")]
    if len(stacks) == 1 or not own:
        return len(passed) == len(stacks)
    return own[0] in passed
