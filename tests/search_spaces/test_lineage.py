from __future__ import annotations

import pickle
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.space_samples import METHODS, pool

from evomerge.errors import ConfigError
from evomerge.genome_log import GenomeLog
from evomerge.lineage_genome import LineageGenome, LineageSpec, from_nodes, to_nodes
from evomerge.method import ByTensor, MethodSpec, ParameterSpec
from evomerge.recipe import PoolInfo, Recipe, SliceId
from evomerge.recipe_yaml import dump_recipe, load_recipe
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


def children(space: LineageSpace, count: int, seed: int = 0) -> list[LineageGenome]:
    """A population of lineages, each a child of two before it."""
    rng = np.random.default_rng(seed)
    found = [space.spec.seed(name) for name in space.spec.seeds]
    while len(found) < count:
        first, second = rng.permutation(len(found[-12:]))[:2]
        found.append(space.spec.random_child(found[-12:][first], found[-12:][second], rng))
    return found


@pytest.mark.parametrize("options", SPACES.values(), ids=SPACES)
def test_every_genome_is_a_recipe_that_survives_yaml(options: Any) -> None:
    space, other = build(**options), build(**options)
    genomes = children(space, 12)
    before = pickle.dumps(space)
    recipes = [space.decode(genome) for genome in genomes]
    assert [space.decode(genome) for genome in genomes] == recipes
    assert pickle.dumps(space) == before
    hashes = [other.decode(genome).hash for genome in reversed(genomes)][::-1]  # whatever was decoded before
    assert hashes == [recipe.hash for recipe in recipes]
    assert len(set(hashes)) == len(hashes)
    assert all(
        space.decode(pickle.loads(pickle.dumps(genome))).hash == h for genome, h in zip(genomes, hashes, strict=True)
    )
    for recipe in recipes:
        recipe.check(ALL)
        assert [entry.slice for entry in recipe.slices] == sorted(INFO.slices, key=lambda s: s.order)
        assert recipe.models == INFO.refs
        assert recipe.dtype == INFO.dtype
        read = load_recipe(dump_recipe(recipe))
        assert read == recipe
        assert read.hash == recipe.hash


def test_every_value_of_a_child_matters() -> None:
    for options in SPACES.values():
        space = build(**options)
        first, second = space.spec.seed("math"), space.spec.seed("lang")
        values = [0.3, 0.4] * len(space.spec.chromosomes)
        start = space.decode(space.spec.child(first, second, values)).hash
        for number in range(len(values)):
            changed = [*values]
            changed[number] = 0.8
            assert space.decode(space.spec.child(first, second, changed)).hash != start
        assert space.decode(space.spec.child(second, first, values)).hash != start


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


def test_genomes_of_other_spaces_are_refused() -> None:
    space, rng = build(), np.random.default_rng(0)
    alien = LineageSpec(("math", "sql"), ("model",)).seed("sql")
    wide = LineageSpec(("math", "lang"), ("attn", "rest")).sample(rng)
    spec = LineageSpec(("math", "sql"))
    inside = space.spec.child(space.spec.seed("math"), alien, [0.5, 0.5])
    for genome in (alien, wide, inside, spec.sample(rng), LineageGenome((0.5, float("nan")), inside.parents)):
        with pytest.raises(ConfigError):
            space.decode(genome)


def test_spaces_are_built_the_same_elsewhere() -> None:
    assert build().spec == pickle.loads(pickle.dumps(partial(build)))().spec
