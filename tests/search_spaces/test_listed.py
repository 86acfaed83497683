from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from contracts.search_space_contract import SearchSpaceContract, SpaceCase
from contracts.space_samples import METHODS, pool

from evomerge.errors import ConfigError, RecipeError
from evomerge.genomes.genome import Genome
from evomerge.recipes.slices import SliceRecipe
from evomerge.recipes.yaml_reader import dump_recipe
from search_spaces.listed import ListedSpace

RECIPES: dict[str, Any] = {
    "average": {"method": "linear", "parameters": {"weight": "mean"}},
    "ties": {"method": "ties", "parameters": {"density": 0.2, "lambda": 0.4}},
    "by source": {"method": "task_arithmetic", "parameters": {"weight": {"math": 0.25, "lang": 0.5}}},
    "midway": "slerp",
}


class TestListedSpace(SearchSpaceContract):
    @pytest.fixture
    def case(self) -> SpaceCase:
        info = pool(head=True)
        return SpaceCase(partial(ListedSpace, info, METHODS, recipes=RECIPES), info, METHODS)


def space(**recipes: Any) -> ListedSpace:
    return ListedSpace(pool(), METHODS, recipes=recipes)


def first(made: ListedSpace, name: str) -> SliceRecipe:
    return made.decode(Genome((name,))).slices[0]


def values(entry: SliceRecipe) -> dict[str, dict[str, Any]]:
    return {own.model: dict(own.parameters) for own in entry.inputs} | {"": dict(entry.parameters)}


def test_what_is_given_is_taken_and_the_rest_has_its_default() -> None:
    made = space(**{name.replace(" ", "_"): entry for name, entry in RECIPES.items()})
    assert values(first(made, "average")) == {"math": {"weight": 0.5}, "lang": {"weight": 0.5}, "": {"normalize": True}}
    ties = first(made, "ties")
    assert values(ties) == {
        "math": {"weight": 1.0, "density": 0.2},
        "lang": {"weight": 1.0, "density": 0.2},
        "": {"lambda": 0.4, "normalize": True},
    }
    assert ties.base is not None
    assert ties.base.model == "base"
    assert values(first(made, "by_source"))["math"] == {"weight": 0.25}
    assert values(first(made, "by_source"))["lang"] == {"weight": 0.5}
    assert first(made, "midway").method == "slerp"
    recipe = made.decode(Genome(("ties",)))
    assert made.encode(recipe) == Genome(("ties",))


def test_a_file_is_read_and_must_be_of_these_models(tmp_path: Path) -> None:
    recipe = space(ties="ties").decode(Genome(("ties",)))
    (tmp_path / "own.yaml").write_text(dump_recipe(recipe))
    made = space(own={"recipe": str(tmp_path / "own.yaml")})
    assert made.decode(Genome(("own",))) == recipe
    (tmp_path / "other.yaml").write_text(dump_recipe(recipe).replace("sha256:math", "sha256:moths"))
    with pytest.raises(RecipeError, match=r"search_space\.recipes\.own\.recipe=.*its model math is not the pool's"):
        space(own={"recipe": str(tmp_path / "other.yaml")})


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("tie", r"search_space\.recipes\.a\.method is 'tie'.*'ties'"),
        (3, r"search_space\.recipes\.a is 3"),
        ({"method": "ties", "recipe": "x.yaml"}, r"search_space\.recipes\.a is"),
        ({"method": "ties", "parameter": {}}, r"has no key 'parameter'.*'parameters'"),
        (
            {"method": "ties", "parameters": {"densty": 0.2}},
            r"search_space\.recipes\.a\.parameters has 'densty'.*density",
        ),
        ({"method": "ties", "parameters": {"density": 2.0}}, r"density is 2.0"),
        (
            {"method": "ties", "parameters": {"weight": "meen"}},
            r"weight is 'meen'; a number, or mean.* 'mean'",
        ),
        ({"method": "ties", "parameters": {"density": {"low": 0.1}}}, r"parameters\.density is a range"),
        ({"method": "linear", "parameters": {"normalize": [True, False]}}, r"parameters\.normalize is a range"),
        ({"method": "nearswap"}, r"nearswap.*takes exactly 1 source model"),
    ],
)
def test_mistakes_are_named(entry: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        space(a=entry)
    with pytest.raises(ConfigError, match=r"search_space\.recipes is empty"):
        space()
