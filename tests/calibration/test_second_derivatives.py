"""The Hessian's diagonal: draws against differences of gradients, means against what is known of the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.architectures import save_pool
from tiny_models import TinyModel
from transformers import AutoModelForCausalLM

from evomerge.calibration.encoding import Encoded
from evomerge.calibration.losses import generator_of
from evomerge.calibration.measure import measure
from evomerge.calibration.measurement import Measurement
from evomerge.models.opening import open_pool
from evomerge.models.statistics import ModelStatistics

ITEM = Encoded((1, 5, 9, 30, 7), 1)


def made(folder: Path, root: Path, items: list[Encoded], memory: int = 1 << 30, **how: Any) -> ModelStatistics:
    pool = open_pool({"model": str(folder)}, dtype="float32")
    measurement = Measurement("hessian", **how)
    into = ModelStatistics(root, "hessian", measurement.key(dict(pool.info.refs)["model"].identity, items))
    measure(pool, items, measurement, into, memory=memory)
    return into


def gradients(model: Any, item: Encoded) -> list[torch.Tensor]:
    """Of the loss of an item by every parameter, by autograd once."""
    model.zero_grad()
    ids = torch.tensor([item.ids])
    scores = model(ids).logits[0, item.start - 1 : -1]
    torch.nn.functional.cross_entropy(scores, ids[0, item.start :], reduction="sum").backward()
    return [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]


@pytest.mark.parametrize("kind", ["llama_tied", "gpt2", "mixtral"])
def test_a_draw_is_what_differences_of_gradients_give(tiny_model: TinyModel, tmp_path: Path, kind: str) -> None:
    folder = save_pool(kind, tmp_path, ("a",))["a"] if kind == "mixtral" else tiny_model("model", kind)
    found = made(folder, tmp_path / "cache", [ITEM])
    model = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager").double().eval()
    generator = generator_of("signs 0 0")
    signs = [torch.randint(0, 2, p.shape, generator=generator, dtype=torch.int8) * 2.0 - 1 for p in model.parameters()]
    step, ends = 5e-4, []  # norms are computed in float32
    for direction in (1, -1):
        for p, z in zip(model.parameters(), signs, strict=True):
            p.data += direction * step * z
        ends.append(gradients(model, ITEM))
        for p, z in zip(model.parameters(), signs, strict=True):
            p.data -= direction * step * z
    pool = open_pool({"model": str(folder)})
    called = {place: pool.stored["model"][own] for own, place in pool.layout.parameters.items()}
    compared = 0
    for (name, _), z, one, other in zip(model.named_parameters(), signs, *ends, strict=True):
        expected = z * (one - other) / (2 * step)
        stored = found.read(called.get(name, name))
        if stored is None:  # experts that the checkpoint holds one by one
            assert ".experts." in name
            continue
        compared += 1
        scale = float(expected.abs().max())
        torch.testing.assert_close(stored.values.double().view(z.shape), expected, rtol=1e-2, atol=2e-3 * scale)
    assert compared == len(found.index["tensors"])


@pytest.mark.slow
def test_the_mean_of_draws_is_the_diagonal_of_the_head(tiny_model: TinyModel, tmp_path: Path) -> None:
    """One prediction: the second derivative by a weight of the head is ``p (1 - p) h^2``, whatever the label."""
    folder, items = tiny_model("model"), [Encoded((1, 5, 9, 30), 3)] * 250
    found = made(folder, tmp_path / "cache", items)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        out = model(torch.tensor([[1, 5, 9]]), output_hidden_states=True)
        chances, hidden = out.logits[0, -1].softmax(-1), out.hidden_states[-1][0, -1]
    expected = torch.outer(chances * (1 - chances), hidden.square())
    stored = found.read("lm_head.weight")
    assert stored is not None
    own = stored.values.view(expected.shape)
    assert float(own.sum()) == pytest.approx(float(expected.sum()), rel=0.25)
    assert own.sum(0).topk(2).indices.tolist() == expected.sum(0).topk(2).indices.tolist()
    assert found.index["mean"] > 0


def test_little_memory_and_seeds(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder, items = tiny_model("model"), [ITEM, Encoded((1, 8, 8, 21), 2)]
    one, many = made(folder, tmp_path / "one", items), made(folder, tmp_path / "many", items, memory=1)
    other = made(folder, tmp_path / "one", items, seed=1)
    files = sorted(one.folder.glob("*.safetensors"))
    assert all(file.read_bytes() == (many.folder / file.name).read_bytes() for file in files)
    assert other.key != one.key
    assert any(file.read_bytes() != (other.folder / file.name).read_bytes() for file in files)
