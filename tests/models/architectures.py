"""Tiny models of every kind of architecture, as pools of fine-tunes on disk.

folders = save_pool("mixtral", tmp_path)             # base, a and b: random, and the random one with noise
pool = open_pool({name: str(folder) for name, folder in folders.items()}, base="base")
module = load(folders["a"])                          # by plain transformers
module(**inputs("mixtral"))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}
_TEXT = _SIZES | {"vocab_size": 40, "max_position_embeddings": 32, "pad_token_id": 0, "num_labels": 3}
_DECODER = _TEXT | {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
_HEAD = {"head_dim": 4}
_EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_IMAGES = _SIZES | {"image_size": 8, "patch_size": 4, "num_labels": 3}


@dataclass(frozen=True)
class Architecture:
    """A transformers class with a tiny configuration.

    Attributes:
        cls: the class that the checkpoint names.
        config: the configuration's class.
        auto: the class of transformers' that finds `cls`.
        values: arguments of the configuration.
        images: whether it takes pixels rather than tokens.
    """

    cls: str
    config: str
    auto: str
    values: Mapping[str, Any] = field(default_factory=dict)
    images: bool = False


def _decoder(name: str, values: Mapping[str, Any] = _DECODER, config: str | None = None, **own: Any) -> Architecture:
    cls = f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    return Architecture(cls, config or f"{name}Config", "AutoModelForCausalLM", {**values, **own})


def _encoder(name: str, task: str, **own: Any) -> Architecture:
    return Architecture(f"{name}For{task}", f"{name}Config", f"AutoModelFor{task}", {**_TEXT, **own})


ARCHITECTURES: dict[str, Architecture] = {
    "llama": _decoder("Llama"),
    "llama_tied": _decoder("Llama", tie_word_embeddings=True),
    "llama_classifier": Architecture(
        "LlamaForSequenceClassification", "LlamaConfig", "AutoModelForSequenceClassification", _DECODER
    ),
    "mistral": _decoder("Mistral", **_HEAD),
    "qwen2": _decoder("Qwen2"),
    "qwen3": _decoder("Qwen3", **_HEAD),
    "gemma2": _decoder("Gemma2", **_HEAD, query_pre_attn_scalar=4, sliding_window=8),
    "gemma3": _decoder("Gemma3", config="Gemma3TextConfig", **_HEAD, query_pre_attn_scalar=4, sliding_window=8),
    "gemma3_multimodal": Architecture(
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        "AutoModelForCausalLM",
        {
            "text_config": _DECODER | _HEAD | {"query_pre_attn_scalar": 4, "sliding_window": 8},
            "vision_config": _IMAGES,
            "mm_tokens_per_image": 1,
            "image_token_index": 39,
            "boi_token_index": 38,
            "eoi_token_index": 37,
        },
    ),
    "phi3": _decoder("Phi3"),
    "olmo2": _decoder("Olmo2"),
    "gpt2": _decoder(
        "GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 40, "initializer_range": 0.2}
    ),
    "opt": _decoder("OPT", _TEXT, ffn_dim=24, word_embed_proj_dim=16),
    "gpt_neox": _decoder("GPTNeoX", _TEXT),
    "mixtral": _decoder("Mixtral", num_local_experts=3, num_experts_per_tok=2),
    "qwen2_moe": _decoder("Qwen2Moe", **_EXPERTS, shared_expert_intermediate_size=20),
    "qwen3_moe": _decoder("Qwen3Moe", **_HEAD, **_EXPERTS, mlp_only_layers=[0]),
    "gpt_oss": _decoder("GptOss", **_HEAD, num_local_experts=3, num_experts_per_tok=2, sliding_window=8),
    "bert_classifier": _encoder("Bert", "SequenceClassification"),
    "bert_masked": _encoder("Bert", "MaskedLM"),
    "roberta_classifier": _encoder("Roberta", "SequenceClassification"),
    "roberta_masked": _encoder("Roberta", "MaskedLM"),
    "roberta_tokens": _encoder("Roberta", "TokenClassification"),
    "deberta_classifier": _encoder(
        "DebertaV2", "SequenceClassification", relative_attention=True, pos_att_type=["p2c", "c2p"]
    ),
    "vit": Architecture("ViTForImageClassification", "ViTConfig", "AutoModelForImageClassification", _IMAGES, True),
    "dinov2": Architecture(
        "Dinov2ForImageClassification",
        "Dinov2Config",
        "AutoModelForImageClassification",
        _IMAGES | {"use_swiglu_ffn": True, "mlp_ratio": 2},
        True,
    ),
    "mobilenet": Architecture(
        "MobileNetV1ForImageClassification",
        "MobileNetV1Config",
        "AutoModelForImageClassification",
        {"depth_multiplier": 0.125, "image_size": 8, "num_labels": 3},
        True,
    ),
}


def build(kind: str, **overrides: Any) -> Any:
    """A random model in evaluation mode, the same at every call."""
    import transformers

    architecture = ARCHITECTURES[kind]
    config = getattr(transformers, architecture.config)(**{**architecture.values, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = getattr(transformers, architecture.cls)(config)
        with torch.no_grad():  # norms and biases start as ones and zeros, which would hide mistakes
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    return module.eval()


def save_pool(
    kind: str,
    root: Path,
    names: tuple[str, ...] = ("base", "a", "b"),
    dtype: str = "float32",
    save: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> dict[str, Path]:
    """Folders of a random model and of fine-tunes of it: the first name is the random one, the others have noise.

    Args:
        kind: of `ARCHITECTURES`.
        root: where the folders go.
        names: of the models.
        dtype: of the saved weights.
        save: arguments of `save_pretrained`.
        overrides: of the configuration's values.
    """
    module = build(kind, **overrides)
    origin = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    folders = {}
    for seed, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * (0.05 if seed else 0)
            parameter.data = (origin[key] + noise).to(getattr(torch, dtype))
        for tensor in module.state_dict().values():
            if not tensor.is_floating_point():  # counters of batch norms
                tensor.fill_(10 + seed)
        module.config.dtype = getattr(torch, dtype)
        folders[name] = root / name
        module.save_pretrained(folders[name], **(save or {}))
    return folders


def load(folder: Path, cls: str | None = None) -> Any:
    """The model as plain transformers loads it, by the class that its configuration names; nothing may be missing."""
    import transformers

    name = cls or transformers.AutoConfig.from_pretrained(folder).architectures[0]
    module, info = getattr(transformers, name).from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return module


def inputs(kind: str) -> dict[str, torch.Tensor]:
    """Two inputs of a forward pass."""
    if ARCHITECTURES[kind].images:
        return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)}
    return {"input_ids": torch.arange(3, 35).view(2, 16)}
