"""Which parameters of a model class have a row for every token, and along which axis."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from evomerge.models.architecture.layout import skeleton


def row_axes(config: Any, trust_remote_code: bool = False) -> dict[str, int]:
    """The axis of the vocabulary by the parameter's name in the module, found without weights or tables of names.

    The class is built twice, once for one token more: what has grown has a row for every token.

    Args:
        config: a transformers configuration.
        trust_remote_code: let a model that brings its own code run it.

    Raises:
        PoolError: transformers cannot build it.
    """
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in skeleton(each, trust_remote_code).state_dict().items()}
        for each in (config, resized(config, int(config.get_text_config().vocab_size) + 1))
    ]
    found = {}
    for name, shape in shapes[0].items():
        grown = [axis for axis, (one, other) in enumerate(zip(shape, shapes[1][name], strict=True)) if one != other]
        if grown:
            found[name] = grown[0]
    return found


def resized(config: Any, rows: int) -> Any:
    """A copy of a transformers configuration for so many rows."""
    result = deepcopy(config)
    for part in {id(part): part for part in (result, result.get_text_config())}.values():
        if hasattr(part, "vocab_size"):
            part.vocab_size = rows
    return result
