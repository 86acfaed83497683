"""From statistics on the disk to a merged slice: keys, recipes, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models.architectures import save_pool
from tiny_models import TinyModel

from evomerge.calibration.encoding import Encoded
from evomerge.calibration.measure import measure
from evomerge.calibration.measurement import Measurement
from evomerge.errors import PoolError, RecipeError
from evomerge.merge.execution.engine import merge_slice
from evomerge.merge.execution.sources import Placement, Sources
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import SlicePlan
from evomerge.models.opening import open_pool, with_statistics
from evomerge.models.pool import Pool
from evomerge.models.statistics import ModelStatistics
from evomerge.recipes.calibration import CalibrationRef
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters
from evomerge.recipes.yaml_reader import dump_recipe, load_recipe
from evomerge.run.folder import RunFolder

ITEMS = {
    "a": [Encoded((1, 5, 9, 30, 7), 1), Encoded((1, 8, 8, 21), 2)],
    "b": [Encoded((4, 12, 17, 33, 6, 10, 39), 4), Encoded((2, 3), 1)],
}
ATTN = SliceId("attn", 1)
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def pool(tiny_model: TinyModel, tmp_path: Path) -> Pool:
    """Models a and b, with statistics of both kinds, each on its own items."""
    found = open_pool({name: str(tiny_model(name, seed=seed)) for seed, name in enumerate("ab")})
    refs, known = dict(found.info.refs), []
    for name, ref in refs.items():
        for kind in ("fisher", "gram"):
            how = Measurement(kind)
            into = ModelStatistics(tmp_path / "cache", kind, how.key(ref.identity, ITEMS[name]))
            measure(open_pool({name: ref}, dtype="float32"), ITEMS[name], how, into, memory=1 << 30)
            known.append((name, kind, into.key))
    return with_statistics(found, CalibrationRef(tuple(known), ("+calibration={files: [x]}",)), tmp_path / "cache")


def test_experts_that_share_a_statistic_keep_their_numbers(tmp_path: Path) -> None:
    """Kept once for a mixture, whichever of its tensors was asked for first."""
    pool = open_pool({"a": str(save_pool("mixtral", tmp_path, ("a",))["a"])}, dtype="float32")
    how, root = Measurement("routing"), tmp_path / "cache"
    into = ModelStatistics(root, "routing", how.key(dict(pool.info.refs)["a"].identity, ITEMS["a"]))
    measure(pool, ITEMS["a"], how, into, memory=1 << 30)
    pool = with_statistics(pool, CalibrationRef((("a", "routing", into.key),), ()), root)
    sources = Sources(pool, torch.device("cpu"), Placement(0, 0, 1 << 20))
    router, *experts = [
        next(name for name, stored in pool.stored["a"].items() if "layers.1." in stored and word in stored)
        for word in (".gate.", ".experts.0.w1", ".experts.1.w1", ".experts.2.w1")
    ]
    for name, axis in ((router, -1), *zip(experts, (0, 1, 2), strict=True), (router, -1)):
        found = sources.statistic("a", name, "routing", into.key)
        assert found is not None
        assert found.axis == axis
        assert found.values.shape == (2, 3)


def recipe(pool: Pool, method: str, layer: int | None = None, **shared: float) -> Recipe:
    inputs = (Input("a", layer, parameters({"weight": 1.0})), Input("b", layer, parameters({"weight": 0.5})))
    own = SliceRecipe(ATTN, method, inputs, parameters(shared))
    average = pool.info.linear({"a": 0.5, "b": 0.5})
    return pool.info.recipe([own if entry.slice == ATTN else entry for entry in average.slices])


def plan_of(pool: Pool, made: Recipe) -> SlicePlan:
    return make_plan(made, pool).by_slice[ATTN]


def test_regmean_of_a_slice_is_that_of_its_tensors(pool: Pool) -> None:
    merged = merge_slice(plan_of(pool, recipe(pool, "regmean", alpha=0.95)), pool)
    ridge, top, below = 1e-6, 0.0, 0.0
    grams = []
    for name, weight in (("a", 1.0), ("b", 0.5)):
        stored = pool.statistics[name, "gram"].read(Q)
        assert stored is not None
        grams.append((name, weight, stored.values.double()))
    level = sum(w * float(g.diagonal().mean()) for _, w, g in grams) / 1.5
    top, below = torch.zeros(16, 16).double(), torch.zeros(16, 16).double()
    for name, weight, gram in grams:
        own = 0.95 * gram + 0.05 * gram.diagonal().diag() + ridge * level * torch.eye(16).double()
        top += weight * pool.read(name, Q).double() @ own
        below += weight * own
    torch.testing.assert_close(merged[Q].double(), top @ torch.linalg.inv(below), rtol=1e-4, atol=1e-6)
    bias = "model.layers.1.self_attn.o_proj.weight"  # another matrix, other inputs
    assert not torch.allclose(merged[bias], (pool.read("a", bias) + 0.5 * pool.read("b", bias)) / 1.5, atol=1e-3)


def test_a_moved_layer_reads_the_statistics_of_where_it_is_from(pool: Pool) -> None:
    merged = merge_slice(plan_of(pool, recipe(pool, "fisher", layer=0, log_floor=-30.0)), pool)
    name = "model.layers.0.self_attn.q_proj.weight"
    top, below = torch.zeros(256).double(), torch.zeros(256).double()
    for model, weight in (("a", 1.0), ("b", 0.5)):
        stored = pool.statistics[model, "fisher"].read(name)
        assert stored is not None
        count = weight * stored.values.double() / stored.mean
        top, below = top + count * pool.read(model, name).double().view(-1), below + count
    torch.testing.assert_close(merged[Q].double().view(-1), top / below, rtol=1e-4, atol=1e-6)


def test_keys_and_hashes_depend_on_the_statistics_where_they_are_read(pool: Pool, tmp_path: Path) -> None:
    ref = pool.info.calibration
    assert ref is not None
    other = CalibrationRef(tuple((m, k, f"sha256:{'0' * 64}" if m == "b" else key) for m, k, key in ref.statistics))
    root = tmp_path / "cache"
    (root / ("0" * 64)).symlink_to(pool.statistics["b", "fisher"].folder)
    changed = with_statistics(pool, other, root)
    for method, same in (("fisher", False), ("linear", True)):
        one, two = (plan_of(own, recipe(own, method)).key for own in (pool, changed))
        assert (one == two) is same
    assert recipe(pool, "fisher").hash != recipe(changed, "fisher").hash
    assert recipe(pool, "fisher").hash == replace(recipe(pool, "fisher"), calibration=replace(ref, made_by=())).hash
    without = with_statistics(pool, None)
    assert plan_of(without, recipe(without, "linear")).key == plan_of(pool, recipe(pool, "linear")).key


def test_recipes_and_runs_keep_the_calibration(pool: Pool, tmp_path: Path) -> None:
    made = recipe(pool, "fisher")
    read = load_recipe(dump_recipe(made))
    assert read == made
    assert read.calibration is not None
    assert read.calibration.made_by == ("+calibration={files: [x]}",)
    folder = RunFolder(tmp_path)
    folder.write_pool(pool.info)
    assert folder.read_pool().calibration == pool.info.calibration
    for old, new in ((":\n    a:", ":\n    c:"), ("fisher: 'sha256:", "fisher: 'md5:"), ("{fisher", "{jacobian")):
        text = dump_recipe(made)
        broken = text.replace(old, new, 1)
        assert broken != text
        with pytest.raises(RecipeError, match=r"calibration\.statistics"):
            load_recipe(broken)


def test_what_is_not_there_is_named_before_anything_is_merged(pool: Pool, tmp_path: Path) -> None:
    without = with_statistics(pool, None)
    with pytest.raises(RecipeError, match=r"method 'fisher' reads statistics \(fisher\), and there are none of a"):
        make_plan(recipe(without, "fisher"), without)
    gone = with_statistics(pool, pool.info.calibration, tmp_path / "elsewhere")
    with pytest.raises(PoolError, match=r"make them: evomerge calibrate 'pool.models=\{a: .*files: \[x\]"):
        make_plan(recipe(gone, "fisher"), gone)
    make_plan(recipe(gone, "linear"), gone)


def test_intermediates_have_no_statistics(pool: Pool) -> None:
    stage = recipe(pool, "linear")
    inputs = (Input("half"), Input("b"))
    slices = tuple(SliceRecipe(entry.slice, "fisher", inputs) for entry in stage.slices)
    made = replace(stage, slices=slices, intermediates=(("half", stage),))
    with pytest.raises(RecipeError, match="of half; models: of intermediates there are none"):
        make_plan(made, pool)


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_a_threshold_over_a_layer_or_the_model_keeps_the_share_there(
    tiny_model: TinyModel, tmp_path: Path, scope: str
) -> None:
    found = open_pool({name: str(tiny_model(name, seed=seed)) for seed, name in enumerate(("base", "a"))}, base="base")
    how, ref = Measurement("fisher"), dict(found.info.refs)["a"]
    into = ModelStatistics(tmp_path / "cache", "curvature", how.key(ref.identity, ITEMS["a"]))
    measure(open_pool({"a": ref}, dtype="float32"), ITEMS["a"], how, into, memory=1 << 30)
    own = with_statistics(found, CalibrationRef((("a", "curvature", into.key),)), tmp_path / "cache")
    inputs = (Input("a", None, parameters({"weight": 1.0, "density": 0.3})),)
    shared = parameters({"scope": scope, "log_floor": -30.0})
    made = own.info.recipe(SliceRecipe(s, "ota", inputs, shared, Input("base")) for s in own.info.slices)
    plan = make_plan(made, own)

    def scores(name: str) -> torch.Tensor:
        stored = into.read(name)
        assert stored is not None
        change = own.read("a", name).double() - own.read("base", name).double()
        return (change.view(-1).square() * stored.values.double() / stored.mean).float()

    slices = [s for s in own.layout.slices if scope == "model" or s.layer == 1]
    every = torch.cat([scores(name) for s in slices for name in own.layout.tensors[s]])
    least = every.sort(descending=True).values[int(0.3 * len(every)) - 1]
    kept, sources = 0, Sources(own, placement=Placement(0, 0, 0))
    for slice_ in slices:
        for name, result in merge_slice(plan.by_slice[slice_], own, sources=sources).items():
            changed = (result != own.read("base", name)).view(-1)
            kept += int(changed.sum())
            ours = scores(name)
            assert bool(changed[ours >= least].logical_or(ours[ours >= least] == 0).all())  # all of the share, and
            assert not bool(changed[ours < least / (1 + 1 / 64)].any())  # what lies in the last bin with it
    assert 0.3 * len(every) - 1 <= kept <= 0.32 * len(every)
    noted = [key for key in sources.notes._small if isinstance(key, tuple) and key[0] == "scores"]
    assert len(noted) == 1
