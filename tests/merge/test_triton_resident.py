"""The resident model as if on a GPU with Triton: the CPU's bits, the device waited for once a candidate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from merge.candidate_walks import walk
from models.architectures import save_pool
from safetensors.torch import load_file, save_file

from evomerge.errors import EvomergeError
from evomerge.merge.execution import noted_statistics, tensor_merge
from evomerge.merge.execution.finite_checks import FiniteChecks
from evomerge.merge.execution.sources import Placement
from evomerge.merge.execution.stage_slices import stages_of
from evomerge.merge.mixes.backend import Backend
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool

pytest.importorskip("triton", reason="needs Triton, which the dev extra installs on Linux")

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tensors of the CPU are taken to be on a GPU")


@pytest.fixture
def on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (tensor_merge, noted_statistics):
        monkeypatch.setattr(module, "backend_of", lambda device, dtypes: Backend.TRITON)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many results were asked for, each time that the device was waited for."""
    asked: list[int] = []
    settle = FiniteChecks.settle

    def counted(checks: FiniteChecks) -> None:
        if not checks.settled:
            asked.append(len(checks._open))
        settle(checks)

    monkeypatch.setattr(FiniteChecks, "settle", counted)
    return asked


def opened(root: Path) -> Pool:
    folders = save_pool("llama", root / "models", dtype="bfloat16")
    return open_pool({name: str(folder) for name, folder in folders.items()}, base="base")


def state(resident: Resident) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in resident.model.module.state_dict().items()}


@pytest.mark.slow
def test_a_walk_of_candidates_has_the_bits_of_the_cpu(
    tmp_path: Path, waits: list[int], request: pytest.FixtureRequest
) -> None:
    pool = opened(tmp_path)
    plans = [make_plan(recipe, pool) for recipe in walk(pool, np.random.default_rng(2), 12)]
    direct = Resident(pool, placement=Placement(0, 0, 0), cache=0)
    expected = []
    for plan in plans:
        direct.apply(plan)
        expected.append(state(direct))
    assert waits == []  # on the CPU everything is known at once
    request.getfixturevalue("on_gpus")
    for notes in (0, 10**8):
        walking = Resident(pool, placement=Placement(0, 0, notes, notes), cache=10**6)
        for plan, tensors in zip(plans, expected, strict=True):
            waits.clear()
            walking.apply(plan)
            stages = {inner.key for entry in plan.slices for inner in stages_of(entry)}  # found to be finite before use
            assert len(waits) <= 1 + len(stages)
            for name, tensor in state(walking).items():
                assert torch.equal(tensor, tensors[name]), name


def test_a_result_that_is_not_finite_is_found_at_the_end_and_nothing_of_it_is_kept(
    tmp_path: Path, on_gpus: None, waits: list[int]
) -> None:
    pool = opened(tmp_path)
    file = pool.folder("a") / "model.safetensors"
    tensors = load_file(file)
    bad = "model.layers.1.mlp.up_proj.weight"
    tensors[bad][3, :] = torch.inf
    save_file(tensors, file, {"format": "pt"})
    pool = open_pool({name: str(pool.folder(name)) for name in ("base", "a", "b")}, base="base")
    resident = Resident(pool, placement=Placement(0, 0, 0), cache=10**6)
    mean = make_plan(pool.info.linear({"a": 0.5, "base": 0.5}), pool)
    for _ in range(2):
        waits.clear()
        with pytest.raises(EvomergeError, match=rf"tensor '{bad}'.*NaN or beyond the range of bfloat16"):
            resident.apply(mean)
        assert len(waits) == 1
        assert waits[0] > 5
    count = resident.apply(make_plan(pool.info.linear({"b": 0.5, "base": 0.5}), pool))
    assert count.kept == 0
    for name in pool.layout.parameters:
        expected = (pool.read("b", name).float() * 0.5 + pool.read("base", name).float() * 0.5).bfloat16()
        assert torch.equal(resident.model.module.get_parameter(name), expected)
