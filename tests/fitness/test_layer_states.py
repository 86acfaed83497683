"""A model that begins above layers which were there before: the same bits as one that runs them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from models.architectures import build
from shared_questions import DECODERS, questions, shared
from transformers import LlamaForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from evomerge.merge.resident.hidden_states import HiddenStates
from evomerge.models.architecture.stacks import find_layers
from fitness._lm_eval import layer_states, prepared, token_batches
from fitness._lm_eval.shared_probe import no_states, unsupported
from fitness.lm_eval_tasks import LmEvalFitness

LAYERS = 4
Variants = tuple[int, ...]


@pytest.fixture(autouse=True)
def small_trunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_batches, "TRUNK", 4)
    monkeypatch.setattr(token_batches, "SAVED", 4)


def deep(kind: str) -> Any:
    if kind == "gemma3_multimodal":  # says the depth of its text in a part of its configuration
        return build(kind)
    return build(kind, **{"n_layer" if kind == "gpt2" else "num_hidden_layers": LAYERS})


class Pretended:
    """Makes a module one of many: each layer has a few variants of its weights."""

    def __init__(self, module: Any, budget: int = 10**9) -> None:
        self.module, self.layers = module, list(find_layers(module)[1])
        self.states = HiddenStates(budget)
        self._own = [[tensor.detach().clone() for tensor in layer.parameters()] for layer in self.layers]

    @torch.no_grad()
    def become(self, variants: Variants) -> HiddenStates:
        for variant, layer, own in zip(variants, self.layers, self._own, strict=True):
            for tensor, first in zip(layer.parameters(), own, strict=True):
                tensor.copy_(first * (1 + 0.1 * variant))
        self.states.begin([str(variants[:depth]) for depth in range(len(variants) + 1)])
        return self.states


def stream(count: int, layers: int, seed: int = 0) -> Iterator[Variants]:
    """Candidates of local changes, crossovers and those that come again."""
    rng = np.random.default_rng(seed)
    seen: list[Variants] = [(0,) * layers]
    for _ in range(count):
        one, other = (seen[int(rng.integers(len(seen)))] for _ in range(2))
        split = int(rng.integers(layers + 1))
        new = [*one[:split], *other[split:]]
        if rng.random() < 0.6:
            new[int(rng.integers(layers))] = int(rng.integers(3))
        seen.append(tuple(new))
        yield seen[-1]


def scores_alike(module: Any, candidates: int) -> None:
    model = Pretended(module)
    forwards = shared(module, questions(), 24)
    for variants in stream(candidates, LAYERS):
        states = model.become(variants)
        expected, _ = forwards.score(module)
        np.testing.assert_array_equal(forwards.score(module, states=states)[0], expected)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_stream_of_candidates_scores_bit_for_bit_as_without(kind: str) -> None:
    model = Pretended(deep(kind))
    assert no_states(model.module) == ""
    for tokens in (1000, 24):
        forwards, saved = shared(model.module, questions(), tokens), 0.0
        for variants in stream(8, len(model.layers)):
            states = model.become(variants)
            expected = forwards.score(model.module)
            assert forwards.hidden == 0
            found = forwards.score(model.module, states=states)
            saved += forwards.hidden
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)
        assert saved > forwards.tokens  # of eight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "attention"), [("mistral", "sdpa"), ("gemma2", "eager")])
def test_half_precision_and_eager_attention_too(dtype: torch.dtype, kind: str, attention: str) -> None:
    module = deep(kind).to(dtype)
    module.set_attn_implementation(attention)
    scores_alike(module, 6)


@pytest.mark.parametrize("room", [0.2, 1.0, 2.5, 20.0])
def test_the_budget_holds_and_what_is_left_out_is_run(room: float) -> None:
    module = deep("llama")
    forwards = shared(module, questions(), 24)
    whole = forwards.tokens * module.config.hidden_size * 4
    model, saved = Pretended(module, int(room * whole)), []
    for variants in stream(15, LAYERS):
        states = model.become(variants)
        expected, _ = forwards.score(module)
        np.testing.assert_array_equal(forwards.score(module, states=states)[0], expected)
        assert states.used <= states.budget == int(room * whole)
        saved.append(forwards.hidden)
    assert sum(saved) > 0 or room < 1


def test_a_search_that_shares_nothing_keeps_nothing() -> None:
    model = Pretended(deep("llama"))
    forwards = shared(model.module, questions(), 24)
    used = []
    for number in range(60):
        model.states.begin([f"{number} {depth}" for depth in range(LAYERS + 1)])
        forwards.score(model.module, states=model.states)
        used.append(model.states.used)
    assert 0 < used[0] < used[20]
    assert used[-1] == used[-5]
    for number in range(6):  # until they share again
        model.states.begin(["embed", "first", *(f"again {number} {depth}" for depth in range(2, LAYERS + 1))])
        forwards.score(model.module, states=model.states)
    assert forwards.hidden == pytest.approx(forwards.tokens / LAYERS)
    assert model.states.likely


def test_a_larger_budget_saves_more() -> None:
    module = deep("llama")
    saved = []
    for room in (10**4, 10**5, 10**9):
        model, forwards, total = Pretended(module, room), shared(module, questions(), 24), 0.0
        for variants in stream(15, LAYERS):
            forwards.score(module, states=model.become(variants))
            total += forwards.hidden
        saved.append(total)
    assert saved == sorted(saved)
    assert saved[0] < saved[-1]


def test_the_order_of_candidates_changes_no_score() -> None:
    candidates = [*stream(12, LAYERS)]
    found: list[dict[Variants, Any]] = []
    for order in (candidates, candidates[::-1]):
        model = Pretended(deep("llama"))
        forwards = shared(model.module, questions(), 24)
        found.append({each: forwards.score(model.module, states=model.become(each))[0] for each in order})
    for each in candidates:
        np.testing.assert_array_equal(found[0][each], found[1][each])


def test_states_are_of_their_key_alone() -> None:
    model = Pretended(deep("llama"))
    forwards = shared(model.module, questions(), 24)
    forwards.score(model.module, states=model.become((0, 0, 0, 0)))
    for _, merged in model.states._cache._held.values():
        for tensor in merged.tensors:
            tensor.fill_(torch.nan)  # as a fault of the memory might
    other, _ = forwards.score(model.module, states=model.become((1, 0, 0, 0)))
    np.testing.assert_array_equal(other, forwards.score(model.module)[0])
    again = shared(model.module, questions(), 24)  # equal batches, of another plan
    model.become((0, 0, 0, 0))
    np.testing.assert_array_equal(again.score(model.module, states=model.states)[0], again.score(model.module)[0])
    assert np.isnan(forwards.score(model.module, states=model.states)[0]).all()  # those of the key are what is used


def test_a_model_that_is_not_known_runs_whole() -> None:
    model = Pretended(deep("llama"))
    forwards = shared(model.module, questions(), 24)
    forwards.score(model.module, states=model.become((0,) * LAYERS))
    model.states.begin(())
    forwards.score(model.module, states=model.states)
    assert forwards.hidden == 0
    model.become((0,) * LAYERS)
    forwards.score(model.module, states=model.states)
    assert forwards.hidden == forwards.tokens  # all layers


def test_layers_are_as_they_were_after_scoring_and_after_a_failure() -> None:
    model = Pretended(deep("llama"))
    forwards = shared(model.module, questions(), 24)
    forwards.score(model.module, states=model.become((0,) * LAYERS))
    states = model.become((0, 0, 1, 1))

    def fails(*_: Any) -> None:
        raise ValueError("no")

    hook = model.layers[3].register_forward_pre_hook(fails)
    with pytest.raises(ValueError, match="no"):
        forwards.score(model.module, states=states)
    hook.remove()
    assert not any("forward" in vars(layer) for layer in model.layers)
    np.testing.assert_array_equal(forwards.score(model.module, states=states)[0], forwards.score(model.module)[0])


def test_where_memory_ends_states_go_and_scores_stay() -> None:
    model = Pretended(deep("llama"))
    forwards = shared(model.module, questions(), 256)
    expected, _ = forwards.score(model.module, states=model.become((0,) * LAYERS))
    assert model.states.used

    def scarce(*_: Any) -> None:
        if model.states.used:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    model.layers[3].register_forward_pre_hook(scarce)
    model.become((0, 0, 0, 1))
    model.become((0, 0, 0, 0))
    model.states.put("another", [torch.zeros(9)], 1.0)
    model.states._cache.resize(10**5)
    model.states.keys = tuple(f"new {key}" for key in model.states.keys)
    found, _ = forwards.score(model.module, model.states.clear, model.states)
    np.testing.assert_array_equal(found, expected)


class Writes(LlamaDecoderLayer):
    """A layer that writes into what it is given."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().forward(hidden_states.mul_(1.1), *args, **kwargs)


def test_a_layer_that_writes_into_what_it_is_given_spoils_nothing() -> None:
    module = deep("llama")
    for layer in module.model.layers:
        layer.__class__ = Writes
    scores_alike(module, 10)


class GivesMore(LlamaDecoderLayer):
    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().forward(hidden_states, *args, **kwargs), self.mlp(hidden_states)


class TakesMore(LlamaForCausalLM):
    """A model whose layers hand more to the next than hidden states."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.__class__ = GivesMore
            layer.register_forward_hook(lambda _, __, output: output[0] + output[1])


class Remembers(LlamaForCausalLM):
    """A model whose second layer uses what its first computed."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        first, second, *_ = self.model.layers
        noted: list[torch.Tensor] = []
        first.mlp.register_forward_hook(lambda _, __, output: noted.append(output))
        second.mlp.register_forward_hook(lambda _, __, output: output + noted.pop())


@pytest.mark.parametrize(("cls", "why"), [(TakesMore, "layers give more"), (Remembers, "raises IndexError")])
def test_what_cannot_begin_above_a_layer_says_why(cls: type[LlamaForCausalLM], why: str) -> None:
    module = cls(build("llama").config).eval()
    assert why in no_states(module)
    model = Pretended(module)
    forwards = shared(module, questions(), 24)
    assert issubclass(LlamaDecoderLayer, GradientCheckpointingLayer)  # whose own call must go on to `forward`
    expected, _ = forwards.score(module)
    if cls is TakesMore:  # found out while it runs, too
        for _ in range(2):
            np.testing.assert_array_equal(forwards.score(module, states=model.become((0, 0)))[0], expected)


def test_layers_that_use_the_keys_of_others_run_whole() -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    sizes = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 16, "vocab_size": 64}
    more = {"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 16, "laurel_rank": 8}
    config = transformers.Gemma3nTextConfig(
        **sizes,
        **more,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_kv_shared_layers=2,
        layer_types=kinds,
        sliding_window=8,
        activation_sparsity_pattern=[0.0] * 4,
    )
    module = transformers.Gemma3nForCausalLM(config).eval()
    assert unsupported(module, 31) == ""
    assert "beginning above a layer raises KeyError: 'sliding_attention'" in no_states(module)


def test_a_fitness_begins_above_layers_and_says_what_it_saved(
    model: Any, tasks: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def scores(*keys: Sequence[str], part: Mapping[str, Sequence[int]] | None = None) -> list[Any]:
        model.states = HiddenStates(10**9)
        fitness = LmEvalFitness(["choose", "complete", "read"], include_path=str(tasks.path), forwards="shared")
        fitness.prepare(model)
        found = []
        for each in keys:
            model.states.begin(each)
            found.append(fitness.run(model, part))
        return found

    for part in (None, {"choose": range(7), "complete": [1], "read": [2, 5]}):
        first, second, third = scores(["e", "a", "b"], ["e", "a", "c"], ["e", "a", "b"], part=part)
        assert "hidden" not in first.tokens
        assert second.tokens["hidden"] == pytest.approx(second.tokens["run"] / 2)
        assert third.tokens["hidden"] == pytest.approx(third.tokens["run"])
        for name, values in first.items.items():
            np.testing.assert_array_equal(second.items[name], values)
            np.testing.assert_array_equal(third.items[name], values)
    assert caplog.text == ""
    monkeypatch.setattr(prepared, "no_states", lambda module: "its layers share keys")
    assert all("hidden" not in found.tokens for found in scores(["e", "a", "b"], ["e", "a", "b"]))
    assert "no hidden states are kept of this model: its layers share keys" in caplog.text
    monkeypatch.undo()
    model.states = None


def test_where_the_layers_are_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = Pretended(deep("llama"))
    looked: list[Any] = []
    monkeypatch.setattr(layer_states, "find_layers", lambda module: looked.append(module) or find_layers(module))
    own = layer_states.LayerStates([[3]], pretended.module)
    for variants in stream(5, LAYERS):
        own.begin(pretended.module, pretended.become(variants))
        assert list(own._layers) == pretended.layers
    assert looked == [pretended.module]
    shorter = pretended.module.model.layers
    del shorter[-1]  # paths have other layers in the same list
    assert layer_states._layers_of(pretended.module) == pretended.layers[:-1]
