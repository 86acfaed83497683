"""Which axes of which parameters run over which units, by architecture.

A rule gives a module's name, or a parameter's, as a regular expression, within its layer or outside the layers; and for
each of its parameters what its axes run over. `FIXED` is what never changes places (tokens, pixels, labels).
``a+b`` is an axis with one after the other; ``a/b`` one on which they take turns, head by head. Tensors with `EXPERTS`
on the first of three axes hold all experts of a layer, each with hidden units of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FIXED = ""
STREAM = "stream"
EXPERTS = "experts"
Rule = Mapping[str, tuple[str, ...]]
"""The axes of the parameters of a module by their names in it; of a parameter of its own, under an empty name."""


def _linear(given: str, taken: str) -> Rule:
    return {"weight": (given, taken), "bias": (given,)}


def _conv1d(given: str, taken: str) -> Rule:
    """GPT-2's linear layer: inputs by outputs."""
    return {"weight": (taken, given), "bias": (given,)}


def _each(units: str) -> Rule:
    """A norm, or a factor for each unit."""
    return {"weight": (units,), "bias": (units,), "lambda1": (units,)}


def _embedding(units: str = STREAM) -> Rule:
    return {"weight": (FIXED, units)}


def _alone(*axes: str) -> Rule:
    return {"": axes}


@dataclass(frozen=True)
class Family:
    """Architectures whose parameters have the same names.

    Attributes:
        types: `model_type` of their configurations.
        layer: rules by name within a layer; the first that fits counts.
        outside: rules for what is outside the layers.
        fixed: kinds that never change places: within heads with rotary embeddings, queries and keys.
    """

    types: tuple[str, ...]
    layer: Mapping[str, Rule]
    outside: Mapping[str, Rule]
    fixed: frozenset[str] = frozenset()


_ROTARY = frozenset({"query_key"})

_SEPARATE: Mapping[str, Rule] = {
    r"(self_attn|attention)\.q_proj": _linear("query", STREAM),
    r"(self_attn|attention)\.k_proj": _linear("key", STREAM),
    r"(self_attn|attention)\.v_proj": _linear("value", STREAM),
    r"(self_attn|attention)\.(o_proj|out_proj|dense)": _linear(STREAM, "context"),
}
_BERT_ATTENTION: Mapping[str, Rule] = {
    r"attention\.(self|attention)\.query": _linear("query", STREAM),
    r"attention\.(self|attention)\.key": _linear("key", STREAM),
    r"attention\.(self|attention)\.value": _linear("value", STREAM),
    r"attention\.output\.dense": _linear(STREAM, "context"),
}
_MLP: Mapping[str, Rule] = {
    r"mlp\.gate_up_proj": _linear("mlp+mlp", STREAM),
    r"(mlp\.)?(gate_proj|up_proj|fc1|c_fc)": _linear("mlp", STREAM),
    r"(mlp\.)?(down_proj|fc2|c_proj)": _linear(STREAM, "mlp"),
}
_LLAMA: Mapping[str, Rule] = {
    **_SEPARATE,
    r"self_attn\.qkv_proj": _linear("query+key+value", STREAM),
    # Norms of all heads at once run over heads; those of a head have its width, which never changes places.
    r"self_attn\.q_norm": _each("query"),
    r"self_attn\.k_norm": _each("key"),
    **_MLP,
    r"[a-z_]*(norm|layernorm)": _each(STREAM),
}
_EXPERTS: Mapping[str, Rule] = {
    r"mlp\.gate": _linear(EXPERTS, STREAM),
    r"mlp\.experts": {
        "gate_up_proj": (EXPERTS, "expert_units+expert_units", STREAM),
        "down_proj": (EXPERTS, STREAM, "expert_units"),
    },
    r"mlp\.shared_expert\.(gate_proj|up_proj)": _linear("mlp", STREAM),
    r"mlp\.shared_expert\.down_proj": _linear(STREAM, "mlp"),
    r"mlp\.shared_expert_gate": _linear(FIXED, STREAM),
}
_HEADS_OF_TASKS: Mapping[str, Rule] = {
    r"lm_head|score|qa_outputs|classifier|cls_classifier|distillation_classifier": _linear(FIXED, STREAM),
}
_LLAMA_OUTSIDE: Mapping[str, Rule] = {
    r"(.*\.)?embed_tokens": _embedding(),
    r"(.*\.)?(norm|final_layernorm)": _each(STREAM),
    **_HEADS_OF_TASKS,
}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        (
            *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "olmo", "olmo2"),
            *("granite", "cohere", "smollm3", "starcoder2", "stablelm"),
        ),
        _LLAMA,
        _LLAMA_OUTSIDE,
        _ROTARY,
    ),
    "mixtral": Family(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe"), {**_EXPERTS, **_LLAMA}, _LLAMA_OUTSIDE, _ROTARY),
    "gpt_neox": Family(
        ("gpt_neox",),
        {
            r"attention\.query_key_value": _linear("query/key/value", STREAM),
            r"attention\.dense": _linear(STREAM, "context"),
            r"mlp\.dense_h_to_4h": _linear("mlp", STREAM),
            r"mlp\.dense_4h_to_h": _linear(STREAM, "mlp"),
            r"(input|post_attention)_layernorm": _each(STREAM),
        },
        {
            r"(.*\.)?embed_in": _embedding(),
            r"(.*\.)?final_layer_norm": _each(STREAM),
            r"embed_out": _linear(FIXED, STREAM),
            **_HEADS_OF_TASKS,
        },
        _ROTARY,
    ),
    "gpt2": Family(
        ("gpt2",),
        {
            r"attn\.c_attn": _conv1d("query+key+value", STREAM),
            r"attn\.c_proj": _conv1d(STREAM, "context"),
            r"mlp\.c_fc": _conv1d("mlp", STREAM),
            r"mlp\.c_proj": _conv1d(STREAM, "mlp"),
            r"ln_[12]": _each(STREAM),
        },
        {r"(.*\.)?(wte|wpe)": _embedding(), r"(.*\.)?ln_f": _each(STREAM), **_HEADS_OF_TASKS},
    ),
    "opt": Family(
        ("opt",),
        {**_SEPARATE, **_MLP, r"(self_attn|final)_layer_norm": _each(STREAM)},
        {
            r"(.*\.)?embed_(tokens|positions)": _embedding(),
            r"(.*\.)?final_layer_norm": _each(STREAM),
            **_HEADS_OF_TASKS,
        },
    ),
    "bert": Family(
        ("bert", "roberta", "xlm-roberta", "camembert"),
        {
            **_BERT_ATTENTION,
            r"intermediate\.dense": _linear("mlp", STREAM),
            r"output\.dense": _linear(STREAM, "mlp"),
            r"(attention\.)?output\.LayerNorm": _each(STREAM),
        },
        {
            r"(.*\.)?embeddings\.(word|position|token_type)_embeddings": _embedding(),
            r"(.*\.)?embeddings\.LayerNorm": _each(STREAM),
            r"(.*\.)?pooler\.dense": _linear("pooler", STREAM),
            # What a tied decoder reads has the order of the embeddings, so the transform gives it in that order.
            r"cls\.predictions\.transform\.dense|lm_head\.dense": _linear(STREAM, STREAM),
            r"cls\.predictions\.transform\.LayerNorm|lm_head\.layer_norm": _each(STREAM),
            r"cls\.predictions\.decoder|lm_head\.decoder": _linear(FIXED, STREAM),
            r"cls\.predictions\.bias|lm_head\.bias": _alone(FIXED),
            r"cls\.seq_relationship": _linear(FIXED, "pooler"),
            r"classifier\.dense": _linear("dense", STREAM),
            r"classifier\.out_proj": _linear(FIXED, "dense"),
            r"classifier": _linear(FIXED, "pooler|stream"),
            r"qa_outputs": _linear(FIXED, STREAM),
        },
    ),
    "distilbert": Family(
        ("distilbert",),
        {
            r"attention\.q_lin": _linear("query", STREAM),
            r"attention\.k_lin": _linear("key", STREAM),
            r"attention\.v_lin": _linear("value", STREAM),
            r"attention\.out_lin": _linear(STREAM, "context"),
            r"ffn\.lin1": _linear("mlp", STREAM),
            r"ffn\.lin2": _linear(STREAM, "mlp"),
            r"(sa|output)_layer_norm": _each(STREAM),
        },
        {
            r"(.*\.)?embeddings\.(word|position)_embeddings": _embedding(),
            r"(.*\.)?embeddings\.LayerNorm|vocab_layer_norm": _each(STREAM),
            r"vocab_transform": _linear(STREAM, STREAM),
            r"vocab_projector": _linear(FIXED, STREAM),
            r"pre_classifier": _linear("dense", STREAM),
            r"classifier": _linear(FIXED, "dense|stream"),
            r"qa_outputs": _linear(FIXED, STREAM),
        },
    ),
    "vit": Family(
        ("vit", "deit"),
        {
            **_SEPARATE,
            **_BERT_ATTENTION,  # the names before transformers 5.1
            **_MLP,
            r"intermediate\.dense": _linear("mlp", STREAM),
            r"output\.dense": _linear(STREAM, "mlp"),
            r"layernorm_(before|after)": _each(STREAM),
        },
        {
            r"(.*\.)?embeddings\.(cls_token|distillation_token|mask_token|position_embeddings)": _alone(
                FIXED, FIXED, STREAM
            ),
            r"(.*\.)?embeddings\.patch_embeddings\.projection": {
                "weight": (STREAM, FIXED, FIXED, FIXED),
                "bias": (STREAM,),
            },
            r"(.*\.)?layernorm": _each(STREAM),
            r"(.*\.)?pooler\.dense": _linear("pooler", STREAM),
            **_HEADS_OF_TASKS,
        },
    ),
}
"""By name. What a family's rules say is tried on a small model of the architecture at hand before it is used."""

MODEL_TYPES: Mapping[str, Family] = {kind: family for family in FAMILIES.values() for kind in family.types}
