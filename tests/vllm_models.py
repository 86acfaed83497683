"""Tiny models that vLLM takes on a processor: heads of 32 and more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_models import write_tokenizer

VOCABULARY = 64
_VALUES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KINDS: dict[str, dict[str, Any]] = {
    "Llama": {"tie_word_embeddings": False},
    "Qwen2": {"tie_word_embeddings": True, "num_attention_heads": 2, "num_key_value_heads": 1},
    "Mistral": {"tie_word_embeddings": False, "sliding_window": None},
    "Gemma": {"tie_word_embeddings": True},
}


def save_models(root: Path, kind: str, **overrides: Any) -> dict[str, str]:
    """Save three random models (base, a, b) of a class of `KINDS`; returns their folders by name."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    values = {**_VALUES, **KINDS[kind], **overrides}
    if kind == "Qwen2":
        del values["head_dim"]  # it is the width by the heads there
    config = getattr(transformers, f"{kind}Config")(**values)
    found = {}
    for seed, name in enumerate(("base", "a", "b")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = getattr(transformers, f"{kind}ForCausalLM")(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() < 2:  # norms and biases start as ones and zeros
                        parameter.add_(torch.randn(parameter.shape), alpha=0.1)
        model.save_pretrained(root / name)
        write_tokenizer(root / name, VOCABULARY)
        found[name] = str(root / name)
    return found


def know_architectures() -> None:
    """Tell vLLM of these classes, which it would look at in a process of its own: half a minute for each."""
    import importlib

    from vllm.model_executor.models.registry import ModelRegistry

    for kind in KINDS:
        module = importlib.import_module(f"vllm.model_executor.models.{kind.lower()}")
        ModelRegistry.register_model(f"{kind}ForCausalLM", getattr(module, f"{kind}ForCausalLM"))


def save_for_tasks(folder: Path, tokenizer_folder: Path, positions: int) -> None:
    """A Llama with the tokenizer that the tasks of the tests are written for."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
