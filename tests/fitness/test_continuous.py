"""Generation in a batch that stays full: the texts of the stock tool, whatever is written beside them."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from models.architectures import build
from shared_questions import DECODERS

from fitness._lm_eval import slot_cache
from fitness._lm_eval.continuous import Call, ContinuousGeneration
from fitness._lm_eval.continuous_probe import no_continuous
from fitness._lm_eval.shared_prefill import SharedPrefill


@pytest.fixture(autouse=True)
def tight_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_cache, "AHEAD", 2)


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
        tokens = module.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False
        )
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


@pytest.mark.parametrize("kind", [kind for kind in DECODERS if kind not in ("olmo2", "qwen2_moe", "qwen3_moe")])
def test_texts_are_those_of_every_prompt_alone(kind: str) -> None:
    module, rows, tokenizer = build(kind), prompts(0), Letters()
    assert no_continuous(module) == ""
    parts = (rows[:5], 12, ("ad",)), (rows[5:8], 3, ()), (rows[8:], 9, ("bb", "ca"))
    calls = [call(own, most, *stop) for own, most, stop in parts]
    expected = [padded([alone(module, tokenizer, row, most, stop) for row in own]) for own, most, stop in parts]
    prefill = SharedPrefill(module, 16, trunk=4)
    for slots, how in ((1, None), (8, None), (3, prefill)):
        prefill.begin()
        assert write(module, calls, slots, how) == expected, (slots, how)
    assert prefill.run < prefill.stock


def test_texts_end_at_eos_and_make_place() -> None:
    module, rows = build("llama"), prompts(1)
    module.generation_config.eos_token_id = None
    whole = [alone(module, Letters(), row, 12, ()) for row in rows]
    module.generation_config.eos_token_id = [whole[0][3], whole[4][6]]
    expected = [alone(module, Letters(), row, 12, ()) for row in rows]
    assert len({len(text) for text in expected}) > 2
    engine = ContinuousGeneration(Letters(), 4)
    (found,) = engine.write(module, [call(rows, 12)])
    assert found[:, -max(map(len, expected)) :].tolist() == padded(expected)
    assert -(-sum(map(len, expected)) // 4) <= engine.steps < sum(map(len, expected)) // 2
    assert ContinuousGeneration(Letters(), 4).write(module, []) == []


def test_texts_are_of_the_weights_as_they_are() -> None:
    """Nothing that was computed with other weights is left, and what comes after does not depend on what was before."""
    module, rows = build("qwen2"), prompts(2)
    module.generation_config.eos_token_id = None
    engine, prefill = ContinuousGeneration(Letters(), 4), SharedPrefill(module, 16, trunk=4)

    def found() -> Any:
        prefill.begin()
        return engine.write(module, [call(rows, 9)], prefill)[0].tolist()

    first, saved = found(), {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.4)
    second = found()
    assert [row[-9:] for row in second] == [alone(module, Letters(), row, 9, ()) for row in rows]
    assert second != first
    module.load_state_dict(saved)
    assert found() == first


def test_a_model_that_minds_what_is_beside_a_text_is_found_out() -> None:
    class Minds(type(build("llama"))):  # type: ignore[misc]
        def forward(
            self,
            input_ids: Any,
            attention_mask: Any = None,
            position_ids: Any = None,
            past_key_values: Any = None,
            logits_to_keep: Any = 0,
            **more: Any,
        ) -> Any:
            found = super().forward(
                input_ids, attention_mask, position_ids, past_key_values, logits_to_keep=logits_to_keep, **more
            )
            if len(found.logits) > 1:
                found.logits = found.logits.roll(1, dims=-1)
            return found

    class Generates(type(build("llama"))):  # type: ignore[misc]
        def generate(self, *_: Any, **__: Any) -> Any: ...

    config = build("llama").config
    assert no_continuous(Minds(config).eval()) == "a tiny one writes other texts beside others than alone"
    assert no_continuous(Generates(config).eval()) == "it has a `generate` of its own"
