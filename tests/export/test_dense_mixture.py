"""Mixtures made of dense models: what mergekit-moe writes, tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from models.architectures import load
from tiny_models import TinyModel

from evomerge.cli.main import main
from evomerge.errors import RecipeError
from evomerge.export.dense_mixture import MIXTURE_FILE, dense_mixture
from evomerge.mergekit.mixture_recipe import read_mixture
from evomerge.models.opening import open_pool


def recipe_of(folders: dict[str, Path], gate: str, shared: bool = False, **more: Any) -> str:
    experts = [
        {"source_model": str(folders["a"]), "positive_prompts": ["w4 w5 w6", "w7"], "negative_prompts": ["w20 w21"]},
        {"source_model": str(folders["b"]), "positive_prompts": ["w30 w31", "w9 w33 w34 w35"], "residual_scale": 0.5},
        {"source_model": str(folders["base"]), "positive_prompts": ["w12 w13"]},
    ]
    own: dict[str, Any] = {"base_model": str(folders["base"]), "gate_mode": gate, "experts": experts, **more}
    if shared:
        own["shared_experts"] = [{"source_model": str(folders["a"]), "positive_prompts": ["w4 w39"]}]
    return yaml.safe_dump(own)


def models(tiny_model: TinyModel, kind: str, **overrides: Any) -> dict[str, Path]:
    return {name: tiny_model(name, kind, seed, **overrides) for seed, name in enumerate(("base", "a", "b"))}


def by_mergekit(text: str, out: Path) -> None:
    """Write the mixture with mergekit's own code, noise from seed 0."""
    pytest.importorskip("mergekit.moe")
    from mergekit.merge import MergeOptions
    from mergekit.moe.config import MoEMergeConfig
    from mergekit.scripts.moe import build

    with torch.random.fork_rng():
        torch.manual_seed(0)
        build(MoEMergeConfig.model_validate(yaml.safe_load(text)), str(out), MergeOptions(), device="cpu")


@pytest.mark.parametrize(
    ("kind", "gate", "more"),
    [
        ("llama", "cheap_embed", {}),
        ("llama", "hidden", {"dtype": "bfloat16"}),
        ("llama", "random", {"noise": True}),
        ("qwen3", "hidden_avg", {"experts_per_token": 1}),
        ("qwen2", "uniform_random", {"shared": True}),
        ("llama", "cheap_embed", {"shared": True}),
    ],
)
def test_parity_with_mergekit_moe(
    kind: str, gate: str, more: dict[str, Any], tiny_model: TinyModel, tmp_path: Path
) -> None:
    folders = models(tiny_model, kind)
    more = dict(more)
    noise = more.pop("noise", False)
    text = recipe_of(folders, gate, **more)
    if noise:
        text = text.replace("residual_scale: 0.5", "residual_scale: 0.5\n  noise_scale: 0.1")
    found = dense_mixture(read_mixture(text), tmp_path / "own")
    by_mergekit(text, tmp_path / "theirs")
    own, theirs = load(tmp_path / "own"), load(tmp_path / "theirs")
    assert type(own) is type(theirs)
    assert found.experts == 3
    assert own.config.num_experts_per_tok == theirs.config.num_experts_per_tok == more.get("experts_per_token", 2)
    assert own.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        mine = own.state_dict()[name]
        assert mine.dtype == tensor.dtype, name
        assert torch.equal(mine, tensor), (name, float((mine - tensor).abs().max()))
    with torch.no_grad():
        ids = torch.arange(4, 14)[None]
        torch.testing.assert_close(own(ids).logits, theirs(ids).logits)


def test_a_mixture_is_a_model_like_any_other(
    tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written by the verb, opened in a pool, its experts the sources' feed-forward layers."""
    folders = models(tiny_model, "llama")
    (tmp_path / "moe.yml").write_text(recipe_of({name: Path(name) for name in folders}, "random"))
    assert main(["mixture", str(tmp_path / "moe.yml"), str(tmp_path / "out"), "--seed", "3"]) == 0
    text = capsys.readouterr().out
    assert "mixtral: 3 experts in each of 2 layers" in text
    pool = open_pool({"own": str(tmp_path / "out")})
    dense = load(folders["b"]).state_dict()
    for part, name in (("gate_proj", "w1"), ("up_proj", "w3")):
        mine = pool.read("own", f"model.layers.1.block_sparse_moe.experts.1.{name}.weight")
        assert torch.equal(mine, dense[f"model.layers.1.mlp.{part}.weight"])
    down = pool.read("own", "model.layers.1.block_sparse_moe.experts.1.w2.weight")
    assert torch.equal(down, 0.5 * dense["model.layers.1.mlp.down_proj.weight"])
    assert json.loads((tmp_path / "out" / MIXTURE_FILE).read_text())["gate_mode"] == "random"
    assert main(["mixture", str(tmp_path / "moe.yml"), str(tmp_path / "out")]) == 2
    assert "not empty" in capsys.readouterr().err


def test_one_expert_of_all_is_the_dense_model(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Experts that are all one model: whichever a token is sent to, the mixture computes what the model does."""
    folder = tiny_model("base")
    experts = [{"source_model": str(folder), "positive_prompts": [f"w{i}"]} for i in (4, 5)]
    text = yaml.safe_dump({"base_model": str(folder), "gate_mode": "cheap_embed", "experts": experts})
    dense_mixture(read_mixture(text, equal=True), tmp_path / "out")
    ids = torch.arange(4, 14)[None]
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "out")(ids).logits, load(folder)(ids).logits, atol=1e-5, rtol=1e-5)


def test_what_no_mixture_is_made_of(tiny_model: TinyModel, tmp_path: Path) -> None:
    biased = models(tiny_model, "llama", attention_bias=True)
    with pytest.raises(RecipeError, match="Mixtral has no place for the base's"):
        dense_mixture(read_mixture(recipe_of(biased, "random")), tmp_path / "out")
