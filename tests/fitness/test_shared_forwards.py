"""Every token once: the same log-likelihoods as one text after the other, on every architecture."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from models.architectures import ARCHITECTURES, build

from fitness._lm_eval import shared_forwards, token_batches
from fitness._lm_eval.model import TokenRequest
from fitness._lm_eval.shared_forwards import SharedForwards, unsupported

DECODERS = [kind for kind, found in ARCHITECTURES.items() if found.auto == "AutoModelForCausalLM"]


def questions(seed: int = 0, words: int = 36) -> list[TokenRequest]:
    """Choices after examples that all share, and texts of their own; with sliding windows of 8 most are longer."""
    rng = random.Random(seed)

    def text(low: int, high: int) -> list[int]:
        return [rng.randrange(3, words) for _ in range(rng.randint(low, high))]

    examples, found = text(6, 6), []
    for _ in range(6):
        question = text(2, 6)
        found += [TokenRequest(None, examples + question, text(1, 4)) for _ in range(4)]
    return [*found, *(TokenRequest(None, text(1, 12), text(1, 12)) for _ in range(6))]


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


def shared(module: Any, requests: list[TokenRequest], tokens: int, limit: int = 31) -> SharedForwards:
    return SharedForwards(requests, module, max_length=limit, batch_tokens=tokens, softmax_dtype=torch.float32)


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
    assert unsupported(module) == ""
    _small_trunks(monkeypatch)
    requests = questions()
    values, greedy = alone(module, requests)
    for tokens in (1000, 24, 4):  # one batch, a trunk, nothing but trunks
        forwards = shared(module, requests, tokens)
        found, right = forwards.score(module)
        np.testing.assert_allclose(found, values, atol=1e-4, rtol=1e-5)
        assert (right == greedy).all()
    assert sum(len(r.context + r.continuation) - 1 for r in requests) > 2 * shared(module, requests, 1000).tokens


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
    module.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("CUDA")))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        forwards.score(module, spare)


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
    assert unsupported(module) != ""


def test_a_model_that_ignores_the_mask_is_found_out() -> None:
    module = build("llama")
    forward = module.model.forward
    module.model.forward = lambda *args, **kwargs: forward(*args, **{**kwargs, "attention_mask": None})
    assert "nats apart from each alone" in unsupported(module)
