"""Bounds and fixed values that a user gives genes of any search space, by patterns of their names."""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from evomerge.errors import ConfigError, nearest
from evomerge.genomes.genome import Gene, Genome, GenomeSpec, Value
from evomerge.genomes.lineages import LineageSpec
from evomerge.genomes.perturbations import PerturbationSpec
from evomerge.protocols import SearchSpace
from evomerge.recipes.recipe import Recipe

_SHOWN = 3


class BoundedSpace:
    """A search space whose genes were given narrower bounds, fewer choices, or one value; implements `SearchSpace`.

    A gene of one value is none any more: genomes are without it, recipes are made with it. Starts are moved inside.
    Grids stay where they are, and what is searched of them lies within; one value need not be on them.

    Args:
        space: whose genes are numbers, choices and truth values.
        bounds: by pattern (``*``, ``?`` and ``[...]`` as in a shell; of several that match, the last counts): a value,
            ``[low, high]`` for numbers, a list of choices for methods and the like.
        key: where they stand in the configuration.

    Attributes:
        spec: what is left to search.
        left_out: names of genes that are not searched: those of the space, and those of one value.

    Raises:
        ConfigError: a pattern that no gene matches, a value that a gene does not take, or nothing left to search.
    """

    def __init__(self, space: SearchSpace, bounds: Mapping[str, Any], key: str) -> None:
        others = {LineageSpec: "merges of merges", PerturbationSpec: "perturbed models"}
        if type(space.spec) in others or not isinstance(space.spec, GenomeSpec):
            kind = others.get(type(space.spec), "raw weights")
            raise ConfigError(f"{key} is given, and genomes are {kind}", "a search space whose genes have names")
        self._space, self._all = space, space.spec
        given = _by_gene(bounds, [gene.name for gene in self._all], key)
        genes = {gene.name: _narrowed(gene, *given[gene.name]) if gene.name in given else gene for gene in self._all}
        self._fixed: dict[str, Value] = {name: gene for name, gene in genes.items() if not isinstance(gene, Gene)}
        free = tuple(gene for gene in genes.values() if isinstance(gene, Gene))
        if not free:
            raise ConfigError(f"{key} fixes all {len(genes)} genes", "a search needs at least one that it may change")
        self.spec = GenomeSpec(free)
        self.left_out: Sequence[str] = (*getattr(space, "left_out", ()), *self._fixed)

    def __getattr__(self, name: str) -> Any:
        if name == "_space":  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self._space, name)

    def decode(self, genome: Genome) -> Recipe:
        """The recipe of a genome and of the values that are fixed."""
        return self._space.decode(self._whole(genome))

    def _whole(self, genome: Genome) -> Genome:
        values, fixed = iter(genome.values), self._fixed
        return Genome(tuple(fixed[gene.name] if gene.name in fixed else next(values) for gene in self._all))

    @property
    def active(self) -> Any:
        """The space's own, where it has one: of the genes that are left."""
        active = self._space.active  # type: ignore[attr-defined]  # spaces have it or not

        def of_the_left(genome: Genome) -> frozenset[str]:
            return frozenset(active(self._whole(genome))).difference(self._fixed)

        return of_the_left

    @property
    def starts(self) -> dict[str, Genome]:
        """The space's own that keep to the bounds and to what is fixed: they make the same recipes."""
        found = {}
        for name, genome in getattr(self._space, "starts", {}).items():
            named = self._all.named(genome)
            own = self.spec.genome([named[gene.name] for gene in self.spec])
            if self._whole(own) == genome:
                found[name] = own
        return found

    @property
    def encode(self) -> Any:
        """The space's own, where it has one: the nearest genome within the bounds."""
        encode = self._space.encode  # type: ignore[attr-defined]  # spaces have it or not

        def narrowed(*args: Any, **options: Any) -> Genome | None:
            found = encode(*args, **options)
            if found is None:
                return None
            named = self._all.named(found)
            return self.spec.genome([named[gene.name] for gene in self.spec])

        return narrowed


def _by_gene(bounds: Mapping[str, Any], names: Sequence[str], key: str) -> dict[str, tuple[Any, str]]:
    """What is given for each gene, and where."""
    if not isinstance(bounds, Mapping):
        raise ConfigError(
            f"{key} is {bounds!r}",
            "a mapping from patterns of genes to bounds",
            f"'{key}={{*: [0, 1]}}', or quoted in a file: {{'*': [0, 1]}}",
        )
    found: dict[str, tuple[Any, str]] = {}
    for pattern, value in bounds.items():
        matching = [name for name in names if fnmatch.fnmatchcase(name, str(pattern))]
        if not matching:
            raise ConfigError(f"{key} has {str(pattern)!r}, which no gene matches", _nearest(str(pattern), names))
        found.update(dict.fromkeys(matching, (value, f"{key}.{pattern}")))
    return found


def _nearest(pattern: str, names: Sequence[str]) -> str:
    """What may have been meant by a pattern: one that matches and differs in a single word of the genes' names."""
    words = sorted({word for name in names for word in re.split(r"[./]", name)})
    for word in sorted(re.findall(r"[^*?./\[\]]+", pattern), key=len, reverse=True):
        for close in difflib.get_close_matches(word, words, n=3, cutoff=0.6):
            meant = pattern.replace(word, close)
            matching = [name for name in names if fnmatch.fnmatchcase(name, meant)]
            if matching:
                more = f", ... ({len(matching)} in all)" if len(matching) > _SHOWN else ""
                return f"did you mean {meant!r}? (it matches {', '.join(matching[:_SHOWN])}{more})"
    return nearest(pattern, names)


def _narrowed(gene: Gene, given: Any, key: str) -> Gene | Value:
    """The gene within other bounds, or its only value."""
    several = isinstance(given, Sequence) and not isinstance(given, str)
    if gene.kind in ("categorical", "boolean"):
        for value in given if several and given else [given]:
            _check(gene, value, key)  # first: what is no choice need not be hashable
        values: list[Value] = list(dict.fromkeys(given)) if several else [given]
        if len(values) == 1:
            return values[0]
        if gene.kind == "boolean":
            return gene
        initial = gene.initial if gene.initial in values else values[0]
        return replace(gene, choices=tuple(map(str, values)), initial=initial)
    if several and len(given) != 2:
        raise ConfigError(f"{key} is {list(given)}", f"a number, or [low, high], for gene {gene.name}")
    for value in given if several else [given]:
        _check(gene, value, key)
    low, high = given if several else (given, given)
    if low > high:
        raise ConfigError(f"{key} is {list(given)}", "low must not exceed high")
    if not several or low == high:
        return int(low) if gene.kind == "integer" else float(low)
    if gene.kind == "integer":
        low, high = int(low), int(high)
    if gene.resolution is not None:
        low, high = _grid_within(gene, low, high, key)
    if low == high:
        return float(low)
    start = gene.start
    assert not isinstance(start, str)  # of a number
    return replace(gene, low=low, high=high, initial=min(max(start, low), high))


def _grid_within(gene: Gene, low: float, high: float, key: str) -> tuple[float, float]:
    """The first and the last point of the gene's grid from `low` to `high`."""
    step = gene.resolution
    assert step is not None
    first, last = math.ceil((low - gene.low) / step - 1e-9), math.floor((high - gene.low) / step + 1e-9)
    if first > last:
        raise ConfigError(
            f"{key} is {[low, high]}",
            f"gene {gene.name} goes in steps of {step} from {gene.low}: none is between",
            "give one value, which need not be of the grid, or wider bounds",
        )
    return round(gene.low + first * step, 12), round(gene.low + last * step, 12)


def _check(gene: Gene, value: Any, key: str) -> None:
    try:
        gene.check(value)
    except ConfigError as error:
        number = gene.kind not in ("categorical", "boolean") and isinstance(value, int | float)
        wider = "scale_range" if gene.name.endswith("/scale") else "parameters"  # of paths, of merges
        # not `math.isfinite`, which whole numbers may be too large for
        finite = number and not isinstance(value, bool) and abs(value) < math.inf
        outside = finite and not gene.low <= value <= gene.high
        do = f"search_space.{wider} widens what is searched" if outside else ""
        raise ConfigError(
            f"{key} is {value!r}", f"gene {gene.name}: {error.allowed.removeprefix('allowed: ')}", do
        ) from None
