"""Recipes of a lineage know what they depend on without walking it, and travel however long it is."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace
from typing import Any

import pytest

from evomerge.errors import RecipeError
from evomerge.recipes import (
    Input,
    ModelRef,
    Recipe,
    SliceId,
    SliceRecipe,
    dump_recipe,
    load_recipe,
    parameters,
    stage_index,
)
from evomerge.recipes.stage_index import StageIndex

MODELS = (("a", ModelRef("org/a", "1")), ("b", ModelRef("org/b", "2")))


def merge(weight: float, *parents: tuple[str, Recipe]) -> Recipe:
    """The embeddings of the parents, or of model a, and those of b."""
    names = [name for name, _ in parents] or ["a"]
    inputs = tuple(Input(name, None, parameters({"weight": weight})) for name in (*names, "b"))
    return Recipe(MODELS, (SliceRecipe(SliceId("embed"), "linear", inputs),), "float32", "a", intermediates=parents)


def chain(length: int) -> Recipe:
    last = merge(0.5)
    for number in range(length):
        last = merge(0.5 + number / 1e6, (f"g{number}", last))
    return last


def test_a_chain_has_one_table_and_every_recipe_is_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    added = list[str]()
    append = StageIndex._append

    def counted(self: StageIndex, entries: Any, name: str, recipe: Recipe) -> Any:
        added.append(name)
        return append(self, entries, name, recipe)

    monkeypatch.setattr(StageIndex, "_append", counted)
    last = chain(300)
    assert added == [f"g{number}" for number in range(300)]
    tables = {id(stage.stage_index()._table) for stage in last.stages.values() if stage.intermediates}
    assert tables == {id(last.stage_index()._table)}
    added.clear()
    loaded = load_recipe(dump_recipe(last))  # which reads it back itself
    assert len(added) == 2 * 300
    assert loaded == last


def test_each_sees_its_own_ancestors_and_no_others() -> None:
    parent = chain(5)
    one, two = merge(0.1, ("g5", parent)), merge(0.2, ("other", parent))
    assert one.stage_index()._table is not two.stage_index()._table
    again = merge(0.3, ("g5", parent))
    assert again.stage_index()._table is one.stage_index()._table
    child = merge(0.4, ("one", one), ("two", two))
    known = {name: child.stage_index().get(name) for name in ("g0", "g5", "other", "one", "two", "child", "a")}
    expected = {"g5": parent, "other": parent, "one": one, "two": two, "child": None, "a": None}
    assert known == {"g0": child.stages["g0"], **expected}
    assert parent.stage_index().get("g5") is None
    twice = merge(0.4, ("here", parent), ("there", parent))
    assert twice.stage_index().get("here") is twice.stage_index().get("there") is parent
    assert [*one.stages] == [*(f"g{number}" for number in range(5)), "g5"]


def test_tables_of_a_population_are_bounded_and_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_index, "MOST_TABLES", 8)
    rng = random.Random(0)
    every = [("g0", merge(0.5))]
    for number in range(1, 300):
        parents = rng.sample(every[-20:], min(2, len(every)))
        every.append((f"g{number}", merge(0.5 + number / 1e6, *parents)))
    tables = {id(index._table): index._table.entries for _, each in every if (index := each.known_index)}
    kept = [entries for entries in tables.values() if entries is not None]
    assert len(tables) > 50
    assert len(kept) <= 8
    for _, recipe in every[::17]:  # most of theirs are gone
        index = recipe.stage_index()
        assert {name: index.get(name) for name, _ in every} == {name: recipe.stages.get(name) for name, _ in every}
    with pytest.raises(RecipeError, match="two intermediates are called 'g0'"):
        merge(0.5, every[200], ("g0", merge(0.1)))


@pytest.mark.parametrize("deep", [0, 1, 7])
def test_a_name_for_two_recipes_is_found_however_deep(deep: int) -> None:
    def line(weight: float) -> Recipe:
        last = merge(weight)
        for number in range(deep + 1):
            last = merge(0.5, (f"g{number}", last))
        return last

    same = merge(0.5, ("x", line(0.1)), ("y", line(0.1)))  # made twice, and the same
    assert len(same.stages) == deep + 3
    with pytest.raises(RecipeError, match="two intermediates are called 'g0'; one recipe for a name"):
        merge(0.5, ("x", line(0.1)), ("y", line(0.2)))
    with pytest.raises(RecipeError, match="two intermediates are called 'g0'"):
        merge(0.5, ("g0", line(0.1)))
    with pytest.raises(RecipeError, match="'b' names an intermediate and something else"):
        merge(0.5, ("b", line(0.1)))


def test_a_deep_lineage_travels_and_takes_no_strangers_along() -> None:
    last = chain(3000)
    assert last.hash
    merge(0.1, ("g3000", last), ("stranger", merge(0.7)))  # lengthens the table that they share
    data = pickle.dumps(last)
    assert b"stranger" not in data
    back = pickle.loads(data)
    assert back == last
    assert back.hashed
    assert back.hash == replace(last).hash
    assert back.stage_index().get("g2999") == last.stages["g2999"]
