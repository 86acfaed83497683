"""Magnitudes ranked over a layer or the whole model, against sorting the concatenation of all tensors in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from merge.gpu_recipes import weights
from merge.papers import Array, by_magnitude, elected
from merge.papers_chosen import pcb
from pretended_gpu import PretendedGpu
from safetensors.torch import load_file, save_file

from evomerge.errors import EvomergeError, RecipeError
from evomerge.export.writer import write_model
from evomerge.merge.execution.engine import merge_slice
from evomerge.merge.execution.parallel import merge_slices
from evomerge.merge.execution.sources import Placement, Sources
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.mergekit.writer import to_mergekit
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.method_spec import Scalar
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters

Llamas = Callable[..., dict[str, Path]]
Tensors = dict[str, torch.Tensor]
METHODS = ("ties", "breadcrumbs", "breadcrumbs_ties", "localize_and_stitch", "pcb")
DENSITY = {"ties": 0.3, "breadcrumbs": 0.4, "breadcrumbs_ties": 0.4, "localize_and_stitch": 0.05, "pcb": 0.1}


@pytest.fixture
def folders(llamas: Llamas, tmp_path: Path) -> dict[str, Path]:
    """A base and two models whose changes are multiples of a 64th, so that many magnitudes are equal, or zero."""
    found = dict(llamas(layers=2))
    base = load_file(found["base"] / "model.safetensors")
    for number, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(number)
        copy = tmp_path / name
        copy.mkdir()
        for file in found[name].iterdir():
            if file.name != "model.safetensors":
                (copy / file.name).write_bytes(file.read_bytes())
        tensors = {}
        for place, (key, tensor) in enumerate(sorted(base.items())):
            steps = torch.randint(-6, 7, tensor.shape, generator=generator) * (1 + place % 3)
            # Of numbers that float32 adds exactly.
            tensors[key] = (tensor * 64).round() / 64 + steps / 64
        save_file(tensors, copy / "model.safetensors", {"format": "pt"})
        found[name] = copy
    rounded = tmp_path / "base"
    rounded.mkdir()
    for file in found["base"].iterdir():
        if file.name != "model.safetensors":
            (rounded / file.name).write_bytes(file.read_bytes())
    save_file({k: (t * 64).round() / 64 for k, t in base.items()}, rounded / "model.safetensors", {"format": "pt"})
    return {"base": rounded, "a": found["a"], "b": found["b"]}


def opened(folders: Mapping[str, Path]) -> Pool:
    return open_pool({name: str(folder) for name, folder in folders.items()}, base="base")


def recipe_of(
    pool: Pool,
    method: str,
    scope: str,
    density: Callable[[SliceId], float] | None = None,
    each: Mapping[str, Scalar] | None = None,
    **shared: Scalar,
) -> Recipe:
    def made(slice_: SliceId) -> SliceRecipe:
        own: dict[str, Scalar] = {"weight": 0.75, **(each or {})}
        all_ = {"scope": scope, **{name.rstrip("_"): value for name, value in shared.items()}}
        (all_ if method == "pcb" else own)["density"] = density(slice_) if density else DENSITY[method]
        inputs = tuple(Input(name, None, parameters(own)) for name in "ab")
        values = parameters(all_)
        return SliceRecipe(slice_, method, inputs, values, Input("base"))

    return pool.info.recipe(made(s) for s in pool.info.slices)


def merged(pool: Pool, recipe: Recipe, sources: Sources | None = None) -> Tensors:
    sources = sources or Sources(pool, placement=Placement(0, 0, 0))
    found: Tensors = {}
    for entry in make_plan(recipe, pool).slices:
        found |= merge_slice(entry, pool, sources=sources)
    return found


def names_in(pool: Pool, scope: str) -> list[list[str]]:
    """The tensors that are ranked together, in order."""
    groups: dict[object, list[str]] = {}
    for slice_ in pool.layout.slices:
        key: object = "all" if scope == "model" else slice_ if slice_.layer is None else slice_.layer
        groups.setdefault(key, []).extend(pool.layout.tensors[slice_])
    return list(groups.values())


def expected(pool: Pool, method: str, scope: str, density: float, gamma: float = 0.1) -> dict[str, Array]:
    """The merge of the flattened concatenations, cut apart again."""
    result: dict[str, Array] = {}
    for names in names_in(pool, scope):
        shapes = {name: tuple(pool.layout.shapes[name]) for name in names}
        flat = {
            model: np.concatenate([pool.read(model, name).double().numpy().reshape(-1) for name in names])
            for model in ("base", "a", "b")
        }
        tasks, masks = [], []
        for model in "ab" if method != "pcb" else "":
            task = flat[model] - flat["base"]
            kept = min(task.size, max(1, int(density * task.size)))
            first = 0
            if method.startswith("breadcrumbs"):
                kept = int(density * task.size)
                first = min(int(gamma * task.size), task.size - kept)
            mask = np.zeros(task.size)
            mask[by_magnitude(task)[first : first + kept]] = 1
            tasks.append(task * mask)
            masks.append(mask)
        if method == "pcb":
            both = [flat[model] for model in "ab"]
            made = pcb(both, flat["base"], weight=(0.75, 0.75), density=density, clip=0.01, lambda_=1.0, scope=scope)
            total = made - flat["base"]
        elif method == "localize_and_stitch":
            total = 0.75 * sum(tasks) / np.maximum(1, sum(masks))
        elif method == "breadcrumbs":
            total = 0.75 * sum(tasks)
        else:
            total = elected(tasks, [0.75, 0.75], normalize=method == "ties")
        whole, at = flat["base"] + total, 0
        for name, shape in shapes.items():
            size = int(np.prod(shape))
            result[name] = whole[at : at + size].reshape(shape)
            at += size
    return result


@pytest.mark.parametrize(
    ("method", "scope"),
    [*((method, "model") for method in METHODS), ("breadcrumbs", "layer"), ("ties", "layer"), ("pcb", "layer")],
)
def test_as_if_all_tensors_were_one(folders: dict[str, Path], method: str, scope: str) -> None:
    pool = opened(folders)
    each: dict[str, Scalar] = {"gamma": 0.1} if method.startswith("breadcrumbs") else {}
    found = merged(pool, recipe_of(pool, method, scope, each=each))
    wanted = expected(pool, method, scope, DENSITY[method])
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor.double().numpy(), wanted[name], rtol=1e-6, atol=1e-7, err_msg=name)
    # Not what each tensor by itself would be.
    own = merged(pool, recipe_of(pool, method, "tensor", each=each))
    assert sum(not torch.equal(own[name], tensor) for name, tensor in found.items()) > 5


def small_changes(folders: dict[str, Path], tmp_path: Path) -> Pool:
    """Of `a`, the queries change by 1, 2, 3, ... 4096ths, the keys by ones that are larger, and nothing else."""
    base = load_file(folders["base"] / "model.safetensors")
    tensors = dict(base)
    for name, least in (("model.layers.0.self_attn.q_proj.weight", 0), ("model.layers.1.mlp.up_proj.weight", 10**6)):
        steps = torch.arange(base[name].numel()).view(base[name].shape) + 1 + least
        tensors[name] = base[name] + steps / 2**21
    folder = tmp_path / "small"
    folder.mkdir()
    for file in folders["a"].iterdir():
        if file.name != "model.safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return opened({"base": folders["base"], "a": folder, "b": folders["base"]})


def test_a_tensor_of_small_changes_is_dropped_wholly(folders: dict[str, Path], tmp_path: Path) -> None:
    pool = small_changes(folders, tmp_path)
    small, large = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"
    total = sum(torch.Size(shape).numel() for shape in pool.layout.shapes.values())
    size = pool.read("a", large).numel()

    def kept(count: int, scope: str) -> dict[str, int]:
        """How many elements of either stay, where so many of all do."""
        density = (count + 0.5) / total
        found = merged(pool, recipe_of(pool, "ties", scope, lambda _: density, {"weight": 1.0}))
        return {name: int((found[name] != pool.read("base", name)).sum()) for name in (small, large)}

    assert kept(size, "model") == {small: 0, large: size}
    assert kept(size - 3, "model") == {small: 0, large: size - 3}
    assert kept(size + 5, "model") == {small: 5, large: size}
    own = pool.read("a", small).numel()
    by_itself = {small: int((size + 0.5) / total * own), large: int((size + 0.5) / total * size)}
    assert kept(size, "tensor") == by_itself
    # Each is the only one of its layer that changed.
    ranked = [sum(len(pool.read("a", n).view(-1)) for n in names) for names in names_in(pool, "layer")]
    assert min(kept(size, "layer").values()) > max(by_itself.values())
    assert kept(size, "layer")[small] == min(own, int((size + 0.5) / total * ranked[1]))


def test_of_equals_the_first_stay(folders: dict[str, Path], tmp_path: Path) -> None:
    """Ones everywhere: the first slices, and of one tensor the first elements."""
    base = load_file(folders["base"] / "model.safetensors")
    folder = tmp_path / "ones"
    folder.mkdir()
    for file in folders["a"].iterdir():
        if file.name != "model.safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    save_file({name: tensor + 1 for name, tensor in base.items()}, folder / "model.safetensors", {"format": "pt"})
    pool = opened({"base": folders["base"], "a": folder, "b": folders["base"]})
    (order,) = names_in(pool, "model")
    sizes = [pool.read("a", name).numel() for name in order]
    wanted = sum(sizes[:3]) + 7
    density = (wanted + 0.5) / sum(sizes)
    for method in ("ties", "localize_and_stitch"):
        found = merged(pool, recipe_of(pool, method, "model", lambda _: density, {"weight": 1.0}))
        moved = [(found[name] != pool.read("base", name)).view(-1) for name in order]
        assert [int(each.sum()) for each in moved] == [*sizes[:3], 7, *[0] * (len(sizes) - 4)]
        assert bool(moved[3][:7].all())


@pytest.mark.parametrize("method", ["breadcrumbs_ties", "localize_and_stitch", "pcb"])
def test_the_same_bits_by_any_way(folders: dict[str, Path], tmp_path: Path, method: str) -> None:
    """With notes, by threads, streamed to a file, resident, and where densities differ by layer."""
    pool = opened(folders)
    recipe = recipe_of(pool, method, "model", lambda s: 0.05 + 0.1 * (s.layer or 0))
    wanted = merged(pool, recipe)
    noted = Sources(pool, placement=Placement(0, 0, 10**8))
    for _ in range(2):
        assert all(torch.equal(wanted[name], tensor) for name, tensor in merged(pool, recipe, noted).items())
    plan, threads = make_plan(recipe, pool), torch.get_num_threads()
    outs = [{name: torch.empty_like(wanted[name]) for name in entry.tensors} for entry in plan.slices]
    try:
        torch.set_num_threads(3)
        merge_slices(plan.slices, Sources(pool, placement=Placement(0, 0, 10**8)), outs)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(wanted[name], tensor) for out in outs for name, tensor in out.items())
    written = load_file(write_model(recipe, pool, tmp_path / "out") / "model.safetensors")
    assert all(torch.equal(wanted[name], tensor) for name, tensor in written.items())
    resident = Resident(pool, placement=Placement(0, 0, 10**8))
    resident.apply(plan)
    assert all(torch.equal(wanted[name], tensor) for name, tensor in weights(resident).items())
    gpu = PretendedGpu()
    with gpu.present():
        there = Resident(pool, "cuda", placement=Placement(10**8, 0, 10**8, 10**8))
        there.apply(plan)
        found = weights(there)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-6, atol=1e-6)


def test_a_rank_is_looked_up_once(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pool = opened(folders)
    read: list[str] = []
    flat = Sources.flat
    monkeypatch.setattr(Sources, "flat", lambda self, model, name: read.append(name) or flat(self, model, name))
    sources = Sources(pool, placement=Placement(0, 0, 0))  # small notes are kept all the same
    recipe = recipe_of(pool, "ties", "model")
    merged(pool, recipe, sources)
    first, _ = len(read), read.clear()
    merged(pool, recipe, sources)
    tensors = sum(len(names) for names in pool.layout.tensors.values())
    assert len(read) == 3 * tensors < first


def test_layers_that_repeat_have_the_ranks_of_where_they_come_from(folders: dict[str, Path]) -> None:
    pool = opened(folders)
    plain = recipe_of(pool, "ties", "layer")
    slices = []
    for entry in plain.slices:
        if entry.slice.layer is None:
            slices.append(entry)
            continue
        for layer in (0, 1, 2):  # all of them the second
            inputs = tuple(Input(i.model, 1, i.parameters) for i in entry.inputs)
            place = SliceId(entry.slice.component, layer)
            if entry.slice.layer == 1:
                slices.append(SliceRecipe(place, "ties", inputs, entry.parameters, Input("base", 1)))
    repeated = merged(pool, pool.info.recipe(slices))
    own = merged(pool, plain)
    for name, tensor in own.items():
        if ".layers.1." in name:
            for layer in (0, 1, 2):
                assert torch.equal(repeated[name.replace(".1.", f".{layer}.")], tensor)


def test_keys_tell_scopes_apart(folders: dict[str, Path]) -> None:
    pool = opened(folders)
    keys = [make_plan(recipe_of(pool, "ties", scope), pool).slices[1].key for scope in ("tensor", "layer", "model")]
    assert len(set(keys)) == 3
    entries = make_plan(recipe_of(pool, "ties", "layer"), pool)
    assert entries.by_slice[SliceId("mlp", 0)].key != entries.by_slice[SliceId("mlp", 1)].key


def test_what_has_no_scope_is_refused(folders: dict[str, Path]) -> None:
    pool = opened(folders)
    entry = recipe_of(pool, "ties", "model").slices[1]
    moved = SliceRecipe(entry.slice, "ties", (Input("a", 1), Input("b", 0)), entry.parameters, Input("base", 0))
    others = [each for each in recipe_of(pool, "ties", "model").slices if each.slice != entry.slice]
    with pytest.raises(RecipeError, match=r"takes layer 1 of a, layer 0 of the base base; the same layer of both"):
        make_plan(pool.info.recipe([moved, *others]), pool)
    inner = pool.info.linear({"a": 0.5, "b": 0.5})
    over = SliceRecipe(entry.slice, "ties", (Input("a"), Input("made")), entry.parameters, Input("base"))
    outer = Recipe(
        pool.info.refs, (over, *others), pool.info.dtype, pool.info.config_from, intermediates=(("made", inner),)
    )
    with pytest.raises(RecipeError, match="made is made of some"):
        make_plan(outer, pool)
    with pytest.raises(RecipeError, match="its scope is model, mergekit's is tensor"):
        to_mergekit(recipe_of(pool, "ties", "model"), pool.layout)
    assert "ties" in to_mergekit(recipe_of(pool, "ties", "tensor"), pool.layout)


def test_what_is_not_finite_elsewhere_is_named(folders: dict[str, Path]) -> None:
    tensors = load_file(folders["a"] / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, folders["a"] / "model.safetensors", {"format": "pt"})
    pool = opened(folders)
    with pytest.raises(EvomergeError, match=r"of its scope, tensor 'model.layers.1.mlp.up_proj.weight': a source has"):
        merge_slice(make_plan(recipe_of(pool, "ties", "model"), pool).slices[0], pool)
