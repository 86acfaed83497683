from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec, Value

MIXED = GenomeSpec(
    (
        Gene("weight", low=-1.0, high=3.0, resolution=0.25),
        Gene("layers", "integer", low=1, high=4),
        Gene("method", "categorical", choices=("linear", "slerp", "ties")),
        Gene("rescale", "boolean"),
    )
)


@pytest.mark.parametrize(
    ("gene", "given_value", "snapped"),
    [
        (Gene("a"), 0.3, 0.3),
        (Gene("a"), -1, 0.0),
        (Gene("a"), math.inf, 1.0),
        (Gene("a", low=-1.0), -0.0, 0.0),
        (Gene("a", low=0, high=2), 1, 1.0),
        (Gene("a", resolution=0.1), 0.3000001, 0.3),
        (Gene("a", resolution=0.1), 0.7 + 0.04, 0.7),
        (Gene("a", resolution=0.1), 1.0, 1.0),
        (Gene("a", resolution=0.3), 1.0, 0.9),  # the last grid point within bounds
        (Gene("a", low=-0.5, high=0.5, resolution=0.4), 0.0, -0.1),
        (Gene("a", low=0.1234567890123, high=1.0, resolution=0.5), 0.1, 0.1234567890123),
        (Gene("a", low=0.4, high=0.4, resolution=0.05), 0.9, 0.4),
        (Gene("i", "integer", low=1, high=4), 2.6, 3),
        (Gene("i", "integer", low=0.5, high=3.5), 9, 3),
        (Gene("i", "integer", low=0.5, high=3.5), 0.1, 1),
        (Gene("c", "categorical", choices=("x", "y")), "y", "y"),
        (Gene("b", "boolean"), np.True_, True),
    ],
)
def test_snap(gene: Gene, given_value: Value, snapped: Value) -> None:
    found = gene.snap(given_value)
    assert found == snapped
    assert type(found) is type(snapped)
    assert math.copysign(1.0, found) == math.copysign(1.0, snapped) if isinstance(found, float) else True
    gene.check(found)


@pytest.mark.parametrize(
    ("gene", "value"),
    [
        (Gene("a"), math.nan),
        (Gene("a"), "0.5"),
        (Gene("a"), True),
        (Gene("i", "integer", low=0, high=3), math.nan),
        (Gene("c", "categorical", choices=("x",)), "z"),
        (Gene("b", "boolean"), 1),
    ],
)
def test_snap_refuses_what_is_near_nothing(gene: Gene, value: Value) -> None:
    with pytest.raises(ConfigError, match=f"gene '{gene.name}' was given"):
        gene.snap(value)


@example(low=256.0, span=0.001, steps=43.0, value=257.0)  # the span, rounded, is a little less than 43 steps
@given(
    low=st.floats(-1e3, 1e3),
    span=st.floats(1e-3, 1e3),
    steps=st.floats(1, 1e4),
    value=st.floats(allow_nan=False),
)
def test_snapping_twice_changes_nothing(low: float, span: float, steps: float, value: float) -> None:
    gene = Gene("a", low=low, high=low + span, resolution=span / steps)
    once = gene.snap(value)
    gene.check(once)
    assert gene.snap(once) == once
    assert isinstance(once, float)
    clipped = min(max(value, gene.low), gene.high)
    last = gene.low + math.floor(steps + 1e-6) * span / steps
    assert abs(once - clipped) <= span / steps / 2 + 1e-9 or clipped > last


@pytest.mark.parametrize(
    ("value", "valid"),
    [(0.0, True), (1, True), (np.float64(0.5), True), (1.001, False), (math.nan, False), (True, False), ("1", False)],
)
def test_check_of_a_continuous_gene(value: Value, valid: bool) -> None:
    _expect(Gene("a"), value, valid)


@pytest.mark.parametrize(
    ("value", "valid"), [(3, True), (3.0, True), (2.5, False), (5, False), (math.inf, False), (math.nan, False)]
)
def test_check_of_an_integer_gene(value: Value, valid: bool) -> None:
    _expect(Gene("i", "integer", low=0, high=4), value, valid)


def _expect(gene: Gene, value: Value, valid: bool) -> None:
    if valid:
        gene.check(value)
    else:
        with pytest.raises(ConfigError, match=r"allowed: a.* in \[0"):
            gene.check(value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"low": 1.0, "high": 0.0}, r"bounds \[1\.0, 0\.0\]"),
        ({"high": math.inf}, r"bounds \[0\.0, inf\]"),
        ({"low": math.nan}, r"bounds \[nan, 1\.0\]"),
        ({"kind": "integer", "low": 0.2, "high": 0.8}, "an integer must lie between"),
        ({"kind": "categorical"}, "has choices"),
        ({"kind": "categorical", "choices": ("a", "a")}, "each once"),
        ({"resolution": 0.0}, "resolution 0.0"),
        ({"resolution": 2.0}, "resolution 2.0"),
        ({"resolution": 1e-300}, "resolution 1e-300"),
        ({"resolution": math.nan}, "resolution nan"),
        ({"initial": 1.5}, "was given 1.5"),
    ],
)
def test_genes_that_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Gene("a", **fields)


@pytest.mark.parametrize(
    ("gene", "start"),
    [
        (Gene("a", low=-1.0, high=3.0), 1.0),
        (Gene("a", initial=0.24, resolution=0.1), 0.2),
        (Gene("i", "integer", low=0, high=4), 2),
        (Gene("c", "categorical", choices=("x", "y")), "x"),
        (Gene("c", "categorical", choices=("x", "y"), initial="y"), "y"),
        (Gene("b", "boolean"), False),
    ],
)
def test_start(gene: Gene, start: Value) -> None:
    assert gene.start == start


def test_a_genome_is_snapped_gene_by_gene() -> None:
    genome = MIXED.genome([0.3, 2.4, "ties", True])
    assert genome == Genome((0.25, 2, "ties", True))
    assert MIXED.named(genome) == {"weight": 0.25, "layers": 2, "method": "ties", "rescale": True}
    assert MIXED.value(genome, "method") == "ties"
    assert MIXED.initial == Genome((1.0, 2, "linear", False))


def test_arrays_give_the_same_genomes_as_lists() -> None:
    spec = GenomeSpec((Gene("a"), Gene("b", low=-2.0, high=-1.0), Gene("c", low=-1.0)))
    values = np.array([[0.25, -1.5, 0.1], [-1.0, 5.0, -0.0], [np.inf, -np.inf, 1e-320]])
    for row in values:
        fast, slow = spec.genome(row), spec.genome(row.tolist())
        assert fast == slow
        assert repr(fast) == repr(slow)
    with pytest.raises(ConfigError, match="gene 'b' was given nan"):
        spec.genome(np.array([0.0, np.nan, 0.0]))


def test_bounds_of_every_kind() -> None:
    low, high = MIXED.bounds
    assert low.tolist() == [-1.0, 1.0, 0.0, 0.0]
    assert high.tolist() == [3.0, 4.0, 2.0, 1.0]
    low[:] = 9  # the caller's own copy
    assert MIXED.bounds[0].tolist() == [-1.0, 1.0, 0.0, 0.0]


def test_samples_are_valid_and_seeded() -> None:
    first, again = ([MIXED.sample(rng) for _ in range(200)] for rng in map(np.random.default_rng, (3, 3)))
    assert first == again
    for genome in first:
        MIXED.check(genome)
    assert {genome.values[1] for genome in first} == {1, 2, 3, 4}


@pytest.mark.parametrize("values", [[], [0.0, 1, "ties"], [0.0, 1, "ties", True, 0]])
def test_wrong_lengths_are_refused(values: list[Value]) -> None:
    with pytest.raises(ConfigError, match=f"a genome of {len(values)} values was given; the search space has 4"):
        MIXED.genome(values)
    with pytest.raises(ConfigError, match=f"a genome of {len(values)} values"):
        MIXED.check(Genome(tuple(values)))


def test_specs_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="genes named twice: a, b"):
        GenomeSpec(tuple(Gene(name) for name in "abcab"))
    with pytest.raises(ConfigError, match="has no genes"):
        GenomeSpec(())
