"""Scales at the input_scales of a path: a matrix over pairs of layers, one for every slot, or none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from evomerge.errors import ConfigError, nearest
from evomerge.genomes.genome import Gene, Value
from search_spaces.path_pool import KEY, PathPool

FORMS = ("none", "slot", "hop")
_RANGE = {"low": 0.5, "high": 1.5, "initial": 1.0}


class LayerScaling:
    """The scale genes of a path that visits some of a sequence of slots, in order.

    The form ``hop`` is the matrix W of EvoLLM (arXiv 2403.13187, section 3.2): W_ij scales hidden states on their way
    from unit i to unit j, wherever in the path that is. It has the entries that some path uses. ``slot`` scales them
    on their way into a slot, wherever they come from: as many genes as slots instead of their square.

    Args:
        form: ``hop``, ``slot`` or ``none``.
        slots: the unit in every slot, by its number.
        slot_names, unit_names: for the genes.
        settings: ``{low, high, initial, resolution}`` of every scale, any of them.
        negative: lets scales go as far below zero as above.
        pool: whether its models can be scaled.

    Raises:
        ConfigError: an unknown form or key, a range without its initial value, or models that cannot be scaled.
    """

    def __init__(
        self,
        form: str,
        slots: Sequence[int],
        slot_names: Sequence[str],
        unit_names: Sequence[str],
        *,
        settings: Mapping[str, Any] | None,
        negative: bool,
        pool: PathPool,
    ) -> None:
        self._make = scale_gene(form, FORMS, settings, negative, pool)
        self._units = tuple(slots)
        self._form = form
        self.genes: tuple[Gene, ...] = ()
        self._index: dict[int | tuple[int, int], int] = {}
        if form == "slot":
            into = range(1, len(slots))  # nothing comes before the first
            self._index = {slot: slot - 1 for slot in into}
            self.genes = tuple(self._make(f"{slot_names[slot]}/scale") for slot in into)
        elif form == "hop":
            first: dict[int, int] = {}
            for slot, unit in enumerate(slots):
                first.setdefault(unit, slot)
            last = {unit: slot for slot, unit in enumerate(slots)}
            pairs = [(i, j) for i in range(len(unit_names)) for j in range(len(unit_names)) if first[i] < last[j]]
            self._index = {pair: number for number, pair in enumerate(pairs)}
            self.genes = tuple(self._make(f"{unit_names[i]}>{unit_names[j]}/scale") for i, j in pairs)

    def acting(self, slots: Sequence[int]) -> list[str]:
        """The names of the genes on whose values the path through these slots depends."""
        if self._form == "none":
            return []
        steps = pairwise(slots)
        keys = [slot if self._form == "slot" else (self._units[before], self._units[slot]) for before, slot in steps]
        return [self.genes[self._index[key]].name for key in keys]

    def scale(self, before: int, slot: int, values: Sequence[Value]) -> float:
        """The scale on the way from slot `before` to `slot`, of the values of `genes`."""
        if self._form == "none":
            return 1.0
        key = slot if self._form == "slot" else (self._units[before], self._units[slot])
        return float(values[self._index[key]])


class _Maker:
    """Makes genes of one range."""

    def __init__(self, low: float, high: float, initial: float, resolution: float | None) -> None:
        self._range = (low, high, initial, resolution)

    def __call__(self, name: str) -> Gene:
        low, high, initial, resolution = self._range
        return Gene(name, "continuous", low, high, initial, resolution)


def scale_gene(
    form: str, forms: Sequence[str], settings: Mapping[str, Any] | None, negative: bool, pool: PathPool
) -> _Maker:
    """What makes a scale gene of a name, once the configuration is checked.

    Raises:
        ConfigError: as `LayerScaling`.
    """
    if form not in forms:
        raise ConfigError(f"{KEY}.scales is {form!r}", nearest(str(form), forms))
    if form == "none" and negative:
        raise ConfigError(f"{KEY}.negative_scales is true", f"{KEY}.scales is none", f"set {KEY}.scales=slot")
    if form != "none" and pool.info.unscalable:
        raise ConfigError(
            f"{KEY}.scales is {form!r} and this architecture cannot be scaled: {pool.info.unscalable}",
            "models that normalise what every layer reads from the residual stream",
            f"set {KEY}.scales=none",
        )
    given = dict(settings or {})
    for name, value in given.items():
        if name not in _RANGE and name != "resolution":
            raise ConfigError(f"{KEY}.scale_range has no key {name!r}", nearest(str(name), (*_RANGE, "resolution")))
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ConfigError(f"{KEY}.scale_range.{name} is {value!r}", "a number")
        if value is not None and not math.isfinite(value):
            raise ConfigError(f"{KEY}.scale_range.{name} is {value!r}", "a finite number")
    chosen = {name: default if given.get(name) is None else float(given[name]) for name, default in _RANGE.items()}
    low, high, initial = (chosen[name] for name in ("low", "high", "initial"))
    resolution = None if given.get("resolution") is None else float(given["resolution"])
    if negative:
        low = -high
    if low < 0 and pool.info.unflippable:
        given_low = f"{KEY}.negative_scales is true" if negative else f"{KEY}.scale_range.low is {low}"
        raise ConfigError(
            f"{given_low}: {pool.info.unflippable}", "scales above 0 only", f"set {KEY}.scale_range.low=0.5"
        )
    if not low <= initial <= high or low == high:
        raise ConfigError(
            f"{KEY}.scale_range goes from {low} to {high} and starts at {initial}", "low < high and a start between"
        )
    maker = _Maker(low, high, initial, resolution)
    try:
        maker("scale")  # what is left to check is the grid
    except ConfigError as error:
        raise ConfigError(f"{KEY}.scale_range.resolution is {resolution}", error.allowed, error.do) from None
    return maker
