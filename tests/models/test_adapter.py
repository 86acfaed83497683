"""Adapters by their settings: hand-made folders, no PEFT."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from evomerge.errors import PoolError
from evomerge.models.checkpoints.adapter import Adapter

SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": "org/base"}
NAME = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text(json.dumps(SETTINGS))
    factors = {f"{NAME}.lora_A.weight": torch.ones(2, 4), f"{NAME}.lora_B.weight": torch.ones(4, 2)}
    save_file(factors, tmp_path / "adapter_model.safetensors")
    return tmp_path


def with_settings(folder: Path, **settings: Any) -> Adapter:
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    return Adapter(folder)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / math.sqrt(2)),
        ({"lora_alpha": 1.5}, 0.75),
        ({"r": 9, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4}}, 2.0),
        ({"r": 9, "rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"proj": 4}}, 3.0),
        ({"r": 9, "rank_pattern": {"layers.1.+": 3, r"layers\.\d+\.self_attn\.[qk]_proj": 2, "q_proj": 5}}, 3.0),
        # Keys of older versions, and of others that change nothing in the weights.
        ({"loftq_config": {}, "megatron_core": "megatron.core", "lora_dropout": 0.1, "future": None}, 3.0),
        ({"init_lora_weights": "gaussian"}, 3.0),
    ],
)
def test_scale_is_alpha_over_rank(settings: dict[str, Any], scale: float, folder: Path) -> None:
    changes = with_settings(folder, **settings).changes
    assert list(changes) == ["model.layers.0.self_attn.q_proj.weight"]
    assert changes["model.layers.0.self_attn.q_proj.weight"].scale == pytest.approx(scale)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "the adapter is of type IA3; LORA; merge it into its base with PEFT"),
        ({"peft_type": None}, "the adapter is of type None"),
        ({"use_dora": True}, "sets use_dora: DoRA also scales the columns"),
        ({"alora_invocation_tokens": [1]}, "sets alora_invocation_tokens: it acts on part of the text"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "sets layer_replication"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "sets target_parameters"),
        ({"trainable_token_indices": [1]}, "sets trainable_token_indices"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which also changes the base.*path_initial_model"),
        ({"init_lora_weights": "loftq"}, "'loftq', which also changes the base"),
        ({"r": 0}, "r 0; a whole number from 1"),
        ({"r": 2.5}, r"r 2\.5; a whole number from 1"),
        ({"r": None}, "r None; a number"),
        ({"r": True}, "r True; a number"),
        ({"lora_alpha": "6"}, "lora_alpha '6'; a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan; a finite number"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern 0; a whole number"),
        ({"rank_pattern": [2]}, r"rank_pattern \[2\]; a mapping"),
        ({"alpha_pattern": {"q_(proj": 2}}, r"alpha_pattern has 'q_\(proj'; regular expressions"),
        ({"modules_to_save": "lm_head"}, "modules_to_save 'lm_head'; a list"),
    ],
)
def test_other_kinds_and_bad_settings_are_refused(settings: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(PoolError, match=message) as caught:
        with_settings(folder, **settings)
    assert "adapter_config.json" in str(caught.value)


def test_parts_of_other_kinds_are_refused_by_name(folder: Path) -> None:
    save_file({f"{NAME}.lora_magnitude_vector": torch.ones(4)}, folder / "adapter_model.safetensors")
    with pytest.raises(PoolError, match=r"q_proj\.lora_magnitude_vector' is not part of a plain LoRA adapter"):
        _ = Adapter(folder).changes


def test_folders_that_hold_no_adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.rename(folder / "other.safetensors")
    with pytest.raises(PoolError, match=r"has no adapter_model\.safetensors"):
        Adapter(folder)
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(PoolError, match=r"only adapter_model\.bin; pickled weights can run code"):
        Adapter(folder)
    (folder / "other.safetensors").rename(weights)
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(PoolError, match=r"adapter_model\.safetensors is truncated: tensor '"):
        Adapter(folder)
    with pytest.raises(PoolError, match=r"has no adapter_config\.json; what follows \+ is a LoRA adapter"):
        Adapter(tmp_path_factory.mktemp("empty"))


def test_fingerprint_is_of_what_is_folded(folder: Path) -> None:
    before = Adapter(folder).fingerprint()
    assert with_settings(folder, base_model_name_or_path="x", inference_mode=False).fingerprint() == before
    assert with_settings(folder, lora_alpha=7).fingerprint() != before
    with_settings(folder)
    factors = {f"{NAME}.lora_A.weight": torch.ones(2, 4), f"{NAME}.lora_B.weight": -torch.ones(4, 2)}
    save_file(factors, folder / "adapter_model.safetensors")
    assert Adapter(folder).fingerprint() != before
