from __future__ import annotations

from dataclasses import replace

import pytest

from evomerge.errors import RecipeError
from evomerge.recipes.heads import Heads
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, ModelRef, SliceId, SliceRecipe
from evomerge.recipes.switches import switch_of, task_recipe, tasks_of, with_switch
from evomerge.recipes.yaml_reader import dump_recipe, load_recipe
from evomerge.run.pool_content import pool_content, pool_info

REFS = tuple((name, ModelRef(f"org/{name}", "1a2b")) for name in ("base", "mood", "topic"))
HEADS = Heads(("classifier.weight", "classifier.bias"), ("mood", "topic"))
HALF = (("weight", 0.5),)
SLICES = (SliceRecipe(SliceId("embed"), "linear", (Input("mood", None, HALF), Input("topic", None, HALF))),)
RECIPE = Recipe(REFS, SLICES, "float32", "mood", heads=HEADS)


def test_recipes_say_whose_heads_they_carry_and_are_read_back() -> None:
    text = dump_recipe(RECIPE)
    assert "heads:\n  tensors: [classifier.weight, classifier.bias]\n  tasks: [mood, topic]\n" in text
    assert load_recipe(text) == RECIPE
    assert "heads" not in dump_recipe(replace(RECIPE, heads=None))


def test_the_hash_depends_on_the_heads_and_on_nothing_else_of_them() -> None:
    turned = replace(RECIPE, heads=Heads(HEADS.tensors[::-1], HEADS.tasks[::-1]))
    assert turned.hash == RECIPE.hash, "their order says nothing"
    others = [replace(RECIPE, heads=None), task_recipe(RECIPE, "mood"), task_recipe(RECIPE, "topic")]
    assert len({own.hash for own in (RECIPE, *others)}) == 4


def test_one_tasks_model_has_its_head_and_configuration() -> None:
    assert tasks_of(RECIPE) == ("mood", "topic")
    own = task_recipe(RECIPE, "topic")
    assert (own.config_from, own.heads) == ("topic", Heads(HEADS.tensors, ("topic",)))
    assert own.slices == RECIPE.slices
    assert task_recipe(own, "topic") == own
    with pytest.raises(RecipeError, match=r"the recipe has no task 'topics'.*topic"):
        task_recipe(RECIPE, "topics")


def test_a_switch_over_the_same_tasks_goes_with_heads() -> None:
    switched = with_switch(RECIPE, "emr_switch", {"mood": {}, "topic": {}}, "base")
    assert tasks_of(switched) == ("mood", "topic")
    assert load_recipe(dump_recipe(switched)) == switched
    own = task_recipe(switched, "topic")
    found = switch_of(own)
    assert (own.config_from, found.tasks if found else ()) == ("topic", ("topic",))
    assert load_recipe(dump_recipe(own)) == own, "the shared model's heads are not the result's"
    with pytest.raises(RecipeError, match="a switch is over the tasks mood, heads are of mood, topic"):
        tasks_of(with_switch(RECIPE, "emr_switch", {"mood": {}}, "base"))


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        (Heads((), ("mood",)), "heads.tensors is empty"),
        (Heads(("a", "a"), ("mood",)), "heads.tensors is a, a; one or more, each once"),
        (Heads(("a",), ()), "heads.tasks is empty"),
        (Heads(("a",), ("mood", "topics")), "heads.tasks has 'topics'.*topic"),
        (Heads(("a",), ("topic",)), "config_from is 'mood', whose head is not carried; one of heads.tasks: topic"),
    ],
)
def test_heads_that_are_nobodys_are_refused(heads: Heads, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        replace(RECIPE, heads=heads)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("tasks:", "task:", "heads has no .*tasks|heads.*task"),
        ("[mood, topic]", "mood", "heads.tasks"),
        ("[classifier.weight, classifier.bias]", "[3]", "heads.tensors"),
    ],
)
def test_malformed_heads_are_named(old: str, new: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(dump_recipe(RECIPE).replace(old, new))


def test_run_folders_keep_the_heads_of_their_pool() -> None:
    info = PoolInfo(REFS, ("mood", "topic"), "base", (SliceId("embed"),), 0, "float32", heads=HEADS)
    assert pool_info(pool_content(info)) == info
    plain = replace(info, heads=None)
    assert pool_info(pool_content(plain)) == plain
    assert "heads" not in pool_content(plain)
