"""A search over four adapters ends in an adapter; merging adapters by PEFT is the independent implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from evomerge.cli.main import main
from evomerge.export.adapter_writer import write_adapter
from evomerge.merge.methods.low_rank import Bound
from evomerge.models.opening import open_pool
from evomerge.recipes.slices import Input, SliceRecipe, parameters

NAMES = ("a", "b", "c", "d")
TOKENS = torch.arange(3, 19)[None]


@pytest.fixture(scope="module")
def adapters(quick_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four adapters of the demo's base, of ranks 2 to 5."""
    found = {}
    for seed, name in enumerate(NAMES):
        model = AutoModelForCausalLM.from_pretrained(quick_pool / "base")
        settings = peft.LoraConfig(r=2 + seed, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"])
        adapted = peft.get_peft_model(model, settings)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        found[name] = tmp_path_factory.mktemp("adapters") / name
        adapted.save_pretrained(found[name])
    return found


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS).logits


@pytest.mark.slow
def test_a_search_over_adapters_ends_in_an_adapter(
    quick_pool: Path, adapters: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {"base": "base"} | {name: f"base+{folder}" for name, folder in adapters.items()}
    listed = ", ".join(f"{name}: '{place}'" for name, place in models.items())
    run, out = tmp_path / "run", tmp_path / "adapter"
    small = ["search.evaluations=6", "strategy.popsize=3", "fitness.limit=2", "held_out.limit=2"]
    pool = [f"pool.root='{quick_pool}'", f"pool.models={{{listed}}}", "~pool.models.math", "~pool.models.lang"]
    asked = [*pool, *small, "search_space.method=task_arithmetic", f"run_dir={run}"]
    assert main(["search", "experiment=demo", *asked]) == 0
    assert main(["merge", str(run), str(out), "--format", "lora"]) == 0
    assert "exact: the factors of the sources' own adapters" in capsys.readouterr().out
    assert main(["merge", str(run), str(tmp_path / "model")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    torch.testing.assert_close(logits(adapted), logits(merged), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "bound"), [("cat", Bound(error=0.01)), ("svd", Bound(rank=4))])
def test_as_peft_merges_adapters(
    kind: str, bound: Bound, quick_pool: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    weights = {"a": 0.7, "b": 0.4, "d": 1.1}
    base = AutoModelForCausalLM.from_pretrained(quick_pool / "base")
    model = peft.PeftModel.from_pretrained(base, str(adapters["a"]), adapter_name="a")
    for name in ("b", "d"):
        model.load_adapter(str(adapters[name]), adapter_name=name)
    rank = {"svd_rank": bound.rank} if bound.rank else {}
    model.add_weighted_adapter(list(weights), list(weights.values()), "m", combination_type=kind, **rank)
    model.set_adapter("m")
    expected = logits(model)
    locations = {"base": str(quick_pool / "base")} | {n: f"{quick_pool / 'base'}+{adapters[n]}" for n in weights}
    pool = open_pool(locations, "base")
    inputs = tuple(Input(name, None, parameters({"weight": weight})) for name, weight in weights.items())
    slices = (SliceRecipe(s, "task_arithmetic", inputs, (), Input("base")) for s in pool.info.slices)
    loss = write_adapter(pool.info.recipe(slices), pool, tmp_path / "out", bound=bound)
    assert {own.rank for own in loss.modules.values()} == {4 if bound.rank else 2 + 3 + 5}
    plain = AutoModelForCausalLM.from_pretrained(quick_pool / "base")
    found = logits(peft.PeftModel.from_pretrained(plain, str(tmp_path / "out")))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
