"""Recipes: the frozen, hashable, declarative description of one merged model."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from typing import Any

from evomerge.errors import RecipeError, nearest
from evomerge.recipes.calibration import CalibrationRef
from evomerge.recipes.hash import canonical_text
from evomerge.recipes.heads import Heads
from evomerge.recipes.kept import check_kept
from evomerge.recipes.method_spec import MethodSpec, find_method, scalars
from evomerge.recipes.network import Network
from evomerge.recipes.slices import DTYPES, Dtype, ModelRef, Parameters, SliceId, SliceRecipe
from evomerge.recipes.stage_index import StageIndex
from evomerge.recipes.tokenizer_spec import TokenizerSpec

MOST_INPUTS = 1000
"""Inputs of a slice."""


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
        calibration: the statistics of data that methods may read; that of its intermediates too.
        tokenizer: the vocabulary that the models are brought to before they are merged, those of intermediates too;
            then `tokenizer_from` is ``None``. ``None`` where the rows of all models are merged as they are.
        heads: tensors that are no part of any slice but carried from the models whose tasks they are of; ``None``
            where all are merged. Those of intermediates say nothing.
        kept: names or patterns of tensors that are no part of any slice but those of `config_from` as they are; empty
            where all are merged.
        dense: what becomes of sentence-transformers' dense layers, see `recipes.dense`; ``None`` where models do not
            differ in them.
        network: of pipelines, which part is merged and whose the others are; that of its intermediates too. ``None``
            where models are merged whole.

    >>> from evomerge.recipes import Input, ModelRef, SliceId, SliceRecipe, parameters
    >>> half = parameters({"weight": 0.5})
    >>> embed = SliceRecipe(SliceId("embed"), "linear", (Input("math", None, half), Input("code", None, half)))
    >>> models = ("math", ModelRef("org/math", "1a2b")), ("code", ModelRef("org/code", "3c4d"))
    >>> Recipe(models, (embed,), "bfloat16", config_from="math").ref("code").address
    'org/code@3c4d'
    """

    models: tuple[tuple[str, ModelRef], ...]
    slices: tuple[SliceRecipe, ...]
    dtype: Dtype
    config_from: str
    seed: int = 0
    intermediates: tuple[tuple[str, Recipe], ...] = field(default=(), repr=False)
    tokenizer_from: str | None = None
    calibration: CalibrationRef | None = None
    tokenizer: TokenizerSpec | None = None
    heads: Heads | None = None
    kept: tuple[str, ...] = ()
    dense: str | None = None
    network: Network | None = None
    _hash: str = field(init=False, repr=False, default="")
    _index: StageIndex | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "slices", tuple(sorted(self.slices, key=attrgetter("slice.order"))))
        object.__setattr__(self, "intermediates", tuple(sorted(self.intermediates, key=itemgetter(0))))
        names = {name for name, _ in self.models}
        if len(names) != len(self.models):
            raise RecipeError(f"models {', '.join(name for name, _ in self.models)}", "every name once")
        merged = self._check_intermediates()
        used = set()
        # Slices of a group share their inputs and parameters, which are checked once.
        groups: dict[tuple[int, int, int], SliceRecipe] = {}
        for entry in self.slices:
            groups.setdefault((id(entry.inputs), id(entry.parameters), id(entry.base)), entry)
        for entry in groups.values():
            if len(entry.inputs) > MOST_INPUTS:
                raise RecipeError(
                    f"slice {entry.slice} has {len(entry.inputs):,} inputs",
                    f"at most {MOST_INPUTS:,}: each is read and added by itself",
                    "merge them in groups: an input may be an intermediate",
                )
            for source in entry.inputs if entry.base is None else (*entry.inputs, entry.base):
                if source.model not in names and source.model not in merged:
                    given = f"slice {entry.slice} uses model {source.model!r}, which the recipe does not have"
                    raise RecipeError(given, nearest(source.model, names | merged))
                used.add(source.model)
        idle = sorted(merged - used)
        if idle:
            raise RecipeError(f"intermediate {idle[0]!r} is not used", "intermediates that a slice takes", "remove it")
        if self.config_from not in names:
            raise RecipeError(f"config_from is {self.config_from!r}", nearest(self.config_from, names))
        if self.tokenizer_from is not None and self.tokenizer_from not in names:
            raise RecipeError(f"tokenizer_from is {self.tokenizer_from!r}", nearest(self.tokenizer_from, names))
        if self.tokenizer is not None:
            self.tokenizer.check_models(names, "tokenizer")
            if self.tokenizer_from is not None:
                raise RecipeError("tokenizer and tokenizer_from are given", "one of the two")
        if self.heads is not None:
            self.heads.check(names, self.config_from)
        check_kept(self.kept)
        if self.network is not None:
            self.network.check(names)
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
        models, stages = dict(self.models), self.stage_index()
        for name, recipe in self.intermediates:
            if recipe.calibration != self.calibration:
                raise RecipeError(f"intermediate {name!r} has another calibration than the recipe", "one for all")
            if recipe.tokenizer != self.tokenizer:
                raise RecipeError(f"intermediate {name!r} has another tokenizer than the recipe", "one for all")
            if recipe.network != self.network:
                raise RecipeError(f"intermediate {name!r} is of another network than the recipe", "one for all")
            for model, ref in recipe.models:
                if models.get(model) != ref:
                    raise RecipeError(
                        f"intermediate {name!r} has a model {model!r} that is not the recipe's own",
                        "models of the recipe, under the same names",
                    )
        names = Counter(name for name, _ in self.intermediates)
        twice = sorted({name for name in models if stages.get(name)} | {n for n, times in names.items() if times > 1})
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

    def stage_index(self) -> StageIndex:
        """The names of `stages`; `RecipeError` where one means two recipes."""
        if self._index is None:
            object.__setattr__(self, "_index", StageIndex(self.intermediates))
        assert self._index is not None
        return self._index

    @property
    def known_index(self) -> StageIndex | None:
        """`stage_index`, where that was asked for before."""
        return self._index

    def __getstate__(self) -> dict[str, Any]:
        # Flat: a lineage may be deeper than Python's stack. The index also holds recipes that this one has no part in.
        stages = [(name, stage._flat()) for name, stage in self.stages.items()]
        return {**self._flat(), "stages": stages}

    def __setstate__(self, state: dict[str, Any]) -> None:
        made: dict[str, Recipe] = {}
        for name, own in state["stages"]:
            made[name] = stage = object.__new__(Recipe)
            vars(stage).update(own, intermediates=tuple((inner, made[inner]) for inner in own["intermediates"]))
        own = {key: value for key, value in state.items() if key != "stages"}
        vars(self).update(own, intermediates=tuple((inner, made[inner]) for inner in own["intermediates"]))

    def _flat(self) -> dict[str, Any]:
        """The fields, with names for intermediates."""
        return {**vars(self), "_index": None, "intermediates": tuple(name for name, _ in self.intermediates)}

    def equals_alone(self, other: Recipe) -> bool:
        """Whether two recipes are the same but for the content of their intermediates."""
        return self is other or self._own() == other._own()

    def _own(self) -> tuple[object, ...]:
        """All but the content of the intermediates."""
        names = tuple(name for name, _ in self.intermediates)
        own = self.models, self.slices, self.dtype, self.config_from, self.seed, self.tokenizer_from
        found = self.calibration, self.tokenizer, self.heads, self.kept, self.dense, self.network
        return *own, *found, names

    def __eq__(self, other: object) -> bool:
        # Stage by stage: a lineage shares ancestors, and as a tree it would be exponentially large.
        if not isinstance(other, Recipe):
            return NotImplemented
        if self is other:
            return True
        mine, theirs = self.stages, other.stages
        same = self.equals_alone(other) and list(mine) == list(theirs)
        return same and all(stage.equals_alone(theirs[name]) for name, stage in mine.items())

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
            object.__setattr__(self, "_hash", hashlib.sha256(self.canonical_text().encode()).hexdigest())
        return self._hash

    def canonical_text(self) -> str:
        """What `hash` is taken over: models by their content, intermediates by their own hash."""
        if not all(stage.hashed for _, stage in self.intermediates):
            for stage in self.stages.values():
                assert stage.hash  # made now, in order: a lineage may be deeper than Python's stack
        identities = {name: ref.identity for name, ref in self.models}
        identities |= {name: f"recipe {stage.hash}" for name, stage in self.intermediates}
        return canonical_text(
            self.slices,
            identities,
            dtype=self.dtype,
            seed=self.seed,
            config_from=self.config_from,
            tokenizer_from=self.tokenizer_from,
            calibration=self.calibration,
            tokenizer=self.tokenizer,
            models=[name for name, _ in self.models],
            heads=self.heads,
            kept=self.kept,
            dense=self.dense,
            network=self.network,
        )

    def check(self, methods: Mapping[str, MethodSpec]) -> None:
        """Raise `RecipeError` for an unknown method, parameter, value or number of inputs."""
        for name, recipe in self.stages.items():
            try:
                recipe.check_own(methods)
            except RecipeError as error:
                raise RecipeError(f"intermediate {name}: {error.given}", error.allowed, error.do) from None
        self.check_own(methods)

    def check_own(self, methods: Mapping[str, MethodSpec]) -> None:
        """Check this recipe's own slices as `check` does; its intermediates are not looked at."""
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
