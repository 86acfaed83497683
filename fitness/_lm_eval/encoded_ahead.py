"""Texts that lm-eval will ask a tokenizer for one by one, tokenised together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.models.utils import has_bos_prefix
from transformers import PreTrainedTokenizerBase


def encoded_ahead(lm: Any, instances: Sequence[Any]) -> dict[Any, list[int]]:
    """The tokens of prompts, and of prompts with what is scored after them, by what `ResidentLM.tok_encode` is asked.

    What a tokenizer of the tokenizers library makes of a text does not depend on those beside it. All others,
    classes with an `encode` of their own, texts that begin with the model's first token, and all texts where one
    cannot be tokenised, are left to be asked one by one.

    Args:
        lm: lm-eval's model.
        instances: that ask for log-likelihoods.
    """
    usual = getattr(type(lm.tokenizer), "encode", None) is PreTrainedTokenizerBase.encode
    if not (usual and lm.tokenizer.is_fast and lm.backend == "causal"):
        return {}
    texts: dict[str, None] = {}
    for instance in instances:
        context, continuation = instance.args
        if context:
            texts |= {context + continuation: None, context.rstrip(): None}  # spaces go to the continuation
    first = lm.tokenizer.decode(lm.prefix_token_id)
    asked = [text for text in texts if not has_bos_prefix(text, first)]
    special = {} if lm.add_bos_token is None else {"add_special_tokens": lm.add_bos_token}
    try:
        found = lm.tokenizer(asked, **special)["input_ids"] if asked else []
    except Exception:  # whatever tokenizers raise: the text that is at fault is named when it is asked for alone
        return {}
    return {(text, None, None, ()): tokens for text, tokens in zip(asked, found, strict=True)}
