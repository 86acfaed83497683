"""Generation in a batch that stays full: the texts of the stock tool, whatever is written beside them."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from models.architectures import build
from shared_questions import DECODERS

from fitness._lm_eval.continuous import Call, ContinuousGeneration
from fitness._lm_eval.continuous_probe import no_continuous
from fitness._lm_eval.shared_prefill import SharedPrefill


class Letters:
    """A tokenizer whose tokens are two letters each, so that stop strings begin and end within tokens."""

    pad_token_id = 0

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(97 + token % 6) + chr(97 + token // 6) for token in tokens)

    def encode(self, text: str, **_: Any) -> list[int]:
        return [0] * (len(text) // 2 + 1)


def call(rows: list[list[int]], most: int, *stop: str) -> Call:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return Call(ids, mask, stop, most)


def prompts(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    preamble = [rng.randrange(3, 36) for _ in range(9)]
    found = [preamble + [rng.randrange(3, 36) for _ in range(rng.randint(1, 6))] for _ in range(7)]
    return [*found, [5], preamble[:2], [rng.randrange(3, 36) for _ in range(16)]]  # windows are of 8


def alone(module: Any, tokenizer: Any, row: list[int], most: int, stop: tuple[str, ...]) -> list[int]:
    """A text by `generate`, cut after the token in which a stop string ends or that is EOS."""
    ids = torch.tensor([row])
    with torch.no_grad():
        tokens = module.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False)
    written = tokens[0, len(row) :].tolist()
    for count in range(1, len(written) + 1):
        if any(text in tokenizer.decode(written[:count]) for text in stop):
            return written[:count]
    return written


def write(module: Any, calls: list[Call], slots: int, prefill: Any = None) -> list[list[list[int]]]:
    """What is written continuously after the prompts of each call, with what pads it."""
    written = ContinuousGeneration(Letters(), slots).write(module, calls, prefill)
    for one, tokens in zip(calls, written, strict=True):
        assert torch.equal(tokens[:, : one.prompts.shape[1]], one.prompts)
    return [tokens[:, one.prompts.shape[1] :].tolist() for one, tokens in zip(calls, written, strict=True)]


def padded(rows: list[list[int]]) -> list[list[int]]:
    return [row + [0] * (max(map(len, rows)) - len(row)) for row in rows]


@pytest.mark.parametrize("kind", DECODERS)
def test_texts_are_those_of_every_prompt_alone(kind: str) -> None:
    module, rows, tokenizer = build(kind), prompts(0), Letters()
    assert no_continuous(module) == ""
    parts = (rows[:5], 12, ("ad",)), (rows[5:8], 3, ()), (rows[8:], 9, ("bb", "ca"))
    calls = [call(own, most, *stop) for own, most, stop in parts]
    expected = [padded([alone(module, tokenizer, row, most, stop) for row in own]) for own, most, stop in parts]
    prefill = SharedPrefill(module, 16, trunk=4)
    for slots, how in ((1, None), (3, None), (3, prefill), (16, prefill)):
        prefill.begin()
        assert write(module, calls, slots, how) == expected, (slots, how)
    assert prefill.run < prefill.stock
