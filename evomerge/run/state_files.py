"""A tree of JSON values and numpy arrays as two byte strings: JSON and safetensors. Reading them executes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from evomerge.errors import EvomergeError

_ARRAY, _FLOAT = "__array__", "__float__"


class StateError(EvomergeError):
    """A saved state that cannot be read."""


def to_bytes(tree: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """A tree of mappings with string keys, lists, tuples, JSON values and numpy arrays.

    Returns:
        JSON, in which an array is its number, and the arrays as safetensors.

    Raises:
        TypeError: something else is in it.
    """
    arrays: dict[str, Any] = {}

    def to_json(value: Any) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, np.ndarray):
            name = str(len(arrays))
            arrays[name] = np.ascontiguousarray(value)
            # safetensors has no arrays without a dimension
            return {_ARRAY: name, "shape": list(value.shape)}
        if isinstance(value, Mapping):
            if any(not isinstance(key, str) for key in value):
                raise TypeError(f"keys of a state are strings, not {sorted(map(repr, value))[:3]}")
            return {key: to_json(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [to_json(entry) for entry in value]
        if isinstance(value, float) and not math.isfinite(value):
            return {_FLOAT: repr(value)}
        return value

    text = json.dumps(to_json(tree), separators=(",", ":"), allow_nan=False)
    return text.encode(), safetensors.save(arrays)


def from_bytes(text: bytes, arrays: bytes) -> dict[str, Any]:
    """The tree of `to_bytes`; tuples have become lists.

    Raises:
        StateError: it is malformed.
    """
    try:
        loaded = safetensors.load(arrays)

        def rich(value: dict[str, Any]) -> Any:
            if _ARRAY in value:
                return loaded[value[_ARRAY]].reshape(value["shape"])
            return float(value[_FLOAT]) if _FLOAT in value else value

        tree = json.loads(text, object_hook=rich)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError, AttributeError, SafetensorError) as error:
        raise StateError(
            f"a saved state is malformed ({type(error).__name__}: {error})", "as it was written"
        ) from error
    if not isinstance(tree, dict):
        raise StateError(f"a saved state is {type(tree).__name__}", "a mapping")
    return tree
