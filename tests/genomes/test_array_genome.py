"""Genomes of raw weights."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.genomes.arrays import ArrayGenome, ArraySpec, numbers
from evomerge.genomes.encoding import GenomeLog
from evomerge.genomes.genome import Genome

NAMES = ("W[0,0]", "W[0,1]", "b[0]")


def test_a_genome_keeps_its_own_read_only_copy() -> None:
    given = np.array([1.0, 2.0, 3.0], np.float32)
    genome = ArrayGenome(given)
    given[0] = 9.0
    assert genome.array.tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="read-only"):
        genome.array[0] = 5.0


def test_equal_arrays_are_equal_genomes_with_one_hash() -> None:
    a, b = (ArrayGenome(np.array([0.5, -1.0], np.float32)) for _ in range(2))
    other = ArrayGenome(np.array([0.5, -1.5], np.float32))
    assert a == b
    assert hash(a) == hash(b)
    assert a.digest == b.digest
    assert a != other
    assert a.digest != other.digest
    assert len({a, b, other}) == 2
    assert a != Genome((0.5, -1.0))


def test_values_are_floats_in_order() -> None:
    genome = ArrayGenome(np.array([0.1, 2.0]))
    assert genome.values == (float(np.float32(0.1)), 2.0)
    assert len(genome) == 2


def test_pickling_leaves_out_what_is_of_this_process() -> None:
    genome = ArrayGenome(np.array([1.0, 2.0], np.float32))
    hash(genome)
    again = pickle.loads(pickle.dumps(genome))
    assert again == genome
    assert "_hash" not in pickle.loads(pickle.dumps(genome)).__dict__


def test_a_spec_clips_and_rounds_to_float32() -> None:
    spec = ArraySpec(NAMES, 2.0)
    genome = spec.genome([5.0, -0.1, -9.0])
    assert genome.array.dtype == np.float32
    assert genome.array.tolist() == [2.0, float(np.float32(-0.1)), -2.0]
    spec.check(genome)


def test_a_spec_starts_where_it_is_told() -> None:
    start = np.array([1.0, 0.5, -3.0], np.float32)
    spec = ArraySpec(NAMES, 2.0, start, [start, -start])
    assert spec.initial.array.tolist() == [1.0, 0.5, -2.0]
    assert [seed.array.tolist() for seed in spec.seeds] == [[1.0, 0.5, -2.0], [-1.0, -0.5, 2.0]]
    assert ArraySpec(NAMES, 2.0).initial.array.tolist() == [0.0, 0.0, 0.0]


def test_samples_fill_the_box_and_follow_the_generator() -> None:
    spec = ArraySpec([f"w{i}" for i in range(2000)], 3.0)
    genome = spec.sample(np.random.default_rng(0))
    assert genome == spec.sample(np.random.default_rng(0))
    assert 2.9 < genome.array.max() <= 3.0
    assert -3.0 <= genome.array.min() < -2.9


@pytest.mark.parametrize("values", [[0.0, 0.0], [0.0, np.nan, 0.0]])
def test_wrong_values_are_refused(values: list[float]) -> None:
    with pytest.raises(ConfigError, match="genome"):
        ArraySpec(NAMES, 1.0).genome(np.array(values))


def test_a_genome_out_of_bounds_names_its_gene() -> None:
    spec = ArraySpec(NAMES, 1.0)
    with pytest.raises(ConfigError, match=r"W\[0,1\]"):
        spec.check(ArrayGenome(np.array([0.0, 1.5, 0.0])))
    with pytest.raises(ConfigError, match="2 values"):
        spec.check(ArrayGenome(np.zeros(2)))


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan")])
def test_a_bound_must_be_positive(bound: float) -> None:
    with pytest.raises(ConfigError, match="bound"):
        ArraySpec(NAMES, bound)


def test_numbers_of_either_kind_of_genome() -> None:
    array = ArrayGenome(np.array([1.0, 2.0]))
    assert numbers(array) is array.array
    assert numbers(Genome((1, 2.5))).tolist() == [1.0, 2.5]


def test_a_ledger_keeps_the_hash_only() -> None:
    genome = ArrayGenome(np.zeros(19210))
    written = GenomeLog().write(3, genome)
    assert written == {"array": 19210, "sha256": genome.digest}
    assert GenomeLog().read(3, written) is None
