"""From a recipe back to the genome of a parameter space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evomerge.genomes.genome import Genome, GenomeSpec, Value
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import SliceId, SliceRecipe
from search_spaces.groups import Shares

_NEAR = 1e-9
_METHOD = ("", "", "method")


def nearest_genome(
    spec: GenomeSpec,
    index: Mapping[tuple[int, str, str, str], int],
    prefixes: Mapping[tuple[str, str], str],
    shares: Mapping[SliceId, Shares],
    recipe: Recipe,
) -> Genome:
    """The genome whose values are nearest to those of a recipe, by least squares where slices lie between anchors.

    Args:
        spec: the genes.
        index: numbers of the genes, by group, prefix, input and parameter.
        prefixes: by method and parameter, the prefix.
        shares: of the slices.
        recipe: what it does not say of a gene stays at the gene's start.
    """
    values: list[Value] = list(spec.initial.values)
    rows: dict[tuple[str, str, str], list[tuple[Shares, Any]]] = {}
    for entry in recipe.slices:
        for source, name, value in _said(entry):
            key = prefixes.get((entry.method, name), ""), source, name
            if entry.slice in shares:
                rows.setdefault(key, []).append((shares[entry.slice], value))
    methods = {}
    for own, value in rows.get(_METHOD, ()):
        methods[max(own, key=lambda pair: pair[1])[0]] = value
    for (prefix, source, name), told_of in rows.items():
        said = [(_acting(own, methods), value) for own, value in told_of]
        groups = sorted({group for own, _ in said for group, _ in own if (group, prefix, source, name) in index})
        genes = [index[group, prefix, source, name] for group in groups]
        if not genes:
            continue
        if spec.genes[genes[0]].kind in ("categorical", "boolean"):
            for own, value in said:
                group = max(own, key=lambda pair: pair[1])[0]
                if group in groups and isinstance(value, str | bool):
                    values[genes[groups.index(group)]] = value
            continue
        told = [(own, value) for own, value in said if isinstance(value, int | float) and not isinstance(value, bool)]
        if all(len(own) == 1 for own, _ in told):  # as it is, to the last bit
            for own, value in told:
                if own[0][0] in groups:
                    values[genes[groups.index(own[0][0])]] = value
            continue
        matrix = np.zeros((len(told), len(groups)))
        for row, (own, _) in enumerate(told):
            for group, share in own:
                if group in groups:
                    matrix[row, groups.index(group)] = share
        solved = np.linalg.lstsq(matrix, np.array([float(value) for _, value in told]), rcond=None)[0]
        for at, gene in enumerate(genes):
            if matrix[:, at].any():
                values[gene] = float(solved[at])
    return spec.genome([gene.snap(value) for gene, value in zip(spec.genes, values, strict=True)])


def _acting(shares: Shares, methods: Mapping[int, Any]) -> Shares:
    """The groups that a slice has its values from: of anchors of different methods, the nearer alone."""
    nearer = max(shares, key=lambda pair: pair[1])[0]
    return shares if all(methods.get(group) == methods.get(nearer) for group, _ in shares) else ((nearer, 1.0),)


def _said(entry: SliceRecipe) -> list[tuple[str, str, Any]]:
    """What a slice's recipe gives: input, parameter and value; without an input, its own, and its method."""
    found: list[tuple[str, str, Any]] = [("", "method", entry.method)]
    found += [("", name, value) for name, value in entry.parameters]
    found += [(own.model, name, value) for own in entry.inputs for name, value in own.parameters]
    return found


def difference(made: SliceRecipe, wanted: SliceRecipe) -> str:
    """What two recipes of a slice differ in, in words; empty where they are the same but for rounding."""
    if (made.method, made.base, made.scale) != (wanted.method, wanted.base, wanted.scale):
        return f"method {wanted.method}"
    pairs = [(dict(made.parameters), dict(wanted.parameters), "")]
    if [(own.model, own.layer) for own in made.inputs] != [(own.model, own.layer) for own in wanted.inputs]:
        return "other inputs"
    for ours, theirs in zip(made.inputs, wanted.inputs, strict=True):
        pairs.append((dict(ours.parameters), dict(theirs.parameters), f" of {theirs.model}"))
    for one, other, whose in pairs:
        for name in one.keys() | other.keys():
            if name in one and name in other and not _equal(one[name], other[name]):
                return f"{name}{whose} {other[name]}"
            if name not in one:
                return f"{name}{whose}"
    return ""


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float) and not isinstance(other, bool):
        return abs(one - other) <= _NEAR * max(1.0, abs(other))
    return bool(one == other)
