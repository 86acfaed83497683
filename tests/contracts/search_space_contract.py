"""What every search space must do. A space's tests subclass this and supply the fixture `case`."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from contracts.other_process import elsewhere

from evomerge.errors import ConfigError, InfeasibleError
from evomerge.genomes.genome import Genome, GenomeSpec, Value
from evomerge.protocols import SearchSpace
from evomerge.recipes.method_spec import MethodSpec
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import SliceId
from evomerge.recipes.yaml_reader import dump_recipe, load_recipe


class Values:
    """Genomes that are values of genes, one each; spaces of other genomes say here how to make theirs."""

    def some(self, spec: GenomeSpec, count: int, seed: int = 0) -> Iterator[Genome]:
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

    def parts(self, spec: GenomeSpec) -> list[str]:
        """What of a genome can be changed by itself."""
        return [gene.name for gene in spec]

    def changed(self, spec: GenomeSpec, genome: Genome, part: int, rng: np.random.Generator) -> Genome:
        """The genome with one part changed."""
        values = list(genome.values)
        while values[part] == genome.values[part]:
            values[part] = spec.sample(rng).values[part]
        return spec.genome(values)

    def foreign(self, spec: GenomeSpec) -> Iterator[Genome]:
        """Genomes of other spaces."""
        start, (_, high) = spec.initial.values, spec.bounds
        for values in (start[:-1], (*start, start[-1]), (float(high[0]) + 1.0, *start[1:]), (float("nan"), *start[1:])):
            yield Genome(values)


@dataclass(frozen=True)
class SpaceCase:
    """A search space under test: `build` is picklable and constructs it anew.

    Attributes:
        build, pool, methods: the space, and what it is built of.
        paths: whether its recipes choose their number of layers themselves.
        least_feasible: how many of the 63 genomes that are tried are feasible at least.
        witnesses: more genomes around which changing a gene may matter, where random ones rarely show it.
        genomes: how genomes are made.
    """

    build: Callable[[], SearchSpace]
    pool: PoolInfo
    methods: Mapping[str, MethodSpec]
    paths: bool = False
    least_feasible: int = 31
    witnesses: Callable[[GenomeSpec], Iterable[Genome]] = lambda spec: ()
    genomes: Values = field(default_factory=Values)


def hashes(build: Callable[[], SearchSpace], genomes: Values, count: int) -> list[str]:
    space = build()
    found = []
    for genome in genomes.some(space.spec, count):
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
        for genome in case.genomes.some(space.spec, 30):
            if not self._feasible(space, genome):
                with pytest.raises(InfeasibleError, match=r"\w+ \w+"):
                    space.decode(genome)
                continue
            recipe = space.decode(genome)
            feasible += 1
            recipe.check(case.methods)
            assert [entry.slice for entry in recipe.slices] == self._slices(case, recipe)
            assert recipe.models == case.pool.refs
            assert recipe.dtype == case.pool.dtype
        assert feasible >= case.least_feasible

    @staticmethod
    def _slices(case: SpaceCase, recipe: Recipe) -> list[SliceId]:
        """What the recipe must make: the pool's slices, or as many whole layers as it begins."""
        wanted = list(case.pool.slices)
        if case.paths:
            depth = 1 + max(entry.slice.layer for entry in recipe.slices if entry.slice.layer is not None)
            inside = [s.component for s in wanted if s.layer == 0]
            wanted = [s for s in wanted if s.layer is None]
            wanted += [SliceId(component, layer) for layer in range(depth) for component in inside]
        return sorted(wanted, key=lambda s: s.order)

    def test_the_start_is_feasible_and_within_bounds(self, case: SpaceCase) -> None:
        space = case.build()
        space.spec.check(space.spec.initial)
        space.decode(space.spec.initial).check(case.methods)

    def test_decoding_is_pure(self, case: SpaceCase) -> None:
        space, other = case.build(), case.build()
        before = pickle.dumps(space)
        assert space.spec == other.spec
        first = [space.decode(g) for g in case.genomes.some(space.spec, 4) if self._feasible(space, g)]
        again = [space.decode(g) for g in case.genomes.some(space.spec, 4) if self._feasible(space, g)]
        anew = [other.decode(g) for g in reversed(list(case.genomes.some(space.spec, 4))) if self._feasible(space, g)]
        assert first == again == anew[::-1]
        assert [r.hash for r in first] == [r.hash for r in again]
        assert pickle.dumps(space) == before

    def test_another_process_decodes_the_same(self, case: SpaceCase) -> None:
        assert elsewhere(hashes, case.build, case.genomes, 5) == hashes(case.build, case.genomes, 5)

    def test_recipes_survive_yaml(self, case: SpaceCase) -> None:
        space = case.build()
        for genome in case.genomes.some(space.spec, 10):
            if self._feasible(space, genome):
                recipe = space.decode(genome)
                read = load_recipe(dump_recipe(recipe))
                assert read == recipe
                assert read.hash == recipe.hash

    def test_every_gene_matters(self, case: SpaceCase) -> None:
        """Changing any one gene changes the recipe: at the start, or where the chosen method or path has that gene."""
        space = case.build()
        rng = np.random.default_rng(0)
        choosing = case.paths or any(gene.name.endswith("/method") for gene in space.spec)
        around = [space.spec.initial, *(space.spec.sample(rng) for _ in range(60 if choosing else 0))]
        around += case.witnesses(space.spec)
        for part, name in enumerate(case.genomes.parts(space.spec)):
            changed = ((genome, case.genomes.changed(space.spec, genome, part, rng)) for genome in around)
            assert any(self._differ(space, *pair) for pair in changed), name

    @staticmethod
    def _differ(space: SearchSpace, genome: Genome, other: Genome) -> bool:
        try:
            return space.decode(other).hash != space.decode(genome).hash
        except InfeasibleError:
            return False

    def test_genes_that_are_not_active_change_nothing(self, case: SpaceCase) -> None:
        space = case.build()
        active = getattr(space, "active", None)
        if active is None:
            pytest.skip("all genes always act")
        parts, rng = case.genomes.parts(space.spec), np.random.default_rng(3)
        for genome in case.genomes.some(space.spec, 4, seed=5):
            acts = active(genome)
            assert set(acts) <= set(parts)
            for part in [place for place, name in enumerate(parts) if name not in acts][:12]:
                assert not self._differ(space, genome, case.genomes.changed(space.spec, genome, part, rng))

    def test_genomes_of_other_spaces_are_refused(self, case: SpaceCase) -> None:
        space = case.build()
        for genome in case.genomes.foreign(space.spec):
            with pytest.raises(ConfigError, match=r"gene|seed|parents|lineage"):
                space.decode(genome)

    @staticmethod
    def _feasible(space: SearchSpace, genome: Genome) -> bool:
        try:
            space.decode(genome)
        except InfeasibleError:
            return False
        return True
