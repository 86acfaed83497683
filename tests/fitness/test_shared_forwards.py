"""Every token once: the same log-likelihoods as one text after the other, on every architecture."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from models.architectures import build
from shared_questions import DECODERS, questions, shared
from transformers import LlamaForCausalLM

from fitness._lm_eval import shared_forwards, token_batches
from fitness._lm_eval.model import TokenRequest
from fitness._lm_eval.shared_forwards import BatchLimits, SharedForwards
from fitness._lm_eval.shared_probe import no_prefill, no_states, unsupported


def _small_trunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_batches, "TRUNK", 4)
    monkeypatch.setattr(token_batches, "SAVED", 4)


def alone(module: Any, requests: list[TokenRequest], limit: int = 31) -> tuple[Any, Any]:
    values, greedy = [], []
    for request in requests:
        tokens = torch.tensor([(request.context + request.continuation)[-(limit + 1) :]])
        wanted = tokens[0, -len(request.continuation) :]
        with torch.no_grad():
            logits = module(input_ids=tokens[:, :-1], use_cache=False).logits[0, -len(wanted) :]
        logprobs = F.log_softmax(logits, dim=-1, dtype=torch.float32)
        values.append(float(logprobs.gather(1, wanted[:, None]).sum()))
        greedy.append(bool((logprobs.argmax(dim=-1) == wanted).all()))
    return np.array(values), np.array(greedy)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", DECODERS)
def test_architectures_score_as_alone(kind: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = build(kind)
    try:
        module.set_attn_implementation(attention)
    except ValueError:
        pytest.skip(f"{kind} has no {attention}")
    if module.config.get_text_config()._attn_implementation != attention:
        pytest.skip(f"{kind} has no {attention}")
    assert unsupported(module, 31) == ""
    _small_trunks(monkeypatch)
    requests = questions()
    values, greedy = alone(module, requests)
    for tokens in (1000, 24, 4):  # one batch, a trunk, nothing but trunks
        forwards = shared(module, requests, tokens)
        found, right = forwards.score(module)
        np.testing.assert_allclose(found, values, atol=1e-4, rtol=1e-5)
        assert (right == greedy).all()
    assert sum(len(r.context + r.continuation) - 1 for r in requests) > 2 * shared(module, requests, 1000).tokens
    monkeypatch.setattr(shared_forwards, "_SHORTEST_LINE", 12)
    monkeypatch.setattr(token_batches, "REPEATED", 1.0)
    lines = []
    module.register_forward_pre_hook(lambda _, __, given: lines.append(len(given["input_ids"])), with_kwargs=True)
    found, right = shared(module, requests, 1000).score(module)
    assert max(lines) > 1
    np.testing.assert_allclose(found, values, atol=1e-4, rtol=1e-5)
    assert (right == greedy).all()


@pytest.mark.parametrize("window", [3, 5, 8])
@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3", "gpt_oss"])
def test_sliding_windows_shorter_than_the_texts(kind: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = build(kind, sliding_window=window)
    _small_trunks(monkeypatch)
    values, _ = alone(module, questions(1))
    assert abs(values - alone(build(kind, sliding_window=30), questions(1))[0]).max() > 1e-2  # the window matters
    for tokens in (1000, 24):
        np.testing.assert_allclose(shared(module, questions(1), tokens).score(module)[0], values, atol=1e-4, rtol=1e-5)


def test_a_repeated_layer_of_a_path_has_keys_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    _small_trunks(monkeypatch)
    module = build("llama", num_hidden_layers=4)
    layers = module.model.layers
    layers[2].load_state_dict(layers[1].state_dict())
    values, _ = alone(module, questions())
    np.testing.assert_allclose(shared(module, questions(), 16).score(module)[0], values, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_far_off_as_batches_of_another_size(dtype: torch.dtype) -> None:
    module = build("llama").to(dtype)
    values, _ = alone(module, questions())
    found, _ = shared(module, questions(), 1000).score(module)
    np.testing.assert_allclose(found, values, atol=0.15)


def test_rows_are_cut_where_their_logits_would_be_many(monkeypatch: pytest.MonkeyPatch) -> None:
    module = build("llama")
    values, greedy = alone(module, questions())
    monkeypatch.setattr(shared_forwards, "MOST_LOGITS", 0)
    monkeypatch.setattr(shared_forwards, "_FEWEST_ROWS", 5)
    monkeypatch.setattr(shared_forwards, "MOST_SOFTMAX", 3 * 40 * 4)
    widest = []
    module.lm_head.register_forward_hook(lambda _, __, logits: widest.append(logits.shape[1]))
    found, right = shared(module, questions(), 1000).score(module)
    np.testing.assert_allclose(found, values, atol=1e-4)
    assert (right == greedy).all()
    assert max(widest) <= 5
    assert len(widest) > 10


def test_texts_longer_than_the_model_lose_their_beginning() -> None:
    module, requests = build("llama"), questions()
    values, _ = alone(module, requests, limit=12)
    np.testing.assert_allclose(shared(module, requests, 1000, limit=12).score(module)[0], values, atol=1e-4)


def test_no_requests_are_no_values() -> None:
    module = build("llama")
    values, greedy = shared(module, [], 1000).score(module)
    assert len(values) == len(greedy) == 0


@pytest.mark.nightly
def test_without_memory_batches_become_smaller(caplog: pytest.LogCaptureFixture) -> None:
    module, requests = build("llama"), questions()
    values, _ = alone(module, requests)
    forwards = shared(module, requests, 256)

    def scarce(_: Any, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].numel() > 70:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    hook = module.register_forward_pre_hook(scarce, with_kwargs=True)
    kept = [hook.remove]  # memory that something else holds goes first

    def spare() -> bool:
        return bool(kept) and kept.pop()() is None

    np.testing.assert_allclose(forwards.score(module, spare)[0], values, atol=1e-4)
    assert caplog.text == ""
    module.register_forward_pre_hook(scarce, with_kwargs=True)
    np.testing.assert_allclose(forwards.score(module, spare)[0], values, atol=1e-4)
    assert "not enough memory: 64 tokens are run at a time from now on" in caplog.text
    assert forwards.halved == 2
    module.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("CUDA")))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        forwards.score(module, spare)


def test_what_memory_holds_is_learnt_once_for_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_forwards, "_FEWEST_TOKENS", 4)
    module, requests = build("llama"), questions()
    limits = BatchLimits(256)
    blocks = [
        SharedForwards(part, module, max_length=31, limits=limits, softmax_dtype=torch.float32)
        for part in (requests[:12], requests[12:])
    ]
    runs: list[int] = []

    def scarce(_: Any, args: Any, kwargs: Any) -> None:
        runs.append(kwargs["input_ids"].numel())
        if runs[-1] > 24:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    module.register_forward_pre_hook(scarce, with_kwargs=True)
    blocks[0].score(module)
    assert max(runs) > 24
    runs.clear()
    learnt = limits.tokens
    assert blocks[1].tokens > 2 * learnt
    found, _ = blocks[1].score(module)
    assert max(runs) <= 2 * learnt  # what a subtree may have
    module._forward_pre_hooks.clear()
    np.testing.assert_allclose(found, alone(module, requests[12:])[0], atol=1e-4)


def test_few_tokens_never_become_more() -> None:
    limits = BatchLimits(8)
    assert limits.smaller(160)
    assert limits.tokens == 8
    while limits.smaller(160):
        pass
    assert (limits.tokens, limits.rows(160)) == (8, 1)


MAMBA = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 40, "state_size": 4}
BLOOM = {"hidden_size": 16, "n_layer": 2, "n_head": 4, "vocab_size": 40}


@pytest.mark.parametrize(
    ("name", "values"),
    [("Mamba", MAMBA), ("Bloom", BLOOM), ("Mpt", {"d_model": 16, "n_layers": 2, "n_heads": 4, "vocab_size": 40})],
)
def test_what_takes_no_tree_says_why(name: str, values: dict[str, Any]) -> None:
    config = getattr(transformers, f"{name}Config")(**values)
    torch.manual_seed(0)
    module = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    assert unsupported(module, 31) != ""


class Deaf(LlamaForCausalLM):
    """One that takes a mask and positions and heeds neither."""

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: Any = None,
        logits_to_keep: Any = 0,
    ) -> Any:
        return super().forward(
            input_ids, past_key_values=past_key_values, use_cache=use_cache, logits_to_keep=logits_to_keep
        )


@pytest.mark.parametrize("weights", [1.0, 0.1, float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_ignores_mask_and_positions_is_found_out_whatever_its_weights(
    weights: float, dtype: torch.dtype
) -> None:
    module = Deaf(build("llama").config).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(weights)
    assert "nats apart in a tree and alone" in unsupported(module, 31)
    assert unsupported(build("llama").to(dtype), 31) == ""


class Scarce(LlamaForCausalLM):
    """One that finds no memory."""

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        logits_to_keep: Any = 0,
        **_: Any,
    ) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.nightly
@pytest.mark.parametrize("ask", [lambda module: unsupported(module, 31), no_states, no_prefill])
def test_memory_that_ends_while_a_model_is_tried_says_nothing_of_it(ask: Callable[[Any], str]) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        ask(Scarce(build("llama").config).eval())


def test_a_window_that_a_model_does_not_use_is_found_out() -> None:
    assert "nats apart" in unsupported(build("llama", sliding_window=4096), 31)


def test_local_attention_by_places_in_a_row_is_found_out() -> None:
    config = transformers.GPTNeoConfig(
        hidden_size=16, num_layers=2, num_heads=4, vocab_size=40, attention_types=[[["global", "local"], 1]]
    )
    assert unsupported(transformers.GPTNeoForCausalLM(config).eval(), 31) != ""


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_embeddings_of_the_longest_text_are_refused_where_texts_are_long(kind: str) -> None:
    if kind == "longrope":
        rope = {"rope_type": kind, "rope_theta": 1e4, "short_factor": [1.0] * 2, "long_factor": [4.0] * 2}
        module = build("phi3", rope_parameters=rope, original_max_position_embeddings=16)
    else:
        rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
        module = build("llama", rope_parameters=rope, max_position_embeddings=16)
    assert unsupported(module, 16) == ""
    assert f"{kind} rotary embeddings follow from the longest text" in unsupported(module, 17)


def test_a_long_text_alone_is_run_part_by_part_and_scores_as_whole() -> None:
    module = build("llama", max_position_embeddings=2000)
    rng = random.Random(0)
    requests = [TokenRequest(None, [3], [rng.randrange(3, 40) for _ in range(1500)])]
    values, _ = alone(module, requests, limit=2000)
    forwards = shared(module, requests, 64, limit=2000)
    (first,) = forwards._batches
    assert max(batch.inputs.numel() for batch in first.walk()) <= 128
    np.testing.assert_allclose(forwards.score(module)[0], values, rtol=1e-6)


def test_rows_fall_to_one_without_deep_recursion(monkeypatch: pytest.MonkeyPatch) -> None:
    module = build("llama", max_position_embeddings=4000)
    requests = [TokenRequest(None, [3], list(range(3, 40)) * 54)]
    monkeypatch.setattr(shared_forwards, "MOST_LOGITS", 0)
    monkeypatch.setattr(shared_forwards, "_FEWEST_ROWS", 1)
    forwards = shared(module, requests, 64, limit=4000)
    assert sum(1 for _ in forwards._batches[0].walk()) > 1900
    assert sum(batch.inputs.numel() for batch in forwards._batches[0].walk()) == forwards.tokens
