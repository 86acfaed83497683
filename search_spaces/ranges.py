"""What a search explores of each parameter of a merge method: a range, a choice, or nothing but one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import ConfigError, RecipeError, nearest
from evomerge.genomes.genome import Gene
from evomerge.recipes.method_spec import MethodSpec, ParameterSpec, Scalar

KEYS = ("low", "high", "initial", "resolution")
SMALLEST_SUM = 1e-6
"""Weights to be normalised must not sum to less: the division would blow rounding errors up."""


@dataclass(frozen=True)
class Range:
    """The numbers that a search explores of one parameter; fields as in `Gene`."""

    low: float
    high: float
    initial: float
    resolution: float | None = None
    integer: bool = False

    def gene(self, name: str) -> Gene:
        """A gene of this range."""
        kind = "integer" if self.integer else "continuous"
        return Gene(name, kind, self.low, self.high, self.initial, self.resolution)  # type: ignore[arg-type]  # two of its words


@dataclass(frozen=True)
class Choice:
    """The words that a search chooses from, or true and false."""

    values: tuple[str, ...] | tuple[bool, ...]
    initial: str | bool

    def gene(self, name: str) -> Gene:
        """A gene of these choices."""
        words = tuple(value for value in self.values if isinstance(value, str))
        return Gene(name, "categorical" if words else "boolean", initial=self.initial, choices=words)


Explored = Range | Choice


@dataclass(frozen=True)
class BySource:
    """What is explored of a parameter of inputs where that differs between them: by the name of every input."""

    values: Mapping[str, Explored | Scalar]


def parameter_ranges(
    method: MethodSpec,
    options: Mapping[str, Any],
    inputs: Sequence[str],
    *,
    negative_weights: bool,
    normalize: bool | None,
    resolution: float | None,
    key: str,
) -> dict[str, Explored | Scalar | BySource]:
    """A range, a choice or a fixed value for every parameter of `method`, or one for each of its inputs.

    Args:
        method: whose parameters.
        options: by parameter, what the configuration says: a fixed value, changes to the range, or a list to
            choose from. Under the method's own name, options that only it follows. Others' are passed over. Of
            parameters of inputs also any of these by the names of inputs; the rest of them follow what is said beside
            the names, or the declaration.
        inputs: the names of the inputs of a slice.
        negative_weights: let weights go as far below zero as above.
        normalize: value of the method's ``normalize``; its default for ``None``.
        resolution: grid step of every range of real numbers that does not give its own.
        key: the search space's configuration key, for messages.

    Raises:
        ConfigError: a key that does not exist, values out of bounds, or weights that cannot be normalised.
    """
    if normalize is not None and options.get("normalize") is not None:
        raise ConfigError(f"{key}.normalize and {key}.parameters.normalize are both given", "one of them")
    found: dict[str, Explored | Scalar | BySource] = {}
    for spec in method.parameters:
        option, where = _option(method.name, spec.name, options, f"{key}.parameters")
        if option is None and spec.name == "normalize" and normalize is not None:
            found[spec.name] = normalize
        else:
            found[spec.name] = of_inputs(spec, option, inputs, negative_weights, resolution, where)
    _check_weights(method.name, found, negative_weights, key)
    return found


def of_inputs(
    spec: ParameterSpec,
    option: Any,
    inputs: Sequence[str],
    negative_weights: bool,
    resolution: float | None,
    where: str,
) -> Explored | Scalar | BySource:
    """What is explored of one parameter, of all inputs or by their names; a number for a range with a single one.

    Args:
        spec, option, negative_weights, resolution, where: as for `explored`.
        inputs: as for `parameter_ranges`.

    Raises:
        ConfigError: as for `explored`, or a name that no input has.
    """

    def of_one(said: Any, there: str) -> Explored | Scalar:
        if said is None and not spec.searched:
            return spec.default
        found = explored(spec, said, len(inputs), negative_weights, resolution, there)
        return found.low if isinstance(found, Range) and found.low == found.high else found

    if not isinstance(option, Mapping) or option.keys() <= {*KEYS}:
        return of_one(option, where)
    common, own = _by_input(spec, option, inputs, where)
    values = {}
    for name in inputs:
        said = own.get(name, common or None)
        if isinstance(said, Mapping):
            said = common | {word: value for word, value in said.items() if value is not None}
        values[name] = of_one(said, f"{where}.{name}" if name in own else where)
    return BySource(values)


def _by_input(
    spec: ParameterSpec, option: Mapping[str, Any], inputs: Sequence[str], where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is said of all inputs, and what by their names; names that are words of a range are none."""
    names = [name for name in inputs if name not in KEYS] if spec.per_input else []
    for name in option:
        if name not in KEYS and name not in names:
            sources = f"; or a value for each source: {', '.join(names)}" if names else ""
            raise ConfigError(f"{where} has no key {name!r}", nearest(str(name), [*KEYS, *names]) + sources)
    given = {name: value for name, value in option.items() if value is not None}
    common = {name: value for name, value in given.items() if name in KEYS}
    return common, {name: value for name, value in given.items() if name in names}


def explored(
    spec: ParameterSpec, option: Any, inputs: int, negative_weights: bool, resolution: float | None, where: str
) -> Explored | Scalar:
    """What a search explores of one parameter, by what the configuration says of it: ``None`` is its declaration.

    Args:
        spec, option: of the parameter.
        inputs, negative_weights, resolution: as for `parameter_ranges`.
        where: the option's key, for messages.

    Raises:
        ConfigError: a key that does not exist, or values out of bounds.
    """
    if isinstance(option, Mapping):
        return _range(spec, option, inputs, negative_weights, resolution, where)
    if isinstance(option, Sequence) and not isinstance(option, str):
        return _choice(spec, option, where)
    if option is not None:
        return _fixed(spec, option, where)
    if spec.kind in ("boolean", "categorical"):
        return _choice(spec, (True, False) if spec.kind == "boolean" else spec.choices, where)
    return _range(spec, {}, inputs, negative_weights, resolution, where)


def _option(method: str, name: str, options: Mapping[str, Any], key: str) -> tuple[Any, str]:
    """What the configuration says of one parameter of a method, and where."""
    section = options.get(method)
    own = section.get(name) if isinstance(section, Mapping) else None
    shared = options.get(name)
    if own is None:
        return shared, f"{key}.{name}"
    if isinstance(own, Mapping) and isinstance(shared, Mapping):
        own = {**shared, **{word: value for word, value in own.items() if value is not None}}
    return own, f"{key}.{method}.{name}"


def _fixed(spec: ParameterSpec, value: Any, where: str) -> Scalar:
    _check(spec, value, where)
    if spec.kind == "continuous":
        return float(value)
    return int(value) if spec.kind == "integer" else value


def _choice(spec: ParameterSpec, values: Sequence[Any], where: str) -> Choice | Scalar:
    if spec.kind not in ("boolean", "categorical"):
        do = f"search a range with {where}={{low: ..., high: ...}}"
        raise ConfigError(f"{where} is a list", f"{spec.name} is a number", do)
    for value in values:
        _check(spec, value, where)
    if not values or len(set(values)) < len(values):
        words = "true and false" if spec.kind == "boolean" else ", ".join(spec.choices)
        raise ConfigError(f"{where} is {list(values)}", f"one or more of {words}, each once")
    start = spec.default if spec.default in values else values[0]
    return values[0] if len(values) == 1 else Choice(tuple(values), start)  # type: ignore[arg-type]  # checked


def _range(
    spec: ParameterSpec,
    option: Mapping[str, Any],
    inputs: int,
    negative_weights: bool,
    resolution: float | None,
    where: str,
) -> Range:
    if spec.kind in ("boolean", "categorical"):
        words = "true or false" if spec.kind == "boolean" else f"one of {', '.join(spec.choices)}"
        raise ConfigError(f"{where} is a range", f"{spec.name} is {words}", "a list of these searches them")
    for name in option:
        if name not in KEYS:
            raise ConfigError(f"{where} has no key {name!r}", nearest(str(name), KEYS))
    whole = spec.kind == "integer"
    given = {}
    for name, value in option.items():
        if value is None:
            continue
        if name != "resolution":
            _check(spec, value, f"{where}.{name}")
        elif whole or isinstance(value, bool) or not isinstance(value, int | float):
            allowed = "none: whole numbers have no other grid" if whole else "a number"
            raise ConfigError(f"{where}.resolution is {value!r}", allowed)
        given[name] = int(value) if whole else float(value)
    high = given.get("high", spec.high)
    low = given.get("low", -high if negative_weights and spec.name == "weight" else spec.low)
    if low > high:
        raise ConfigError(f"{where} goes from {low} to {high}", "low must not exceed high")
    _check(spec, low, f"{where}.low")
    initial = given.get("initial", _initial(spec, low, high, inputs))
    if not low <= initial <= high:
        raise ConfigError(f"{where}.initial is {initial}", f"a number in [{low}, {high}]")
    if whole:
        return Range(int(low), int(high), int(initial), None, integer=True)
    step = given.get("resolution", resolution)
    found = Range(low, high, initial, step)
    try:
        found.gene(where)  # what is left to check is the grid
    except ConfigError as error:
        raise ConfigError(f"{where}.resolution is {step}", error.allowed, error.do) from None
    return found


def _initial(spec: ParameterSpec, low: float, high: float, inputs: int) -> float:
    """Where a search starts: near the uniform average, inside the range rather than on its edge."""
    if spec.initial is not None:
        return min(max(spec.initial, low), high)
    if spec.name == "weight":
        return min(max(1.0 / max(inputs, 2), low), high)
    default = spec.default
    if spec.kind == "integer":
        return default if isinstance(default, int) and low <= default <= high else (low + high) // 2
    inside = isinstance(default, (int, float)) and low < default < high
    return float(default) if inside else (low + high) / 2


def _check(spec: ParameterSpec, value: Any, where: str) -> None:
    try:
        spec.check(value, where)
    except RecipeError as error:
        raise ConfigError(f"{where} is {value!r}", error.allowed) from None


def _check_weights(
    method: str, found: Mapping[str, Explored | Scalar | BySource], negative_weights: bool, key: str
) -> None:
    weight, normalize = found.get("weight"), found.get("normalize")
    if weight is None:
        return
    weights = list(weight.values.values()) if isinstance(weight, BySource) else [weight]
    fixed = [value for value in weights if not isinstance(value, Range)]
    if negative_weights and len(fixed) == len(weights):
        said = ", ".join(str(value) for value in fixed)
        raise ConfigError(f"{key}.negative_weights is true", f"the weight of method {method!r} is fixed at {said}")
    if not (normalize is True or isinstance(normalize, Choice)):
        return
    low = min(value.low if isinstance(value, Range) else float(value) for value in weights)  # type: ignore[arg-type]
    high = max(value.high if isinstance(value, Range) else float(value) for value in weights)  # type: ignore[arg-type]
    if low < 0:
        raise ConfigError(
            f"{key}: method {method!r} normalises weights that may be negative (from {low})",
            "weights that are normalised must not cancel out",
            f"set {key}.normalize=false, or {key}.parameters.weight.low=0",
        )
    if high < SMALLEST_SUM:
        raise ConfigError(
            f"{key}: method {method!r} normalises weights that are all at most {high}",
            "weights that are normalised need a sum above zero",
            f"set {key}.normalize=false, or raise {key}.parameters.weight.high",
        )
