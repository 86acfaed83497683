"""Heads and embeddings that are one tensor in some models and two in others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_folding import make_adapter
from tiny_models import TinyModel
from transformers import AutoModelForCausalLM

from evomerge.errors import PoolError
from evomerge.export.writer import write_model
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models import tying
from evomerge.models.opening import open_pool, pool_of_recipe

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
IDS = torch.arange(3, 19).view(2, 8)
WIDE = {"vocab_size": 2048, "hidden_size": 16}


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def store_head(folder: Path, change: slice | None = None) -> torch.Tensor:
    """Give a tied model a head of its own: its embeddings, some rows changed."""
    tensors = load_file(folder / "model.safetensors")
    head = tensors[EMBED].clone()
    if change is not None:
        head[change] += 1.0
    save_file(tensors | {HEAD: head}, folder / "model.safetensors", metadata={"format": "pt"})
    return head


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(IDS).logits


@pytest.mark.parametrize("rows", [slice(0, 1), slice(100, 130), slice(2047, 2048)])
def test_a_tied_head_that_differs_in_any_row(rows: slice, tiny_model: TinyModel) -> None:
    a, b = (tiny_model(name, "llama_tied", seed, **WIDE) for seed, name in enumerate("ab"))
    store_head(b, rows)
    with pytest.raises(PoolError, match=r"model 'b' stores different values in .*set tie_word_embeddings to false"):
        open_pool({"a": str(a), "b": str(b)})


def test_an_adapter_whose_trained_copies_differ_outside_of_all_samples(tiny_model: TinyModel, tmp_path: Path) -> None:
    base = tiny_model("base", "llama_tied", **WIDE)
    adapter = make_adapter(
        base, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    tensors = load_file(adapter / "adapter_model.safetensors")
    head, embed = (next(n for n in tensors if part in n) for part in ("lm_head", "embed_tokens"))
    tensors[head] = tensors[embed].clone()
    save_file(tensors, adapter / "adapter_model.safetensors")
    assert open_pool({"a": f"{base}+{adapter}"}).info.sources == ("a",)
    tensors[head][100:130] += 1.0
    save_file(tensors, adapter / "adapter_model.safetensors")
    for tied in (False, True):
        settings = json.loads((adapter / "adapter_config.json").read_text()) | {"ensure_weight_tying": tied}
        (adapter / "adapter_config.json").write_text(json.dumps(settings))
        with pytest.raises(PoolError, match="ties to another tensor"):
            open_pool({"a": f"{base}+{adapter}"})


@pytest.mark.parametrize("tied_first", [True, False])
def test_a_head_that_equals_the_embeddings_is_tied(tied_first: bool, tiny_model: TinyModel, tmp_path: Path) -> None:
    a, b = (tiny_model(name, "llama_tied", seed) for seed, name in enumerate("ab"))
    store_head(b)
    edit(b, tie_word_embeddings=False)
    names = {"a": str(a), "b": str(b)} if tied_first else {"b": str(b), "a": str(a)}
    pool = open_pool(names)
    assert HEAD not in pool.layout.parameters
    for name, folder in (("a", a), ("b", b)):
        out = write_model(pool.info.linear({name: 1.0}), pool, tmp_path / f"out_{name}")
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True
        assert torch.equal(logits(out), logits(folder))


@pytest.mark.parametrize("tied_first", [True, False])
def test_tied_and_untied_models_are_merged_untied(tied_first: bool, tiny_model: TinyModel, tmp_path: Path) -> None:
    a, b = (tiny_model(name, "llama_tied", seed) for seed, name in enumerate("ab"))
    head = store_head(b, slice(5, 9))
    edit(b, tie_word_embeddings=False)
    names = {"a": str(a), "b": str(b)} if tied_first else {"b": str(b), "a": str(a)}
    pool = open_pool(names)
    resident = Resident(pool, cache=0)
    for name, folder in (("a", a), ("b", b)):
        recipe = pool.info.linear({name: 1.0})
        out = write_model(recipe, pool, tmp_path / f"out_{name}")
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
        assert torch.equal(logits(out), logits(folder))
        resident.apply(make_plan(recipe, pool))
        assert torch.equal(resident.model.module(IDS).logits, logits(folder))
    mean = pool.info.linear({"a": 0.5, "b": 0.5})
    out = write_model(mean, pool_of_recipe(mean), tmp_path / "mean")
    one, other = (load_file(folder / "model.safetensors") for folder in (a, b))
    merged = load_file(out / "model.safetensors")
    torch.testing.assert_close(merged[HEAD], (one[EMBED] + head) / 2)
    torch.testing.assert_close(merged[EMBED], (one[EMBED] + other[EMBED]) / 2)
    resident.apply(make_plan(mean, pool))
    assert torch.equal(resident.model.module(IDS).logits, logits(out))


def test_an_adapted_tied_model_keeps_its_head_and_embeddings_one(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Beside a model that is not tied, a trained copy of tied embeddings is head and embeddings."""
    a, b = (tiny_model(name, "llama_tied", seed) for seed, name in enumerate("ab"))
    adapter = make_adapter(
        a, tmp_path / "ad", target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True
    )
    store_head(b, slice(5, 9))
    edit(b, tie_word_embeddings=False)
    pool = open_pool({"a": f"{a}+{adapter}", "b": str(b)})
    assert torch.equal(pool.read("a", HEAD), pool.read("a", EMBED))
    assert not torch.equal(pool.read("a", EMBED), load_file(a / "model.safetensors")[EMBED])


def test_models_of_the_same_tensors_are_matched_once(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    matched: list[int] = []
    match = tying.match_names
    monkeypatch.setattr(
        tying, "match_names", lambda module, shapes: matched.append(len(shapes)) or match(module, shapes)
    )
    a, b, c = (tiny_model(name, "llama_tied", seed, **WIDE) for seed, name in enumerate("abc"))
    store_head(c)
    open_pool({"a": str(a), "b": str(b), "c": str(c)})
    assert matched == [matched[0], matched[0] + 1]  # the third stores its head as well
