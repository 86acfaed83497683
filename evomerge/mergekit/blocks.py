"""A recipe as mergekit sees one: a block per output layer, with one set of sources and one base.

mergekit merges whole layers. All slices of a layer share their source models, the source layers and the
base model, while parameters may differ by tensor; embeddings go with the first layer, the final norm and the
head with the last. `blocks_of` finds those blocks, or says which slice does not fit and why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.errors import RecipeError
from evomerge.mergekit.forms import FORMS, Number
from evomerge.mergekit.layers import depth_of, template
from evomerge.mergekit.slice_values import Given, SliceValues, copied_model, refuse
from evomerge.models.architecture.layout import Layout
from evomerge.recipes.method_spec import ByTensor, MethodSpec, Value
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import LAYER_COMPONENTS, SliceId, SliceRecipe

Values = dict[tuple[str | None, str], dict[str, Number | None]]
"""(source location, or ``None`` for a parameter of the slice; parameter) -> tensor -> value.

Tensors of a layer are written with ``*`` for its number. ``None`` means that any value will do.
"""


@dataclass
class Block:
    """One output layer in mergekit's terms.

    Attributes:
        layer: number of the output layer.
        sources: location -> layer of that model, in the order of first use; a base of differences comes last.
        base: location of the base model, where the method has one.
        values: parameter values of the layer's tensors.
        outer: parameter values of the tensors outside layers that mergekit reads with this one.
    """

    layer: int
    sources: dict[str, int]
    base: str | None
    values: Values
    outer: Values

    @property
    def offsets(self) -> tuple[tuple[str, int], ...]:
        """Sources with the distance of their layer from the output layer."""
        return tuple((source, layer - self.layer) for source, layer in self.sources.items())


def blocks_of(
    recipe: Recipe, layout: Layout, methods: Mapping[str, MethodSpec], places: Mapping[str, str]
) -> tuple[str, list[Block]]:
    """The merge method of the whole recipe and its blocks, in order.

    Args:
        places: how each model and intermediate of the recipe is written; those written alike are one to mergekit.

    Raises:
        RecipeError: no mergekit file means the same; names the slice and the reason.
    """
    leading = _leading_entry(recipe, methods)
    entries = {entry.slice: entry for entry in recipe.slices}
    for outer in (s for s in layout.slices if s.layer is None):
        if outer not in entries:
            raise refuse(outer, "the recipe leaves it out")
    if depth_of(recipe) == 0:
        raise refuse(SliceId("attn", 0), "the recipe has no layers")
    if leading is None and any(entry.method == "passthrough" for entry in recipe.slices):
        try:
            return "passthrough", _blocks(recipe, layout, methods["passthrough"], places, None)
        except RecipeError:
            pass  # a layer of copies from several models: a sum with weights of one and zero
    method = leading.method if leading else "linear"
    return method, _blocks(recipe, layout, methods[method], places, leading)


def _blocks(
    recipe: Recipe, layout: Layout, spec: MethodSpec, places: Mapping[str, str], leading: SliceRecipe | None
) -> list[Block]:
    builder = _Builder(recipe, layout, spec, places, leading)
    entries = {entry.slice: entry for entry in recipe.slices}
    layers, blocks = depth_of(recipe), []
    for layer in range(layers):
        # mergekit reads the embeddings with the sources of the first layer, the head with those of the last.
        ends = {"embed": 0, "final_norm": layers - 1, "head": layers - 1}
        outer_entries = [e for s, e in entries.items() if s.layer is None and ends[s.component] == layer]
        layer_entries = [entries[s] for c in LAYER_COMPONENTS if (s := SliceId(c, layer)) in entries]
        blocks.append(builder.build(layer, layer_entries, outer_entries))
    return blocks


def _leading_entry(recipe: Recipe, methods: Mapping[str, MethodSpec]) -> SliceRecipe | None:
    """The first slice that is not a plain copy; all others must share its method."""
    first: SliceRecipe | None = None
    for entry in recipe.slices:
        if entry.scale not in (None, 1.0):
            raise refuse(entry.slice, f"its residual outputs are scaled by {entry.scale}")
        if methods[entry.method].statistics is not None:
            raise refuse(entry.slice, f"its method {entry.method!r} reads statistics of data, and mergekit has none")
        if entry.method not in FORMS:
            raise refuse(entry.slice, f"its method {entry.method!r} is none of {', '.join(FORMS)}")
        if copied_model(entry) is not None:
            continue
        if first is not None and entry.method != first.method:
            raise refuse(entry.slice, f"its method is {entry.method}, {first.slice} has {first.method}; a file has one")
        first = first or entry
    return first


class _Builder:
    """Builds the block of one output layer."""

    def __init__(
        self,
        recipe: Recipe,
        layout: Layout,
        spec: MethodSpec,
        places: Mapping[str, str],
        leading: SliceRecipe | None,
    ) -> None:
        self.layout, self.spec, self.places, self.form = layout, spec, places, FORMS[spec.name]
        self.leading = leading
        self.depths = {places[name]: layout.layers for name, _ in recipe.models}
        self.depths |= {places[name]: depth_of(stage) for name, stage in recipe.intermediates}

    def build(self, layer: int, entries: list[SliceRecipe], outer: list[SliceRecipe]) -> Block:
        """The block of output layer `layer` from its slices and those outside layers that go with it."""
        sources = self._sources(layer, entries, outer)
        if self.form.base == "first" and len(sources) == 1:  # only copies: mergekit wants a second model all the same
            assert self.leading is not None, "a method other than linear has a slice that leads"
            pair = [self.places[source.model] for source in self.leading.inputs]
            other = next(place for place in pair if place not in sources)
            sources[other] = min(next(iter(sources.values())), self.depths[other] - 1)
        base = self._base(sources, [*entries, *outer])
        if base is not None and self.form.base != "first":  # the base comes last
            at = sources.pop(base, min(layer, self.depths[base] - 1))
            sources[base] = at
        block = Block(layer, sources, base, {}, {})
        values = SliceValues(self.spec, self.form, self.places, tuple(sources), base)
        for entry in entries:
            at = entry.inputs[0].layer if entry.inputs[0].layer is not None else layer
            names = self.layout.tensors[SliceId(entry.slice.component, min(at, self.layout.layers - 1))]
            tensors = {template(self.layout, name): self.layout.at_layer(name, layer) for name in names}
            _fill(block.values, values.of(entry), tensors)
        for entry in outer:
            _fill(block.outer, values.of(entry), {name: name for name in self.layout.tensors[entry.slice]})
        return block

    def _taken(self, entry: SliceRecipe) -> list[tuple[str, int | None]]:
        """Location and layer of everything that a slice reads."""
        base = [entry.base] if entry.base and self.form.base in ("optional", "required") else []
        return [(self.places[source.model], source.layer) for source in [*entry.inputs, *base]]

    def _sources(self, layer: int, entries: list[SliceRecipe], outer: list[SliceRecipe]) -> dict[str, int]:
        """Source models with the layer that is read of each."""
        components = {entry.slice.component for entry in entries}
        first = next((e.inputs[0].layer for e in entries if e.inputs[0].layer is not None), layer)
        for component in LAYER_COMPONENTS:
            kind = SliceId(component, min(first, self.layout.layers - 1))
            if kind in self.layout.tensors and component not in components:
                raise refuse(SliceId(component, layer), "the recipe leaves it out")
        sources: dict[str, tuple[int, SliceId]] = {}
        for entry in entries:
            places = [self.places[source.model] for source in entry.inputs]
            for place in places:
                if places.count(place) > 1:
                    raise refuse(entry.slice, f"{place} is an input twice")
            for place, own in self._taken(entry):
                at = layer if own is None else own
                known, where = sources.setdefault(place, (at, entry.slice))
                if known != at:
                    raise refuse(entry.slice, f"it takes layer {at} of {place}, but {where} takes layer {known}")
        result = {place: at for place, (at, _) in sources.items()}
        for entry in outer:
            for place, _ in self._taken(entry):
                result.setdefault(place, min(layer, self.depths[place] - 1))
        if self.form.weighted:
            # mergekit reads the head from as many sources of the last layer as the first has: those it needs lead.
            leading = dict.fromkeys(place for entry in outer for place, _ in self._taken(entry))
            result = {place: result[place] for place in (leading | result)}
        if not self.form.weighted and self.form.base != "first":
            self._check_same_sources(tuple(result), [*entries, *outer])
        return result

    def _check_same_sources(self, sources: Sequence[str], entries: Sequence[SliceRecipe]) -> None:
        """A method without weights merges all sources of the layer in every slice."""
        for entry in entries:
            own = {place for place, _ in self._taken(entry)}
            idle = [place for place in sources if place not in own]
            if idle or (copied_model(entry) is not None and self.spec.name != "passthrough"):
                why = f"with it its layer has {', '.join(sources)}" if idle else "it is a copy"
                raise refuse(entry.slice, f"{why}, and {self.spec.name} merges every model of a layer")

    def _base(self, sources: dict[str, int], entries: list[SliceRecipe]) -> str | None:
        """The base model that the whole block shares, or ``None`` when the method has none."""
        merged = [entry for entry in entries if copied_model(entry) is None]
        if self.form.base in ("optional", "required"):
            return self._common_base(merged)
        if self.form.base == "ignored":
            return None
        if len(sources) != 2:
            pair = {self.places[source.model] for source in (merged or entries)[0].inputs}
            third = next(e for e in entries if any(self.places[source.model] not in pair for source in e.inputs))
            method, listed = self.spec.name, ", ".join(sources)
            raise refuse(third.slice, f"{method} takes two models, with this slice its layer has {listed}")
        return self.places[merged[0].inputs[0].model] if merged else next(iter(sources))

    def _common_base(self, merged: list[SliceRecipe]) -> str | None:
        found: tuple[str | None, SliceId] | None = None
        for entry in [*merged, *([self.leading] if self.leading and not merged else [])]:
            place = self.places[entry.base.model] if entry.base else None
            if found is not None and place != found[0]:
                raise refuse(entry.slice, f"its base is {place}, {found[1]} has {found[0]}; a layer has one")
            found = found or (place, entry.slice)
        assert found is not None, "a method other than linear has a slice that leads"
        return found[0]


def _fill(into: Values, given: Given, tensors: Mapping[str, str]) -> None:
    """Note the values of one slice for each of its tensors, which `tensors` maps to their names in the output."""
    for key, value in given.items():
        into.setdefault(key, {}).update({template: _at(value, name) for template, name in tensors.items()})


def _at(value: Value | None, tensor: str) -> Number | None:
    """One tensor's value: booleans as they are, numbers as floats (and whole where the parameter is)."""
    scalar = value.at(tensor) if isinstance(value, ByTensor) else value
    assert not isinstance(scalar, str), "mergekit has no parameters that are words"
    return scalar
