from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.search_space_contract import SearchSpaceContract, SpaceCase, Values
from contracts.space_samples import METHODS, pool

from evomerge.errors import ConfigError
from evomerge.genomes.encoding import GenomeLog
from evomerge.genomes.lineages import LineageGenome, LineageSpec, from_nodes, to_nodes
from evomerge.recipes.method_spec import ByTensor, MethodSpec, ParameterSpec
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import SliceId
from evomerge.recipes.yaml_reader import dump_recipe, load_recipe
from search_spaces.chromosomes import chromosomes_of
from search_spaces.lineage import LineageSpace

ALL = {
    **METHODS,
    "crossover": MethodSpec(
        "crossover",
        (
            ParameterSpec("t", 0.5),
            ParameterSpec("split", 1.0),
            ParameterSpec("path", "slerp", kind="categorical", choices=("slerp", "linear")),
        ),
        min_inputs=2,
        max_inputs=2,
    ),
}
SIZES = {"embed": (("embed.weight", 40),), "final_norm": (("norm.weight", 4),)}


def sized(layers: int = 2) -> PoolInfo:
    """A pool that knows its tensors: q 16 and o 16 in attention, up 24 and down 24, a norm of 4."""
    info = pool(layers)

    def tensors(slice_: SliceId) -> tuple[tuple[str, int], ...]:
        at = f"layers.{slice_.layer}."
        inner = {
            "attn": ((f"{at}q.weight", 16), (f"{at}o.weight", 16)),
            "mlp": ((f"{at}up.weight", 24), (f"{at}down.weight", 24)),
            "norm": ((f"{at}norm.weight", 4),),
        }
        return SIZES.get(slice_.component) or inner[slice_.component]

    return replace(info, tensors=tuple(tensors(slice_) for slice_ in info.slices))


INFO = sized()
SPACES: dict[str, Any] = {
    "slerp": {},
    "linear": {"method": "linear"},
    "staged": {"method": "linear", "flatten": False},
    "element": {"split": "element", "chromosomes": [["attn"], ["mlp"]]},
    "slice": {"split": "slice", "method": "linear", "seeds": ["math", "lang", "base"]},
}


def build(**options: Any) -> LineageSpace:
    return LineageSpace(INFO, ALL, **options)


class Lineages(Values):
    """Seeds, and children of children."""

    def some(self, spec: LineageSpec, count: int, seed: int = 0) -> Iterator[LineageGenome]:
        """A population of lineages, each a child of two before it."""
        rng = np.random.default_rng(seed)
        found = [spec.seed(name) for name in spec.seeds]
        while len(found) < count + 3:
            first, second = rng.permutation(len(found[-12:]))[:2]
            found.append(spec.random_child(found[-12:][first], found[-12:][second], rng))
        yield from found

    def parts(self, spec: LineageSpec) -> list[str]:
        """The values of a child, and the order of its parents."""
        return [f"{name}/{what}" for name in spec.chromosomes for what in ("mix", "split")] + ["parents"]

    def changed(self, spec: LineageSpec, genome: LineageGenome, part: int, rng: np.random.Generator) -> LineageGenome:
        """A child with another value, or with its parents in the other order; a seed has none of these."""
        if not genome.parents:
            return genome
        if part == 2 * len(spec.chromosomes):
            return spec.child(*reversed(genome.parents), genome.values)
        values = [*genome.values]
        values[part] = (float(genome.values[part]) + 0.5) % 1.0
        return spec.child(*genome.parents, values)

    def foreign(self, spec: LineageSpec) -> Iterator[LineageGenome]:
        """Of other seeds, other chromosomes, a parent that is not of this space, and values that are none."""
        alien = LineageSpec((spec.seeds[0], "sql"), ("model",)).seed("sql")
        inside = spec.child(spec.initial, alien, [0.5] * (len(self.parts(spec)) - 1))
        more = LineageSpec(spec.seeds, [*spec.chromosomes, "more"]).sample(np.random.default_rng(0))
        yield from (alien, inside, more, LineageGenome((0.5, float("nan")), inside.parents))
        yield LineageSpec((spec.seeds[0], "sql"), spec.chromosomes).sample(np.random.default_rng(0))


class TestLineageSpace(SearchSpaceContract):
    @pytest.fixture(params=SPACES)
    def case(self, request: pytest.FixtureRequest) -> SpaceCase:
        options = SPACES[request.param]

        def one_child(spec: LineageSpec) -> list[LineageGenome]:
            return [spec.child(spec.seed("math"), spec.seed("lang"), [0.3, 0.4] * len(spec.chromosomes))]

        return SpaceCase(
            partial(build, **options), INFO, ALL, least_feasible=33, witnesses=one_child, genomes=Lineages()
        )

    def test_a_lineage_that_was_pickled_is_the_same(self, case: SpaceCase) -> None:
        space = case.build()
        genomes = list(case.genomes.some(space.spec, 6))
        found = [space.decode(genome).hash for genome in genomes]
        assert len(set(found)) == len(found)
        assert [space.decode(pickle.loads(pickle.dumps(genome))).hash for genome in genomes] == found


def children(space: LineageSpace, count: int, seed: int = 0) -> list[LineageGenome]:
    return list(Lineages().some(space.spec, count, seed))[:count]


def test_a_split_between_two_tensors_changes_the_roles_of_the_parents() -> None:
    space = build()
    # embed 40, attn 32, mlp 48, norm 4: 124 of the 212 parameters before layer 1; 0.28 is element 59, nearest to 56.
    recipe = space.decode(space.spec.child(space.spec.seed("math"), space.spec.seed("lang"), [0.25, 0.28]))
    by_slice = {str(entry.slice): entry for entry in recipe.slices}
    assert dict(by_slice["embed"].parameters) == {"t": 0.25}
    assert dict(by_slice["layers.0.attn"].parameters) == {"t": ByTensor((("layers.0.q.weight", 0.25), (None, 0.75)))}
    assert dict(by_slice["layers.0.mlp"].parameters) == {"t": 0.75}
    assert [source.model for source in by_slice["head" if "head" in by_slice else "final_norm"].inputs] == [
        "math",
        "lang",
    ]


def test_a_split_inside_of_a_tensor() -> None:
    space = build(split="element", method="linear")
    recipe = space.decode(space.spec.child(space.spec.seed("math"), space.spec.seed("lang"), [0.25, 60 / 212]))
    entry = next(entry for entry in recipe.slices if str(entry.slice) == "layers.0.attn")
    assert entry.method == "crossover"
    share = ByTensor((("layers.0.q.weight", 1.0), (None, 0.25)))  # 56 + 4 of 16
    assert dict(entry.parameters) == {"t": 0.25, "split": share, "path": "linear"}


@pytest.mark.parametrize("split", ["slice", "tensor"])
def test_flattened_weights_are_those_of_the_merges(split: Any) -> None:
    flat, staged = (build(method="linear", split=split, flatten=flatten) for flatten in (True, False))
    for genome in children(flat, 25, seed=3):
        one, many = flat.decode(genome), staged.decode(genome)
        assert not one.intermediates
        for slice_ in INFO.slices:
            for name, _ in INFO.tensors[INFO.slices.index(slice_)]:
                shares = weights(one, slice_, name)
                expected = weights(many, slice_, name)
                for model in ("math", "lang"):
                    assert shares.get(model, 0.0) == pytest.approx(expected.get(model, 0.0), abs=1e-12)
                assert sum(shares.values()) == pytest.approx(1.0)


def weights(recipe: Recipe, slice_: SliceId, tensor: str) -> dict[str, float]:
    """How much of each model is in a tensor, through all intermediates."""
    entry = next(entry for entry in recipe.slices if entry.slice == slice_)
    stages, found = dict(recipe.intermediates), dict[str, float]()
    for source in entry.inputs:
        weight = dict(source.parameters)["weight"]
        own = weight.at(tensor) if isinstance(weight, ByTensor) else weight
        inner = weights(stages[source.model], slice_, tensor) if source.model in stages else {source.model: 1.0}
        for model, share in inner.items():
            found[model] = found.get(model, 0.0) + own * share
    return found


def test_long_lineages_are_decoded_at_once_and_written_once() -> None:
    space = build()
    genomes = children(space, 250)
    for genome in genomes[:-1]:
        space.decode(genome)
    start = time.perf_counter()
    recipe = space.decode(genomes[-1])
    assert recipe.hash
    assert time.perf_counter() - start < 0.25  # milliseconds where nothing else runs
    assert len(recipe.stages) > 60
    assert genomes[-1].generation > 15
    assert len(dump_recipe(recipe)) < 2000 * len(recipe.stages)


def test_one_line_of_four_thousand_generations() -> None:
    spec = LineageSpec(("a", "b"))
    genome = spec.initial
    for _ in range(4000):
        genome = spec.child(genome, spec.seed("b"), [0.5, 0.5])
    assert pickle.loads(pickle.dumps(genome)) == genome
    spec.check(genome)
    assert len(genome.lineage) == 4002
    nodes, places = to_nodes([genome, spec.initial])
    assert [from_nodes(nodes)[place] for place in places] == [genome, spec.initial]


def test_a_ledger_keeps_parents_by_candidate() -> None:
    space = build()
    genomes = children(space, 20)
    write, read = GenomeLog(), GenomeLog()
    for number, genome in enumerate(genomes):
        written = write.write(number, genome)
        assert len(written["lineage"]) == 1  # nothing of its parents but their numbers
        assert read.read(number, written) == genome
    last = write.write(20, genomes[-1])  # asked again
    assert read.read(20, last) == genomes[-1]
    alone = GenomeLog()
    written = alone.write(7, genomes[-1])  # its parents were never candidates
    assert len(written["lineage"]) == len(genomes[-1].lineage)
    assert GenomeLog().read(7, written) == genomes[-1]
    with pytest.raises(ConfigError, match="lineage of candidate 3"):
        GenomeLog().read(3, write.write(3, genomes[3]))


def test_seeds_of_one_recipe_and_of_the_phase_before(tmp_path: Path) -> None:
    half = INFO.linear({"math": 0.5, "lang": 0.5})
    (tmp_path / "half.yaml").write_text(dump_recipe(half))
    space = build(recipes={"half": str(tmp_path / "half.yaml")}, winner=INFO.linear({"math": 0.9, "lang": 0.1}))
    assert space.spec.seeds == ("math", "lang", "half", "winner")
    assert space.decode(space.spec.seed("half")) == half
    child = space.decode(space.spec.child(space.spec.seed("half"), space.spec.seed("winner"), [0.5, 1.0]))
    assert [name for name, _ in child.intermediates] == ["half", "winner"]
    assert load_recipe(dump_recipe(child)) == child


def test_seeds_of_long_lineages_are_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = build()
    genome = space.spec.child(space.spec.seed("math"), space.spec.seed("lang"), [0.5, 0.5])
    for _ in range(60):
        genome = space.spec.child(genome, space.spec.seed("lang"), [0.5, 0.5])
    last = space.decode(genome)
    (tmp_path / "last.yaml").write_text(dump_recipe(last))
    (tmp_path / "parent.yaml").write_text(dump_recipe(last.intermediates[0][1]))
    looked = []
    compare = Recipe.equals_alone
    monkeypatch.setattr(Recipe, "equals_alone", lambda a, b: looked.append(a) or compare(a, b))
    monkeypatch.setattr(Recipe, "__eq__", lambda a, b: pytest.fail("compared with all of its ancestors"))
    recipes = {name: str(tmp_path / f"{name}.yaml") for name in ("last", "parent")}
    build(recipes=recipes)
    assert len(looked) < 10 * 60
    other = replace(last, intermediates=((last.intermediates[0][0], INFO.linear({"math": 1.0})),))
    monkeypatch.undo()
    (tmp_path / "parent.yaml").write_text(dump_recipe(other))
    with pytest.raises(ConfigError, match="two intermediates are called"):
        build(recipes=recipes)
    name = last.intermediates[0][0]
    with pytest.raises(ConfigError, match=f"recipes has '{name}'"):
        build(recipes={"last": recipes["last"], name: recipes["last"]})


def test_chromosomes() -> None:
    found = chromosomes_of(INFO, "tensor", [["attn"], ["mlp", "norm"]], "search_space.chromosomes")
    assert [(c.name, c.ends[-1]) for c in found] == [("attn", 64), ("mlp+norm", 104), ("rest", 44)]
    assert [c.name for c in chromosomes_of(INFO, "slice", [], "")] == ["model"]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"method": "ties"}, "search_space.method"),
        ({"split": "row"}, "search_space.split"),
        ({"flatten": True}, "search_space.flatten"),
        ({"flatten": True, "method": "linear", "split": "element"}, "search_space.flatten"),
        ({"seeds": ["math"]}, "seeds math"),
        ({"seeds": ["math", "mth"]}, "search_space.seeds has 'mth'; did you mean 'math'"),
        ({"mix": {"lo": 0.1}}, "search_space.mix"),
        ({"mix": {"low": 0.9, "high": 0.1}}, "mix goes from"),
        ({"chromosomes": [["atn"]]}, r"search_space.chromosomes\[0\]"),
        ({"chromosomes": [["attn"], ["attn"]]}, "second time"),
        ({"chromosomes": [[]]}, "empty"),
        ({"recipes": {"x": "/nowhere.yaml"}}, "search_space.recipes.x"),
    ],
    ids=str,
)
def test_wrong_options_are_named(options: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        build(**options)
    with pytest.raises(ConfigError, match="does not know its tensors"):
        LineageSpace(pool(2), ALL)
    with pytest.raises(ConfigError, match="math has 2, lang has 1"):
        LineageSpace(replace(INFO, depths=(("lang", 1),)), ALL)
