"""The resident model holds what comes through plans, whatever loading made of its module."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from models.architectures import save_pool
from safetensors.torch import load_file, save_file
from tiny_models import TinyModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from evomerge.errors import EvomergeWarning
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool

IDS = torch.arange(3, 19).view(2, 8)


def logits(resident: Resident, pool: Pool, weights: dict[str, float]) -> torch.Tensor:
    resident.apply(make_plan(pool.info.linear(weights), pool))
    with torch.no_grad():
        return resident.model.module(IDS).logits.clone()


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "gpt2", "gemma2", "mixtral", "bert_masked"])
def test_poisoned_loading_does_not_change_a_score(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = save_pool(kind, tmp_path)
    pool = open_pool({name: str(folder) for name, folder in folders.items()}, base="base")
    clean = Resident(pool, cache=0)
    wanted = [logits(clean, pool, {"base": 1.0}), logits(clean, pool, {"base": 0.5, "a": 0.5})]
    load = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def poisoned(cls: Any, *args: Any, **options: Any) -> Any:
        module = load(cls, *args, **options)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(0.7)
            for name, buffer in module.state_dict().items():
                if name in pool.layout.parameters.values():
                    buffer.fill_(1)
        return module

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(poisoned))
    spoilt = Resident(pool, cache=0)
    assert torch.equal(logits(spoilt, pool, {"base": 1.0}), wanted[0])
    assert torch.equal(logits(spoilt, pool, {"base": 0.5, "a": 0.5}), wanted[1])


def test_nothing_else_in_the_folder_is_loaded(tiny_model: TinyModel) -> None:
    """A second set of weights, stored buffers of another length scale, and an adapter beside the model."""
    folder = tiny_model("a")
    wanted = AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits.detach()
    tensors = load_file(folder / "model.safetensors")
    frequencies = torch.full((2,), 9.0)
    save_file(tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": frequencies}, folder / "model.safetensors")
    other = {name: tensor + 1.0 for name, tensor in tensors.items()}
    save_file(other, folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(other, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"}))
    with pytest.warns(EvomergeWarning) as said:  # two are looked at below
        pool = open_pool({"a": str(folder)})
    texts = " ".join(str(warning.message) for warning in said)
    assert "holds two models: model.safetensors and the shards of model.safetensors.index.json differ" in texts
    assert "holds an adapter beside a model" in texts
    resident = Resident(pool, cache=0)
    assert torch.equal(resident.model.module(IDS).logits, wanted)
    assert torch.equal(logits(resident, pool, {"a": 1.0}), wanted)


def test_generation_settings_are_those_of_the_folder(tiny_model: TinyModel) -> None:
    folder = tiny_model("a")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(deepcopy(settings) | {"max_new_tokens": 7}))
    resident = Resident(open_pool({"a": str(folder)}), cache=0)
    assert resident.model.module.generation_config.max_new_tokens == 7
    assert resident.model.module.name_or_path == str(folder)
