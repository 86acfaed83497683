"""Starts and step sizes from the differences of a pool's models: the rule, by hand."""

from __future__ import annotations

import math
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from contracts.space_samples import METHODS, pool

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome
from evomerge.genomes.lineages import LineageSpec
from evomerge.objectives import Objective
from evomerge.recipes.differences import Differences
from evomerge.recipes.slices import SliceId
from evomerge.session.bounded_space import BoundedSpace
from evomerge.session.prior import (
    PriorSpace,
    check_prior,
    first_deviation,
    prior_genes,
    weighting_of,
    weightings,
    with_prior,
)
from evomerge.strategies.cma_es import CmaEs
from search_spaces.data_flow import DataFlowSpace
from search_spaces.parameter import ParameterSpace

INFO = pool(2)
SLICES = INFO.slices


def space(method: Any = "task_arithmetic", info: Any = INFO, **options: Any) -> ParameterSpace:
    return ParameterSpace(info, METHODS, method=method, **{"layer_group": "all", "components": "all", **options})


def known(products: Any = ((1.0, 0.0), (0.0, 1.0)), base: float = 1.0) -> Differences:
    """Every slice has these inner products and the base this squared norm."""
    every = np.tile(np.array(products, dtype=np.float64), (len(SLICES), 1, 1))
    return Differences(("math", "lang"), SLICES, np.full(len(SLICES), base), every)


def genes_of(own: ParameterSpace, differences: Differences, sigma: float = 0.25) -> dict[str, Gene]:
    changed, _ = prior_genes(own.spec.genes, weightings(own), differences, sigma)
    return {gene.name: gene for gene in changed.values()}


def by_model(genes: dict[str, Gene], what: str) -> dict[str, Any]:
    """One of their values by model: all groups of layers have the same differences."""
    found: dict[str, set[float]] = {}
    for name, gene in genes.items():
        found.setdefault(name.split("/")[1], set()).add(round(float(getattr(gene, what)), 12))
    assert all(len(values) == 1 for values in found.values())
    return {model: values.pop() for model, values in found.items()}


def test_what_weights_a_task_vector_is_seen_from_recipes() -> None:
    own = space(layer_group="layer", components=[["attn", "mlp", "norm"]])
    names = [gene.name for gene in own.spec]
    found = weighting_of(own, names.index("layers.1/math/weight"))
    assert found is not None
    assert (found.model, found.others, found.summed) == ("math", {"lang"}, True)
    assert dict(found.slopes) == {SliceId(part, 1): 1.0 for part in ("attn", "mlp", "norm")}
    assert set(weightings(own)) == set(range(len(names)))


def test_interpolated_weights_have_slopes() -> None:
    info = pool(3)
    own = ParameterSpace(info, METHODS, interpolation="linear", anchors=2, components="all")
    names = [gene.name for gene in own.spec]
    found = weighting_of(own, next(i for i, name in enumerate(names) if "math" in name and "layers" in name))
    assert found is not None
    layers = {slice_.layer: slope for slice_, slope in found.slopes if slice_.component == "attn"}
    assert layers == {0: pytest.approx(1.0), 1: pytest.approx(0.5)}


def test_other_genes_are_left_alone() -> None:
    ties = space("ties")
    found = weightings(ties)
    assert {ties.spec.genes[number].name.rpartition("/")[2] for number in found} == {"weight"}
    assert not any(own.summed for own in found.values()), "ties divides by the sum"
    bounded = BoundedSpace(ties, {"*/density": [0.2, 0.6]}, "search_space.bounds")
    assert [bounded.spec.genes[n].name for n in weightings(bounded)] == [ties.spec.genes[n].name for n in found]
    for other in (space("linear"), space("slerp"), DataFlowSpace(INFO, METHODS)):
        with pytest.raises(ConfigError, match="no gene weights a task vector"):
            weightings(other)


def test_steps_move_all_by_the_same_share() -> None:
    """Task vectors of lengths 1 and 2: their geometric mean is sqrt 2, so that sigma is times and over it."""
    genes = genes_of(space(), known(((1.0, 0.0), (0.0, 4.0))))
    assert by_model(genes, "spread") == {
        "math": pytest.approx(0.25 * math.sqrt(2)),
        "lang": pytest.approx(0.25 / math.sqrt(2)),
    }
    assert all(gene.start == 0.5 for gene in genes.values()), "orthogonal: starts stay"
    wider = space(parameters={"weight": {"low": 0.0, "high": 2.0, "initial": 0.5}})
    again = genes_of(wider, known(((1.0, 0.0), (0.0, 4.0))))
    assert by_model(again, "spread") == pytest.approx(by_model(genes, "spread"))


def test_steps_stay_within_a_third_and_three_times() -> None:
    genes = genes_of(space(), known(((1.0, 0.0), (0.0, 10_000.0))), sigma=0.1)
    assert by_model(genes, "spread") == {"math": pytest.approx(0.3), "lang": pytest.approx(0.1 / 3)}
    assert max(gene.spread or 0 for gene in genes_of(space(), known(((1, 0), (0, 1e4)))).values()) == 0.5


def test_what_models_have_in_common_counts_once() -> None:
    for cosine, start in [(1.0, 0.25), (0.25, 0.4), (-0.8, 0.5)]:
        genes = genes_of(space(), known(((1.0, cosine), (cosine, 1.0))))
        assert by_model(genes, "start") == {"math": pytest.approx(start), "lang": pytest.approx(start)}
    divided = genes_of(space("ties"), known(((1.0, 1.0), (1.0, 1.0))))
    assert by_model(divided, "start") == {"math": 0.5, "lang": 0.5}
    gridded = space(parameters={"weight": {"initial": 0.5, "resolution": 0.1}})
    assert by_model(genes_of(gridded, known(((1.0, 0.6), (0.6, 1.0)))), "start") == {"math": 0.3, "lang": 0.3}


def test_a_model_that_does_not_move_keeps_its_genes() -> None:
    genes = genes_of(space(), known(((0.0, 0.0), (0.0, 9.0))))
    assert by_model(genes, "spread") == {"lang": pytest.approx(0.25)}
    with pytest.raises(ConfigError, match="all task vectors are zero"):
        genes_of(space(), known(((0.0, 0.0), (0.0, 0.0))))


def test_the_space_is_the_same_but_for_starts_and_steps() -> None:
    own = space()
    made = with_prior(own, lambda: known(((1.0, 1.0), (1.0, 1.0))), 0.2)
    assert isinstance(made, PriorSpace)
    assert [(g.name, g.low, g.high) for g in made.spec] == [(g.name, g.low, g.high) for g in own.spec]
    genome = Genome((0.3, 0.8, 0.4, 0.9))
    assert made.decode(genome) == own.decode(genome)
    assert made.left_out == own.left_out
    assert pickle.loads(pickle.dumps(made)).spec == made.spec
    assert made.prior.startswith("differences: 4 of 4 genes; steps 0.2 (")
    assert "starts 0.25 (" in made.prior
    strategy = CmaEs(made.spec, [Objective("score")], seed=0, sigma0=0.2, popsize=200)
    values = np.array([proposal.genome.values for proposal in strategy.ask()])
    np.testing.assert_allclose(values.mean(axis=0), 0.25, atol=0.05)


def test_pools_and_genomes_that_it_says_nothing_of_are_refused() -> None:
    with pytest.raises(ConfigError, match="genomes are the models"):
        with_prior(space(), None, 0.25)
    lineage: Any = SimpleNamespace(spec=LineageSpec(["math", "lang"]))
    with pytest.raises(ConfigError, match="merges of merges"):
        with_prior(lineage, known, 0.25)

    def unread() -> Differences:
        raise AssertionError("the models were read")

    with pytest.raises(ConfigError, match="no gene weights"):
        with_prior(space("linear"), unread, 0.25)
    assert check_prior(None, "strategy") is None
    with pytest.raises(ConfigError, match=r"phases.a.strategy.prior is True; .*differences"):
        check_prior(True, "phases.a.strategy")


def test_the_strategy_s_own_step_is_the_measure() -> None:
    assert first_deviation({"sigma0": 0.1, "spread": 0.4}) == 0.1
    assert first_deviation({"spread": 0.4}) == 0.4
    assert first_deviation({"spread": "auto"}) == first_deviation({"popsize": 8}) == 0.25
