"""Merges of every kind of architecture: written, loaded by plain transformers, and in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models.architectures import ARCHITECTURES, inputs, load, save_pool
from models.merges import assert_close, computed, different, opened, task_arithmetic, tensor_names
from safetensors.torch import load_file, save_file

from evomerge.errors import PoolError
from evomerge.export.writer import write_model
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.recipes.slices import SliceId


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


def output(kind: str, module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module(**inputs(kind)).logits


def rename(folder: Path, *prefixes: str) -> None:
    """Take prefixes off the names of a checkpoint's tensors."""
    tensors = load_file(folder / "model.safetensors")
    for prefix in prefixes:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_merged_written_loaded_and_in_memory(kind: str, tmp_path: Path) -> None:
    folders = save_pool(kind, tmp_path)
    expected = computed(folders)
    pool = opened(folders)
    recipe = task_arithmetic(pool)
    out = write_model(recipe, pool, tmp_path / "merged")
    assert tensor_names(out) == tensor_names(folders["base"])
    assert f"from transformers import {ARCHITECTURES[kind].auto}\n" in (out / "README.md").read_text()

    loaded = load(out, ARCHITECTURES[kind].auto)
    assert type(loaded).__name__ == ARCHITECTURES[kind].cls
    assert_close(loaded.state_dict(), expected, rtol=2e-6, atol=2e-7)

    resident = Resident(pool)
    before = output(kind, resident.model.module)
    resident.apply(make_plan(recipe, pool))
    assert different(resident.model.module, loaded.state_dict()) == set()
    after = output(kind, resident.model.module)
    if ARCHITECTURES[kind].images:  # convolutions round as memory happens to be aligned
        torch.testing.assert_close(after, output(kind, loaded))
    else:
        assert torch.equal(after, output(kind, loaded))
    assert not torch.allclose(after, before, atol=1e-3)


# What the slices of the last layer and those outside the layers hold: modules in the checkpoint's names.
BERT = {
    "attn": {f"attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense")},
    "mlp": {"intermediate.dense", "output.dense"},
    "norm": {"attention.output.LayerNorm", "output.LayerNorm"},
}
BERT_EMBED = {f"embeddings.{part}_embeddings" for part in ("word", "position", "token_type")} | {"embeddings.LayerNorm"}
EXPERTS = {f"mlp.experts.{i}.{part}_proj" for i in range(3) for part in ("gate", "up", "down")} | {"mlp.gate"}
SLICES: dict[str, tuple[str, dict[str, set[str]]]] = {
    "bert_classifier": ("encoder.layer.1", {**BERT, "embed": BERT_EMBED, "head": {"pooler.dense", "classifier"}}),
    "bert_masked": (
        "encoder.layer.1",
        {
            **BERT,
            "embed": BERT_EMBED,
            "head": {"cls.predictions", "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"},
        },
    ),
    "roberta_classifier": ("encoder.layer.1", {**BERT, "head": {"classifier.dense", "classifier.out_proj"}}),
    "roberta_masked": ("encoder.layer.1", {**BERT, "head": {"lm_head", "lm_head.dense", "lm_head.layer_norm"}}),
    "roberta_tokens": ("encoder.layer.1", {"embed": BERT_EMBED, "head": {"classifier"}}),
    "deberta_classifier": (
        "encoder.layer.1",
        {
            "norm": BERT["norm"],
            "embed": {f"embeddings.{p}" for p in ("word_embeddings", "position_embeddings", "LayerNorm")}
            | {"encoder.rel_embeddings"},
            "head": {"pooler.dense", "classifier"},
        },
    ),
    "opt": (
        "decoder.layers.1",
        {
            "norm": {"self_attn_layer_norm", "final_layer_norm"},
            "embed": {"decoder.embed_tokens", "decoder.embed_positions"},
            "final_norm": {"decoder.final_layer_norm"},
        },
    ),
    "vit": (
        "encoder.layer.1",
        {
            "attn": {f"attention.{p}" for p in ("attention.query", "attention.key", "attention.value", "output.dense")},
            "mlp": {"intermediate.dense", "output.dense"},
            "norm": {"layernorm_before", "layernorm_after"},
            "embed": {"embeddings", "embeddings.patch_embeddings.projection"},
            "final_norm": {"layernorm"},
            "head": {"classifier"},
        },
    ),
    "llama_classifier": ("layers.1", {"final_norm": {"norm"}, "head": {"score"}}),
    "mixtral": (
        "layers.1",
        {
            "mlp": {f"block_sparse_moe.experts.{i}.w{j}" for i in range(3) for j in (1, 2, 3)}
            | {"block_sparse_moe.gate"},
            "norm": {"input_layernorm", "post_attention_layernorm"},
        },
    ),
    "qwen2_moe": (
        "layers.1",
        {
            "mlp": EXPERTS
            | {f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")}
            | {"mlp.shared_expert_gate"}
        },
    ),
    "qwen3_moe": ("layers.1", {"mlp": EXPERTS}),
    "olmo2": ("layers.1", {"norm": {"post_attention_layernorm", "post_feedforward_layernorm"}}),
}


@pytest.mark.parametrize("kind", SLICES)
def test_slices(kind: str, tmp_path: Path) -> None:
    layer, wanted = SLICES[kind]
    layout = opened(save_pool(kind, tmp_path, names=("base", "a"))).layout
    for component, modules in wanted.items():
        inner = component in ("attn", "mlp", "norm")
        names = layout.tensors[SliceId(component, 1 if inner else None)]  # type: ignore[arg-type]
        own = {name.rpartition(".")[0] for name in names}
        prefixes = (f"{layer}.",) if inner else ()
        for prefix in ("bert.", "roberta.", "deberta.", "vit.", "model.", *prefixes):
            own = {name.removeprefix(prefix) for name in own}
        assert own == modules


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        (
            "mixtral",
            {f"model.layers.1.mlp.{name}" for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj")},
        ),
        (
            "dinov2",
            {f"mlp.{part}_proj.{name}" for part in ("gate", "up", "down") for name in ("weight", "bias")}
            | {"layer_scale1.lambda1", "layer_scale2.lambda1"},
        ),
    ],
)
def test_one_slice_changes_its_own_tensors_alone(kind: str, changed: set[str], tmp_path: Path) -> None:
    folders = save_pool(kind, tmp_path)
    base, expected = load(folders["base"]).state_dict(), computed(folders)
    pool = opened(folders)
    resident = Resident(pool)
    assert resident.apply(make_plan(task_arithmetic(pool, SliceId("mlp", 1)), pool)).computed == 1
    found = different(resident.model.module, base)
    assert {name.removeprefix("dinov2.encoder.layer.1.").removeprefix("dinov2.layers.1.") for name in found} == changed
    state = resident.model.module.state_dict()
    assert_close({key: state[key] for key in found}, {key: expected[key] for key in found}, 2e-6, 2e-7)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "bert_masked", "vit"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_checkpoints(kind: str, dtype: str, tmp_path: Path) -> None:
    folders = save_pool(kind, tmp_path, dtype=dtype)
    expected = computed(folders)
    pool = opened(folders)
    assert pool.info.dtype == dtype
    out = write_model(task_arithmetic(pool), pool, tmp_path / "merged")
    loaded = load(out)
    assert {str(tensor.dtype) for tensor in load_file(out / "model.safetensors").values()} == {f"torch.{dtype}"}
    one_unit = 2**-10 if dtype == "float16" else 2**-7
    assert_close(loaded.state_dict(), expected, rtol=one_unit, atol=1e-7)
    resident = Resident(pool)
    resident.apply(make_plan(task_arithmetic(pool), pool))
    assert different(resident.model.module, loaded.state_dict()) == set()


@pytest.mark.parametrize("bare", ["base", "a"])
@pytest.mark.parametrize(("kind", "prefix"), [("mixtral", "model."), ("bert_classifier", "bert."), ("vit", "vit.")])
def test_names_without_the_base_models_prefix(kind: str, prefix: str, bare: str, tmp_path: Path) -> None:
    folders = save_pool(kind, tmp_path)
    expected = computed(folders)
    rename(folders[bare], prefix)
    pool = opened(folders)
    out = write_model(task_arithmetic(pool), pool, tmp_path / "merged")
    assert tensor_names(out) == tensor_names(folders["base"])
    assert_close(load(out).state_dict(), expected, rtol=2e-6, atol=2e-7)
    resident = Resident(pool)
    resident.apply(make_plan(task_arithmetic(pool), pool))
    assert_close(resident.model.module.state_dict(), expected, rtol=2e-6, atol=2e-7)


def test_image_processors_are_copied(tmp_path: Path) -> None:
    folders = save_pool("vit", tmp_path, names=("base", "a"))
    content = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "image_mean": [0.1] * 3}
    (folders["base"] / "preprocessor_config.json").write_text(json.dumps(content))
    pool = opened(folders)
    out = write_model(pool.info.linear({"base": 0.5, "a": 0.5}), pool, tmp_path / "merged")
    assert json.loads((out / "preprocessor_config.json").read_text()) == content
    card = (out / "README.md").read_text()
    assert "from transformers import AutoImageProcessor, AutoModelForImageClassification\n" in card
    assert 'processor = AutoImageProcessor.from_pretrained("merged")' in card
    assert "okenizer" not in card.split("## Loading")[1]
    assert Resident(pool).model.tokenizer is None


def test_labels_in_another_order(tmp_path: Path) -> None:
    folders = save_pool("bert_classifier", tmp_path, names=("base", "a"))
    labels = ["bad", "fair", "good"]
    for name, order in (("base", labels), ("a", labels[::-1])):
        config = json.loads((folders[name] / "config.json").read_text())
        config |= {"id2label": dict(enumerate(order)), "label2id": {label: i for i, label in enumerate(order)}}
        (folders[name] / "config.json").write_text(json.dumps(config))
    with pytest.raises(PoolError, match="label 'bad' is number 2 in model 'a' and 0 in 'base'"):
        opened(folders)


def test_old_integer_buffers_are_not_merged(tmp_path: Path) -> None:
    folders = save_pool("bert_masked", tmp_path)
    expected = computed(folders)
    tensors = load_file(folders["a"] / "model.safetensors")
    tensors["bert.embeddings.position_ids"] = torch.arange(32)[None]
    save_file(tensors, folders["a"] / "model.safetensors", {"format": "pt"})
    pool = opened(folders)
    out = write_model(task_arithmetic(pool), pool, tmp_path / "merged")
    assert_close(load(out).state_dict(), expected, rtol=2e-6, atol=2e-7)


def test_weights_stored_as_integers(tmp_path: Path) -> None:
    folders = save_pool("llama", tmp_path, names=("base", "a"))
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = load_file(folders["a"] / "model.safetensors")
    tensors[name] = (tensors[name] * 100).to(torch.int8)
    save_file(tensors, folders["a"] / "model.safetensors", {"format": "pt"})
    with pytest.raises(PoolError, match=rf"model 'a': tensor '{name}' is stored as I8"):
        opened(folders)
