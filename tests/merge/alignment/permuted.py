"""Tiny random models of every kind that can be aligned, and copies with their units in another order."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import transformers
from models.architectures import ARCHITECTURES, build

from evomerge.merge.alignment.finding import symmetries_of
from evomerge.merge.alignment.orders import Symmetries
from evomerge.merge.alignment.trial import free_kinds, put_in_order
from evomerge.models.architecture.names import tied_names

_DECODER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
_ENCODER = {key: value for key, value in _DECODER.items() if key not in ("num_key_value_heads", "bos_token_id")}
_DISTIL = {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4, "vocab_size": 40, "initializer_range": 0.2}
_IMAGES = {**{k: v for k, v in _ENCODER.items() if k.startswith(("h", "i", "n"))}, "image_size": 8, "patch_size": 4}

_LLAMA = frozenset({"stream", "mlp", "heads", "value"})
_ALL = _LLAMA | {"query_key"}

OWN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "olmo": ("OlmoForCausalLM", "OlmoConfig", _DECODER),
    "granite": ("GraniteForCausalLM", "GraniteConfig", _DECODER),
    "cohere": ("CohereForCausalLM", "CohereConfig", _DECODER),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", _DECODER),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", _DECODER),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", _DECODER),
    "phi": ("PhiForCausalLM", "PhiConfig", _DECODER),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _DECODER | {"head_dim": 4}),
    "llama_bare": ("LlamaModel", "LlamaConfig", _DECODER),
    "llama_biased": ("LlamaForCausalLM", "LlamaConfig", _DECODER | {"attention_bias": True, "mlp_bias": True}),
    "llama_one_group": ("LlamaForCausalLM", "LlamaConfig", _DECODER | {"num_key_value_heads": 1}),
    "llama_all_groups": ("LlamaForCausalLM", "LlamaConfig", _DECODER | {"num_key_value_heads": 4}),
    "llama_wide_heads": ("LlamaForCausalLM", "LlamaConfig", _DECODER | {"head_dim": 8}),
    "xlm_roberta": ("XLMRobertaForSequenceClassification", "XLMRobertaConfig", _ENCODER),
    "camembert": ("CamembertForMaskedLM", "CamembertConfig", _ENCODER),
    "bert_bare": ("BertModel", "BertConfig", _ENCODER),
    "bert_questions": ("BertForQuestionAnswering", "BertConfig", _ENCODER),
    "bert_pretraining": ("BertForPreTraining", "BertConfig", _ENCODER),
    "distilbert_masked": ("DistilBertForMaskedLM", "DistilBertConfig", _DISTIL),
    "distilbert_classifier": ("DistilBertForSequenceClassification", "DistilBertConfig", _DISTIL),
    "olmoe": ("OlmoeForCausalLM", "OlmoeConfig", _DECODER | {"num_experts": 3, "num_experts_per_tok": 2}),
    "deit": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", _IMAGES),
}
"""Class, class of its configuration, arguments of that: beside those of `models.architectures`."""

FREE = {
    **dict.fromkeys(
        (
            *(
                "llama",
                "llama_tied",
                "llama_classifier",
                "mistral",
                "qwen2",
                "qwen3",
                "gemma2",
                "gemma3",
                "phi3",
                "olmo2",
            ),
            *("gpt_neox", "olmo", "granite", "cohere", "smollm3", "starcoder2", "stablelm", "phi", "gemma"),
            *("llama_biased", "llama_one_group", "llama_all_groups", "llama_wide_heads"),
        ),
        _LLAMA,
    ),
    **dict.fromkeys(
        (
            *("gpt2", "opt", "bert_masked", "roberta_masked", "roberta_tokens", "vit", "camembert", "bert_questions"),
            *("distilbert_masked", "deit"),
        ),
        _ALL,
    ),
    **dict.fromkeys(("mixtral", "olmoe"), _LLAMA - {"mlp"} | {"experts", "expert_units"}),
    # A shared expert, and a first layer that is dense.
    **dict.fromkeys(("qwen2_moe", "qwen3_moe"), _LLAMA | {"experts", "expert_units"}),
    **dict.fromkeys(("bert_classifier", "bert_pretraining"), _ALL | {"pooler"}),
    **dict.fromkeys(("roberta_classifier", "xlm_roberta", "distilbert_classifier"), _ALL | {"dense"}),
    # What they give out is the stream itself, in its order.
    "llama_bare": _LLAMA - {"stream"},
    "bert_bare": _ALL - {"stream"},
}
"""What may change places, by kind of model."""


@dataclass(frozen=True)
class Subject:
    """A model and what of it may change places."""

    module: Any
    symmetries: Symmetries

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return tensors_of(self.module)

    def permuted(self, seed: int) -> Any:
        """A copy with all of its units in a random order."""
        other = copy.deepcopy(self.module)
        put_in_order(other, self.symmetries, self.symmetries.random(np.random.default_rng(seed)))
        return other


def tensors_of(module: Any) -> dict[str, torch.Tensor]:
    tied = tied_names(module)
    return {name: tensor for name, tensor in module.state_dict().items() if name not in tied}


def subject(kind: str) -> Subject:
    """A model of a kind, with random norms and biases too; the same at every call."""
    if kind in ARCHITECTURES:
        module = build(kind)
    else:
        cls, config, values = OWN[kind]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = getattr(transformers, cls)(getattr(transformers, config)(**values)).eval()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    module.config.architectures = [type(module).__name__]
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(module).items()}
    found = symmetries_of(module, module.config, shapes)
    return Subject(module, replace(found, free=found.free & free_kinds(module.config)))
