"""Whether a model writes the same texts in a batch that stays full as alone."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin

from fitness._lm_eval.continuous import Call, ContinuousGeneration
from fitness._lm_eval.shared_probe import lacking, raised, small


def no_continuous(module: Any) -> str:
    """Why texts of a model cannot begin while others are being written; empty where they can.

    Tried on a tiny random one of its class, as in `shared_probe`: texts that are written beside others, longer than its
    windows and of different lengths, must be those that `generate` writes of each alone.

    Args:
        module: a transformers decoder.
    """
    if type(module).generate is not GenerationMixin.generate:
        return "it has a `generate` of its own"
    if lacks := lacking(module):
        return lacks
    try:
        tiny_one = small(module)
        tiny_one.generation_config = GenerationConfig(pad_token_id=0)
        words = torch.randint(1, 60, (2, 13), generator=torch.Generator().manual_seed(1)).tolist()
        texts = [words[0], words[1], words[0][:9], words[1][4:], words[0][:1], words[1][:6]]
        calls = [_call(texts[:3], 7), _call(texts[3:5], 2), _call(texts[5:], 9)]
        written = ContinuousGeneration(_NoTokenizer, 2).write(tiny_one, calls)
        for call, found in zip(calls, written, strict=True):
            for row in range(len(found)):
                prompt = call.prompts[row : row + 1, call.mask[row].argmax() :]
                alone = tiny_one.generate(prompt, max_new_tokens=call.most, do_sample=False, use_cache=True)
                if not torch.equal(alone[0, prompt.shape[1] :], found[row, call.prompts.shape[1] :]):
                    return "a tiny one writes other texts beside others than alone"
    except Exception as error:  # code of a model raises whatever it likes
        return raised("a text beside others", error)
    return ""


class _NoTokenizer:
    """Of texts that no string ends."""

    pad_token_id = 0


def _call(texts: list[list[int]], most: int) -> Call:
    width = max(map(len, texts))
    prompts = torch.tensor([[0] * (width - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    return Call(prompts, mask, (), most)
