from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_models import TinyModel

from evomerge.errors import InfeasibleError, RecipeError
from evomerge.merge.planning import plan as plan_module
from evomerge.merge.planning import stage_cache
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan, SlicePlan
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters

MLP0, MLP1, EMBED = SliceId("mlp", 0), SliceId("mlp", 1), SliceId("embed")


@pytest.fixture
def pool(tiny_model: TinyModel) -> Pool:
    folders = {name: str(tiny_model(name, seed=seed)) for seed, name in enumerate(("base", "a", "b"))}
    return open_pool(folders, base="base")


def changed(pool: Pool, *entries: SliceRecipe, seed: int = 0, dtype: str | None = None) -> Recipe:
    """The uniform average with some slices made otherwise."""
    own = {entry.slice: entry for entry in entries}
    average = pool.info.linear({"a": 0.5, "b": 0.5})
    recipe = pool.info.recipe([own.get(s.slice, s) for s in average.slices], seed)
    return replace(recipe, dtype=dtype) if dtype else recipe  # type: ignore[arg-type]


def weighted(model: str, weight: float = 1.0, layer: int | None = None, **more: float) -> Input:
    return Input(model, layer, parameters({"weight": weight, **more}))


def ties(slice_: SliceId, *inputs: Input, method: str = "ties", **shared: float | bool) -> SliceRecipe:
    return SliceRecipe(slice_, method, inputs, parameters(shared), Input("base"))


def of(plan: Plan, slice_: SliceId) -> SlicePlan:
    return next(entry for entry in plan.slices if entry.slice == slice_)


def key(pool: Pool, entry: SliceRecipe, seed: int = 0, dtype: str | None = None) -> str:
    return of(make_plan(changed(pool, entry, seed=seed, dtype=dtype), pool), entry.slice).key


def test_slices_tensors_and_sources(pool: Pool) -> None:
    plan = make_plan(changed(pool, ties(MLP1, weighted("a", 0.5, density=0.3), weighted("b", 0.2))), pool)
    assert [entry.slice for entry in plan.slices] == list(pool.info.slices)
    assert all(entry.tensors == pool.layout.tensors[entry.slice] for entry in plan.slices)
    assert of(plan, MLP1).dtype == "float32"
    (entry,) = of(plan, MLP1).parts
    assert (entry.method, entry.seed, entry.tensors) == ("ties", 0, tuple(range(len(pool.layout.tensors[MLP1]))))
    assert [(s.model, s.layer) for s in entry.sources] == [("a", 1), ("b", 1)]
    assert entry.base is not None
    assert (entry.base.model, entry.base.tensors) == ("base", pool.layout.tensors[MLP1])
    values = {"weight": (0.5, 0.2), "density": (0.3, 1.0), "lambda_": 1.0, "normalize": True}
    values |= {"rescale": False, "scope": "tensor"}
    assert dict(entry.values) == values


def test_keys_are_stable_and_differ_between_slices(pool: Pool) -> None:
    recipe = changed(pool)
    keys = [entry.key for entry in make_plan(recipe, pool).slices]
    assert keys == [entry.key for entry in make_plan(recipe, pool).slices]
    assert len(set(keys)) == len(keys)


def test_keys_depend_on_all_that_the_content_does(pool: Pool) -> None:
    a, b = weighted("a", 0.5), weighted("b", 0.25)
    entries = [
        ties(MLP0, a, b),
        ties(MLP0, b, a),
        ties(MLP0, weighted("a", 0.75), b),
        ties(MLP0, weighted("a", 0.5, density=0.5), b),
        ties(MLP0, a, weighted("b", 0.25, layer=1)),
        ties(MLP0, a, b, normalize=False),
        ties(MLP0, a, b, method="dare_ties"),
        replace(ties(MLP0, a, b), base=Input("base", 1)),
        replace(ties(MLP0, a, b), base=Input("a")),
    ]
    keys = [key(pool, entry) for entry in entries] + [key(pool, entries[0], dtype="bfloat16")]
    assert len(set(keys)) == len(keys)


def test_defaults_written_out_do_not_change_a_key(pool: Pool) -> None:
    short = ties(MLP0, weighted("a"), Input("b"))
    full = ties(MLP0, weighted("a", density=1.0), weighted("b", density=1.0), normalize=True, **{"lambda": 1.0})
    assert key(pool, short) == key(pool, full)


def test_only_random_methods_depend_on_the_seed(pool: Pool) -> None:
    inputs = weighted("a", 0.5, density=0.5), weighted("b", 0.5)
    assert key(pool, ties(MLP0, *inputs), seed=0) == key(pool, ties(MLP0, *inputs), seed=1)
    dare = ties(MLP0, *inputs, method="dare_linear")
    assert key(pool, dare, seed=0) != key(pool, dare, seed=1)


def test_inputs_of_weight_zero_are_left_out(pool: Pool) -> None:
    both = ties(MLP0, weighted("a", 0.5, density=0.5), weighted("b", 0.0))
    alone = ties(MLP0, weighted("a", 0.5, density=0.5))
    assert key(pool, both) == key(pool, alone)
    assert [s.model for s in of(make_plan(changed(pool, both), pool), MLP0).parts[0].sources] == ["a"]


def test_slices_of_a_source_are_recognised_whatever_the_method(pool: Pool) -> None:
    same = [
        SliceRecipe(MLP0, "linear", (weighted("a", 3.0), weighted("b", 0.0))),
        SliceRecipe(MLP0, "slerp", (Input("b"), Input("a")), parameters({"t": 1.0})),
        ties(MLP0, weighted("a", 1.0), weighted("b", 0.0), method="task_arithmetic"),
        ties(MLP0, weighted("a", 0.25)),
        of_recipe(pool, "a", MLP0),
    ]
    assert len({key(pool, entry) for entry in same}) == 1
    (entry,) = of(make_plan(changed(pool, same[0]), pool), MLP0).parts
    assert (entry.method, entry.values, entry.base) == (None, (), None)
    base = ties(MLP0, weighted("a", 0.0), weighted("b", 0.0), method="task_arithmetic")
    assert key(pool, base) == key(pool, of_recipe(pool, "base", MLP0))


def of_recipe(pool: Pool, model: str, slice_: SliceId) -> SliceRecipe:
    return next(s for s in pool.info.linear({model: 1.0}).slices if s.slice == slice_)


def test_a_repeated_layer_has_one_key(pool: Pool) -> None:
    first = SliceRecipe(MLP0, "linear", (weighted("a", 0.5, 1), weighted("b", 0.5, 1)))
    second = SliceRecipe(MLP1, "linear", (weighted("a", 0.5), weighted("b", 0.5)))
    plan = make_plan(changed(pool, first, second), pool)
    assert of(plan, MLP0).key == of(plan, MLP1).key
    assert of(plan, MLP0).tensors == pool.layout.tensors[MLP0]
    assert of(plan, MLP0).parts[0].sources[0].tensors == pool.layout.tensors[MLP1]


def deeper(pool: Pool) -> Recipe:
    """Layers 0, 1, 0 of model a."""
    source = {0: 0, 1: 1, 2: 0}
    inner = [
        SliceRecipe(SliceId(c, out), "linear", (Input("a", layer),))
        for out, layer in source.items()
        for c in ("attn", "mlp", "norm")
    ]
    outer = [SliceRecipe(SliceId(c), "linear", (Input("a"),)) for c in ("embed", "final_norm", "head")]
    return pool.info.recipe([*inner, *outer])


def test_recipes_may_be_deeper_than_their_models(pool: Pool) -> None:
    plan = make_plan(deeper(pool), pool)
    third, first = of(plan, SliceId("attn", 2)), of(plan, SliceId("attn", 0))
    assert third.key == first.key
    assert third.tensors[0] == "model.layers.2.self_attn.q_proj.weight"
    assert third.parts == first.parts


def test_weights_that_cannot_be_normalised_name_the_slice(pool: Pool) -> None:
    entry = SliceRecipe(MLP1, "linear", (weighted("a", 1.0), weighted("b", -1.0)))
    with pytest.raises(InfeasibleError, match=r"^slice layers\.1\.mlp: weights 1, -1 sum to 0"):
        make_plan(changed(pool, entry), pool)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (SliceRecipe(MLP0, "linaer", (Input("a"),)), r"slice layers\.0\.mlp: unknown merge method 'linaer'; did you"),
        (SliceRecipe(MLP0, "slerp", (Input("a"),)), r"'slerp' was given 1 inputs"),
        (SliceRecipe(MLP0, "ties", (Input("a"),)), r"'ties' has no base model"),
        (SliceRecipe(MLP0, "linear", (weighted("a", 1, dense=1),)), r"has no parameter 'dense'"),
        (SliceRecipe(MLP0, "linear", (Input("a", 2),)), r"takes layer 2 of a; the pool's models have layers 0 to 1"),
        (SliceRecipe(EMBED, "linear", (Input("a", 1),)), r"slice embed takes layer 1 of a"),
        (
            SliceRecipe(SliceId("embed"), "linear", (Input("a"),), scale=0.5),
            r"slice embed has scale 0\.5; scales belong",
        ),
        (SliceRecipe(SliceId("norm", 0), "linear", (Input("a"),), scale=0.5), "norm has scale 0.5; -1 turns its norms"),
        (SliceRecipe(SliceId("final_norm"), "linear", (Input("a"),), scale=2.0), "final_norm has scale 2; -1 turns"),
    ],
)
def test_recipes_that_cannot_be_carried_out(pool: Pool, entry: SliceRecipe, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_plan(changed(pool, entry), pool)


def test_missing_slices_are_named(pool: Pool) -> None:
    recipe = pool.info.recipe(s for s in pool.info.linear({"a": 1.0}).slices if s.slice not in (MLP1, EMBED))
    with pytest.raises(RecipeError, match="the recipe has no slice embed and lacks 1 more"):
        make_plan(recipe, pool)


def test_models_that_the_pool_lacks_or_has_otherwise(pool: Pool) -> None:
    recipe = pool.info.linear({"a": 1.0})
    refs = dict(recipe.models)
    stranger = replace(recipe, models=(*recipe.models, ("c", refs["a"])))
    with pytest.raises(RecipeError, match="the recipe's model 'c' is not in the pool"):
        make_plan(stranger, pool)
    swapped = replace(recipe, models=tuple((n, refs["b"] if n == "a" else r) for n, r in recipe.models))
    with pytest.raises(RecipeError, match="the recipe's model 'a' has other content than the pool's"):
        make_plan(swapped, pool)


def test_a_lineage_longer_than_what_is_kept_is_planned_once(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_cache, "KEPT", 4)
    last = changed(pool)
    for number in range(12):
        inputs = Input(f"g{number}"), Input("b")
        slices = tuple(SliceRecipe(entry, "slerp", inputs, parameters({"t": 0.5})) for entry in pool.info.slices)
        last = replace(last, slices=slices, seed=number, intermediates=((f"g{number}", last),))
    planned = []
    plan_slice = plan_module._Planner.slice
    monkeypatch.setattr(
        plan_module._Planner, "slice", lambda self, entry: planned.append(entry) or plan_slice(self, entry)
    )
    first = make_plan(last, pool)
    assert len(planned) == 13 * len(pool.info.slices)
    planned.clear()
    assert make_plan(replace(last, seed=99), pool) == first  # the next candidate: only its own slices are planned
    assert len(planned) == len(pool.info.slices)
    assert len(stage_cache.stage_plans(pool)._plans) == 12
