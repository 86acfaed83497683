"""Sums of a hundred checkpoints: the bits of one pass, and the memory of a few."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llama import save_llama

from evomerge.merge.mixes import cpu_mix
from evomerge.merge.mixes.mix import Mix, copy_of, weighted
from evomerge.merge.mixes.torch_mix import mix_block
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool
from evomerge.recipes.pool_info import UNIFORM
from search_spaces.checkpoints import CheckpointSpace

COUNT = 106  # sixteen, and fifteen more six times: code for other numbers of inputs need not be compiled
SIZE = 70_001


def mixed(mix: Mix, inputs: list[torch.Tensor], dtype: torch.dtype) -> tuple[torch.Tensor, bool]:
    out = torch.full((SIZE,), 7, dtype=dtype)
    return out, cpu_mix.mix_(out, mix, inputs, None, [0] * len(inputs))


@pytest.mark.parametrize(("count", "dtype"), [(20, torch.float32), (46, torch.bfloat16), (COUNT, torch.float32)])
def test_many_inputs_are_added_up_as_few_are(count: int, dtype: torch.dtype) -> None:
    generator, rng = torch.Generator().manual_seed(count), np.random.default_rng(count)
    inputs = [torch.randn(SIZE, generator=generator).to(dtype) for _ in range(count)]
    for mix in (weighted(rng.normal(size=count)), weighted(rng.normal(size=count), divisor=1.7, scale=0.5)):
        out, finite = mixed(mix, inputs, dtype)
        assert finite
        assert torch.equal(out, mix_block(mix, inputs, None, [0] * count, 0).to(dtype))
    assert torch.equal(mixed(copy_of(count - 1, count), inputs, dtype)[0], inputs[-1])


def test_of_mixed_dtypes_too_and_what_is_not_finite_is_found() -> None:
    inputs = [torch.full((SIZE,), float(n + 1), dtype=(torch.float32, torch.bfloat16)[n % 2]) for n in range(46)]
    out, finite = mixed(weighted([1.0] * 46), inputs, torch.bfloat16)
    assert finite
    assert (out == 1080).all()
    inputs[3][SIZE - 1] = torch.inf
    assert not mixed(weighted([1.0] * 46), inputs, torch.float32)[1]


@pytest.fixture
def checkpoints(tmp_path: Path) -> dict[str, str]:
    """Checkpoints of 0.6 MB that differ in all weights."""
    first = save_llama(tmp_path / "step-0", 0, layers=2)
    config = json.loads((first / "config.json").read_text())
    size = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1}
    (first / "config.json").write_text(json.dumps(config | size | {"head_dim": 32}))
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in load_file(first / "model.safetensors").items():
        if ".layers.1." not in name:
            grown = {32: 128, 48: 256 if "mlp" in name else 48, 16: 64}
            shapes[name] = tuple(grown[length] for length in tensor.shape)
    generator = torch.Generator().manual_seed(0)
    folders = {}
    for step in range(COUNT):
        folder = tmp_path / f"step-{step}"
        if step:
            shutil.copytree(first, folder)
        weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        folders[f"step-{step}"] = str(folder)
    return folders


def own_memory() -> int:
    """Bytes of this process's memory that no file backs: mapped checkpoints are not among them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


@pytest.mark.filterwarnings("ignore:The given buffer")
def test_a_hundred_checkpoints_take_the_memory_of_a_few(checkpoints: dict[str, str]) -> None:
    pool = open_pool(checkpoints, base="step-0")
    space = CheckpointSpace(pool.info, {})
    resident = Resident(pool, cache=10**9)
    resident.apply(make_plan(space.baselines["EMA 0.5"], pool))  # kernels are compiled, modules imported
    before, most = own_memory(), 0
    for name in (UNIFORM, "EMA 0.9", "step-105"):
        resident.apply(make_plan(space.baselines[name], pool))
        most = max(most, own_memory() - before)
    own = pool.checkpoints["step-0"].nbytes
    assert pool.nbytes == COUNT * own
    assert own > 500_000
    assert most < 10 * own
    last = load_file(Path(checkpoints["step-105"]) / "model.safetensors")
    for name, tensor in resident.model.module.state_dict().items():
        assert torch.equal(tensor, last[name])
    resident.apply(make_plan(space.baselines[UNIFORM], pool))
    every = [load_file(Path(folder) / "model.safetensors")["model.norm.weight"] for folder in checkpoints.values()]
    mean = torch.stack(every).double().mean(0).float()
    torch.testing.assert_close(resident.model.module.state_dict()["model.norm.weight"], mean, rtol=1e-5, atol=1e-6)
