"""The layers and components of a network that draws images, by the blocks that those who merge such networks count.

A U-Net's layers are counted as its original files count them, from the first resolution down and up again: a resnet
with the attention behind it is one, a downsampler one of its own, the middle one, an upsampler goes with the last.
Those of a transformer are the elements of its lists of blocks. Where a network has several lists, they come one after
the other: FLUX's double blocks, then its single ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import nn

from evomerge.errors import PoolError
from evomerge.models.architecture.layout import Layout
from evomerge.recipes.slices import Component, SliceId

FIXED = "the layers of a network that draws images stay where they are"
_SAMPLERS = ("downsamplers", "upsamplers")
_TIME = re.compile(r"(^|[._])(time|timestep|guidance|add_embedding|class_embedding|emb_layers)")
_ATTENTION = re.compile(r"(^|\.)(attn\w*|attention\w*|to_(q|k|v|out|add_out)\w*|add_(q|k|v)_proj)(\.|$)")
_NORM = re.compile(r"(^|\.)(\w*norm\w*|ln_\w+|\w+_ln)(\.|$)")
_MODULATION = re.compile(r"(^|\.)norm\w*\.(linear|emb)(\.|$)|adaln|adaLN|scale_shift_table|modulation")


@dataclass(frozen=True)
class Blocks:
    """The layers of a network.

    Attributes:
        names: of its blocks with their numbers of layers, in order: ``down.0``, ``mid``, ``up.0``; ``double``.
        starts: the beginnings of the names of each layer's tensors, layer by layer.
    """

    names: tuple[tuple[str, int], ...]
    starts: tuple[tuple[str, ...], ...]

    def place(self, name: str) -> tuple[int, str] | None:
        """Number of the layer that holds a tensor and the tensor's name in it; ``None`` outside."""
        for number, starts in enumerate(self.starts):
            for start in starts:
                if name.startswith(start):
                    return number, name.removeprefix(start)
        return None


def blocks_of(module: nn.Module) -> Blocks:
    """Find the layers of a network.

    Raises:
        PoolError: it has no blocks.
    """
    parts: Any = module
    if hasattr(module, "down_blocks") and hasattr(module, "up_blocks"):
        found = list(_unet(parts))
    else:
        found = list(_lists(module))
    if not found:
        raise PoolError(f"{type(module).__name__} has no lists of blocks", "a U-Net, or a transformer")
    return Blocks(tuple((name, len(layers)) for name, layers in found), tuple(s for _, layers in found for s in layers))


def _unet(module: Any) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Blocks of a U-Net: the name of each, and for every layer how its tensors' names begin."""
    for number, block in enumerate(module.down_blocks):
        yield f"down.{number}", _unet_layers(f"down_blocks.{number}.", block)
    if getattr(module, "mid_block", None) is not None:
        yield "mid", [("mid_block.",)]
    for number, block in enumerate(module.up_blocks):
        yield f"up.{number}", _unet_layers(f"up_blocks.{number}.", block)


def _unet_layers(prefix: str, block: nn.Module) -> list[tuple[str, ...]]:
    """The layers of one block."""
    lists = {name: child for name, child in block.named_children() if isinstance(child, nn.ModuleList) and len(child)}
    layers: list[tuple[str, ...]] = []
    inner = {name: own for name, own in lists.items() if name not in _SAMPLERS}
    for number in range(max((len(own) for own in inner.values()), default=0)):
        layers.append(tuple(f"{prefix}{name}.{number}." for name, own in inner.items() if number < len(own)))
    if "downsamplers" in lists:
        layers.append((f"{prefix}downsamplers.",))
    if "upsamplers" in lists:
        layers[-1] = (*layers[-1], f"{prefix}upsamplers.")
    others = [
        name for name, child in block.named_children() if name not in lists and any(True for _ in child.parameters())
    ]
    if others:  # blocks of a kind of their own
        own = tuple(f"{prefix}{name}." for name in others)
        layers = [*layers[:-1], (*layers[-1], *own)] if layers else [own]
    return layers


def _lists(module: nn.Module) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Lists of blocks of a transformer, in the order in which it has them."""
    found = [
        (name, child)
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) and ("block" in name or "layer" in name)
    ]
    for name, child in found:
        word = name.removesuffix("s").removesuffix("_block").removesuffix("_layer")
        word = word.removesuffix("_transformer") or "block"
        if word in ("transformer", "block", "layer"):
            word = "double" if any(other.startswith("single") for other, _ in found) else "block"
        yield word, [(f"{name}.{number}.",) for number in range(len(child))]


def layout_of_network(module: nn.Module) -> tuple[Layout, Blocks]:
    """The slices of a network on the meta device; its tensors' names are those of its own.

    Raises:
        PoolError: it has no blocks, or one is not told apart.
    """
    blocks = blocks_of(module)
    state = module.state_dict()
    grouped: dict[SliceId, list[str]] = {}
    seen = False
    for name in state:
        at = blocks.place(name)
        seen = seen or at is not None
        slice_ = SliceId(_outer(name, seen)) if at is None else SliceId(component_of(name, at[1]), at[0])
        grouped.setdefault(slice_, []).append(name)
    empty = [number for number in range(len(blocks.starts)) if not any(s.layer == number for s in grouped)]
    if empty:
        raise PoolError(f"layer {empty[0]} of {type(module).__name__} has no tensors", "blocks with weights")
    slices = tuple(sorted(grouped, key=lambda slice_: slice_.order))
    layout = Layout(
        slices,
        MappingProxyType({slice_: tuple(grouped[slice_]) for slice_ in slices}),
        len(blocks.starts),
        MappingProxyType({name: name for slice_ in slices for name in grouped[slice_]}),
        MappingProxyType({name: tuple(tensor.shape) for name, tensor in state.items()}),
        integers=frozenset(name for name, tensor in state.items() if not tensor.is_floating_point()),
        fixed=FIXED,
    )
    return layout, blocks


def component_of(name: str, inner: str) -> Component:
    """The component of a layer that a tensor is part of.

    What a layer makes of the time is ``time``, wherever it is registered: a resnet's projection, the linear layer of an
    adaptive norm.

    Args:
        name: of the tensor.
        inner: its name within the layer.

    >>> component_of("down_blocks.0.resnets.1.conv1.weight", "conv1.weight")
    'resnet'
    """
    if _MODULATION.search(inner) or _TIME.search(inner):
        return "time"
    path = inner.rpartition(".")[0]
    if _NORM.search(path):
        return "norm"
    own = re.search(r"(^|\.)(resnets|downsamplers|upsamplers|mid_block\.resnets)\.", name)
    if own and not re.search(r"(^|\.)attentions\.", name):
        return "resnet"
    if re.search(r"(^|\.)(ff\w*|mlp\w*|proj_mlp|feed_forward|net)(\.|$)", path):
        return "mlp"
    if _ATTENTION.search(path) or re.search(r"(^|\.)attentions\.", name):
        return "attn"
    return "mlp"


def _outer(name: str, after: bool) -> Component:
    """The component of a tensor outside the layers; `after`: the network lists it after some of them."""
    if _TIME.search(name) and "norm" not in name:
        return "time_embed"
    if re.search(r"(^|\.)(conv_norm_out|norm_out|final_norm)", name):
        return "final_norm"
    if after and not re.search(r"(^|[._])(embed|pos_embed|embedder)", name):
        return "final_norm" if _NORM.search(name.rpartition(".")[0]) else "head"
    if re.match(r"(conv_out|proj_out|final_layer)\b", name):
        return "head"
    return "embed"
