"""mergekit 0.1.5 on the exported files of paths, past two limits of its own that have nothing to do with paths.

GPT-NeoX: its table of tensors asks for buffers that transformers no longer writes (``Tensor
gpt_neox.layers.0.attention.bias required but not present in model``). It is given copies of the sources that hold
them, as old checkpoints do.

Qwen2 and Qwen3: it changes the number of layers alone. It has written the tensors when ``cfg_out.save_pretrained`` in
``mergekit/merge.py`` fails (``num_hidden_layers (7) must be equal to the number of layer_types (3)``). They are loaded
under our configuration.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers.utils import logging

LAYER_TYPES = ("qwen2", "qwen3")


def with_old_buffers(folder: Path) -> Path:
    """A copy of a GPT-NeoX beside it, with the buffers that transformers once wrote."""
    copied = Path(shutil.copytree(folder, folder.with_name(f"{folder.name}-old")))
    tensors = load_file(copied / "model.safetensors")
    layers = {name.rpartition(".attention.dense.weight")[0] for name in tensors if "attention.dense.weight" in name}
    for layer in layers:
        tensors[f"{layer}.attention.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
        tensors[f"{layer}.attention.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{layer}.attention.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    return copied


def by_mergekit(kind: str, text: str, out: Path, ours: Path) -> Path:
    """What mergekit makes of a file, as a folder that can be loaded.

    Args:
        kind: of architecture.
        text: the file.
        out: folder to write.
        ours: the same path exported; its configuration is taken where mergekit cannot save its own.
    """
    config = pytest.importorskip("mergekit.config")
    merge = pytest.importorskip("mergekit.merge")
    options = pytest.importorskip("mergekit.options")
    logging.disable_progress_bar()
    content = yaml.safe_load(text)
    if kind == "gpt_neox":
        for part in content["slices"]:
            for source in part["sources"]:
                source["model"] += "-old"
    quiet = options.MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)
    try:
        merge.run_merge(config.MergeConfiguration.model_validate(content), str(out), quiet)
    except Exception as error:
        if kind not in LAYER_TYPES or "must be equal to the number of `layer_types`" not in str(error):
            raise
        shutil.copyfile(ours / "config.json", out / "config.json")
    return out
