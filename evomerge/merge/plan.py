"""Plans: a recipe resolved against a pool, with a content key per output slice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import InfeasibleError, RecipeError
from evomerge.merge.methods import BASE, METHODS, Method, call_values, specs
from evomerge.models.layout import Layout
from evomerge.models.pool import Pool
from evomerge.recipe import Dtype, Input, Recipe, SliceId, SliceRecipe

_KEY_VERSION = 1  # raised when a method's result changes for the same parameters


@dataclass(frozen=True)
class Source:
    """A slice of a source model.

    Attributes:
        model: name of the model.
        layer: its layer, or ``None`` outside the layers.
        tensors: names in the pool's layout, in the order of the output's tensors.
    """

    model: str
    layer: int | None
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class SlicePlan:
    """How one output slice is computed.

    Attributes:
        slice: the output slice.
        key: hash of all that its content depends on: equal keys, equal bits.
        tensors: names of the output tensors.
        method: name of the merge method; ``None`` where the slice is that of its only source, unchanged.
        sources: the inputs that contribute, in order.
        base: the base, for methods that need one.
        values: the method's arguments (`methods.call_values`), as pairs.
        dtype: dtype of the result.
        seed: keys random masks.
    """

    slice: SliceId
    key: str
    tensors: tuple[str, ...]
    method: str | None
    sources: tuple[Source, ...]
    base: Source | None
    values: tuple[tuple[str, Any], ...]
    dtype: Dtype
    seed: int


@dataclass(frozen=True)
class Plan:
    """All output slices of one merged model, in order."""

    slices: tuple[SlicePlan, ...]
    dtype: Dtype


def make_plan(recipe: Recipe, pool: Pool) -> Plan:
    """Resolve a recipe against its pool.

    Raises:
        RecipeError: a method, parameter, model, layer or slice that does not exist; a slice that is missing.
        InfeasibleError: parameters that no model can be merged with, naming the slice.
    """
    recipe.check(specs())
    identities = _identities(recipe, pool)
    _check_slices(recipe, pool.layout)
    return Plan(tuple(_slice_plan(entry, recipe, pool.layout, identities) for entry in recipe.slices), recipe.dtype)


def _identities(recipe: Recipe, pool: Pool) -> dict[str, str]:
    """What pins each model's content; the recipe and the pool must mean the same models."""
    known = dict(pool.info.refs)
    identities = {}
    for name, ref in recipe.models:
        if name not in known:
            raise RecipeError(f"the recipe's model {name!r} is not in the pool", f"the pool has {', '.join(known)}")
        own = known[name]
        if ref.fingerprint and own.fingerprint and ref.fingerprint != own.fingerprint:
            raise RecipeError(
                f"the recipe's model {name!r} has other content than the pool's", f"the pool's is {own.fingerprint}"
            )
        identities[name] = own.identity
    return identities


def _check_slices(recipe: Recipe, layout: Layout) -> None:
    """Every output slice exists in the architecture and none is missing, up to the recipe's own depth."""
    given = {entry.slice for entry in recipe.slices}
    depth = 1 + max((s.layer for s in given if s.layer is not None), default=-1)
    wanted = [s for s in layout.slices if s.layer is None or s.layer < depth]
    if depth > layout.layers:
        first = [s.component for s in layout.slices if s.layer == 0]
        wanted += [SliceId(component, i) for i in range(layout.layers, depth) for component in first]
    missing = [s for s in wanted if s not in given]
    if missing or not depth:
        raise RecipeError(
            f"the recipe has no slice {missing[0]}" + (f" and lacks {len(missing) - 1} more" if missing[1:] else ""),
            f"a model of {layout.layers} layers has {len(layout.slices)} slices",
            "say for each slice how it is made",
        )


def _slice_plan(entry: SliceRecipe, recipe: Recipe, layout: Layout, identities: Mapping[str, str]) -> SlicePlan:
    where = f"slice {entry.slice}"
    if entry.scale is not None and entry.scale != 1:
        raise RecipeError(f"{where} has scale {entry.scale}", "scaled residual outputs are not supported yet")
    method = METHODS[entry.method]
    inputs, base = entry.inputs, entry.base if method.spec.base != "none" else None
    each = [dict(i.parameters) for i in inputs]
    shared = dict(entry.parameters)
    values = call_values(method.spec, each, shared)
    if method.check is not None:
        try:
            method.check(values)
        except InfeasibleError as error:
            raise InfeasibleError(f"{where}: {error.given}", error.allowed, error.do) from error
    name: str | None = entry.method
    same = method.unchanged(values) if method.unchanged is not None else None
    if same is not None:
        only = base if same == BASE else inputs[same]
        assert only is not None  # BASE is returned by methods that require one
        name, inputs, base, values = None, (only,), None, {}
    elif any(values.get("weight", ())):
        # An input of weight zero is one that is not there: it need not be read, nor enter the key.
        inputs = tuple(i for i, w in zip(inputs, values["weight"], strict=True) if w != 0)
        values = call_values(method.spec, [dict(i.parameters) for i in inputs], shared)
    sources = tuple(_source(i, entry.slice, layout) for i in inputs)
    base_source = _source(base, entry.slice, layout) if base is not None else None
    seed = recipe.seed if name is not None and method.random else 0
    tensors = layout.of_slice(entry.slice)
    key = _key(entry.slice, name, method, values, sources, base_source, recipe.dtype, seed, identities)
    return SlicePlan(entry.slice, key, tensors, name, sources, base_source, tuple(values.items()), recipe.dtype, seed)


def _source(entry: Input, slice_: SliceId, layout: Layout) -> Source:
    """The source slice of an input: the same component, in its own layer."""
    if slice_.layer is None:
        if entry.layer is not None:
            raise RecipeError(f"slice {slice_} takes layer {entry.layer} of {entry.model}", "it belongs to no layer")
        return Source(entry.model, None, layout.of_slice(slice_))
    layer = slice_.layer if entry.layer is None else entry.layer
    where = f"slice {slice_} takes layer {layer} of {entry.model}"
    if not 0 <= layer < layout.layers:
        raise RecipeError(where, f"the pool's models have layers 0 to {layout.layers - 1}")
    tensors = layout.tensors.get(SliceId(slice_.component, layer), ())
    if layer != slice_.layer and tuple(layout.at_layer(n, slice_.layer) for n in tensors) != layout.of_slice(slice_):
        raise RecipeError(where, f"that layer's {slice_.component} has other tensors", "take a layer of the same kind")
    return Source(entry.model, layer, tensors)


def _key(
    slice_: SliceId,
    name: str | None,
    method: Method,
    values: Mapping[str, Any],
    sources: tuple[Source, ...],
    base: Source | None,
    dtype: Dtype,
    seed: int,
    identities: Mapping[str, str],
) -> str:
    """The content key. The output's layer is not part of it: a repeated layer is computed once."""
    content = [
        _KEY_VERSION,
        slice_.component,
        name,
        sorted(values.items()),
        [[identities[s.model], s.layer] for s in sources],
        [identities[base.model], base.layer] if base else None,
        dtype,
        # Masks are keyed by seed, model and source tensor; the latter two are given above.
        seed if name is not None and method.random else None,
    ]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
