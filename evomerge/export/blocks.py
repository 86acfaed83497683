"""A recipe as mergekit sees one: a block per output layer, with one set of sources and one base.

mergekit merges whole layers. All slices of a layer share their source models, the source layers and the
base model, while parameters may differ by tensor; embeddings go with the first layer, the final norm and the
head with the last. `blocks_of` finds those blocks, or says which slice does not fit and why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evomerge.errors import RecipeError
from evomerge.export.filters import Number
from evomerge.method import MethodSpec, Scalar
from evomerge.models.layout import Layout
from evomerge.recipe import LAYER_COMPONENTS, Recipe, SliceId, SliceRecipe

Values = dict[tuple[str | None, str], dict[str, Number | None]]
"""(source location, or ``None`` for a parameter of the slice; parameter) -> tensor -> value.

Tensors of a layer are written with ``*`` for its number. ``None`` means that any value will do.
"""


@dataclass(frozen=True)
class Form:
    """What mergekit calls the parameters of one method.

    Attributes:
        per_input, shared: parameters under the same name and meaning in both programs.
        constants: settings of mergekit's that evomerge has no parameter for.
        differences: whether it merges differences from a base model.
        elects: whether entries that are zero are left out of the normalisation.
    """

    per_input: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    constants: Mapping[str, Number] = field(default_factory=dict)
    differences: bool = False
    elects: bool = False


_MASK = {"int8_mask": False}
FORMS: Mapping[str, Form] = {
    "linear": Form(("weight",), ("normalize",)),
    "slerp": Form((), ("t",)),
    "task_arithmetic": Form(("weight",), ("lambda", "normalize"), _MASK, differences=True),
    "ties": Form(
        ("weight", "density"), ("lambda", "normalize"), {"rescale": False, **_MASK}, differences=True, elects=True
    ),
    "dare_linear": Form(("weight", "density"), ("lambda", "normalize", "rescale"), _MASK, differences=True),
    "dare_ties": Form(("weight", "density"), ("lambda", "normalize", "rescale"), _MASK, differences=True, elects=True),
}


@dataclass
class Block:
    """One output layer in mergekit's terms.

    Attributes:
        layer: number of the output layer.
        sources: location -> layer of that model, in the order of first use; the base comes last.
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


def refuse(where: SliceId, reason: str) -> RecipeError:
    """The error for a slice that mergekit has no way to write."""
    return RecipeError(
        f"mergekit cannot express slice {where}: {reason}",
        "",
        "keep the evomerge recipe: `evomerge merge` reads it",
    )


def blocks_of(
    recipe: Recipe, layout: Layout, methods: Mapping[str, MethodSpec], places: Mapping[str, str]
) -> tuple[str, list[Block]]:
    """The merge method of the whole recipe and its blocks, in order.

    Args:
        places: how each model of the recipe is written; models written alike are one model to mergekit.

    Raises:
        RecipeError: no mergekit file means the same; names the slice and the reason.
    """
    recipe.check(methods)
    leading = _leading_entry(recipe)
    method = leading.method if leading else "linear"
    entries = {entry.slice: entry for entry in recipe.slices}
    layers = 1 + max((s.layer for s in entries if s.layer is not None), default=-1)
    for outer in (s for s in layout.slices if s.layer is None):
        if outer not in entries:
            raise refuse(outer, "the recipe leaves it out")
    if layers == 0:
        raise refuse(SliceId("attn", 0), "the recipe has no layers")
    builder = _Builder(recipe, layout, methods[method], places, leading)
    blocks = []
    for layer in range(layers):
        # mergekit reads the embeddings with the sources of the first layer, the head with those of the last.
        ends = {"embed": 0, "final_norm": layers - 1, "head": layers - 1}
        outer_entries = [e for s, e in entries.items() if s.layer is None and ends[s.component] == layer]
        layer_entries = [entries[s] for c in LAYER_COMPONENTS if (s := SliceId(c, layer)) in entries]
        blocks.append(builder.build(layer, layer_entries, outer_entries))
    return method, blocks


def copied_model(entry: SliceRecipe) -> str | None:
    """The model that a slice copies unchanged, or ``None`` when it merges."""
    if entry.method != "linear" or len(entry.inputs) != 1:
        return None
    weight = dict(entry.inputs[0].parameters).get("weight", 1.0)
    normalize = dict(entry.parameters).get("normalize", True)
    return entry.inputs[0].model if weight == 1 or (normalize and weight != 0) else None


def _leading_entry(recipe: Recipe) -> SliceRecipe | None:
    """The first slice that is not a plain copy; all others must share its method. Every method can copy."""
    first: SliceRecipe | None = None
    for entry in recipe.slices:
        if entry.scale not in (None, 1.0):
            raise refuse(entry.slice, f"its residual outputs are scaled by {entry.scale}")
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
        self.config_from = places[recipe.config_from]
        self.leading = leading

    def build(self, layer: int, entries: list[SliceRecipe], outer: list[SliceRecipe]) -> Block:
        """The block of output layer `layer` from its slices and those outside layers that go with it."""
        sources = self._sources(layer, entries, outer)
        if self.spec.name == "slerp" and len(sources) == 1:  # only copies: mergekit wants a second model all the same
            assert self.leading is not None, "a method other than linear has a slice that leads"
            pair = [self.places[source.model] for source in self.leading.inputs]
            sources[next(place for place in pair if place not in sources)] = next(iter(sources.values()))
        base = self._base(sources, [*entries, *outer])
        if base is not None:  # the base comes last
            at = sources.pop(base, min(layer, self.layout.layers - 1))
            sources[base] = at
        block = Block(layer, sources, base, {}, {})
        for entry in entries:
            at = entry.inputs[0].layer if entry.inputs[0].layer is not None else layer
            names = self.layout.tensors[SliceId(entry.slice.component, at)]
            self._fill(block.values, entry, block, [self._template(name, at) for name in names])
        for entry in outer:
            self._fill(block.outer, entry, block, self.layout.tensors[entry.slice])
        return block

    def _template(self, name: str, layer: int) -> str:
        """`name` with ``*`` where a tensor of another layer has another number."""
        other = self.layout.at_layer(name, layer + 1).split(".")
        return ".".join(mine if mine == theirs else "*" for mine, theirs in zip(name.split("."), other, strict=True))

    def _sources(self, layer: int, entries: list[SliceRecipe], outer: list[SliceRecipe]) -> dict[str, int]:
        """Source models with the layer that is read of each."""
        components = {entry.slice.component for entry in entries}
        first = next((e.inputs[0].layer for e in entries if e.inputs[0].layer is not None), layer)
        for component in LAYER_COMPONENTS:
            if SliceId(component, first) in self.layout.tensors and component not in components:
                raise refuse(SliceId(component, layer), "the recipe leaves it out")
        sources: dict[str, tuple[int, SliceId]] = {}
        for entry in entries:
            places = [self.places[source.model] for source in entry.inputs]
            for place in places:
                if places.count(place) > 1:
                    raise refuse(entry.slice, f"{place} is an input twice")
            for source in [*entry.inputs, *([entry.base] if entry.base and self.form.differences else [])]:
                place, at = self.places[source.model], layer if source.layer is None else source.layer
                known, where = sources.setdefault(place, (at, entry.slice))
                if known != at:
                    raise refuse(entry.slice, f"it takes layer {at} of {place}, but {where} takes layer {known}")
        result = {place: at for place, (at, _) in sources.items()}
        for entry in outer:
            for source in [*entry.inputs, *([entry.base] if entry.base and self.form.differences else [])]:
                result.setdefault(self.places[source.model], min(layer, self.layout.layers - 1))
        return result

    def _base(self, sources: dict[str, int], entries: list[SliceRecipe]) -> str | None:
        """The base model that the whole block shares, or ``None`` when the method has none."""
        merged = [entry for entry in entries if copied_model(entry) is None]
        if self.form.differences:
            return self._common_base(merged)
        if self.spec.name != "slerp":
            return None
        if len(sources) != 2:
            pair = {self.places[source.model] for source in (merged or entries)[0].inputs}
            third = next(e for e in entries if any(self.places[source.model] not in pair for source in e.inputs))
            raise refuse(third.slice, f"slerp takes two models, with this slice its layer has {', '.join(sources)}")
        # t counts from the base; the model that gives the configuration is mergekit's natural base.
        return self.config_from if self.config_from in sources else next(iter(sources))

    def _common_base(self, merged: list[SliceRecipe]) -> str:
        found: tuple[str, SliceId] | None = None
        for entry in [*merged, *([self.leading] if self.leading and not merged else [])]:
            assert entry.base is not None, "checked by Recipe.check"
            place = self.places[entry.base.model]
            if found is not None and place != found[0]:
                raise refuse(entry.slice, f"its base is {place}, {found[1]} has {found[0]}; a layer has one")
            found = found or (place, entry.slice)
        assert found is not None, "a method other than linear has a slice that leads"
        return found[0]

    def _fill(self, into: Values, entry: SliceRecipe, block: Block, tensors: Sequence[str]) -> None:
        """Note the values of one slice for each of its tensors."""
        for key, value in self._slice_values(entry, block).items():
            into.setdefault(key, {}).update(dict.fromkeys(tensors, value))

    def _slice_values(self, entry: SliceRecipe, block: Block) -> dict[tuple[str | None, str], Number | None]:
        copied = copied_model(entry)
        if copied is not None:
            return self._copy_values(self.places[copied], block)
        given = {**self.spec.defaults(per_input=False), **dict(entry.parameters)}
        values: dict[tuple[str | None, str], Number | None] = {
            (None, name): self._number(given[name]) for name in self.form.shared
        }
        if self.spec.name == "slerp":
            # From the base to the other model, whatever their order in the recipe.
            forward = self.places[entry.inputs[0].model] == block.base
            t = float(given["t"])
            values[None, "t"] = t if forward else 1 - t
            return values
        inputs = {self.places[source.model]: dict(source.parameters) for source in entry.inputs}
        defaults = self.spec.defaults(per_input=True)
        for place in block.sources:
            if place == block.base:
                self._check_base_input(entry, inputs.get(place), given)
                continue
            own = {**defaults, **inputs[place]} if place in inputs else None
            for name in self.form.per_input:
                # A source that this slice does not use gets weight zero, and then any density.
                values[place, name] = self._number(own[name]) if own else (0.0 if name == "weight" else None)
        return values

    def _copy_values(self, place: str, block: Block) -> dict[tuple[str | None, str], Number | None]:
        """Values with which the block's method returns `place` unchanged."""
        if self.spec.name == "slerp":
            return {(None, "t"): 0.0 if place == block.base else 1.0}
        values: dict[tuple[str | None, str], Number | None] = dict.fromkeys((None, n) for n in self.form.shared)
        if place != block.base and self.form.differences:
            values[None, "lambda"] = 1.0
        for source in block.sources:
            if source != block.base:
                values[source, "weight"] = 1.0 if source == place else 0.0
                if "density" in self.form.per_input:
                    values[source, "density"] = 1.0 if source == place else None
        return values

    def _check_base_input(
        self, entry: SliceRecipe, given: Mapping[str, Scalar] | None, shared: Mapping[str, Scalar]
    ) -> None:
        """mergekit drops the base from the inputs: refuse where its weight would have counted."""
        if given is None or self.form.elects or not shared["normalize"] or given.get("weight") == 0:
            return
        raise refuse(entry.slice, "its base is also an input, whose weight enters the normalisation")

    @staticmethod
    def _number(value: Scalar) -> Number:
        """Booleans as they are, numbers as floats."""
        if isinstance(value, bool):
            return value
        return float(value)
