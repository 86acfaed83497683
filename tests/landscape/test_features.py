"""Genomes as rows of numbers."""

from __future__ import annotations

import pytest

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome
from evomerge.genomes.lineages import LineageSpec
from evomerge.landscape.features import Features

ORDER = tuple(Gene(f"layers.1/order.{place}", "integer", 0, 2 - place, 0) for place in range(2))


def test_every_kind_of_gene_has_its_features() -> None:
    genes = (
        Gene("w", high=2.0),
        Gene("n", "integer", 0, 4),
        Gene("t", "boolean"),
        Gene("m", "categorical", choices=("x", "y", "z")),
    )
    features = Features(genes)
    rows = features.rows([Genome((1.5, 3, True, "y")), Genome((0.0, 0, False, "z"))])
    assert features.count == 6
    assert rows.tolist() == [[1.5, 3.0, 1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]


def test_an_order_is_the_places_of_what_it_orders() -> None:
    """Of three candidates, picking number 1 of what is left and then number 1 again gives the order 1, 2, 0."""
    features = Features((Gene("w"), *ORDER))
    rows = features.rows([Genome((0.5, 1, 1)), Genome((0.5, 0, 0)), Genome((0.5, 2, 0))])
    # Candidate 0 comes third, candidate 1 first, candidate 2 second; then 0, 1, 2; then 2, 0, 1.
    assert rows[:, 1:].tolist() == [[2, 0, 1], [0, 1, 2], [1, 2, 0]]


def test_an_order_that_bounds_have_narrowed_is_numbers() -> None:
    genes = (ORDER[0], Gene("layers.1/order.1", "integer", 0, 3, 0))
    assert Features(genes).rows([Genome((2, 3))]).tolist() == [[2.0, 3.0]]


def test_genomes_of_other_genes_are_refused() -> None:
    features = Features((Gene("w"), Gene("m", "categorical", choices=("x", "y"))))
    for genome, said in [
        (Genome((0.5,)), "a genome of 1 values"),
        (Genome((0.5, "q")), "gene 'm'"),
        (Genome((2.0, "x")), "gene 'w'"),
    ]:
        with pytest.raises(ConfigError, match=said):
            features.rows([genome])
    with pytest.raises(ConfigError, match="merges of merges"):
        Features(LineageSpec(["a", "b"]).genes)
