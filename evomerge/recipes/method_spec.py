"""What a merge method declares: its parameters with defaults, bounds and kinds.

Declarations hold no tensors, so that search spaces, the recipe validator and the documentation build
themselves from them without importing torch. The functions live in `evomerge.merge.methods`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from evomerge.errors import ConfigError, RecipeError, nearest
from evomerge.recipes.calibration import KINDS

FLOAT32_MAX = 3.4028234663852886e38
"""Merges are computed in float32, by parameters in it."""

Scalar = float | int | str | bool


@dataclass(frozen=True)
class ByTensor:
    """A parameter value that differs between the tensors of a slice.

    Attributes:
        entries: pairs of a filter and a value: a tensor takes the value of the first filter that is part of its
            name. The last filter, and only that, is ``None``: every tensor that is left.

    Raises:
        RecipeError: the last filter is not ``None``, or another one is, or is no text.
    """

    entries: tuple[tuple[str | None, Scalar], ...]

    def __post_init__(self) -> None:
        filters = [part for part, _ in self.entries]
        if not filters or filters[-1] is not None:
            raise RecipeError("the last value by tensor has a filter", "one without a filter, for all other tensors")
        if not all(isinstance(part, str) and part for part in filters[:-1]):
            raise RecipeError("a value by tensor has no filter", "only the last has none; others name parts of tensors")

    def at(self, tensor: str) -> Scalar:
        """The value for the tensor of this name (the output's, where source and output differ)."""
        return next(value for part, value in self.entries if part is None or part in tensor)


Value = Scalar | ByTensor
"""A parameter's value in a recipe: one for the slice, or one by tensor."""


def scalars(value: Value) -> tuple[Scalar, ...]:
    """Every value that a tensor can get."""
    return tuple(scalar for _, scalar in value.entries) if isinstance(value, ByTensor) else (value,)


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of a merge method.

    Attributes:
        name: the field's usual name (``weight``, ``density``, ``t``, ``lambda``, ``normalize``).
        default: used when a recipe leaves the parameter out.
        low, high: what a search explores unless told otherwise.
        kind: ``continuous``, ``integer``, ``boolean``, ``categorical`` with its `choices`, or ``numbers``: a text of
            any number of them, with spaces between, which no search varies.
        per_input: given for every input (``weight``) or once for the slice (``lambda``).
        minimum, maximum: what the method accepts; wider than the search bounds where that makes sense.
        choices: the words that a categorical parameter can be.
        searched: whether a search varies it unless told otherwise; the others keep their defaults.
        summary: one line for the documentation, where the name does not say it.
        initial: where a search starts; ``None`` is the default, or the middle where that is an end of the range, and
            for weights near the uniform average.
        tacit: whether searches that do not vary it leave it out of their recipes where it has its default: of a
            parameter that came later than its method, so that recipes and runs stay what they were.

    Raises:
        ConfigError: a default or a bound that the method itself does not accept, or a start out of bounds.
    """

    name: str
    default: Scalar
    low: float = 0.0
    high: float = 1.0
    kind: Literal["continuous", "integer", "boolean", "categorical", "numbers"] = "continuous"
    per_input: bool = False
    minimum: float = -math.inf
    maximum: float = math.inf
    choices: tuple[str, ...] = ()
    searched: bool = False
    summary: str = ""
    initial: float | None = None
    tacit: bool = False

    def __post_init__(self) -> None:
        if self.kind == "categorical" and len(set(self.choices)) < max(len(self.choices), 1):
            raise ConfigError(f"parameter {self.name!r} has choices {self.choices}", "one or more words, each once")
        numbers = () if self.kind in ("boolean", "categorical", "numbers") else (self.low, self.high)
        for key, value in (("default", self.default), *zip(("low", "high"), numbers, strict=False)):
            try:
                self.check(value, key)
            except RecipeError as error:
                raise ConfigError(f"parameter {self.name!r} declares {key} {value!r}", error.allowed) from None
        if numbers and self.low > self.high:
            raise ConfigError(
                f"parameter {self.name!r} goes from {self.low} to {self.high}", "low must not exceed high"
            )
        if self.initial is not None and not (numbers and self.low <= self.initial <= self.high):
            allowed = f"a number in [{self.low}, {self.high}]" if numbers else "none: words are no range"
            raise ConfigError(f"parameter {self.name!r} declares initial {self.initial!r}", allowed)

    def check(self, value: Scalar, where: str) -> None:
        """Raise `RecipeError` naming `where` when the method does not accept `value`."""
        if self.kind == "boolean":
            valid, allowed = isinstance(value, bool), "true or false"
        elif self.kind == "categorical":
            valid, allowed = value in self.choices, " or ".join(self.choices)
        elif self.kind == "numbers":
            valid, allowed = _are_numbers(value), "a text of finite numbers with spaces between"
        else:
            # Comparing instead of math.isfinite, which overflows on integers beyond the floats.
            valid = (
                isinstance(value, (int, float))
                and not isinstance(value, bool)
                and abs(value) <= FLOAT32_MAX
                and self.minimum <= value <= self.maximum
            )
            bounded = math.isfinite(self.minimum) or math.isfinite(self.maximum)
            number = "a whole number" if self.kind == "integer" else "a number"
            free = f"a finite{number[1:]} that float32 holds, at most 3.4e38"
            allowed = f"{number} in [{self.minimum}, {self.maximum}]" if bounded else free
            if self.kind == "integer":
                valid = valid and float(value) == int(value)
        if not valid:
            raise RecipeError(f"{where}: {self.name} is {value!r}", f"allowed: {allowed}")


def numbers_of(text: str) -> tuple[float, ...]:
    """The numbers in the value of a parameter of the kind ``numbers``; `ValueError` where there is something else."""
    return tuple(float(word) for word in text.split())


def _are_numbers(value: Scalar) -> bool:
    try:
        return isinstance(value, str) and all(abs(number) <= FLOAT32_MAX for number in numbers_of(value))
    except ValueError:
        return False


FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "means": "means of weights",
        "spheres": "interpolation on spheres",
        "task_vectors": "sums of task vectors",
        "sparse": "parts of task vectors",
        "choices": "one model's value, element by element",
        "svd": "singular vectors of task vectors",
        "switches": "one task's model out of a merged one",
        "statistics": "what statistics of data weigh",
        "noise": "random changes of low rank, made again from their seed",
        "own": "methods of one's own",
    }
)
"""What merge methods do, by the names of families, in the order of the documentation."""


@dataclass(frozen=True)
class MethodSpec:
    """The declaration of a merge method.

    Attributes:
        name: as written in recipes and configs.
        parameters: in the order of the documentation.
        base: whether the method works on differences from a base model (``required``), does so when it is
            given one (``optional``), or never (``none``: a base, when the pool has one, is not used).
        min_inputs, max_inputs: how many inputs a slice may have.
        summary: one line for the documentation.
        idempotent: whether a merge of equal inputs, and of a base equal to them, is that tensor whatever the
            parameters are; or the name of a boolean parameter that must be true for it where there is no base.
        family: one of `FAMILIES`: under what it is listed.
        statistics: the kind of statistics of data (`calibration.KINDS`) that it reads of every input, or several;
            ``None`` for weights alone.

    Raises:
        ConfigError: a parameter declared twice, an unknown family, `idempotent` names no parameter that is boolean, or
            numbers of inputs that no slice can have.
    """

    name: str
    parameters: tuple[ParameterSpec, ...] = ()
    base: Literal["none", "optional", "required"] = "none"
    min_inputs: int = 1
    max_inputs: int | None = None
    summary: str = ""
    idempotent: bool | str = False
    family: str = "own"
    statistics: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ConfigError(f"method {self.name!r} is of the family {self.family!r}", nearest(self.family, FAMILIES))
        for kind in self.kinds:
            if kind not in KINDS:
                raise ConfigError(f"method {self.name!r} reads statistics {kind!r}", nearest(kind, KINDS))
        names = [p.name for p in self.parameters]
        for name in names:
            if names.count(name) > 1 or not name.isidentifier():
                raise ConfigError(f"method {self.name!r} has a parameter {name!r}", "names of letters, each once")
        if not 1 <= self.min_inputs <= (self.max_inputs or self.min_inputs):
            raise ConfigError(
                f"method {self.name!r} takes {self.min_inputs} to {self.max_inputs} inputs", "1 or more, in this order"
            )

        if isinstance(self.idempotent, str):
            needed = self.parameter(self.idempotent)
            if needed is None or needed.kind != "boolean":
                booleans = [p.name for p in self.parameters if p.kind == "boolean"]
                raise ConfigError(
                    f"method {self.name!r} is declared idempotent={self.idempotent!r}",
                    f"true, false, or a boolean parameter of it: {', '.join(booleans) or 'it has none'}",
                )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of statistics of data that it reads; empty for weights alone."""
        if self.statistics is None:
            return ()
        return (self.statistics,) if isinstance(self.statistics, str) else self.statistics

    def parameter(self, name: str) -> ParameterSpec | None:
        """The declaration of one parameter, or ``None``."""
        return next((p for p in self.parameters if p.name == name), None)

    def defaults(self, *, per_input: bool) -> dict[str, Scalar]:
        """Default values of the per-input parameters, or of the others."""
        return {p.name: p.default for p in self.parameters if p.per_input == per_input}

    def check_parameters(self, given: Mapping[str, Value], where: str, *, per_input: bool) -> None:
        """Raise `RecipeError` for a parameter the method does not have or a value it does not accept."""
        known = {p.name: p for p in self.parameters if p.per_input == per_input}
        for name, value in given.items():
            if name not in known:
                scope = "inputs" if per_input else "slices"
                raise RecipeError(
                    f"{where}: method {self.name!r} has no parameter {name!r} for {scope}", nearest(name, known)
                )
            for scalar in scalars(value):
                known[name].check(scalar, where)


def find_method(name: str, methods: Mapping[str, MethodSpec], where: str = "") -> MethodSpec:
    """The declaration called `name`; `RecipeError` with the nearest names when there is none."""
    if name not in methods:
        prefix = f"{where}: " if where else ""
        given = f"{prefix}unknown merge method {name!r}"
        raise RecipeError(given, nearest(name, methods), "a method of your own needs --import ITS_MODULE")
    return methods[name]


def method_table(methods: Iterable[MethodSpec]) -> dict[str, MethodSpec]:
    """Declarations by name."""
    return {method.name: method for method in methods}
