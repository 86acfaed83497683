"""Copies of models in other widths: narrower ones compute what they did, and fit back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import TinyModel
from transformers import AutoModelForCausalLM

from evomerge.cli.main import main
from evomerge.errors import PoolError
from evomerge.export.fitted_widths import fit_widths
from evomerge.models.opening import open_pool

WIDE = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4}
TOKENS = torch.tensor([[1, 7, 30, 12, 5]])


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = load(folder)(TOKENS).logits
    return found


@pytest.mark.parametrize("kind", ["mistral", "qwen3"])
def test_a_narrower_model_computes_the_same_in_its_new_widths_and_fits_back(
    kind: str, tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow, wide = tiny_model("narrow", kind, 0), tiny_model("wide", kind, 1, **WIDE)
    assert main(["align", str(wide), str(narrow), str(tmp_path / "fitted"), "--widths"]) == 0
    said = capsys.readouterr().out
    assert "hidden_size: 16 before, 24 after" in said
    assert "experimental: the copy computes what the model does" in said
    torch.testing.assert_close(logits(tmp_path / "fitted"), logits(narrow), rtol=1e-3, atol=1e-4)
    pool = open_pool({"wide": str(wide), "fitted": str(tmp_path / "fitted")})  # they can be merged now
    assert pool.info.layers == 2
    back = fit_widths(str(narrow), str(tmp_path / "fitted"), tmp_path / "back")
    assert (back.widths["intermediate_size"], back.narrower) == ((40, 24), False)
    ours, theirs = load(narrow).state_dict(), load(tmp_path / "back").state_dict()
    for name, tensor in ours.items():  # every unit is most like itself
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: n + text)


def test_what_cannot_be_fitted_is_said(tiny_model: TinyModel, tmp_path: Path) -> None:
    narrow, out = str(tiny_model("narrow", "mistral")), tmp_path / "out"
    for name, overrides, message in (
        ("same", {}, "the two models have the same widths"),
        ("deep", {"num_hidden_layers": 3, **WIDE}, r"'mistral' of 3 layers, the model .* of 2 layers; .*layer_map"),
        (
            "heads",
            {**WIDE, "head_dim": 8},
            r"the model's heads have 4 dimensions and 2 queries .*, the reference's 8 and 2",
        ),
    ):
        with pytest.raises(PoolError, match=message):
            fit_widths(str(tiny_model(name, "mistral", 1, **overrides)), narrow, out)
    neox = [str(tiny_model(name, "gpt_neox", 0, hidden_size=size)) for name, size in (("g", 16), ("h", 32))]
    with pytest.raises(PoolError, match="norms of the kind LayerNorm; norms of the root mean square"):
        fit_widths(*neox, out)
    assert not out.exists()
