"""What a search explores of each parameter of a merge method: a range, or nothing but one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.errors import ConfigError, RecipeError, nearest
from evomerge.genome import Gene
from evomerge.method import MethodSpec, ParameterSpec, Scalar

Option = float | bool | dict[str, float | None]
"""How a configuration speaks of a parameter: a fixed value, or changes to its range."""

KEYS = ("low", "high", "initial", "resolution")
SMALLEST_SUM = 1e-6
"""Weights to be normalised must not sum to less: the division would blow rounding errors up."""


@dataclass(frozen=True)
class Range:
    """What a search explores of one parameter; fields as in `Gene`."""

    low: float
    high: float
    initial: float
    resolution: float | None = None

    def gene(self, name: str) -> Gene:
        """A gene of this range."""
        return Gene(name, "continuous", self.low, self.high, self.initial, self.resolution)


def parameter_ranges(
    method: MethodSpec,
    options: Mapping[str, Option],
    inputs: int,
    *,
    negative_weights: bool,
    normalize: bool | None,
    resolution: float | None,
    key: str,
) -> dict[str, Range | Scalar]:
    """A range or a fixed value for every parameter of `method`.

    Args:
        method: whose parameters.
        options: by parameter, what the configuration says.
        inputs: how many inputs a slice has.
        negative_weights: let weights go as far below zero as above.
        normalize: value of the method's ``normalize``; its default for ``None``.
        resolution: grid step of every range that does not give its own.
        key: the search space's configuration key, for messages.

    Raises:
        ConfigError: a parameter or key that does not exist, values out of bounds, or weights that cannot
            be normalised.
    """
    names = [p.name for p in method.parameters]
    for name in options:
        if name not in names:
            raise ConfigError(f"{key}.parameters has {name!r}, unknown to method {method.name!r}", nearest(name, names))
    for name, value in (("weight", negative_weights or None), ("normalize", normalize)):
        if value is not None and name not in names:
            given = "negative_weights is true" if name == "weight" else f"normalize is {str(value).lower()}"
            do = f"remove {key}.{given.split()[0]}"
            raise ConfigError(f"{key}.{given}", f"method {method.name!r} has no {name}", do)
    if normalize is not None and "normalize" in options:
        raise ConfigError(f"{key}.normalize and {key}.parameters.normalize are both given", "one of them")
    found: dict[str, Range | Scalar] = {}
    for spec in method.parameters:
        option = options.get(spec.name)
        where = f"{key}.parameters.{spec.name}"
        if spec.name == "normalize" and normalize is not None:
            found[spec.name] = normalize
        elif isinstance(option, Mapping):
            found[spec.name] = _range(spec, option, inputs, negative_weights, resolution, where)
        elif option is not None:
            _check(spec, option, where)
            found[spec.name] = option if isinstance(option, bool) else float(option)
        elif spec.searched:
            found[spec.name] = _range(spec, {}, inputs, negative_weights, resolution, where)
        else:
            found[spec.name] = spec.default
    _check_weights(found, negative_weights, key)
    points = {name: v.low for name, v in found.items() if isinstance(v, Range) and v.low == v.high}
    return found | points


def _range(
    spec: ParameterSpec,
    option: Mapping[str, float | None],
    inputs: int,
    negative_weights: bool,
    resolution: float | None,
    where: str,
) -> Range:
    if spec.kind != "continuous":
        raise ConfigError(f"{where} is a range", f"{spec.name} is true or false", f"set {where}=true or false")
    for name in option:
        if name not in KEYS:
            raise ConfigError(f"{where} has no key {name!r}", nearest(name, KEYS))
    given = {name: float(value) for name, value in option.items() if value is not None}
    for name in ("low", "high", "initial"):
        if name in given:
            _check(spec, given[name], f"{where}.{name}")
    high = given.get("high", spec.high)
    low = given.get("low", -high if negative_weights and spec.name == "weight" else spec.low)
    if low > high:
        raise ConfigError(f"{where} goes from {low} to {high}", "low must not exceed high")
    _check(spec, low, f"{where}.low")
    initial = given.get("initial", _initial(spec, low, high, inputs))
    if not low <= initial <= high:
        raise ConfigError(f"{where}.initial is {initial}", f"a number in [{low}, {high}]")
    step = given.get("resolution", resolution)
    found = Range(low, high, initial, step)
    try:
        found.gene(where)  # what is left to check is the grid
    except ConfigError as error:
        raise ConfigError(f"{where}.resolution is {step}", error.allowed, error.do) from None
    return found


def _initial(spec: ParameterSpec, low: float, high: float, inputs: int) -> float:
    """Where a search starts: near the uniform average, inside the range rather than on its edge."""
    if spec.name == "weight":
        return min(max(1.0 / max(inputs, 2), low), high)
    default = spec.default
    inside = isinstance(default, (int, float)) and low < default < high
    return float(default) if inside else (low + high) / 2


def _check(spec: ParameterSpec, value: Scalar, where: str) -> None:
    try:
        spec.check(value, where)
    except RecipeError as error:
        raise ConfigError(f"{where} is {value!r}", error.allowed) from None


def _check_weights(found: Mapping[str, Range | Scalar], negative_weights: bool, key: str) -> None:
    weight = found.get("weight")
    if negative_weights and not isinstance(weight, Range):
        raise ConfigError(f"{key}.negative_weights is true", f"{key}.parameters.weight is fixed at {weight}")
    if found.get("normalize") is not True or weight is None:
        return
    low, high = (weight.low, weight.high) if isinstance(weight, Range) else (float(weight), float(weight))
    if low < 0:
        raise ConfigError(
            f"{key} normalises weights that may be negative (from {low})",
            "weights that are normalised must not cancel out",
            f"set {key}.normalize=false, or {key}.parameters.weight.low=0",
        )
    if high < SMALLEST_SUM:
        raise ConfigError(
            f"{key} normalises weights that are all at most {high}",
            "weights that are normalised need a sum above zero",
            f"set {key}.normalize=false, or raise {key}.parameters.weight.high",
        )
