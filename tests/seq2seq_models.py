"""Tiny encoder-decoders, with a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny_models import write_tokenizer

KINDS = ("t5", "t5_untied", "bart")


def save_seq2seq(folder: Path, kind: str, seed: int, **overrides: Any) -> Path:
    """Save a random T5 of two layers in each stack, or a BART of two in its encoder and three in its decoder."""
    from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
    common: dict[str, Any] = {"vocab_size": 40, "d_model": 16, **ids}
    if kind == "bart":
        sizes = {"encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
        widths = {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 64}
        config: Any = BartConfig(**{**common, **sizes, **widths, "forced_eos_token_id": None, **overrides})
        cls: Any = BartForConditionalGeneration
    else:
        sizes = {"num_layers": 2, "num_heads": 4, "d_kv": 4, "d_ff": 24}
        gated = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if kind == "t5_untied" else {}
        config = T5Config(**{**common, **sizes, "relative_attention_num_buckets": 8, **gated, **overrides})
        cls = T5ForConditionalGeneration
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cls(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                scale = 0.1 if "norm" in name or name.endswith("bias") else 0.3
                noise = scale * torch.randn(parameter.shape)
                parameter.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
            if kind == "t5_untied":  # as T5 1.1 and FLAN are: transformers ties what a checkpoint does not hold twice
                model.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn(config.vocab_size, config.d_model))
                model.all_tied_weights_keys.pop("lm_head.weight", None)
    model.save_pretrained(folder)
    if kind == "t5_untied":
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": False}))
    write_tokenizer(folder, 40)
    return folder
