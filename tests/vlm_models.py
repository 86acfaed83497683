"""Tiny models that see, of several kinds, and language models that their language parts can be merged with.

save_vlm(folder, "llava", seed=0)        # with a processor, which takes images of any size
save_words(folder, "llava", seed=1)      # a plain language model of the same kind and width
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny_models import write_tokenizer

ROWS, IMAGE, SIDE = 44, 43, 8
CHAT = (
    "{% for m in messages %}{{ m['role'] }} {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }} {% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}w6 {% endif %}"
)
_TEXT = {
    "vocab_size": ROWS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_EYES = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 4,
}
# Class, configuration of what sees, class of the language model and what its configuration has beside `_TEXT`.
KINDS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "llava": ("Llava", {"vision_feature_layer": -1, "image_seq_length": 4}, "Mistral", {}),
    "llava_next": ("LlavaNext", {"vision_feature_layer": -1, "image_grid_pinpoints": [[8, 8]]}, "Mistral", {}),
    "qwen2_vl": ("Qwen2VL", {}, "Qwen2", {"rms_norm_eps": 1e-6}),
    "smolvlm": ("SmolVLM", {"scale_factor": 1}, "Llama", {"tie_word_embeddings": False, "rms_norm_eps": 1e-5}),
    "gemma3": ("Gemma3", {"mm_tokens_per_image": 1}, "Gemma3Text", {"sliding_window": 8, "query_pre_attn_scalar": 4}),
}


def _config(kind: str, **text: Any) -> Any:
    import transformers

    name, own, language, more = KINDS[kind]
    words = {**_TEXT, **more, **text}
    token = {"image_token_id": IMAGE}
    if kind.startswith("llava"):
        eyes: Any = transformers.CLIPVisionConfig(**_EYES)
        token = {"image_token_index": IMAGE}
    elif kind == "qwen2_vl":
        sizes = {"embed_dim": 8, "depth": 1, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
        eyes = sizes | {"spatial_merge_size": 1}
        words |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 0]}}
    elif kind == "gemma3":
        eyes = _EYES
        token = {"image_token_index": IMAGE, "boi_token_index": IMAGE - 1, "eoi_token_index": IMAGE - 2}
    else:
        eyes = _EYES
    if kind.startswith("llava") or kind == "smolvlm":
        words = getattr(transformers, f"{language}Config")(**words)
    return getattr(transformers, f"{name}Config")(text_config=words, vision_config=eyes, **token, **own)


def build_vlm(kind: str, seed: int, **text: Any) -> Any:
    """A random model that sees."""
    import transformers

    return _random(getattr(transformers, f"{KINDS[kind][0]}ForConditionalGeneration"), _config(kind, **text), seed)


def build_words(kind: str, seed: int, **text: Any) -> Any:
    """A random plain language model of the kind and width of a kind's language part."""
    import transformers

    _, _, language, more = KINDS[kind]
    config = getattr(transformers, f"{language}Config")(**{**_TEXT, **more, **text})
    return _random(getattr(transformers, f"{language.removesuffix('Text')}ForCausalLM"), config, seed)


def _random(cls: Any, config: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = cls(config)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.3)
    return module.eval()


def save(module: Any, folder: Path, rows: int = ROWS) -> Path:
    """Save a model with a tokenizer; one that sees gets a processor, where PIL alone can make it."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    module.save_pretrained(folder)
    write_tokenizer(folder, min(rows, IMAGE - 2))
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    sees = hasattr(module.config, "vision_config")
    if sees:
        special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        content["added_tokens"] = [{"id": IMAGE, "content": "<image>", **special}]
        content["model"]["vocab"] |= {"<image>": IMAGE}
        path.write_text(json.dumps(content))
    if sees and module.config.model_type == "llava":
        _save_processor(folder)
    return folder


def _save_processor(folder: Path) -> None:
    from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaProcessor

    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    LlavaProcessor(
        images,
        AutoTokenizer.from_pretrained(folder),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)


def save_vlm(folder: Path, kind: str = "llava", seed: int = 0, **text: Any) -> Path:
    """Save a random model that sees."""
    return save(build_vlm(kind, seed, **text), folder)


def save_words(folder: Path, kind: str = "llava", seed: int = 0, **text: Any) -> Path:
    """Save a random plain language model like a kind's language part."""
    return save(build_words(kind, seed, **text), folder, text.get("vocab_size", ROWS))
