"""Sources with adapters, from the pool to a written model: against PEFT's merge and plain transformers."""

from __future__ import annotations

import weakref
from pathlib import Path

import peft
import pytest
import torch
from tiny_models import TinyModel
from transformers import AutoModelForCausalLM

from evomerge.export.writer import write_model
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.checkpoints.folding import FoldedCheckpoint
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceRecipe, parameters

TOKENS = torch.arange(3, 23)[None]


@pytest.fixture
def pool(tiny_model: TinyModel, tmp_path: Path) -> Pool:
    """A base, and the base with two adapters."""
    base = tiny_model("base")
    locations = {"base": str(base)}
    for seed, name in enumerate(("math", "code")):
        model = AutoModelForCausalLM.from_pretrained(base)
        settings = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"], modules_to_save=["norm"])
        adapted = peft.get_peft_model(model, settings)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        adapted.save_pretrained(tmp_path / f"{name}-lora")
        locations[name] = f"base+{name}-lora"
    return open_pool(locations, "base", tmp_path)


def by_peft(pool: Pool, name: str) -> dict[str, torch.Tensor]:
    base, adapter = pool.checkpoints[name].folders
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    return {key: tensor.detach() for key, tensor in model.merge_and_unload().state_dict().items()}


def task_arithmetic(pool: Pool, weights: dict[str, float]) -> Recipe:
    inputs = tuple(Input(name, None, parameters({"weight": weight})) for name, weight in weights.items())
    shared = parameters({"lambda": 1.0, "normalize": False})
    return pool.info.recipe(SliceRecipe(s, "task_arithmetic", inputs, shared, Input("base")) for s in pool.info.slices)


@pytest.mark.parametrize("weights", [{"math": 1.0}, {"math": 0.5, "code": -0.75}])
def test_written_models_are_sums_of_adapters(pool: Pool, weights: dict[str, float], tmp_path: Path) -> None:
    recipe = task_arithmetic(pool, weights)
    out = write_model(recipe, pool, tmp_path / "out")
    assert not (out / "adapter_config.json").exists()
    written, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    base = AutoModelForCausalLM.from_pretrained(pool.folder("base"))
    expected = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for name, weight in weights.items():
        for key, tensor in by_peft(pool, name).items():
            expected[key] += weight * (tensor - base.state_dict()[key])
    for key, tensor in written.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-6, atol=1e-6)
    base.load_state_dict(expected)
    torch.testing.assert_close(written(TOKENS).logits, base(TOKENS).logits, rtol=1e-5, atol=1e-5)
    assert "base+math-lora" in (out / "README.md").read_text()
    assert str(tmp_path) not in (out / "README.md").read_text()


def test_writing_keeps_the_folded_tensors_of_one_slice(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded: list[weakref.ref[torch.Tensor]] = []
    alive = []
    read = FoldedCheckpoint.read

    def watched(self: FoldedCheckpoint, name: str) -> torch.Tensor:
        tensor = read(self, name)
        if name in self.changed:
            folded.append(weakref.ref(tensor))
            alive.append(sum(ref() is not None for ref in folded))
        return tensor

    monkeypatch.setattr(FoldedCheckpoint, "read", watched)
    write_model(task_arithmetic(pool, {"math": 1.0, "code": 1.0}), pool, tmp_path / "out")
    assert len(folded) == 2 * 9  # q_proj, down_proj and two norms of two layers, and the final norm, of two models
    assert max(alive) == 4  # the norms of a layer


def test_resident_model_of_a_pool_whose_configuration_comes_from_an_adapted_model(pool: Pool) -> None:
    locations = {name: dict(pool.info.refs)[name] for name in ("math", "code")}
    adapted = open_pool(locations)
    assert adapted.info.config_from == "math"
    resident = Resident(adapted)
    count = resident.apply(make_plan(adapted.info.linear({"math": 1.0}), adapted))
    assert (count.kept, count.computed, count.referenced) == (9, 0, 0)  # it was loaded with the adapter folded in
    expected = by_peft(pool, "math")
    for key, tensor in resident.model.module.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-6, atol=1e-6)
