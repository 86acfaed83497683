from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import TinyModel

from evomerge.errors import RecipeError
from evomerge.export.writer import write_model
from evomerge.merge.execution.engine import merge_slice
from evomerge.merge.execution.sources import Placement
from evomerge.merge.methods import registry
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan, SlicePlan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.method_spec import ByTensor, Value
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters

NAMES = ("base", "a", "b")
ATTN0, MLP0, MLP1, NORM0 = SliceId("attn", 0), SliceId("mlp", 0), SliceId("mlp", 1), SliceId("norm", 0)
Q, K, V, OUT = range(4)
"""Numbers of the tensors of an attention."""


@pytest.fixture
def folders(tiny_model: TinyModel) -> dict[str, str]:
    return {name: str(tiny_model(name, seed=seed, dtype="bfloat16")) for seed, name in enumerate(NAMES)}


@pytest.fixture
def pool(folders: dict[str, str]) -> Pool:
    return open_pool(folders, base="base")


def by(*entries: tuple[str | None, Value]) -> ByTensor:
    return ByTensor(entries)  # type: ignore[arg-type]


def attention(weight: Value, other: Value = 0.25, slice_: SliceId = ATTN0, method: str = "linear") -> SliceRecipe:
    inputs = Input("a", None, parameters({"weight": weight})), Input("b", None, parameters({"weight": other}))
    shared = parameters({"normalize": False}) if method == "linear" else ()
    return SliceRecipe(slice_, method, inputs, shared, None if method == "linear" else Input("base"))


def planned(pool: Pool, entry: SliceRecipe, seed: int = 0) -> SlicePlan:
    others = (s for s in pool.info.linear({"a": 1.0}).slices if s.slice != entry.slice)
    return make_plan(pool.info.recipe([entry, *others], seed), pool).by_slice[entry.slice]


def test_values_by_tensor_make_parts(pool: Pool) -> None:
    plan = planned(pool, attention(by(("k_proj", 0.75), ("self_attn.v", 0.75), (None, 0.5))))
    assert [part.tensors for part in plan.parts] == [(Q, OUT), (K, V)]
    assert [dict(part.values)["weight"] for part in plan.parts] == [(0.5, 0.25), (0.75, 0.25)]
    assert plan.unchanged is None
    merged = merge_slice(plan, pool)
    assert list(merged) == list(plan.tensors)
    for number, weight in ((Q, 0.5), (K, 0.75), (V, 0.75), (OUT, 0.5)):
        name = plan.tensors[number]
        assert torch.equal(merged[name], merge_slice(planned(pool, attention(weight)), pool)[name])
        by_hand = weight * pool.read("a", name).float() + 0.25 * pool.read("b", name).float()
        assert torch.equal(merged[name], by_hand.bfloat16())


def test_the_first_filter_that_matches_counts(pool: Pool) -> None:
    plan = planned(pool, attention(by(("proj", 0.5), ("k_proj", 0.75), (None, 0.1))))
    assert len(plan.parts) == 1
    assert plan.key == planned(pool, attention(0.5)).key


def test_several_values_by_tensor(pool: Pool) -> None:
    entry = attention(by(("q_proj", 0.5), (None, 0.6)), by(("k_proj", 0.1), (None, 0.2)), method="ties")
    entry = replace(entry, parameters=parameters({"lambda": by(("v_proj", 0.5), (None, 1.0))}))
    plan = planned(pool, entry)
    assert [part.tensors for part in plan.parts] == [(Q,), (K,), (V,), (OUT,)]
    assert [dict(part.values)["weight"] for part in plan.parts] == [(0.5, 0.2), (0.6, 0.1), (0.6, 0.2), (0.6, 0.2)]
    assert [dict(part.values)["lambda_"] for part in plan.parts] == [1.0, 1.0, 0.5, 1.0]
    assert plan.models == ("a", "b", "base")


def test_what_says_the_same_has_the_same_key(pool: Pool) -> None:
    plain = planned(pool, attention(0.5)).key
    for weight in (by((None, 0.5)), by(("mlp", 0.9), (None, 0.5)), by(("q_proj", 0.5), (None, 0.5))):
        assert planned(pool, attention(weight)).key == plain
    two = planned(pool, attention(by(("q_proj", 0.5), (None, 0.75)))).key
    assert planned(pool, attention(by(("k_proj", 0.75), ("v_", 0.75), ("o_", 0.75), (None, 0.5)))).key == two
    # Filters may name the layer; what they say is what counts.
    assert planned(pool, attention(by(("layers.0.", 0.5), (None, 0.75)))).key == plain
    assert planned(pool, attention(by(("layers.1.", 0.5), (None, 0.75)), slice_=SliceId("attn", 1))).key != plain


def test_what_says_something_else_has_another_key(pool: Pool) -> None:
    weights = [
        0.5,
        0.75,
        by(("q_proj", 0.5), (None, 0.75)),
        by(("q_proj", 0.75), (None, 0.5)),
        by(("k_proj", 0.5), (None, 0.75)),
        by(("q_proj", 0.5), ("k_proj", 0.6), (None, 0.75)),
    ]
    keys = [planned(pool, attention(weight)).key for weight in weights]
    keys.append(planned(pool, attention(0.5, by(("q_proj", 0.25), (None, 0.3)))).key)
    assert len(set(keys)) == len(keys)


def test_a_source_for_some_tensors(pool: Pool) -> None:
    plan = planned(pool, attention(by(("q_proj", 1.0), (None, 0.5)), by(("q_proj", 0.0), (None, 0.5))))
    assert [(part.tensors, part.method) for part in plan.parts] == [((Q,), None), ((K, V, OUT), "linear")]
    assert plan.unchanged is None
    merged = merge_slice(plan, pool)
    assert torch.equal(merged[plan.tensors[Q]], pool.read("a", plan.tensors[Q]))
    resident = Resident(pool)
    resident.apply(Plan(tuple(plan if s.slice == ATTN0 else s for s in _alone(pool).slices), pool.info.dtype))
    for name, tensor in merged.items():
        assert torch.equal(resident.model.module.get_parameter(name), tensor)


def _alone(pool: Pool) -> Plan:
    return make_plan(pool.info.linear({"base": 1.0}), pool)


def test_masks_of_parts_depend_on_the_seed(pool: Pool) -> None:
    density = by(("q_proj", 0.5), (None, 1.0))
    inputs = (Input("a", None, parameters({"weight": 0.5, "density": density})),)
    entry = SliceRecipe(ATTN0, "dare_linear", inputs, (), Input("base"))
    first, second = (planned(pool, entry, seed) for seed in (0, 1))
    assert first.key != second.key
    merged, other = merge_slice(first, pool), merge_slice(second, pool)
    assert [torch.equal(merged[n], other[n]) for n in first.tensors] == [False, True, True, True]


# Intermediates


def staged(pool: Pool, stages: dict[str, Recipe], *changed: SliceRecipe, weight: float = 0.5) -> Recipe:
    """Each slice the linear merge of all stages and model b, but for those given."""
    names = list(stages)
    inputs = tuple(Input(name, None, parameters({"weight": weight})) for name in (*names, "b"))
    own = {entry.slice: entry for entry in changed}
    return of_stages(pool, stages, [own.get(s, SliceRecipe(s, "linear", inputs)) for s in pool.info.slices])


def of_stages(pool: Pool, stages: dict[str, Recipe], slices: list[SliceRecipe]) -> Recipe:
    info = pool.info
    return Recipe(info.refs, tuple(slices), info.dtype, info.config_from, intermediates=tuple(stages.items()))


def arithmetic(
    pool: Pool, weight: float = 0.7, method: str = "task_arithmetic", seed: int = 0, **each: float
) -> Recipe:
    inputs = tuple(Input(m, None, parameters({"weight": weight, **each})) for m in ("a", "b"))
    return pool.info.recipe([SliceRecipe(s, method, inputs, (), Input("base")) for s in pool.info.slices], seed)


def tensors(recipe: Recipe, pool: Pool) -> dict[str, torch.Tensor]:
    merged: dict[str, torch.Tensor] = {}
    for entry in make_plan(recipe, pool).slices:
        merged |= merge_slice(entry, pool)
    return merged


def in_steps(recipe: Recipe, pool: Pool, tmp_path: Path) -> Pool:
    """A pool that has the recipe's intermediates as models of their own, written one after the other."""
    models = {name: str(pool.folder(name)) for name in NAMES}
    written: dict[str, str] = {}
    for name, stage in recipe.stages.items():
        before = open_pool({**models, **written}, base="base", dtype=stage.dtype)
        flat = replace(stage, models=before.info.refs, intermediates=())
        written[name] = str(write_model(flat, before, tmp_path / "written" / name))
    return open_pool({**models, **written}, base="base", dtype=recipe.dtype)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "breadcrumbs", "slerp", "model_stock"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_intermediate_is_what_would_be_written(
    folders: dict[str, str], tmp_path: Path, method: str, dtype: str
) -> None:
    pool = open_pool(folders, base="base", dtype=dtype)
    stage = replace(arithmetic(pool, method="ties", density=0.6), dtype="bfloat16")
    spec = registry.METHODS[method].spec
    inputs = Input("stage"), Input("b")
    below = Input("base") if spec.base != "none" else None
    slices = [SliceRecipe(s, method, inputs, (), below) for s in pool.info.slices]
    recipe = of_stages(pool, {"stage": stage}, slices)
    steps = in_steps(recipe, pool, tmp_path)
    expected = tensors(replace(recipe, models=steps.info.refs, intermediates=()), steps)
    merged = tensors(recipe, pool)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())
    assert {tensor.dtype for tensor in merged.values()} == {getattr(torch, dtype)}
    resident = Resident(pool)
    for plan in (make_plan(recipe, pool), _alone(pool), make_plan(recipe, pool)):
        resident.apply(plan)
    assert all(torch.equal(resident.model.module.get_parameter(n), t) for n, t in expected.items())


def diamond(pool: Pool, weight: float = 0.7) -> Recipe:
    """Two stages of one, merged."""
    root = arithmetic(pool, weight)
    left, right = staged(pool, {"root": root}, weight=0.25), staged(pool, {"root": root}, weight=0.6)
    return staged(pool, {"left": left, "right": right})


@pytest.mark.parametrize("cache", [0, 3000, 10**8])
def test_a_shared_intermediate(pool: Pool, tmp_path: Path, cache: int) -> None:
    resident = Resident(pool, placement=Placement(0, 0, 0), cache=cache)
    for weight in (0.7, 0.2):
        recipe = diamond(pool, weight)
        steps = in_steps(recipe, pool, tmp_path / str(weight))
        expected = tensors(replace(recipe, models=steps.info.refs, intermediates=()), steps)
        resident.apply(make_plan(recipe, pool))
        merged = tensors(recipe, pool)
        for name, tensor in expected.items():
            assert torch.equal(merged[name], tensor)
            assert torch.equal(resident.model.module.get_parameter(name), tensor)


def repeated(pool: Pool, order: tuple[int, ...]) -> Recipe:
    """The average of a and b, its layers in this order."""
    inputs = [
        SliceRecipe(SliceId(c, out), "linear", (Input("a", layer), Input("b", layer)))
        for out, layer in enumerate(order)
        for c in ("attn", "mlp", "norm")
    ]
    outer = [SliceRecipe(SliceId(c), "linear", (Input("a"), Input("b"))) for c in ("embed", "final_norm", "head")]
    return pool.info.recipe([*inputs, *outer])


@pytest.mark.parametrize("order", [(0, 0), (1, 0), (0, 1, 0), (1, 1, 0)])
def test_layers_of_intermediates_that_are_the_same(pool: Pool, order: tuple[int, ...]) -> None:
    last = len(order) - 1
    stage = repeated(pool, order)
    each = [(0, 0.5), (last, 0.25), (1, 0.125)]
    entry = SliceRecipe(
        MLP1,
        "linear",
        tuple(Input("stage", layer, parameters({"weight": weight})) for layer, weight in each),
        parameters({"normalize": False}),
    )
    recipe = staged(pool, {"stage": stage}, entry)
    plan = make_plan(recipe, pool)
    merged = merge_slice(plan.by_slice[MLP1], pool)
    averages = tensors(pool.info.linear({"a": 0.5, "b": 0.5}), pool)
    for name, tensor in merged.items():
        parts = [weight * averages[name.replace(".1.", f".{order[layer]}.")].float() for layer, weight in each]
        assert torch.equal(tensor, (parts[0] + parts[1] + parts[2]).bfloat16())
    resident = Resident(pool)
    resident.apply(plan)
    assert all(torch.equal(resident.model.module.get_parameter(name), tensor) for name, tensor in merged.items())
    beyond = replace(entry, inputs=(Input("stage", len(order)),))
    with pytest.raises(RecipeError, match=f"that intermediate has layers 0 to {last}"):
        make_plan(staged(pool, {"stage": stage}, beyond), pool)


def test_the_key_holds_all_of_an_intermediate(pool: Pool) -> None:
    def keys(stage: Recipe) -> dict[SliceId, str]:
        return {entry.slice: entry.key for entry in make_plan(staged(pool, {"stage": stage}), pool).slices}

    stage = arithmetic(pool)
    own = keys(stage)
    assert keys(replace(stage, seed=9)) == own  # nothing is random
    only = replace(next(s for s in stage.slices if s.slice == MLP0), parameters=parameters({"lambda": 0.5}))
    changed = keys(replace(stage, slices=tuple(only if s.slice == MLP0 else s for s in stage.slices)))
    assert {s for s in own if own[s] != changed[s]} == {MLP0}
    for other in (replace(stage, dtype="float16"), arithmetic(pool, 0.8), arithmetic(pool, method="ties")):
        assert not set(keys(other).values()) & set(own.values())
    random = [keys(arithmetic(pool, method="dare_linear", seed=seed, density=0.5)) for seed in (0, 1)]
    assert not set(random[0].values()) & set(random[1].values())


def test_the_key_holds_intermediates_of_intermediates(pool: Pool) -> None:
    one, other = make_plan(diamond(pool), pool), make_plan(diamond(pool, 0.71), pool)
    assert not {entry.key for entry in one.slices} & {entry.key for entry in other.slices}
    assert [entry.key for entry in make_plan(diamond(pool), pool).slices] == [entry.key for entry in one.slices]
    assert one.by_slice[MLP0].models == ("a", "b", "base")


def test_the_name_of_an_intermediate_does_not_matter(pool: Pool) -> None:
    stage = arithmetic(pool)
    one, other = (make_plan(staged(pool, {name: stage}), pool) for name in ("stage", "other"))
    assert [entry.key for entry in one.slices] == [entry.key for entry in other.slices]
