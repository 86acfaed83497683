"""Recipes as mergekit YAML: the file with which mergekit writes the model that evomerge merges."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import yaml

from evomerge.errors import RecipeError
from evomerge.merge.methods import specs
from evomerge.mergekit.blocks import Block, blocks_of
from evomerge.mergekit.filters import Value, filter_entries, gradient_is_exact
from evomerge.mergekit.forms import FORMS, Number
from evomerge.mergekit.layers import depth_of, module_names
from evomerge.mergekit.scales import as_sums, without_scales
from evomerge.mergekit.tokenizers import entry_content
from evomerge.mergekit.unsayable import require_sayable
from evomerge.models.architecture.layout import Layout
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import DTYPES, ModelRef

_NOTES = {
    "random": "The elements that are dropped are drawn at random: mergekit and evomerge draw them from different "
    "generators, so tensors with a density below 1 agree in distribution, not element by element.",
    "trimmed": "Of the elements whose magnitude is just that at which trimming stops, evomerge keeps the first and "
    "mergekit an arbitrary choice; there are several where sources are stored in 16 bits.",
}
"""What a reader of the file should know of methods that drop elements."""

_NOTE_OF = {
    **dict.fromkeys(("dare_linear", "dare_ties", "della", "della_linear"), "random"),
    **dict.fromkeys(("ties", "breadcrumbs", "breadcrumbs_ties"), "trimmed"),
}


def to_mergekit(recipe: Recipe, layout: Layout) -> str:
    """The mergekit YAML of a recipe: float32 arithmetic, one rounding to the recipe's dtype.

    Values are exact (17 digits). A value per layer is written as mergekit's gradient where mergekit reads
    each layer's own value back from it, equal neighbouring layers as `slices` with a `layer_range`, values by
    tensor as `filter` lists. Intermediates come first, as documents with a `name` that later ones take as a model:
    such a file is one for ``mergekit-multi``, any other for ``mergekit-yaml``. The recipe's seed has no place in it.

    Args:
        recipe: one method of mergekit's on every slice; plain copies may be mixed in where the method has weights.
        layout: of the pool's models.

    Raises:
        RecipeError: mergekit has no way to say the same; names the slice and the reason.
    """
    recipe.check(specs())
    require_sayable(recipe, layout)
    places = {name: ref.address for name, ref in recipe.models}
    references = {ref.address: _reference(ref) for _, ref in recipe.models}
    stages = _stage_names(recipe, references)
    every = places | stages
    parts = []
    for name, stage in recipe.stages.items():
        try:
            written, notes = _document(stage, layout, every, references)
        except RecipeError as error:
            raise RecipeError(f"intermediate {name}: {error.given}", error.allowed, error.do) from None
        parts.append(notes + _dump({"name": stages[name], **written}))
    written, notes = _document(recipe, layout, every, references)
    command = "mergekit-multi FILE --intermediate-dir DIR --out-path OUT" if parts else "mergekit-yaml FILE OUT"
    head = f"# evomerge recipe {recipe.hash[:16]}. Carry it out with: {command}\n"
    return head + "---\n".join([*parts, notes + _dump(written)])


def _document(
    recipe: Recipe, layout: Layout, places: Mapping[str, str], references: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """One recipe without its intermediates as a document, and the comment above it."""
    methods = specs()
    plain = without_scales(recipe, layout)
    try:
        method, blocks = blocks_of(plain, layout, methods, places)
    except RecipeError:
        if plain is recipe:
            raise
        method, blocks = blocks_of(as_sums(plain), layout, methods, places)
    defaults = {p.name: p.default for p in methods[method].parameters if isinstance(p.default, (bool, float, int))}
    config_from = places[recipe.config_from]
    # mergekit insists that a base model, where a method may have one, is among the sources of every slice.
    named = FORMS[method].base != "optional" or all(block.base is not None for block in blocks)
    if recipe.tokenizer is not None and recipe.tokenizer.base is None and FORMS[method].base == "ignored":
        named = False  # a base model would give the rows of tokens that some lack
    top_base = config_from if named else None
    pieces = _pieces(blocks)
    writer = _Writer(method, references, defaults, module_names(layout))
    document: dict[str, Any] = {"merge_method": method}
    if top_base is not None:
        document["base_model"] = writer.reference(top_base)
    if recipe.tokenizer_from not in (None, recipe.config_from if named else None):
        assert recipe.tokenizer_from is not None
        document["tokenizer_source"] = writer.reference(places[recipe.tokenizer_from])
    if recipe.tokenizer is not None:
        outer = {*pieces[0][0].sources} & {*pieces[-1][-1].sources}
        merged = {name: places[name] in outer for name, _ in recipe.models}
        base = recipe.config_from if named else None
        document |= entry_content(recipe.tokenizer, lambda name: writer.reference(places[name]), base, merged)
    document |= {"dtype": "float32", "out_dtype": recipe.dtype}
    depths = {places[name]: layout.layers for name, _ in recipe.models}
    depths |= {places[name]: depth_of(stage) for name, stage in recipe.intermediates}
    if len(pieces) == 1 and _whole(pieces[0], depths, top_base):
        shared = writer.shared(pieces[0])
        if shared:
            document["parameters"] = shared
        document["models"] = [
            {"model": writer.reference(place), **writer.per_input(pieces[0], place)} for place in pieces[0][0].sources
        ]
    else:
        each = [writer.shared(piece) for piece in pieces]
        common = {name: value for name, value in each[0].items() if all(own[name] == value for own in each)}
        if common:
            document["parameters"] = common
        document["slices"] = [
            writer.slice(piece, {name: value for name, value in own.items() if name not in common}, top_base)
            for piece, own in zip(pieces, each, strict=True)
        ]
    return document, _notes(method, blocks)


def _stage_names(recipe: Recipe, references: Mapping[str, Any]) -> dict[str, str]:
    """Names for intermediates that mergekit mistakes for nothing else: it replaces them wherever they stand alone."""
    taken = {*FORMS, *DTYPES, *references} | {model for model, _ in recipe.models}
    names: dict[str, str] = {}
    for number, name in enumerate(recipe.stages, 1):
        plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) and re.search("[A-Za-z]", name)
        names[name] = name if plain and name not in taken else f"stage-{number}"
        while names[name] in taken:
            names[name] += "-"
        taken.add(names[name])
    return names


def _reference(ref: ModelRef) -> Any:
    """A model as mergekit parses it, ``org/name@commit+org/adapter@commit``; spelt out where a folder has @ or +."""
    parts = [ref] if ref.adapter is None else [ref, ref.adapter]
    if not any(mark in part.location for part in parts for mark in "@+"):
        return ref.address
    paths = [
        {"path": part.location} if part.revision is None else {"path": part.location, "revision": part.revision}
        for part in parts
    ]
    return dict(zip(("model", "lora"), paths, strict=False))


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


def _whole(piece: Sequence[Block], depths: Mapping[str, int], top_base: str | None) -> bool:
    """Whether `models:` says it: every layer in its own place, and a base that mergekit need not be told twice."""
    first = piece[0]
    in_place = all(offset == 0 and depths[source] == len(piece) for source, offset in first.offsets)
    # mergekit adds a base model that is not among the inputs, which the linear method would then want a weight for.
    return in_place and (first.base == top_base if first.base or top_base is None else top_base in first.sources)


class _Writer:
    """Writes the parameters of pieces."""

    def __init__(
        self,
        method: str,
        references: Mapping[str, Any],
        defaults: Mapping[str, Number],
        others: Mapping[str, str],
    ) -> None:
        self.form, self.references, self.defaults, self.others = FORMS[method], references, defaults, others

    def reference(self, place: str) -> Any:
        """A location as mergekit is to read it; intermediates go by their names."""
        return self.references.get(place, place)

    def shared(self, piece: Sequence[Block]) -> dict[str, Any]:
        """The settings that are not per model."""
        return {name: self._setting(piece, None, name) for name in self.form.shared} | dict(self.form.constants)

    def per_input(self, piece: Sequence[Block], place: str) -> dict[str, Any]:
        """The settings of one model, as a mapping with `parameters`, or nothing for a base."""
        if place == piece[0].base or not self.form.per_input:
            return {}
        settings = {name: self._setting(piece, place, name) for name in self.form.per_input}
        if settings == {"scale": 1.0}:
            return {}
        return {"parameters": settings}

    def slice(self, piece: Sequence[Block], parameters: Mapping[str, Any], top_base: str | None) -> dict[str, Any]:
        """One entry of `slices`."""
        first = piece[0]
        entry: dict[str, Any] = {}
        if first.base is not None and first.base != top_base:
            entry["base_model"] = self.reference(first.base)
        if parameters:
            entry["parameters"] = dict(parameters)
        entry["sources"] = [
            {"model": self.reference(place), "layer_range": [at, at + len(piece)], **self.per_input(piece, place)}
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
        for tensor in [tensor for tensor in values if tensor in self.others]:
            other = self.others[tensor]
            if values.setdefault(other, values[tensor]) != values[tensor]:
                raise RecipeError(f"mergekit cannot express {name}: it merges {tensor!r} and others as one, {other!r}")
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


def _notes(method: str, blocks: Sequence[Block]) -> str:
    """The comment above a document: what its method drops."""
    drops = any(
        value is not None and value < 1
        for block in blocks
        for values in (block.values, block.outer)
        for (_, name), tensors in values.items()
        if name == "density"
        for value in tensors.values()
    )
    note = _NOTES[_NOTE_OF[method]] if drops and method in _NOTE_OF else ""
    return "".join(f"# {line}\n" for line in textwrap.wrap(note, 108))


class _Dumper(yaml.SafeDumper):
    """Lists of numbers on one line, sequences indented."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent sequences within mappings."""
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        """No aliases: the same reference or list may occur twice."""
        return True


def _represent_list(dumper: _Dumper, data: list[Any]) -> yaml.Node:
    numbers = all(isinstance(item, (bool, int, float)) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=numbers)


_Dumper.add_representer(list, _represent_list)


def _dump(document: Mapping[str, Any]) -> str:
    return yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
