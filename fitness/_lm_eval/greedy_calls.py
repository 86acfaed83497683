"""Which batches are written continuously, and which are left to transformers' `generate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OWN = ("attention_mask", "do_sample", "temperature")
"""Arguments of lm-eval's call that are obeyed."""
_NEUTRAL: Mapping[str, Any] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "use_cache": True,
}
"""Generation settings that change nothing at these values."""
_UNUSED = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version"),
    *("_from_model_config", "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "max_length"),
    *("num_beam_groups", "length_penalty", "early_stopping", "diversity_penalty", "return_dict_in_generate"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "trust_remote_code"),
)
"""Those that are obeyed, that lm-eval sets itself, or that greedy decoding does not read."""


def no_call(module: Any, most: int, kwargs: Mapping[str, Any]) -> str:
    """Why a batch is left to `generate`; empty where it is not.

    Args:
        module: the model, whose generation settings count where lm-eval names none.
        most: tokens of a text.
        kwargs: what lm-eval would call `generate` with.
    """
    if kwargs.get("do_sample") or kwargs.get("temperature"):
        return "texts are sampled"
    if most < 1:
        return "the generation arguments leave no token to be written"
    given = {name: value for name, value in kwargs.items() if name not in _OWN}
    for name, value in {**_settings(module), **given}.items():
        if value is not None and not (name in _NEUTRAL and value == _NEUTRAL[name]):
            return f"{name} is {value!r}"
    return ""


def _settings(module: Any) -> dict[str, Any]:
    """A model's generation settings that greedy decoding reads and that are not transformers' own."""
    settings = module.generation_config
    return {name: value for name, value in settings.to_diff_dict().items() if name not in _UNUSED}
