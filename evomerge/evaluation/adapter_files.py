"""Adapters as PEFT saves them: what an engine or a server loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from evomerge.merge.adapters.places import AdapterBase, Kind, Places
from evomerge.merge.methods.low_rank import Factors

_PREFIX = "base_model.model."
_NAMES: Mapping[str, tuple[str, str]] = {"embedding": ("lora_embedding_A", "lora_embedding_B")}
_USUAL = ("lora_A.weight", "lora_B.weight")


def write_adapter(folder: Path, factors: Mapping[str, tuple[Factors, Kind]], base: AdapterBase, places: Places) -> None:
    """Write an adapter's two files into a folder that is there and empty.

    All modules get one rank, filled up with zeros: who loads an adapter takes the rank from its settings.

    Args:
        folder: of the adapter.
        factors: by module, as `ExactAdapters.of` gives them; not empty.
        base: what it is added to.
        places: of the base's modules.

    Raises:
        OSError, RuntimeError: the folder cannot be written.
    """
    rank = max(own.rank for own, _ in factors.values())
    tensors = {}
    for module, (own, kind) in factors.items():
        turned = kind in ("turned", "embedding")
        a, b = (own.b.T, own.a.T) if turned else (own.a, own.b)
        wide_a, wide_b = torch.zeros(rank, a.shape[1]), torch.zeros(b.shape[0], rank)
        wide_a[: own.rank], wide_b[:, : own.rank] = a, b
        for part, tensor in zip(_NAMES.get(kind, _USUAL), (wide_a, wide_b), strict=True):
            tensors[f"{_PREFIX}{module}.{part}"] = tensor
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.address,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,  # the scale is one
        "target_modules": places.patterns(set(factors)),
        "bias": "none",
        "fan_in_fan_out": any(kind == "turned" for _, kind in factors.values()),
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
