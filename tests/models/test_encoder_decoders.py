"""Encoder-decoders: two stacks of slices, merged and exported like one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from seq2seq_models import KINDS, save_seq2seq
from transformers import AutoModelForSeq2SeqLM

from evomerge.errors import ConfigError, PoolError, RecipeError
from evomerge.export.writer import write_model
from evomerge.merge.methods import specs
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe
from search_spaces.data_flow import DataFlowSpace


def pool_of(tmp_path: Path, kind: str) -> Pool:
    folders = [save_seq2seq(tmp_path / name, kind, seed) for seed, name in enumerate(("base", "a", "b"))]
    return open_pool({folder.name: str(folder) for folder in folders}, "base")


@pytest.mark.parametrize("kind", KINDS)
def test_two_stacks_of_slices(kind: str, tmp_path: Path) -> None:
    """Layers are counted through the encoder and on through the decoder; every tensor has its slice."""
    pool = pool_of(tmp_path, kind)
    layout = pool.layout
    layers = 5 if kind == "bart" else 4
    assert layout.layers == pool.info.layers == layers
    head = ["head"] if kind != "t5" else []
    assert [str(own) for own in layout.slices] == [
        "embed",
        *(f"layers.{i}.{part}" for i in range(layers) for part in ("attn", "mlp", "norm")),
        *([] if kind == "bart" else ["final_norm"]),
        *head,
    ]
    for slice_, names in layout.tensors.items():
        for name in names:
            stack = "encoder." if slice_.layer is not None and slice_.layer < 2 else "decoder."
            number = 0 if slice_.layer is None else slice_.layer - (0 if slice_.layer < 2 else 2)
            if slice_.layer is not None:
                assert stack in name, (slice_, name)
                assert f".{number}." in name, (slice_, name)
            if slice_.component == "norm":
                assert "norm" in name, (slice_, name)
            if slice_.component == "attn":
                assert "attn" in name.lower() or "attention" in name.lower(), (slice_, name)
    across = [name for name in layout.tensors[SliceId("attn", 3)] if "EncDec" in name or "encoder_attn" in name]
    assert len(across) == (8 if kind == "bart" else 4)
    outer = {str(s): set(names) for s, names in layout.tensors.items() if s.layer is None}
    if kind == "bart":
        assert {name.partition("model.")[2] for name in outer["embed"]} == {
            "shared.weight",
            *(
                f"{p}.{n}"
                for p in ("encoder", "decoder")
                for n in ("embed_positions.weight", "layernorm_embedding.weight", "layernorm_embedding.bias")
            ),
        }
        assert outer["head"] == {"final_logits_bias"}
    else:
        assert outer["embed"] == {"shared.weight"}
        assert outer["final_norm"] == {"encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_resident_model_is_the_exported_one(kind: str, tmp_path: Path) -> None:
    pool = pool_of(tmp_path, kind)
    weights = {"base": 0.5, "a": 0.3, "b": 0.2}
    recipe = pool.info.linear(weights)
    out = write_model(recipe, pool, tmp_path / "out")
    read = {name: load_file(tmp_path / name / "model.safetensors") for name in weights}
    for name, tensor in load_file(out / "model.safetensors").items():
        torch.testing.assert_close(tensor, sum(w * read[model][name] for model, w in weights.items()))
    exported = AutoModelForSeq2SeqLM.from_pretrained(out).eval()
    resident = Resident(pool)
    resident.apply(make_plan(recipe, pool))
    ids, labels = torch.tensor([[5, 6, 7, 2]]), torch.tensor([[8, 9, 2]])
    with torch.no_grad():
        live = resident.model.module(input_ids=ids, labels=labels).logits
        torch.testing.assert_close(live, exported(input_ids=ids, labels=labels).logits)
        own = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "a").eval()
        resident.apply(make_plan(pool.info.linear({"a": 1.0}), pool))
        torch.testing.assert_close(
            resident.model.module(input_ids=ids, labels=labels).logits, own(input_ids=ids, labels=labels).logits
        )
        written = resident.model.module.generate(ids, max_length=8, do_sample=False)
        assert torch.equal(written, own.generate(ids, max_length=8, do_sample=False))


def test_what_an_encoder_decoder_cannot_do(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, "t5")
    why = "it is an encoder-decoder, of two stacks of layers: a path goes through one"
    assert (pool.info.immovable, pool.info.unscalable) == (why, why)
    with pytest.raises(ConfigError, match="layers of this architecture cannot change places: it is an encoder-decoder"):
        DataFlowSpace(pool.info, specs())
    moved = [SliceRecipe(s, "passthrough", (Input("a", 0 if s.layer == 1 else None),)) for s in pool.info.slices]
    with pytest.raises(
        RecipeError, match=r"slice layers\.1\.attn takes layer 0 of a; layers of this architecture stay"
    ):
        make_plan(pool.info.recipe(moved), pool)
    fewer = [e for e in pool.info.linear({"a": 1.0}).slices if e.slice.layer is None or e.slice.layer < 3]
    with pytest.raises(RecipeError, match="the recipe has 3 layers; an encoder-decoder keeps its layers: 4"):
        make_plan(Recipe(pool.info.refs, tuple(fewer), "float32", "base"), pool)
    deep = save_seq2seq(tmp_path / "deep", "t5", 9, num_layers=3)
    with pytest.raises(PoolError, match="model 'deep' has 3 layers in its encoder, 'base' has 2"):
        open_pool({"base": str(tmp_path / "base"), "deep": str(deep)})
    wide = save_seq2seq(tmp_path / "wide", "t5", 9, num_decoder_layers=3)
    with pytest.raises(PoolError, match="model 'wide' has 3 layers in its decoder, 'base' has 2"):
        open_pool({"base": str(tmp_path / "base"), "wide": str(wide)})


def test_an_encoder_decoder_has_padding_too(tmp_path: Path) -> None:
    """BART's bias of logits has its rows along the second axis."""
    base, wide = save_seq2seq(tmp_path / "base", "bart", 0), save_seq2seq(tmp_path / "wide", "bart", 1, vocab_size=44)
    with pytest.warns(UserWarning, match="rows of embeddings are made 40"):
        pool = open_pool({"base": str(base), "wide": str(wide)}, "base")
    assert pool.read("wide", "final_logits_bias").shape == (1, 40)
    assert torch.equal(
        pool.read("wide", "model.shared.weight"), load_file(wide / "model.safetensors")["model.shared.weight"][:40]
    )
