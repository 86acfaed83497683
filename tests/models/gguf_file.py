"""A tiny GGUF file, and the weights that it holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

EOS = 28


def write_gguf(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Write a Qwen2 of two layers with matrices of 8 bits; returns them as float32, by their names in transformers."""
    import gguf

    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "qwen2")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(40)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(
        [*(chr(c) for c in range(97, 123)), "ab", "cd", "<eos>", "<pad>", *(str(i) for i in range(10))]
    )
    writer.add_token_types([1] * EOS + [3, 3] + [1] * 10)
    writer.add_token_merges(["a b", "c d"])
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(EOS + 1)
    kept: dict[str, np.ndarray] = {}

    def add(name: str, known: str, *shape: int) -> None:
        values = 0.2 * rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            packed = gguf.quants.quantize(values, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            values = gguf.quants.dequantize(packed, kind)
        kept[known] = values

    add("token_embd.weight", "model.embed_tokens.weight", 40, 32)
    add("output.weight", "lm_head.weight", 40, 32)
    add("output_norm.weight", "model.norm.weight", 32)
    for i in range(2):
        own, known = f"blk.{i}.", f"model.layers.{i}."
        add(f"{own}attn_norm.weight", f"{known}input_layernorm.weight", 32)
        add(f"{own}ffn_norm.weight", f"{known}post_attention_layernorm.weight", 32)
        for part, rows in (("q", 32), ("k", 16), ("v", 16)):
            add(f"{own}attn_{part}.weight", f"{known}self_attn.{part}_proj.weight", rows, 32)
            add(f"{own}attn_{part}.bias", f"{known}self_attn.{part}_proj.bias", rows)
        add(f"{own}attn_output.weight", f"{known}self_attn.o_proj.weight", 32, 32)
        for part, shape in (("gate", (64, 32)), ("up", (64, 32)), ("down", (32, 64))):
            add(f"{own}ffn_{part}.weight", f"{known}mlp.{part}_proj.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept
