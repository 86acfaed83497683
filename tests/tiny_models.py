"""Configurations of tiny models of several architectures, and a tokenizer for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

TinyModel = Callable[..., Path]
"""The type of the fixture `tiny_model`."""

_SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
_HEAD = {"head_dim": 4}
# Class, and what it needs beside or instead of the common values (``None`` takes one out).
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True}),
    "mistral": ("Mistral", _HEAD),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", _HEAD),
    "gemma2": ("Gemma2", {**_HEAD, "query_pre_attn_scalar": 4, "sliding_window": 8}),
    "phi3": ("Phi3", {"num_key_value_heads": 4}),
    "gpt_neox": ("GPTNeoX", {"num_key_value_heads": None}),
    "gpt2": (
        "GPT2",
        dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"))
        | {"num_key_value_heads": None, "max_position_embeddings": None}
        | {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32},
    ),
}


def tiny_config(kind: str, **overrides: Any) -> Any:
    """The transformers configuration of a tiny model."""
    import transformers

    name, own = ARCHITECTURES[kind]
    values = {key: value for key, value in {**_SMALL, **own, **overrides}.items() if value is not None}
    return getattr(transformers, f"{name}Config")(**values)


def write_tokenizer(folder: Path, size: int = 40, renamed: dict[int, str] | None = None) -> None:
    """A word-level fast tokenizer of `size` tokens; `renamed` replaces single tokens."""
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{i}" for i in range(4, size))]
    for i, word in (renamed or {}).items():
        words[i] = word
    content = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": words[3]},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    names = {"pad_token": words[0], "bos_token": words[1], "eos_token": words[2], "unk_token": words[3]}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
