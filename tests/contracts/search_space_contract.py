"""What every search space must do. A space's tests subclass this and supply the fixture `case`."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest

from evomerge.errors import ConfigError, InfeasibleError
from evomerge.genome import Genome, GenomeSpec, Value
from evomerge.method import MethodSpec
from evomerge.protocols import SearchSpace
from evomerge.recipe import PoolInfo
from evomerge.recipe_yaml import dump_recipe, load_recipe


@dataclass(frozen=True)
class SpaceCase:
    """A search space under test: `build` is picklable and constructs it anew."""

    build: Callable[[], SearchSpace]
    pool: PoolInfo
    methods: Mapping[str, MethodSpec]


def genomes(spec: GenomeSpec, count: int, seed: int = 0) -> Iterator[Genome]:
    """The start, the two extreme corners, random corners and random genomes."""
    yield spec.initial
    low, high = spec.bounds
    rng = np.random.default_rng(seed)
    for corner in (np.zeros(len(spec)), np.ones(len(spec)), *rng.integers(0, 2, (count, len(spec)))):
        values: list[Value] = []
        for gene, end, lo, hi in zip(spec, corner, low, high, strict=True):
            at_end = float(hi if end else lo)
            choices: dict[str, Value] = {
                "categorical": gene.choices[int(at_end)] if gene.choices else "",
                "boolean": bool(end),
                "integer": int(at_end),
                "continuous": at_end,
            }
            values.append(choices[gene.kind])
        yield spec.genome(values)
    for _ in range(count):
        yield spec.sample(rng)


def hashes(build: Callable[[], SearchSpace], count: int) -> list[str]:
    space = build()
    found = []
    for genome in genomes(space.spec, count):
        try:
            found.append(space.decode(genome).hash)
        except InfeasibleError as error:
            found.append(str(error))
    return found


class SearchSpaceContract:
    """Supply the fixture `case`."""

    @pytest.fixture
    def case(self) -> SpaceCase:
        raise NotImplementedError("supply a fixture `case`")

    def test_every_genome_within_bounds_is_feasible_or_refused_with_a_reason(self, case: SpaceCase) -> None:
        space = case.build()
        feasible = 0
        for genome in genomes(space.spec, 30):
            if not self._feasible(space, genome):
                with pytest.raises(InfeasibleError, match=r"\w+ \w+"):
                    space.decode(genome)
                continue
            recipe = space.decode(genome)
            feasible += 1
            recipe.check(case.methods)
            assert [entry.slice for entry in recipe.slices] == sorted(case.pool.slices, key=lambda s: s.order)
            assert recipe.models == case.pool.refs
            assert recipe.dtype == case.pool.dtype
        assert feasible > 30

    def test_the_start_is_feasible_and_within_bounds(self, case: SpaceCase) -> None:
        space = case.build()
        space.spec.check(space.spec.initial)
        space.decode(space.spec.initial).check(case.methods)

    def test_decoding_is_pure(self, case: SpaceCase) -> None:
        space, other = case.build(), case.build()
        before = pickle.dumps(space)
        assert space.spec == other.spec
        first = [space.decode(g) for g in genomes(space.spec, 4) if self._feasible(space, g)]
        again = [space.decode(g) for g in genomes(space.spec, 4) if self._feasible(space, g)]
        anew = [other.decode(g) for g in reversed(list(genomes(space.spec, 4))) if self._feasible(space, g)]
        assert first == again == anew[::-1]
        assert [r.hash for r in first] == [r.hash for r in again]
        assert pickle.dumps(space) == before

    def test_another_process_decodes_the_same(self, case: SpaceCase) -> None:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
            there = executor.submit(hashes, case.build, 5).result(timeout=120)
        assert there == hashes(case.build, 5)

    def test_recipes_survive_yaml(self, case: SpaceCase) -> None:
        space = case.build()
        for genome in genomes(space.spec, 10):
            if self._feasible(space, genome):
                recipe = space.decode(genome)
                read = load_recipe(dump_recipe(recipe))
                assert read == recipe
                assert read.hash == recipe.hash

    def test_every_gene_matters(self, case: SpaceCase) -> None:
        """Changing any one gene changes the recipe: at the start, or where the chosen method has that gene."""
        space = case.build()
        rng = np.random.default_rng(0)
        choosing = any(gene.name.endswith("/method") for gene in space.spec)
        around = [space.spec.initial, *(space.spec.sample(rng) for _ in range(60 if choosing else 0))]
        for index, gene in enumerate(space.spec):
            assert any(self._matters(space, genome, index, rng) for genome in around), gene.name

    @staticmethod
    def _matters(space: SearchSpace, genome: Genome, index: int, rng: np.random.Generator) -> bool:
        values = list(genome.values)
        while values[index] == genome.values[index]:
            values[index] = space.spec.sample(rng).values[index]
        return space.decode(space.spec.genome(values)).hash != space.decode(genome).hash

    def test_genomes_of_other_spaces_are_refused(self, case: SpaceCase) -> None:
        space = case.build()
        start = space.spec.initial.values
        _, high = space.spec.bounds
        for values in (start[:-1], (*start, start[-1]), (float(high[0]) + 1.0, *start[1:]), (float("nan"), *start[1:])):
            with pytest.raises(ConfigError, match=r"gene"):
                space.decode(Genome(values))

    @staticmethod
    def _feasible(space: SearchSpace, genome: Genome) -> bool:
        try:
            space.decode(genome)
        except InfeasibleError:
            return False
        return True
