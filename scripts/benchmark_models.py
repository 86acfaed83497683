"""Models of random weights for the benchmarks: a base and fine-tunes a little away from it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from evomerge.export.shards import Declared, ShardWriter
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool

CONFIGS = {
    "40M": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 12000},
    "500M": {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 16, "vocab_size": 16000},
}
"""Llama models by their rough number of parameters."""


def make_pool(folder: Path, size: str, dtype: str, models: int = 3) -> Pool:
    """A pool of `models` in all, the base among them, written below `folder`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **CONFIGS[size], num_attention_heads=8, num_key_value_heads=8, architectures=["LlamaForCausalLM"]
    )
    config.dtype = dtype
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    wanted = getattr(torch, dtype)
    names = ["base", *(chr(ord("a") + i) for i in range(models - 1))]
    for number, name in enumerate(names):
        target = folder / name
        target.mkdir(parents=True)
        (target / "config.json").write_text(json.dumps(config.to_dict()))
        declared = [Declared(tensor, wanted, tuple(shape)) for tensor, shape in shapes.items()]
        with ShardWriter(target, declared, 1 << 62) as writer:
            for index, tensor in enumerate(declared):
                shared = torch.Generator().manual_seed(index)
                own = torch.Generator().manual_seed(1000 * (number + 1) + index)
                weights = torch.randn(tensor.shape, generator=shared).mul_(0.02)
                if number:
                    weights.add_(torch.randn(tensor.shape, generator=own), alpha=0.002)
                writer.write(tensor.name, weights.to(wanted))
            writer.finish()
    return open_pool({name: str(folder / name) for name in names}, base="base")
