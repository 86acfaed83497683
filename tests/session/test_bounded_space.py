"""Bounds and fixed values by patterns of genes, for every search space whose genes have names."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from contracts.space_samples import pool, with_sources

from evomerge import conf_dir
from evomerge.config.compose import compose_config
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.protocols import SearchSpace
from evomerge.session.bounded_space import BoundedSpace
from evomerge.session.builders import space_from_node

SPACES = sorted(path.stem for path in (conf_dir() / "search_space").glob("*.yaml"))


class Values:
    """A space whose recipes are its genes' values by name."""

    left_out = ("equal/weight",)
    starts_as_it_is = True

    def __init__(self) -> None:
        self.spec = GenomeSpec(
            (
                Gene("embed/a/weight"),
                Gene("layers.0/method", "categorical", choices=("linear", "ties", "slerp"), initial="ties"),
                Gene("layers.0/a/weight", low=-1.0, high=2.0, initial=1.5, resolution=0.25),
                Gene("layers.1/rank", "integer", low=1, high=9, spread=0.2),
                Gene("layers.1/taken", "boolean", initial=True),
            )
        )

    def decode(self, genome: Genome) -> Any:
        return self.spec.named(genome)

    def encode(self, recipe: Any) -> Genome:
        return self.spec.genome([recipe[gene.name] for gene in self.spec])


def bounded(**bounds: Any) -> BoundedSpace:
    return BoundedSpace(Values(), {k.replace("_", "/"): v for k, v in bounds.items()}, "search_space.bounds")


def test_fixed_genes_are_not_searched_and_come_out_as_they_were_fixed() -> None:
    given = {"embed*": 0.25, "*/method": "slerp", "*/taken": False, "*rank": 4}
    space = BoundedSpace(Values(), given, "search_space.bounds")
    assert [gene.name for gene in space.spec] == ["layers.0/a/weight"]
    assert space.decode(space.spec.genome([0.5])) == {
        "embed/a/weight": 0.25,
        "layers.0/method": "slerp",
        "layers.0/a/weight": 0.5,
        "layers.1/rank": 4,
        "layers.1/taken": False,
    }
    names = ("equal/weight", "embed/a/weight", "layers.0/method", "layers.1/rank", "layers.1/taken")
    assert space.left_out == names
    assert space.starts_as_it_is
    assert pickle.loads(pickle.dumps(space)).decode(space.spec.genome([0.5])) == space.decode(space.spec.genome([0.5]))


def test_narrower_bounds_keep_grid_and_spread_and_move_the_start_inside() -> None:
    given = {
        "layers.0/a/weight": [-0.9, 0.6],
        "*rank": [3, 7],
        "*/method": ["slerp", "linear"],
        "*/taken": [True, False],
    }
    genes = {gene.name: gene for gene in BoundedSpace(Values(), given, "b").spec}
    weight, rank, method = genes["layers.0/a/weight"], genes["layers.1/rank"], genes["layers.0/method"]
    assert (weight.low, weight.high, weight.initial, weight.resolution) == (-0.75, 0.5, 0.5, 0.25)
    assert (rank.low, rank.high, rank.start, rank.spread) == (3, 7, 5, 0.2)
    assert (method.choices, method.start) == (("slerp", "linear"), "slerp")
    assert genes["layers.1/taken"].start is True
    assert genes["embed/a/weight"] == Gene("embed/a/weight")


def test_what_is_searched_lies_within_and_one_value_is_taken_as_it_is() -> None:
    space = BoundedSpace(Values(), {"layers.0/a/weight": 0.1}, "b")
    assert space.decode(space.spec.initial)["layers.0/a/weight"] == 0.1
    with pytest.raises(ConfigError, match=r"goes in steps of 0.25 from -1.0: none is between"):
        BoundedSpace(Values(), {"layers.0/a/weight": [0.1, 0.2]}, "b")
    alone = BoundedSpace(Values(), {"layers.0/a/weight": [0.1, 0.3]}, "b")
    assert alone.decode(alone.spec.initial)["layers.0/a/weight"] == 0.25


def test_bounds_of_an_integer_are_integers() -> None:
    (rank,) = (gene for gene in BoundedSpace(Values(), {"*rank": [2.0, 7.0]}, "b").spec if gene.kind == "integer")
    assert (repr(rank.low), repr(rank.high)) == ("2", "7")


def test_the_last_pattern_that_matches_counts() -> None:
    space = BoundedSpace(Values(), {"*weight": 0.0, "layers.[0-3]*weight": [0, 1]}, "b")
    assert [gene.name for gene in space.spec if gene.name.endswith("weight")] == ["layers.0/a/weight"]
    assert space.decode(space.spec.initial)["embed/a/weight"] == 0.0


def test_recipes_become_the_nearest_genome() -> None:
    recipe = Values().decode(Values().spec.initial)
    space = bounded(**{"embed*": 0.25, "*layers.0_a_weight": [0, 0.5]})
    assert space.spec.named(space.encode(recipe))["layers.0/a/weight"] == 0.5
    assert not hasattr(BoundedSpace(_without_encode(), {"w*": [0, 0.5]}, "b"), "encode")


def test_genes_that_act_are_those_that_are_left() -> None:
    class Acting(Values):
        def active(self, genome: Genome) -> set[str]:
            named = self.spec.named(genome)
            return set(named) - (set() if named["layers.1/taken"] else {"layers.1/rank"})

    space = BoundedSpace(Acting(), {"layers.1/taken": False, "layers.0/method": "slerp"}, "b")
    assert space.active(space.spec.initial) == {"embed/a/weight", "layers.0/a/weight"}
    space = BoundedSpace(Acting(), {"layers.1/taken": True, "embed*": 0.5}, "b")
    assert space.active(space.spec.initial) == {"layers.0/method", "layers.0/a/weight", "layers.1/rank"}
    assert not hasattr(BoundedSpace(Values(), {"embed*": [0, 0.5]}, "b"), "active")


def _without_encode() -> Any:
    class Plain:
        spec = GenomeSpec((Gene("w0"), Gene("w1")))

        def decode(self, genome: Genome) -> Any:
            return genome

    return Plain()


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        ({"layer.0/*": 0.0}, "'layer.0/*', which no gene matches; did you mean 'layers.0/*'"),
        ({"embd*": 0.0}, "'embd*', which no gene matches; did you mean 'embed*'? (it matches embed/a/weight)"),
        ({"*": 0.5}, "gene layers.0/method: one of linear, ties, slerp"),
        (
            {"embed*": [0, 3]},
            "embed* is 3; gene embed/a/weight: a number in [0.0, 1.0]; search_space.parameters widens",
        ),
        ({"embed*": [0.5, 0.1]}, "low must not exceed high"),
        ({"embed*": [0.5]}, "a number, or [low, high]"),
        ({"embed*": [0.1, 0.2, 0.3]}, "a number, or [low, high]"),
        ({"embed*": float("nan")}, "is nan"),
        ({"embed*": True}, "is True"),
        ({"embed*": {"low": 0}}, "a number in"),
        ({"*rank": 2.5}, "an integer in"),
        ({"*method": []}, "one of linear"),
        ({"*method": [["linear", "ties"]]}, "*method is ['linear', 'ties']; gene layers.0/method: one of linear"),
        ({"*taken": [{"yes": 1}]}, "true or false"),
        ({"embed*": 10**400}, "search_space.parameters widens"),
        ({"*taken": "yes"}, "true or false"),
        ({"embed*": 0, "layers*weight": 0, "*rank": 1, "*method": "ties", "*taken": True}, "fixes all 5 genes"),
        ([1], "patterns of genes"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(bounds: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BoundedSpace(Values(), bounds, "search_space.bounds")
    assert says in str(caught.value)
    assert str(caught.value).startswith("search_space.bounds")
    assert "\n" not in str(caught.value)


def space(*overrides: str) -> SearchSpace:
    config: Any = compose_config([*overrides, "~fitness"])
    made: SearchSpace = space_from_node(config.search_space, "search_space", with_sources(pool(), "math", "lang"))
    return made


@pytest.mark.parametrize(
    "option",
    [
        option
        for option in SPACES
        if option not in ("weights", "coefficients", "lineage", "landscape", "perturbation", "zipped", "listed")
    ],
)
def test_every_space_with_named_genes(option: str) -> None:
    """Recipes are those of the space's own genome with the fixed values in it."""
    needed = ["search_space.mapped=[lang]"] if option == "layer_map" else []
    whole = space(f"search_space={option}", *needed)
    assert isinstance(whole.spec, GenomeSpec)
    first = whole.spec.genes[0]
    fixed = f"search_space.bounds={{{first.name}: {str(first.start).lower()}}}"
    narrow = space(f"search_space={option}", *needed, fixed)
    assert [gene.name for gene in narrow.spec] == [gene.name for gene in whole.spec][1:]
    rng = np.random.default_rng(0)
    for _ in range(5):
        values = narrow.spec.sample(rng).values
        full = Genome((first.start, *values))
        try:
            expected = whole.decode(full)
        except Exception as error:
            with pytest.raises(type(error)):
                narrow.decode(Genome(values))
            continue
        assert narrow.decode(Genome(values)).hash == expected.hash


def test_lineages_have_no_genes_by_name() -> None:
    with pytest.raises(ConfigError, match=r"genomes are merges of merges"):
        space("search_space=lineage", "search_space.split=slice", "+search_space.bounds={a: 0}")


def test_what_widens_a_search_is_said_of_numbers_outside_alone() -> None:
    scales = Values()
    scales.spec = GenomeSpec((Gene("lang.0/scale", low=0.5, high=1.5),))
    with pytest.raises(ConfigError, match=r"; search_space\.scale_range widens"):
        BoundedSpace(scales, {"*": 3}, "search_space.bounds")
    with pytest.raises(ConfigError, match=r"an integer in \[1, 9\]$"):
        BoundedSpace(Values(), {"*rank": 2.5}, "search_space.bounds")
    for value in (None, True, "abc"):
        with pytest.raises(ConfigError, match=r"a number in \[0\.5, 1\.5\]$"):
            BoundedSpace(scales, {"*": value}, "search_space.bounds")
