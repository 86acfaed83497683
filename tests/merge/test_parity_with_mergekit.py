"""Against mergekit itself, run on the same tiny models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_models import TinyModel

from evomerge.merge.engine import merge_slice
from evomerge.merge.methods import METHODS
from evomerge.merge.methods.ties import cut_of
from evomerge.merge.plan import make_plan
from evomerge.models.pool import Pool, open_pool
from evomerge.recipe import Input, SliceRecipe, parameters

mergekit_config = pytest.importorskip("mergekit.config")
SIZES = {"hidden_size": 64, "intermediate_size": 160, "vocab_size": 300, "num_hidden_layers": 3}

Each = list[dict[str, Any]]
CASES: Mapping[str, tuple[str, Each, dict[str, Any]]] = {
    "linear": ("linear", [{"weight": 0.3}, {"weight": 0.9}], {}),
    "linear as given": ("linear", [{"weight": -0.4}, {"weight": 1.1}], {"normalize": False}),
    "slerp": ("slerp", [{}, {}], {"t": 0.35}),
    "task arithmetic": ("task_arithmetic", [{"weight": 0.7}, {"weight": 0.45}], {"lambda": 1.2}),
    "task arithmetic, normalised": ("task_arithmetic", [{"weight": 0.7}, {"weight": -0.2}], {"normalize": True}),
    "ties": ("ties", [{"weight": 0.6, "density": 0.53}, {"weight": 0.3, "density": 0.81}], {}),
    "ties as given": (
        "ties",
        [{"weight": 0.6, "density": 0.2}, {"weight": 0.8, "density": 1.0}],
        {"lambda": 0.8, "normalize": False},
    ),
    "ties with a negative weight": (
        "ties",
        [{"weight": 0.6, "density": 0.7}, {"weight": -0.25, "density": 0.4}],
        {},
    ),
    "ties of one": ("ties", [{"weight": 0.6, "density": 0.3}, {"weight": 0.0, "density": 0.4}], {}),
}


def run_mergekit(config: dict[str, Any], out: Path) -> dict[str, torch.Tensor]:
    from mergekit.merge import MergeOptions, run_merge

    parsed = mergekit_config.MergeConfiguration.model_validate(yaml.safe_load(yaml.safe_dump(config)))
    run_merge(parsed, str(out), MergeOptions(device="cpu", quiet=True, copy_tokenizer=False, write_model_card=False))
    return load_file(out / "model.safetensors") if (out / "model.safetensors").exists() else _shards(out)


def _shards(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def ulps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Distance in units in the last place between two bfloat16 tensors."""

    def ordered(x: torch.Tensor) -> torch.Tensor:
        bits = x.view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (ordered(a) - ordered(b)).abs()


@pytest.mark.parametrize(("stored", "out"), [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")])
@pytest.mark.parametrize("case", CASES)
def test_same_tensors(case: str, stored: str, out: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    method, each, shared = CASES[case]
    folders = fine_tunes(tiny_model, stored)
    pool = open_pool(folders, base="base", dtype=out)
    needs_base = METHODS[method].spec.base == "required"
    inputs = tuple(Input(name, None, parameters(given)) for name, given in zip("ab", each, strict=True))
    base = Input("base") if needs_base else None
    recipe = pool.info.recipe(SliceRecipe(s, method, inputs, parameters(shared), base) for s in pool.info.slices)
    ours = {n: t for entry in make_plan(recipe, pool).slices for n, t in merge_slice(entry, pool).items()}

    config: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": folders[n], "parameters": given} for n, given in zip("ab", each, strict=True)],
        "parameters": shared,
        "dtype": "float32",
        "out_dtype": out,
    }
    if method == "slerp":
        config["base_model"] = folders["a"]
    elif needs_base:
        config["base_model"] = folders["base"]
    theirs = run_mergekit(config, tmp_path / "mergekit")

    assert ours.keys() == theirs.keys()
    different = total = 0
    for name, expected in theirs.items():
        assert ours[name].dtype == expected.dtype == getattr(torch, out)
        sure = torch.ones(expected.shape, dtype=torch.bool)
        if method == "ties":
            sure &= ~on_the_border(pool, name, [given.get("density", 1.0) for given in each])
        a, b = ours[name][sure], expected[sure]
        if out == "float32":
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7 * float(expected.abs().max()))
        else:
            distance = ulps(a, b)
            assert int(distance.max()) <= 1, name
            different, total = different + int((distance > 0).sum()), total + distance.numel()
    assert different <= 0.001 * total


def fine_tunes(tiny_model: TinyModel, stored: str) -> dict[str, str]:
    """A base and two models near it, as fine-tuning leaves them: a few units in the last place of bfloat16 away."""
    folders = {name: tiny_model(name, "llama", 0, "float32", **SIZES) for name in ("base", "a", "b")}
    for seed, name in enumerate(("a", "b")):
        path = folders[name] / "model.safetensors"
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            key: tensor + 0.02 * tensor.std() * torch.randn(tensor.shape, generator=generator)
            for key, tensor in load_file(path).items()
        }
        save_file(tensors, path, {"format": "pt"})
    for folder in folders.values():
        path = folder / "model.safetensors"
        save_file({k: t.to(getattr(torch, stored)) for k, t in load_file(path).items()}, path, {"format": "pt"})
    return {name: str(folder) for name, folder in folders.items()}


def on_the_border(pool: Pool, name: str, densities: list[float]) -> torch.Tensor:
    """Elements of which TIES could as well have kept others of the same magnitude.

    Which of them mergekit keeps is up to a sort that is not stable and differs from one processor to another.
    """
    border = torch.zeros(pool.layout.shapes[name], dtype=torch.bool)
    for model, density in zip("ab", densities, strict=True):
        size = (pool.read(model, name).float() - pool.read("base", name).float()).abs()
        cut = cut_of(size.view(-1), density)
        if cut is not None and cut.first is not None:
            border |= size == cut.threshold
    return border
