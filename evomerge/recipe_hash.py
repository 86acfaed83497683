"""The hash of a recipe: over its canonical content, whatever the names, places and spelling of numbers."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from evomerge.method import ByTensor, Scalar, Value

if TYPE_CHECKING:
    from evomerge.recipe import Input, Parameters, Recipe, SliceId


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 (hex) of what is merged and how: models by their content, intermediates by their own hash."""
    if not all(stage.hashed for _, stage in recipe.intermediates):
        for stage in recipe.stages.values():
            assert stage.hash  # made now, in order: a lineage may be deeper than Python's stack
    identity = {name: ref.identity for name, ref in recipe.models}
    identity |= {name: f"recipe {stage.hash}" for name, stage in recipe.intermediates}

    made: dict[int, list[tuple[str, object]]] = {}  # by identity: slices of a group share their parameters

    def values(of: Parameters) -> list[tuple[str, object]]:
        found = made.get(id(of))
        if found is None:
            found = made[id(of)] = _parameters(of)
        return found

    def source(entry: Input, slice_: SliceId) -> list[object]:
        layer = slice_.layer if entry.layer is None else entry.layer
        return [identity[entry.model], layer, values(entry.parameters)]

    content = {
        "dtype": recipe.dtype,
        "seed": recipe.seed,
        "config_from": identity[recipe.config_from],
        "slices": [
            [
                str(s.slice),
                s.method,
                [source(i, s.slice) for i in s.inputs],
                values(s.parameters),
                source(s.base, s.slice) if s.base else None,
                None if s.scale is None else _scalar(s.scale),
            ]
            for s in recipe.slices
        ],
    }
    if recipe.tokenizer_from not in (None, recipe.config_from):
        assert recipe.tokenizer_from is not None
        content["tokenizer_from"] = identity[recipe.tokenizer_from]
    return hashlib.sha256(json.dumps(content, separators=(",", ":"), sort_keys=True).encode()).hexdigest()


def _scalar(value: Scalar) -> Scalar:
    """One spelling of equal numbers: 1, 1.0 and -0.0, 0.0 are the same weight and must hash alike."""
    if isinstance(value, (bool, str)):
        return value
    return float(value) + 0.0 if abs(value) <= 2**53 else value


def _value(value: Value) -> object:
    """A value as JSON; values by tensor without the entries that say what the last one says."""
    if not isinstance(value, ByTensor):
        return _scalar(value)
    entries = [[part, _scalar(scalar)] for part, scalar in value.entries]
    rest = entries.pop()
    while entries and repr(entries[-1][1]) == repr(rest[1]):
        entries.pop()
    return [*entries, rest] if entries else rest[1]


def _parameters(values: Parameters) -> list[tuple[str, object]]:
    return [(name, _value(value)) for name, value in sorted(values, key=lambda pair: pair[0])]
