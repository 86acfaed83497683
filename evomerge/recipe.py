"""Recipes: the frozen, hashable, declarative description of one merged model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from typing import Literal

from evomerge.errors import RecipeError
from evomerge.method import MethodSpec, Value, find_method, scalars
from evomerge.recipe_hash import recipe_hash

Component = Literal["attn", "mlp", "norm", "embed", "final_norm", "head"]
Dtype = Literal["float32", "bfloat16", "float16"]

LAYER_COMPONENTS: tuple[Component, ...] = ("attn", "mlp", "norm")
OUTER_COMPONENTS: tuple[Component, ...] = ("embed", "final_norm", "head")
COMPONENTS: tuple[Component, ...] = (*LAYER_COMPONENTS, *OUTER_COMPONENTS)
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")

Parameters = tuple[tuple[str, Value], ...]
"""Parameter values by name, sorted by name: hashable and canonical."""


def parameters(values: Mapping[str, Value]) -> Parameters:
    """The canonical form of parameter values."""
    return tuple(sorted(values.items()))


@dataclass(frozen=True)
class SliceId:
    """The unit of merging and caching: one component of one layer, or `embed`, `final_norm`, `head`.

    Written ``layers.3.attn`` or ``embed``.

    Attributes:
        order: sorts slices in model order: ``embed``, the layers (attn, mlp, norm), ``final_norm``, ``head``.
    """

    component: Component
    layer: int | None = None
    order: tuple[int, int, int] = field(init=False, repr=False, compare=False)
    _text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        in_layer = self.component in LAYER_COMPONENTS
        if (self.component not in COMPONENTS) or in_layer != (self.layer is not None) or (self.layer or 0) < 0:
            raise RecipeError(
                f"slice with component {self.component!r} and layer {self.layer}",
                f"{', '.join(LAYER_COMPONENTS)} belong to a layer; {', '.join(OUTER_COMPONENTS)} do not",
            )
        rank = COMPONENTS.index(self.component)
        part = 1 if self.layer is not None else 0 if self.component == "embed" else 2
        text = self.component if self.layer is None else f"layers.{self.layer}.{self.component}"
        # Made once: every recipe of a search sorts, compares and hashes the same slices.
        object.__setattr__(self, "order", (part, self.layer or 0, rank))
        object.__setattr__(self, "_text", text)

    def __str__(self) -> str:
        return self._text

    @staticmethod
    def parse(text: str) -> SliceId:
        """Read ``layers.3.attn`` or ``embed``; `RecipeError` for anything else."""
        if text in OUTER_COMPONENTS:
            return SliceId(text)
        match = re.fullmatch(rf"layers\.(\d{{1,6}})\.({'|'.join(LAYER_COMPONENTS)})", text)
        if match is None:
            raise RecipeError(
                f"{text!r} is not a slice",
                f"write layers.N.C with C one of {', '.join(LAYER_COMPONENTS)}, or {', '.join(OUTER_COMPONENTS)}",
            )
        return SliceId(match[2], int(match[1]))  # type: ignore[arg-type]  # the pattern allows components only


@dataclass(frozen=True)
class ModelRef:
    """Where a source model is found and what pins it.

    Attributes:
        location: a local folder or a hub id (``org/name``).
        revision: the hub commit, for hub ids.
        fingerprint: hash of the checkpoint's content, for local folders.
        adapter: the LoRA adapter that is folded into the model, itself a local folder or a hub id.
    """

    location: str
    revision: str | None = None
    fingerprint: str | None = None
    adapter: ModelRef | None = None

    @property
    def identity(self) -> str:
        """What enters hashes: the content where it is known, the location only where nothing pins it."""
        own = self.fingerprint or (f"{self.location}@{self.revision}" if self.revision else self.location)
        return f"{own}+{self.adapter.identity}" if self.adapter else own

    @property
    def address(self) -> str:
        """As people write it, with the commits of hub ids: ``org/name@commit+org/adapter@commit``."""
        own = f"{self.location}@{self.revision}" if self.revision else self.location
        return f"{own}+{self.adapter.address}" if self.adapter else own


@dataclass(frozen=True)
class Input:
    """One source of a slice: a model, one of its layers, and the per-input parameters.

    `layer` is ``None`` where the source layer has the output layer's number.
    """

    model: str
    layer: int | None = None
    parameters: Parameters = ()


@dataclass(frozen=True)
class SliceRecipe:
    """How one output slice is made.

    Attributes:
        slice: the output slice.
        method: name of a merge method.
        inputs: the sources, in order.
        parameters: the parameters that are not per input.
        base: the model whose slice the method's differences are taken from, or ``None``.
        scale: of data flow recipes: on `attn` and `mlp`, a factor on what they add to the residual stream; on `norm`
            and `final_norm`, -1 turns around the norms that read the stream. ``None`` is 1.
    """

    slice: SliceId
    method: str
    inputs: tuple[Input, ...]
    parameters: Parameters = ()
    base: Input | None = None
    scale: float | None = None


@dataclass(frozen=True, eq=False)
class Recipe:
    """One merged model: for every output slice, in order, its inputs, method and parameters.

    Attributes:
        models: source models by name, as pairs in order; those of the intermediates too.
        slices: every slice of the result; kept in model order, however they are given.
        dtype: dtype of the result; merging itself computes in float32 and rounds once.
        config_from: the model whose configuration the result takes, and its tokenizer unless `tokenizer_from` is given.
        seed: keys the random masks of methods that drop weights.
        intermediates: merged models that are merged further, as pairs sorted by name: inputs and bases name them as
            they name models. Each is rounded to its own dtype, as if it had been written and read. They may share
            intermediates; a name means the same recipe wherever it is used.
        tokenizer_from: the model whose tokenizer the result takes; ``None`` for that of `config_from`.
    """

    models: tuple[tuple[str, ModelRef], ...]
    slices: tuple[SliceRecipe, ...]
    dtype: Dtype
    config_from: str
    seed: int = 0
    intermediates: tuple[tuple[str, Recipe], ...] = field(default=(), repr=False)
    tokenizer_from: str | None = None
    _hash: str = field(init=False, repr=False, default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "slices", tuple(sorted(self.slices, key=attrgetter("slice.order"))))
        object.__setattr__(self, "intermediates", tuple(sorted(self.intermediates, key=itemgetter(0))))
        names = {name for name, _ in self.models}
        if len(names) != len(self.models):
            raise RecipeError(f"models {', '.join(name for name, _ in self.models)}", "every name once")
        merged = self._check_intermediates()
        known = f"the recipe's models are {', '.join(sorted(names))}"
        used = set()
        # Slices of a group share their inputs and parameters, which are checked once.
        groups: dict[tuple[int, int, int], SliceRecipe] = {}
        for entry in self.slices:
            groups.setdefault((id(entry.inputs), id(entry.parameters), id(entry.base)), entry)
        for entry in groups.values():
            for source in entry.inputs if entry.base is None else (*entry.inputs, entry.base):
                if source.model not in names and source.model not in merged:
                    also = f", its intermediates {', '.join(sorted(merged))}" if merged else ""
                    raise RecipeError(f"slice {entry.slice} uses model {source.model!r}", known + also)
                used.add(source.model)
        idle = sorted(merged - used)
        if idle:
            raise RecipeError(f"intermediate {idle[0]!r} is not used", "intermediates that a slice takes", "remove it")
        if self.config_from not in names:
            raise RecipeError(f"config_from is {self.config_from!r}", known)
        if self.tokenizer_from is not None and self.tokenizer_from not in names:
            raise RecipeError(f"tokenizer_from is {self.tokenizer_from!r}", known)
        if self.dtype not in DTYPES:
            raise RecipeError(f"dtype {self.dtype!r}", f"allowed: {', '.join(DTYPES)}")
        before: tuple[int, int, int] | None = None
        for entry in self.slices:
            if entry.slice.order == before:  # they are sorted
                raise RecipeError(f"slice {entry.slice} is given twice", "every output slice once")
            before = entry.slice.order
            if entry.scale is not None:
                _check_scale(entry)
        for entry in groups.values():
            _require_finite(entry.slice, entry.parameters)
            for source in entry.inputs if entry.base is None else (*entry.inputs, entry.base):
                _require_finite(entry.slice, source.parameters)
        if before is None:
            raise RecipeError("the recipe has no slices", "every slice of the model needs one")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise RecipeError(f"seed is {self.seed!r}", "allowed: an integer from 0 to 2^63 - 1")

    def _check_intermediates(self) -> set[str]:
        """The names of the intermediates that slices may use; `RecipeError` where they contradict this recipe."""
        if not self.intermediates:
            return set()
        models, stages = dict(self.models), dict[str, Recipe]()
        for name, recipe in self.intermediates:
            for inner, stage in (*recipe.stages.items(), (name, recipe)):
                if stages.setdefault(inner, stage) != stage:
                    raise RecipeError(f"two intermediates are called {inner!r}", "one recipe for a name")
            for model, ref in recipe.models:
                if models.get(model) != ref:
                    raise RecipeError(
                        f"intermediate {name!r} has a model {model!r} that is not the recipe's own",
                        "models of the recipe, under the same names",
                    )
        names = [name for name, _ in self.intermediates]
        twice = sorted({*stages} & {*models} | {name for name in names if names.count(name) > 1})
        if twice:
            raise RecipeError(f"{twice[0]!r} names an intermediate and something else", "every name once")
        return set(names)

    @property
    def stages(self) -> dict[str, Recipe]:
        """Every intermediate that the result depends on, by name, each after those that it takes itself."""
        found: dict[str, Recipe] = {}
        todo = [(name, recipe, False) for name, recipe in reversed(self.intermediates)]
        while todo:  # a lineage may be deeper than Python's stack
            name, recipe, complete = todo.pop()
            if complete:
                found[name] = recipe
            elif name not in found:
                todo.append((name, recipe, True))
                todo += [(n, r, False) for n, r in reversed(recipe.intermediates) if n not in found]
        return found

    def _own(self) -> tuple[object, ...]:
        """All but the content of the intermediates."""
        names = tuple(name for name, _ in self.intermediates)
        return self.models, self.slices, self.dtype, self.config_from, self.seed, self.tokenizer_from, names

    def __eq__(self, other: object) -> bool:
        # Stage by stage: a lineage shares ancestors, and as a tree it would be exponentially large.
        if not isinstance(other, Recipe):
            return NotImplemented
        if self is other:
            return True
        mine, theirs = self.stages, other.stages
        same = self._own() == other._own() and list(mine) == list(theirs)
        return same and all(stage is theirs[n] or stage._own() == theirs[n]._own() for n, stage in mine.items())

    def __hash__(self) -> int:
        return hash(self.hash)

    def ref(self, name: str) -> ModelRef:
        """The reference of one source model."""
        return dict(self.models)[name]

    @property
    def hashed(self) -> bool:
        """Whether `hash` was asked for before."""
        return bool(self._hash)

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the canonical content: what is merged and how, not where the files lie."""
        if not self._hash:
            object.__setattr__(self, "_hash", recipe_hash(self))
        return self._hash

    def check(self, methods: Mapping[str, MethodSpec]) -> None:
        """Raise `RecipeError` for an unknown method, parameter, value or number of inputs."""
        for name, recipe in self.stages.items():
            try:
                recipe.check_own(methods)
            except RecipeError as error:
                raise RecipeError(f"intermediate {name}: {error.given}", error.allowed, error.do) from None
        self.check_own(methods)

    def check_own(self, methods: Mapping[str, MethodSpec]) -> None:
        """The same without the intermediates."""
        plain: set[tuple[str, int, bool]] = set()
        for entry in self.slices:
            if not entry.parameters and not [True for source in entry.inputs if source.parameters]:
                kind = entry.method, len(entry.inputs), entry.base is None
                if kind in plain:
                    continue
                plain.add(kind)  # all that there is to check: of a path, once for all layers
            where = f"slice {entry.slice}"
            method = find_method(entry.method, methods, where)
            count, most = len(entry.inputs), method.max_inputs
            if count < method.min_inputs or (most is not None and count > most):
                wanted = (
                    str(method.min_inputs) if most == method.min_inputs else f"{method.min_inputs} to {most or 'any'}"
                )
                raise RecipeError(f"{where}: method {method.name!r} was given {count} inputs", f"it takes {wanted}")
            if method.base == "required" and entry.base is None:
                raise RecipeError(
                    f"{where}: method {method.name!r} has no base model",
                    "it merges differences from a base",
                    "name one with pool.base (or `base:` in the recipe)",
                )
            method.check_parameters(dict(entry.parameters), where, per_input=False)
            for source in entry.inputs:
                method.check_parameters(dict(source.parameters), f"{where}, model {source.model}", per_input=True)


def _check_scale(entry: SliceRecipe) -> None:
    """Refuse a scale that nothing can have."""
    scale = entry.scale
    if scale is None:
        return
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale) or scale == 0:
        raise RecipeError(f"slice {entry.slice} has scale {scale}", "a finite number other than 0")


def _require_finite(slice_: SliceId, values: Parameters) -> None:
    for name, value in values:
        for scalar in (value,) if type(value) is float else scalars(value):
            if isinstance(scalar, float) and not math.isfinite(scalar):
                raise RecipeError(f"slice {slice_}: {name} is {scalar}", "a finite number")


@dataclass(frozen=True)
class PoolInfo:
    """What a recipe can be made of: the pool as search spaces and strategies see it, without tensors.

    Attributes:
        refs: every model of the pool by name, the base included, as pairs in order.
        sources: names of the source models (the base is not one), in order.
        base: name of the base model, or ``None``.
        slices: every slice of the architecture, in order.
        layers: number of layers of `config_from`.
        dtype: dtype of the results.
        depths: layers of the models that have another number than `layers`, as pairs.
        unscalable: why the residual outputs of this architecture cannot be scaled; empty where they can.
        unflippable: why they cannot be scaled by negative numbers; empty where they can.
        immovable: why layers of this architecture cannot be put in other places; empty where they can.
        sizes: numbers of parameters of `slices`, in their order; empty where they are not known.
        tensors: names of their tensors with their numbers of parameters, in the same order; empty where they are not
            known.
    """

    refs: tuple[tuple[str, ModelRef], ...]
    sources: tuple[str, ...]
    base: str | None
    slices: tuple[SliceId, ...]
    layers: int
    dtype: Dtype
    depths: tuple[tuple[str, int], ...] = ()
    unscalable: str = ""
    unflippable: str = ""
    sizes: tuple[int, ...] = ()
    tensors: tuple[tuple[tuple[str, int], ...], ...] = ()
    immovable: str = ""

    def depth(self, name: str) -> int:
        """The number of layers of one model."""
        return dict(self.depths).get(name, self.layers)

    @property
    def uneven(self) -> str:
        """Names the models that differ in depth, for whoever merges them layer by layer; empty where none does."""
        if not self.depths:
            return ""
        listed = ", ".join(f"{name} has {self.depth(name)}" for name, _ in self.refs)
        return f"the models of the pool differ in their number of layers: {listed}"

    @property
    def config_from(self) -> str:
        """The model that gives configuration and tokenizer: the base, or the first source."""
        return self.base or self.sources[0]

    def recipe(self, slices: Iterable[SliceRecipe], seed: int = 0) -> Recipe:
        """A recipe over this pool's models."""
        return Recipe(self.refs, tuple(slices), self.dtype, self.config_from, seed)

    def linear(self, weights: Mapping[str, float]) -> Recipe:
        """The same weighted sum on every slice: a source itself (weight one), or the uniform average.

        Raises:
            RecipeError: the models differ in depth.
        """
        depths = {self.depth(name) for name in weights}
        if len(depths) > 1:
            raise RecipeError(f"a sum of {', '.join(weights)}", self.uneven)
        inputs = tuple(Input(name, None, (("weight", weight),)) for name, weight in weights.items())
        slices = self.slices_at(depths.pop()) if depths else self.slices
        return self.recipe(SliceRecipe(s, "linear", inputs, (("normalize", False),)) for s in slices)

    def slices_at(self, depth: int) -> tuple[SliceId, ...]:
        """The slices of a model of this architecture with `depth` layers; those beyond the pool's are as the first."""
        if depth == self.layers:
            return self.slices
        parts = [own.component for own in self.slices if own.layer == 0]
        beyond = [SliceId(part, layer) for layer in range(self.layers, depth) for part in parts]
        kept = [own for own in self.slices if own.layer is None or own.layer < depth]
        return tuple(sorted([*kept, *beyond], key=lambda own: own.order))
