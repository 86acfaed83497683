"""Plans: a recipe resolved against a pool, with a content key per output slice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import InfeasibleError, RecipeError
from evomerge.merge.methods import BASE, METHODS, Method, call_values, code_of, specs
from evomerge.merge.methods.parameters import SCOPE
from evomerge.merge.planning.read_beside import check_scope, statistics_keys
from evomerge.merge.planning.slice_plan import Factor, Part, Plan, SlicePlan, Source
from evomerge.merge.planning.stage_cache import stage_plans
from evomerge.merge.planning.whole_model import check_slices
from evomerge.models.heads import head_of
from evomerge.models.pool import Pool
from evomerge.recipes.method_spec import ByTensor, Scalar
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, Parameters, SliceId, SliceRecipe

_KEY_VERSION = 3  # raised when a method's result changes for the same parameters


def make_plan(recipe: Recipe, pool: Pool) -> Plan:
    """Resolve a recipe against its pool.

    Raises:
        RecipeError: a method, parameter, model, layer or slice that does not exist; a slice that is missing.
        InfeasibleError: parameters that no model can be merged with, naming the slice.
    """
    methods = specs()
    kept = pool.info.kept.tensors if pool.info.kept is not None else ()
    if set(recipe.kept) != set(kept):
        raise RecipeError(
            f"the recipe keeps {', '.join(recipe.kept) or 'nothing'}",
            f"what the pool keeps: {', '.join(kept) or 'nothing'}",
            "open it with pool.kept as the recipe has it",
        )
    identities = _identities(recipe, pool)
    known = stage_plans(pool)
    stages: dict[str, Plan] = {}
    every = recipe.stages
    for name, stage in every.items():  # each comes after those that it takes itself
        key = stage.hash, stage.models
        plan = known.get(key)
        if plan is None:
            try:
                stage.check_own(methods)
            except RecipeError as error:
                raise RecipeError(f"intermediate {name}: {error.given}", error.allowed, error.do) from error
            plan = _Planner(stage, pool, identities, stages).plan(f"intermediate {name}: ")
            known.put(key, plan, len(every))
        stages[name] = plan
    recipe.check_own(methods)
    return _Planner(recipe, pool, identities, stages).plan()


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


class _Planner:
    """Plans the slices of one recipe."""

    def __init__(self, recipe: Recipe, pool: Pool, identities: Mapping[str, str], stages: Mapping[str, Plan]) -> None:
        self.recipe, self.pool, self.layout = recipe, pool, pool.layout
        self.identities, self.stages = identities, stages
        self.copies = stage_plans(pool).copies
        self.scales = {e.slice: float(e.scale) for e in recipe.slices if e.scale is not None and e.scale != 1}

    def plan(self, where: str = "") -> Plan:
        """All slices."""
        try:
            whole = bool(self.layout.fixed) or getattr(self.pool.config, "is_encoder_decoder", False)
            check_slices(self.recipe, self.layout, whole)
            slices = tuple(self.slice(entry) for entry in self.recipe.slices)
            return Plan(slices, self.recipe.dtype, head_of(self.recipe, self.pool.heads) if not where else None)
        except (RecipeError, InfeasibleError) as error:
            raise type(error)(f"{where}{error.given}", error.allowed, error.do) from error

    def slice(self, entry: SliceRecipe) -> SlicePlan:
        """One slice."""
        plain = self.copied(entry)
        return self.scaled(plain) if self.scales else plain

    def copied(self, entry: SliceRecipe) -> SlicePlan:
        """A slice without its factors; those that are a model's as they are, of paths say, are planned once.

        The key of a slice does not depend on its layer, nor do its parts: other layers differ in names only.
        """
        only = entry.inputs[0]
        if (
            entry.method != "passthrough"
            or len(entry.inputs) != 1
            or entry.base is not None
            or entry.parameters
            or only.parameters
            or only.model not in self.identities
        ):
            return self.unscaled(entry)
        slice_ = entry.slice
        names = self.copies.get(slice_)
        if names is None:
            tensors = self.layout.of_slice(slice_)
            first = slice_ if slice_.layer is None else SliceId(slice_.component, 0)
            like = self.layout.tensors[slice_ if slice_ in self.layout.tensors else first]
            # Layers whose tensors have the same names but for their number are of one form.
            form = "\n".join([name.replace(f".{slice_.layer}.", ".*.", 1) for name in tensors])
            names = self.copies[slice_] = tensors, like, form
        tensors, like, form = names
        key = form, only.model, slice_.layer if only.layer is None else only.layer, self.recipe.dtype
        known: SlicePlan | None = self.copies.get(key)
        if known is None:
            known = self.copies[key] = self.unscaled(entry)
        if known.slice == slice_:
            return known
        return SlicePlan(slice_, known.key, tensors, like, known.parts, known.dtype)

    def unscaled(self, entry: SliceRecipe) -> SlicePlan:
        """A slice without its factors: its tensors in parts of equal parameters."""
        tensors = self.layout.of_slice(entry.slice)
        given = (entry.parameters, *(i.parameters for i in entry.inputs))
        if any(isinstance(value, ByTensor) for values in given for _, value in values):
            groups: dict[Any, list[int]] = {}
            for number, name in enumerate(tensors):
                groups.setdefault(tuple(_at(values, name) for values in given), []).append(number)
        else:
            groups = {given: list(range(len(tensors)))}
        parts = tuple(self.part(entry, shared, each, tuple(n)) for (shared, *each), n in groups.items())
        known = entry.slice if entry.slice in self.layout.tensors else SliceId(entry.slice.component, 0)
        like = self.layout.tensors[known]
        return SlicePlan(entry.slice, self.key(entry.slice, parts), tensors, like, parts, self.recipe.dtype)

    def scaled(self, entry: SlicePlan) -> SlicePlan:
        """A slice with the factors that the recipe's scales give its tensors."""
        slice_ = entry.slice
        scale = self.scales.get(slice_, 1.0)
        if scale != 1.0:
            self.check_scale(slice_, scale)
        rules = self.copies.get(entry.like)
        if rules is None:
            found = [(n, self.pool.residual.rule(self.layout.parameters[like])) for n, like in enumerate(entry.like)]
            rules = self.copies[entry.like] = [(number, rule) for number, rule in found if rule is not None]
        flips, factors = list[Factor](), list[Factor]()
        for number, rule in rules:
            value = scale
            if rule.component != slice_.component:
                # A post-norm is a norm, and what its attention or feed-forward part adds to the stream.
                layer = None if rule.component == "final_norm" else slice_.layer
                value = self.scales.get(SliceId(rule.component, layer), 1.0)
            if value != 1.0:
                into = flips if rule.component in ("norm", "final_norm") else factors
                into.append(Factor(number, value, rule.offset))
        if not (flips or factors or scale != 1.0):
            return entry
        same = entry.tensors, entry.like, entry.parts, entry.dtype
        unscaled = SlicePlan(slice_, _with_factors(entry.key, flips), *same, tuple(flips)) if flips else entry
        every = (*flips, *factors)
        key = _with_factors(entry.key, every) if factors else unscaled.key
        mine = scale if slice_.component in ("attn", "mlp") else 1.0
        return SlicePlan(slice_, key, *same, every, mine, unscaled)

    def check_scale(self, slice_: SliceId, scale: float) -> None:
        """Refuse what this architecture cannot be scaled by."""
        residual, component = self.pool.residual, slice_.component
        why = residual.unscalable or (residual.unflippable if scale < 0 else "")
        if not why and component in ("attn", "mlp"):
            return
        given = f"slice {slice_} has scale {scale:g}"
        if component in ("embed", "head"):
            raise RecipeError(given, "scales belong to attn, mlp, norm and final_norm slices")
        if component in ("norm", "final_norm") and scale != -1:
            raise RecipeError(given, "-1 turns its norms around for a negative residual stream, 1 leaves them")
        if why:
            model_type = self.pool.config.model_type
            can = "it" if residual.unscalable else "it by negative numbers"
            raise RecipeError(given, f"no {model_type} can have {can}: {why}", "search without scales")

    def part(
        self, entry: SliceRecipe, shared: Parameters, each: Sequence[Parameters], tensors: tuple[int, ...]
    ) -> Part:
        """Tensors with one set of parameters, what has no influence left out."""
        method = METHODS[entry.method]
        inputs, base = entry.inputs, entry.base if method.spec.base != "none" else None
        values = _arguments(method, each, shared)
        if method.check is not None:
            try:
                method.check(values)
            except InfeasibleError as error:
                raise InfeasibleError(f"slice {entry.slice}: {error.given}", error.allowed, error.do) from error
        name: str | None = entry.method
        same = method.unchanged(values) if method.unchanged is not None else None
        if same is not None:
            only = base if same == BASE else inputs[same]
            assert only is not None  # BASE is returned by methods that require one
            name, inputs, base, values = None, (only,), None, {}
        elif any(values.get("weight", ())) and len(inputs) > method.spec.min_inputs:
            # An input of weight zero is one that is not there: it need not be read, nor enter the key.
            kept = [i for i, weight in enumerate(values["weight"]) if weight != 0]
            if len(kept) >= method.spec.min_inputs:
                inputs = tuple(inputs[i] for i in kept)
                values = _arguments(method, [each[i] for i in kept], shared)
        sources = tuple(self.source(i, entry.slice) for i in inputs)
        base_source = self.source(base, entry.slice) if base is not None else None
        if values.get("scope", "tensor") != "tensor" and method.spec.parameter("scope") == SCOPE:
            check_scope(entry.slice, values["scope"], sources, base_source)
        seed = self.recipe.seed if name is not None and method.random else 0
        reads = name is not None and bool(method.spec.kinds)
        known = statistics_keys(self.recipe, self.pool, entry, sources) if reads else ()
        return Part(tensors, name, sources, base_source, tuple(values.items()), seed, known)

    def source(self, entry: Input, slice_: SliceId) -> Source:
        """The source slice of an input: the same component, in its own layer; of the pool's models looked for once."""
        if entry.model not in self.identities:
            return self._source(entry, slice_)
        key = entry.model, entry.layer, slice_
        known: Source | None = self.copies.get(key)
        if known is None:
            known = self.copies[key] = self._source(entry, slice_)
        return known

    def _source(self, entry: Input, slice_: SliceId) -> Source:
        stage = self.stages.get(entry.model) if entry.model not in self.identities else None
        if slice_.layer is None:
            if entry.layer is not None:
                raise RecipeError(
                    f"slice {slice_} takes layer {entry.layer} of {entry.model}", "it belongs to no layer"
                )
            return self._found(entry.model, None, slice_, self.layout.of_slice(slice_))
        layer = slice_.layer if entry.layer is None else entry.layer
        where = f"slice {slice_} takes layer {layer} of {entry.model}"
        wanted = SliceId(slice_.component, layer)
        if stage is not None:
            if layer < 0 or wanted not in stage.by_slice:
                depth = 1 + max(s.layer for s in stage.by_slice if s.layer is not None)
                raise RecipeError(where, f"that intermediate has layers 0 to {depth - 1}")
        elif not 0 <= layer < self.pool.info.depth(entry.model):
            depth = self.pool.info.depth(entry.model)
            which = entry.model if self.pool.info.depths else "the pool's models"
            raise RecipeError(where, f"{which} {'has' if which == entry.model else 'have'} layers 0 to {depth - 1}")
        if layer != slice_.layer and self.pool.residual.immovable:
            raise RecipeError(where, f"layers of this architecture stay in place: {self.pool.residual.immovable}")
        tensors = self.layout.of_slice(wanted)
        moved = tuple(self.layout.at_layer(n, slice_.layer) for n in tensors) if layer < self.layout.layers else tensors
        if layer != slice_.layer and layer < self.layout.layers and moved != self.layout.of_slice(slice_):
            raise RecipeError(
                where, f"that layer's {slice_.component} has other tensors", "take a layer of the same kind"
            )
        return self._found(entry.model, layer, wanted, tensors)

    def _found(self, model: str, layer: int | None, slice_: SliceId, tensors: tuple[str, ...]) -> Source:
        if model in self.identities:
            return Source(model, layer, tensors, self.identities[model])
        made = self.stages[model].by_slice[slice_]
        return Source(model, layer, tensors, made.key, made)

    def key(self, slice_: SliceId, parts: tuple[Part, ...]) -> str:
        """The content key. The output's layer is not part of it: a repeated layer is computed once."""
        content: list[Any] = [_KEY_VERSION, slice_.component, self.recipe.dtype]
        for part in parts:
            base = part.base
            content += [
                part.tensors if len(parts) > 1 else None,
                part.method,
                code_of(METHODS[part.method]) if part.method else None,
                sorted(part.values),
                [[s.identity, s.layer] for s in part.sources],
                [base.identity, base.layer] if base else None,
                # Masks are keyed by seed, model and source tensor; the latter two are given above.
                part.seed,
                *([part.statistics] if part.statistics else []),
            ]
        vocabulary = self.pool.vocabulary
        if vocabulary is not None and slice_.component in (
            "embed",
            "head",
        ):
            # Rows of all models may be in those of each.
            content += [vocabulary.digest, sorted(ref.identity for _, ref in self.pool.info.refs)]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _with_factors(key: str, factors: Sequence[Factor]) -> str:
    """The content key of a slice with factors on some of its tensors."""
    content = f"{key}{[(factor.tensor, factor.value, factor.offset) for factor in factors]}"
    return hashlib.sha256(content.encode()).hexdigest()


def _at(values: Parameters, tensor: str) -> Parameters:
    """Parameters with the values of one tensor."""
    return tuple((name, value.at(tensor) if isinstance(value, ByTensor) else value) for name, value in values)


def _arguments(method: Method, each: Sequence[Parameters], shared: Parameters) -> dict[str, Any]:
    plain: list[dict[str, Scalar]] = [
        {name: value for name, value in values if not isinstance(value, ByTensor)} for values in (shared, *each)
    ]
    return call_values(method.spec, plain[1:], plain[0])
