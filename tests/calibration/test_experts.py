"""Which experts tokens are sent to and what these give, against transformers' own outputs and formulas by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.architectures import build, save_pool

from evomerge.calibration.encoding import Encoded
from evomerge.calibration.experts import mixtures
from evomerge.calibration.measure import measure
from evomerge.calibration.measurement import Measurement
from evomerge.errors import PoolError
from evomerge.models.opening import open_pool
from evomerge.models.statistics import ModelStatistics

ITEMS = [Encoded((1, 5, 9, 30, 7), 1), Encoded((1, 8, 8, 21), 2), Encoded((4, 12, 17, 33, 6, 10, 39), 4)]
MIXTURES = {"mixtral": (0, 1), "qwen2_moe": (0, 1), "qwen3_moe": (1,), "gpt_oss": (0, 1)}
"""Layers that have one."""


def made(folder: Path, root: Path, kind: str, memory: int = 1 << 30) -> ModelStatistics:
    pool = open_pool({"model": str(folder)}, dtype="float32")
    how = Measurement(kind)
    into = ModelStatistics(root, kind, how.key(dict(pool.info.refs)["model"].identity, ITEMS))
    measure(pool, ITEMS, how, into, memory=memory)
    return into


def router(found: ModelStatistics, layer: int) -> str:
    """The name of a layer's router in the checkpoint."""
    (name,) = [
        n for n in found.index["tensors"] if f"layers.{layer}." in n and n.endswith(("gate.weight", "router.weight"))
    ]
    return str(name)


@pytest.mark.parametrize("kind", MIXTURES)
def test_frequencies_are_those_of_the_routers_scores(kind: str, tmp_path: Path) -> None:
    folder = save_pool(kind, tmp_path, ("model",))["model"]
    found = made(folder, tmp_path / "cache", "routing")
    model: Any = build(kind)
    assert mixtures(model).keys() == {f"model.layers.{layer}.mlp.experts" for layer in MIXTURES[kind]}
    counts = {layer: torch.zeros(2, 3, dtype=torch.float64) for layer in MIXTURES[kind]}
    for item in ITEMS:
        scores = model(torch.tensor([item.ids]), output_router_logits=True).router_logits
        for layer, own in zip(MIXTURES[kind], scores, strict=True):
            if kind == "gpt_oss":  # chooses first, and weighs what is chosen
                weights, chosen = own.topk(2, dim=-1)
                weights = weights.softmax(-1)
            else:
                weights, chosen = own.softmax(-1).topk(2, dim=-1)
            if kind == "mixtral":
                weights = weights / weights.sum(-1, keepdim=True)
            for row, values in enumerate((torch.ones_like(weights), weights)):
                counts[layer][row].index_add_(0, chosen.reshape(-1), values.detach().double().reshape(-1))
    for layer, own in counts.items():
        stored = found.read(router(found, layer))
        assert stored is not None
        assert (stored.axis, stored.values.shape) == (-1, (2, 3))
        torch.testing.assert_close(stored.values.double(), own / own.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)
    assert not any("shared" in name or "attn" in name or "norm" in name for name in found.index["tensors"])
    assert not any("layers.0." in name for name in found.index["tensors"]) or 0 in MIXTURES[kind]


def test_every_tensor_of_an_expert_has_its_number(tmp_path: Path) -> None:
    apart = made(save_pool("mixtral", tmp_path / "one", ("model",))["model"], tmp_path / "cache", "routing")
    joined = save_pool("mixtral", tmp_path / "all", ("model",), save={"save_original_format": False})["model"]
    whole = made(joined, tmp_path / "whole", "routing")
    axes = {name: own["axis"] for name, own in apart.index["tensors"].items() if "layers.1." in name}
    experts = {name: axis for name, axis in axes.items() if ".experts." in name}
    assert len(experts) == 9
    assert all(f".experts.{axis}." in name for name, axis in experts.items())
    assert sorted(set(axes) - set(experts)) == [router(apart, 1)]
    fused = {name: own["axis"] for name, own in whole.index["tensors"].items() if "layers.1." in name}
    assert len(fused) == 3
    assert set(fused.values()) == {-1}
    for name in (*axes, router(apart, 1)):
        assert apart.entry(name) == apart.entry(router(apart, 1))  # one for all of them
    one, other = apart.read(router(apart, 1)), whole.read(router(whole, 1))
    assert one is not None
    assert other is not None
    assert torch.equal(one.values, other.values)


def test_inner_products_of_what_experts_give(tmp_path: Path) -> None:
    folder = save_pool("mixtral", tmp_path, ("model",))["model"]
    found = made(folder, tmp_path / "cache", "expert_outputs")
    model: Any = build("mixtral")
    rows: list[torch.Tensor] = []
    block = model.model.layers[1].mlp
    block.register_forward_pre_hook(lambda _, given: rows.append(given[0].detach().reshape(-1, 16)))
    with torch.no_grad():
        for item in ITEMS:
            model(torch.tensor([item.ids]))
        x = torch.cat(rows)
        gives = []
        for expert in range(3):
            gate, up = (x @ block.experts.gate_up_proj[expert].T).chunk(2, dim=-1)
            gives.append((torch.nn.functional.silu(gate) * up) @ block.experts.down_proj[expert].T)
    expected = torch.einsum("itd,jtd->ij", torch.stack(gives), torch.stack(gives)) / len(x)
    stored = found.read(router(found, 1))
    assert stored is not None
    torch.testing.assert_close(stored.values, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["routing", "expert_outputs"])
def test_little_memory_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    folder = save_pool("mixtral", tmp_path, ("model",))["model"]
    many, one = made(folder, tmp_path / "many", kind, 1), made(folder, tmp_path / "one", kind)
    for file in one.folder.glob("*.*"):
        assert file.read_bytes() == (many.folder / file.name).read_bytes()


def test_models_without_experts_are_refused(tmp_path: Path) -> None:
    folder = save_pool("llama", tmp_path, ("model",))["model"]
    with pytest.raises(PoolError, match=r"'routing' are asked of LlamaForCausalLM, in which no mixture of experts"):
        made(folder, tmp_path / "cache", "routing")
