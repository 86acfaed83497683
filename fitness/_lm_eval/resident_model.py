"""Builds lm-eval's model around one that is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from evomerge.errors import FitnessError
from fitness._lm_eval.arguments import ModelArguments
from fitness._lm_eval.chat import check_tokens
from fitness._lm_eval.isolation import quietly
from fitness._lm_eval.model import ResidentLM

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel


def resident_lm(model: LoadedModel, arguments: ModelArguments) -> ResidentLM:
    """lm-eval's model around `model`.

    Raises:
        FitnessError: no tokenizer, one without a token that `arguments` name, or not a model of texts.
    """
    if model.tokenizer is None:
        raise FitnessError(
            "the model has no tokenizer", "lm-eval tasks need one", "add tokenizer files to the model's folder"
        )
    check_tokens(model.tokenizer, arguments.prefix_token_id, arguments.think_end_token)
    with quietly():
        lm = ResidentLM(model, arguments, softmax_dtype_of(arguments, model.dtype))
    if lm.backend not in ("causal", "seq2seq"):
        raise FitnessError(f"the model is {lm.backend}", "a decoder, or an encoder-decoder, of texts")
    return lm


def softmax_dtype_of(arguments: ModelArguments, dtype: torch.dtype) -> torch.dtype | None:
    """The dtype that `arguments` ask for, of a model in `dtype`; None for that of the logits."""
    if arguments.softmax_dtype == "auto":
        half = dtype in (torch.float16, torch.bfloat16) or arguments.mixed_precision_dtype is not None
        return torch.float32 if half else None
    return None if arguments.softmax_dtype == "model" else getattr(torch, arguments.softmax_dtype)
