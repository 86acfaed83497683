"""Perturbations of one model: recipes of steps and members."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.search_space_contract import SearchSpaceContract, SpaceCase, Values
from contracts.space_samples import pool

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Genome
from evomerge.genomes.lineages import LineageGenome
from evomerge.genomes.perturbations import PerturbationSpec
from evomerge.merge.methods import specs
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.yaml_reader import dump_recipe
from search_spaces.perturbation import PerturbationSpace

POOL, ALL = pool(), specs()


def build(**options: Any) -> PerturbationSpace:
    return PerturbationSpace(POOL, ALL, **options)


class Steps(Values):
    """A start, steps from it, and a member around each."""

    def some(self, spec: PerturbationSpec, count: int, seed: int = 0) -> Iterator[LineageGenome]:
        rng = np.random.default_rng(seed)
        genome = spec.initial
        yield genome
        for number in range(count):
            yield spec.member(genome, seed, 3 * number, 0.01)
            genome = spec.step(genome, seed, 3 * number, rng.normal(size=3).tolist())
            yield genome

    def parts(self, spec: PerturbationSpec) -> list[str]:
        return ["seed", "first", "coefficient", "kind"]

    def changed(
        self, spec: PerturbationSpec, genome: LineageGenome, part: int, rng: np.random.Generator
    ) -> LineageGenome:
        if not genome.parents:
            return genome
        seed, first, (own, *more) = spec.perturbations(genome)
        if part == 3:
            return spec.step(genome.parents[0], seed, first, [own, *more, 0.5])
        new = (seed + (part == 0), first + (part == 1), [own + 0.25 * (part == 2), *more])
        return spec.step(genome.parents[0], *new)

    def foreign(self, spec: PerturbationSpec) -> Iterator[Genome]:
        start = spec.initial
        member = spec.member(start, 0, 0, 0.1)
        yield Genome((0.5,))
        yield LineageGenome(("other",))
        yield LineageGenome(("step", 0.0, 0.0))
        yield LineageGenome(("step", 0.0, 0.0, 1.0), (member,))
        yield LineageGenome(("step", 0.0, 0.0, 1.0), (start, start))
        yield LineageGenome(("member", 0.0, 0.0, 1.0, 2.0), (start,))
        yield LineageGenome(("step", 0.5, 0.0, 1.0), (start,))
        yield LineageGenome(("step", 0.0, 0.0, float("nan")), (start,))


class TestPerturbationSpace(SearchSpaceContract):
    @pytest.fixture(params=[{}, {"start": "math", "rank": 3}, {"components": ["mlp", "embed"]}], ids=str)
    def case(self, request: pytest.FixtureRequest) -> SpaceCase:
        def steps(spec: PerturbationSpec) -> list[LineageGenome]:
            return [spec.step(spec.initial, 1, 2, [0.5])]

        return SpaceCase(
            partial(build, **request.param), POOL, ALL, least_feasible=61, witnesses=steps, genomes=Steps()
        )


def methods(recipe: Recipe) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for entry in recipe.slices:
        found.setdefault(entry.method, set()).add(entry.slice.component)
    return found


def test_a_member_is_the_model_with_one_perturbation() -> None:
    space = build(start="math", rank=2)
    recipe = space.decode(space.spec.member(space.spec.initial, 7, 5, -0.25))
    assert methods(recipe) == {"low_rank_noise": {"attn", "mlp"}, "passthrough": {"norm", "embed", "final_norm"}}
    noisy = next(entry for entry in recipe.slices if entry.method == "low_rank_noise")
    assert dict(noisy.parameters) == {"coefficients": "-0.25", "first": 5, "noise": 7, "rank": 2}
    assert [source.model for source in noisy.inputs] == ["math"]
    assert recipe.intermediates == ()


def test_a_step_takes_the_one_before_in_float32() -> None:
    half = replace(POOL, dtype="bfloat16")
    space = PerturbationSpace(half, ALL)
    first = space.spec.step(space.spec.initial, 0, 0, [1.0])
    second = space.spec.step(first, 0, 1, [2.0])
    recipe = space.decode(second)
    assert recipe.dtype == "bfloat16"
    ((name, stage),) = recipe.intermediates
    assert name == f"step1-{first.digest[:12]}"
    assert stage.dtype == "float32"
    ((start, average),) = stage.intermediates
    assert (start, average.dtype) == ("start", "bfloat16")
    assert average.hash == space.decode(space.spec.initial).hash


def test_long_searches_decode_without_recursion() -> None:
    space = build()
    genome = space.spec.initial
    for number in range(1500):
        genome = space.spec.step(genome, 0, number, [0.1])
    assert len(build().decode(genome).stages) == 1500  # the start among them


def test_it_starts_at_a_recipe_of_a_file_or_the_winner(tmp_path: Path) -> None:
    winner = POOL.linear({"math": 0.25, "lang": 0.75})
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(winner))
    space, other = build(start=str(file)), build(winner=winner)
    assert space.decode(space.spec.initial).hash == other.decode(other.spec.initial).hash == winner.hash
    assert build(start="math", winner=winner).decode(space.spec.initial).hash == POOL.linear({"math": 1.0}).hash


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": "mathe"}, "did you mean 'math'|math"),
        ({"rank": 0}, "search_space.rank is 0"),
        ({"components": ["attention"]}, "search_space.components has 'attention'"),
        ({"components": []}, "components of the pool's models"),
        ({"components": ["head"]}, "components of the pool's models"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(**options)
