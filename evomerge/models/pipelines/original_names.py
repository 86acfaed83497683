"""The names that a U-Net's tensors have in the single files of their first authors, from a network's configuration.

They are those that diffusers reads: the conversion of a file with these names gives back the network's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from evomerge.errors import PoolError

PREFIX = "model.diffusion_model."
_U_NET = "UNet2DConditionModel"
_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MID = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def original_names(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """By the names of a network the names in a single file.

    Args:
        config: of the network.
        names: of its tensors.

    Raises:
        PoolError: the network is no U-Net of that kind, or has a tensor that no such file has.
    """
    names, kind = list(names), config.get("_class_name")
    depth = config.get("layers_per_block", 2)
    if kind != _U_NET or not isinstance(depth, int):
        raise PoolError(
            f"the names that a {kind} has in a single file are not known",
            f"a {_U_NET}, or a pool that has a single file of that kind",
            "write a folder, or name such a file among pool.models",
        )
    found: dict[str, str] = {}
    attended = {
        match[2]
        for name in names
        if (match := _BLOCK.fullmatch(name)) and match[1] == "up_blocks" and match[3] == "attentions"
    }
    for name in names:
        own = _original(name, depth, attended)
        if own is None:
            raise PoolError(f"tensor {name!r} of the network has no name in a single file", "those of a plain U-Net")
        found[name] = f"{PREFIX}{own}"
    return found


def _original(name: str, depth: int, attended: set[str]) -> str | None:
    """The name without its prefix; ``None`` for a tensor that there is none for."""
    block, middle = _BLOCK.fullmatch(name), _MID.fullmatch(name)
    if block is not None:
        side, number, kind, at, inner = block[1], int(block[2]), block[3], int(block[4]), block[5]
        first = (depth + 1) * number
        if kind == "downsamplers":
            return f"input_blocks.{first + depth + 1}.0.op.{inner.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"output_blocks.{first + depth}.{2 if block[2] in attended else 1}.{inner}"
        where = f"input_blocks.{first + at + 1}" if side == "down_blocks" else f"output_blocks.{first + at}"
        return f"{where}.1.{inner}" if kind == "attentions" else _resnet(f"{where}.0", inner)
    if middle is not None:
        at = int(middle[2])
        if middle[1] == "attentions":
            return f"middle_block.{2 * at + 1}.{middle[3]}"
        return _resnet(f"middle_block.{2 * at}", middle[3])
    path, _, leaf = name.rpartition(".")
    return f"{_OUTER[path]}.{leaf}" if path in _OUTER else None


def _resnet(where: str, inner: str) -> str | None:
    part, _, leaf = inner.partition(".")
    return f"{where}.{_RESNET[part]}.{leaf}" if part in _RESNET else None
