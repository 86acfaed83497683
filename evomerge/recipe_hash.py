"""The hash of a recipe: over its canonical content, whatever the names, places and spelling of numbers."""

from __future__ import annotations

import hashlib
from json.encoder import encode_basestring_ascii as quote
from operator import itemgetter
from typing import TYPE_CHECKING

from evomerge.method import ByTensor, Scalar, Value

if TYPE_CHECKING:
    from evomerge.recipe import Input, Parameters, Recipe


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 (hex) of what is merged and how: models by their content, intermediates by their own hash."""
    return hashlib.sha256(canonical_text(recipe).encode()).hexdigest()


def canonical_text(recipe: Recipe) -> str:
    """The content that is hashed, as JSON without spaces, keys sorted.

    Written piece by piece and not by ``json``: a search hashes every candidate, and most of a recipe's pieces, those
    of the slices of a group, are alike.
    """
    if not all(stage.hashed for _, stage in recipe.intermediates):
        for stage in recipe.stages.values():
            assert stage.hash  # made now, in order: a lineage may be deeper than Python's stack
    identity = {name: quote(ref.identity) for name, ref in recipe.models}
    identity |= {name: quote(f"recipe {stage.hash}") for name, stage in recipe.intermediates}

    pieces: dict[int, str] = {}  # by identity: slices of a group share their inputs and parameters

    def values(of: Parameters) -> str:
        found = pieces.get(id(of))
        if found is None:
            found = pieces[id(of)] = _parameters(of)
        return found

    def source(entry: Input, layer: int | None) -> str:
        number = layer if entry.layer is None else entry.layer
        return f"[{identity[entry.model]},{'null' if number is None else number},{values(entry.parameters)}]"

    lines, alike = [], dict[tuple[object, ...], str]()
    for entry in recipe.slices:
        layer = entry.slice.layer
        group = layer, entry.method, id(entry.inputs), id(entry.parameters), id(entry.base), entry.scale
        text = alike.get(group)
        if text is None:
            inputs = ",".join([source(each, layer) for each in entry.inputs])
            base = "null" if entry.base is None else source(entry.base, layer)
            scale = "null" if entry.scale is None else _scalar(entry.scale)
            text = f"{quote(entry.method)},[{inputs}],{values(entry.parameters)},{base},{scale}]"
            alike[group] = text
        lines.append(f'["{entry.slice}",{text}')
    tokenizer = ""
    if recipe.tokenizer_from not in (None, recipe.config_from):
        assert recipe.tokenizer_from is not None
        tokenizer = f',"tokenizer_from":{identity[recipe.tokenizer_from]}'
    first = f'"config_from":{identity[recipe.config_from]},"dtype":{quote(recipe.dtype)},"seed":{recipe.seed}'
    return f'{{{first},"slices":[{",".join(lines)}]{tokenizer}}}'


def _scalar(value: Scalar) -> str:
    """One spelling of equal numbers: 1, 1.0 and -0.0, 0.0 are the same weight and must hash alike."""
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) > 2**53:
        return int.__repr__(value)
    return float.__repr__(float(value) + 0.0)


def _value(value: Value) -> str:
    """A value as JSON; values by tensor without the entries that say what the last one says."""
    if not isinstance(value, ByTensor):
        return _scalar(value)
    entries = [(quote(part) if part is not None else "null", _scalar(scalar)) for part, scalar in value.entries]
    rest = entries.pop()
    while entries and entries[-1][1] == rest[1]:
        entries.pop()
    return "[" + ",".join(f"[{part},{text}]" for part, text in [*entries, rest]) + "]" if entries else rest[1]


def _parameters(values: Parameters) -> str:
    ordered = sorted(values, key=itemgetter(0)) if len(values) > 1 else values
    return "[" + ",".join([f"[{quote(name)},{_value(value)}]" for name, value in ordered]) + "]"
