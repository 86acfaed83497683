"""Recipes as mergekit YAML: the file with which ``mergekit-yaml`` writes the model that evomerge merges."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import yaml

from evomerge.errors import RecipeError
from evomerge.export.blocks import FORMS, Block, blocks_of
from evomerge.export.filters import Number, Value, filter_entries, gradient_is_exact
from evomerge.merge.methods import specs
from evomerge.models.layout import Layout
from evomerge.recipe import ModelRef, Recipe

_NOTES = {
    "dare": "The elements that DARE drops are drawn at random: mergekit and evomerge draw them from different "
    "generators, so tensors with a density below 1 agree in distribution, not element by element; and where evomerge "
    "divides what is left by the density, mergekit restores the sum of magnitudes.",
    "ties": "Of the elements whose magnitude is just that at which trimming stops, evomerge keeps the first and "
    "mergekit an arbitrary choice; there are several where sources are stored in 16 bits.",
}
"""What a reader of the file should know of methods that drop elements."""


def to_mergekit(recipe: Recipe, layout: Layout, *, locations: Mapping[str, str] | None = None) -> str:
    """The mergekit YAML of a recipe: float32 arithmetic, one rounding to the recipe's dtype.

    Values are exact (17 digits). A value per layer is written as mergekit's gradient where mergekit reads
    each layer's own value back from it, equal neighbouring layers as `slices` with a `layer_range`, a value per
    component as a `filter` list.

    Args:
        recipe: linear, slerp, task arithmetic, TIES or DARE on every slice; plain copies may be mixed in.
        layout: of the pool's models.
        locations: how to write a model's location, by its name in the recipe; its own location otherwise.

    Raises:
        RecipeError: mergekit has no way to say the same; names the slice and the reason.
    """
    methods = specs()
    places = {name: _place(ref, (locations or {}).get(name)) for name, ref in recipe.models}
    references = {places[name]: _reference(ref, places[name]) for name, ref in recipe.models}
    method, blocks = blocks_of(recipe, layout, methods, places)
    declared = methods[method]
    defaults = {p.name: p.default for p in declared.parameters if isinstance(p.default, (bool, float, int))}
    config_from = places[recipe.config_from]
    pieces = _pieces(blocks)
    writer = _Writer(method, references, defaults)
    document: dict[str, Any] = {
        "merge_method": method,
        "base_model": references[config_from],
        "dtype": "float32",
        "out_dtype": recipe.dtype,
    }
    if len(pieces) == 1 and _whole(pieces[0], layout, config_from):
        document["parameters"] = writer.shared(pieces[0])
        document["models"] = [
            {"model": references[place], **writer.per_input(pieces[0], place)} for place in pieces[0][0].sources
        ]
    else:
        shared = [writer.shared(piece) for piece in pieces]
        common = {name: value for name, value in shared[0].items() if all(s[name] == value for s in shared)}
        document["parameters"] = common
        document["slices"] = [
            writer.slice(piece, {name: value for name, value in own.items() if name not in common}, config_from)
            for piece, own in zip(pieces, shared, strict=True)
        ]
    return _comment(recipe, method, blocks) + _dump(document)


def _place(ref: ModelRef, location: str | None) -> str:
    """A location as mergekit parses it: ``org/name@commit`` for hub ids."""
    place = location or ref.location
    return f"{place}@{ref.revision}" if ref.revision else place


def _reference(ref: ModelRef, place: str) -> Any:
    """A model reference; a folder whose name mergekit would take apart at ``@`` or ``+`` is spelt out."""
    return {"model": {"path": place}} if ref.revision is None and ("@" in place or "+" in place) else place


def _pieces(blocks: Sequence[Block]) -> list[list[Block]]:
    """Runs of layers that one mergekit slice can describe, as few and as readable as exactness allows."""
    pieces: list[list[Block]] = []
    for _, group in groupby(blocks, key=lambda block: (block.offsets, block.base, _tensors(block))):
        run = list(group)
        equal = [list(same) for _, same in groupby(run, key=lambda block: block.values)]
        # A value per layer reads best as a list, equal neighbours as a layer range.
        pieces += _exact_gradients(run) if len(equal) * 2 > len(run) else equal
    return pieces


def _exact_gradients(run: Sequence[Block]) -> list[list[Block]]:
    """`run` in the fewest even parts from whose lists mergekit reads each layer's own value back."""
    for parts in range(1, len(run) + 1):
        cuts = [len(run) * part // parts for part in range(parts + 1)]
        if all(gradient_is_exact(stop - start) for start, stop in pairwise(cuts)):
            return [list(run[start:stop]) for start, stop in pairwise(cuts)]
    raise AssertionError("a part of one layer is exact")


def _tensors(block: Block) -> dict[Any, frozenset[str]]:
    """Which tensors have which parameters."""
    return {key: frozenset(values) for key, values in block.values.items()}


def _whole(piece: Sequence[Block], layout: Layout, config_from: str) -> bool:
    """Whether `models:` says it: every layer in its own place, and a base that mergekit need not be told twice."""
    first = piece[0]
    in_place = all(offset == 0 for _, offset in first.offsets) and len(piece) == layout.layers
    # mergekit adds a base model that is not among the inputs, which the linear method would then want a weight for.
    return in_place and (first.base == config_from if first.base else config_from in first.sources)


class _Writer:
    """Writes the parameters of pieces."""

    def __init__(self, method: str, references: Mapping[str, Any], defaults: Mapping[str, Number]) -> None:
        self.form, self.references, self.defaults = FORMS[method], references, defaults

    def shared(self, piece: Sequence[Block]) -> dict[str, Any]:
        """The settings that are not per model."""
        return {name: self._setting(piece, None, name) for name in self.form.shared} | dict(self.form.constants)

    def per_input(self, piece: Sequence[Block], place: str) -> dict[str, Any]:
        """The settings of one model, as a mapping with `parameters`, or nothing for a base."""
        if place == piece[0].base or not self.form.per_input:
            return {}
        return {"parameters": {name: self._setting(piece, place, name) for name in self.form.per_input}}

    def slice(self, piece: Sequence[Block], parameters: Mapping[str, Any], config_from: str) -> dict[str, Any]:
        """One entry of `slices`."""
        first = piece[0]
        entry: dict[str, Any] = {}
        if first.base is not None and first.base != config_from:
            entry["base_model"] = self.references[first.base]
        if parameters:
            entry["parameters"] = dict(parameters)
        entry["sources"] = [
            {"model": self.references[place], "layer_range": [at, at + len(piece)], **self.per_input(piece, place)}
            for place, at in first.sources.items()
        ]
        return entry

    def _setting(self, piece: Sequence[Block], place: str | None, name: str) -> Any:
        """One parameter: a number, a list by layer, or a list of filters."""
        key = (place, name)
        values: dict[str, Value] = {}
        for tensor in piece[0].values.get(key, {}):
            merged = _over_layers([block.values[key][tensor] for block in piece])
            if merged is not None:
                values[tensor] = merged
        for block in piece:
            values |= {tensor: value for tensor, value in block.outer.get(key, {}).items() if value is not None}
        if not values:
            return self.defaults[name]
        entries = filter_entries(values)
        if entries is None:
            raise RecipeError(
                f"mergekit cannot express {name}: no substring of their names tells the tensors {sorted(values)} apart"
            )
        if len(entries) == 1:
            return _plain(entries[0][1])
        return [
            {"filter": part, "value": _plain(value)} if part else {"value": _plain(value)} for part, value in entries
        ]


def _over_layers(values: Sequence[Number | None]) -> Value | None:
    """A tensor's values over the layers of a piece: one when they are equal; ``None`` where any will do."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    filled, last = [], known[0]
    for value in values:
        last = last if value is None else value
        filled.append(last)
    return filled[0] if len({repr(value) for value in filled}) == 1 else tuple(filled)


def _plain(value: Value) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _comment(recipe: Recipe, method: str, blocks: Sequence[Block]) -> str:
    """The lines above the document."""
    lines = [f"evomerge recipe {recipe.hash[:16]}. Carry it out with: mergekit-yaml FILE OUT"]
    drops = any(
        value is not None and value < 1
        for block in blocks
        for values in (block.values, block.outer)
        for (_, name), tensors in values.items()
        if name == "density"
        for value in tensors.values()
    )
    note = _NOTES.get(method.partition("_")[0])
    if note and drops:
        lines += textwrap.wrap(note, 108)
    return "".join(f"# {line}\n" for line in lines)


class _Dumper(yaml.SafeDumper):
    """Lists of numbers on one line, sequences indented."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_list(dumper: _Dumper, data: list[Any]) -> yaml.Node:
    numbers = all(isinstance(item, (bool, int, float)) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=numbers)


_Dumper.add_representer(list, _represent_list)


def _dump(document: Mapping[str, Any]) -> str:
    # Without aliases: the same reference or list may occur twice.
    _Dumper.ignore_aliases = lambda *_: True  # type: ignore[method-assign]
    return yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
