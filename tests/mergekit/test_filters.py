"""Filter lists: read as mergekit reads them, they give every tensor its value."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.mergekit.filters import Entry, Value, filter_entries, gradient_is_exact

LLAMA = [
    "model.embed_tokens.weight",
    *(f"model.layers.*.self_attn.{p}_proj.weight" for p in "qkvo"),
    *(f"model.layers.*.mlp.{p}_proj.weight" for p in ("gate", "up", "down")),
    "model.layers.*.input_layernorm.weight",
    "model.layers.*.post_attention_layernorm.weight",
    "model.norm.weight",
    "lm_head.weight",
]


def read(entries: list[Entry], name: str) -> Value:
    """The value of a tensor by mergekit's rule: the first entry whose filter is part of the name."""
    return next(value for part, value in entries if part is None or part in name)


def test_equal_values_need_no_filter() -> None:
    assert filter_entries(dict.fromkeys(LLAMA, 0.25)) == [(None, 0.25)]


def test_components_are_told_apart_by_their_own_parts_of_the_names() -> None:
    values = {name: 0.1 if "self_attn" in name else 0.2 if "mlp" in name else 0.3 for name in LLAMA}
    assert filter_entries(values) == [("self_attn", 0.1), ("mlp", 0.2), (None, 0.3)]


def test_the_final_norm_is_not_mistaken_for_a_norm_of_a_layer() -> None:
    values = dict.fromkeys(LLAMA, 0.5) | {"model.norm.weight": 0.75}
    assert filter_entries(values) == [("model.norm", 0.75), (None, 0.5)]


def test_a_name_inside_another_is_decided_after_it() -> None:
    values = {"h.*.norm.weight": 1.0, "h.*.post_norm.weight": 2.0, "h.*.mlp.weight": 3.0, "h.*.attn.weight": 3.0}
    entries = filter_entries(values)
    assert entries is not None
    assert {name: read(entries, name) for name in values} == values


def test_filters_hold_no_numbers() -> None:
    names = [f"layers.*.mlp.experts.{i}.w{j}.weight" for i in range(12) for j in (1, 2)] + ["layers.*.attn.weight"]
    entries = filter_entries({name: 0.0 if "attn" in name else 1.0 for name in names})
    assert entries is not None
    assert not any(part.isdigit() for filter_, _ in entries if filter_ for part in filter_.split("."))


def test_indistinguishable_tensors_are_refused() -> None:
    assert filter_entries({"h.*.1": 1.0, "h.*.2": 2.0, "h.*.3": 3.0}) is None


def test_true_and_one_are_different_values() -> None:
    entries = filter_entries({"a.weight": True, "b.weight": 1.0})
    assert entries is not None
    assert {name: type(read(entries, name)) for name in ("a.weight", "b.weight")} == {
        "a.weight": bool,
        "b.weight": float,
    }


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=len(LLAMA), max_size=len(LLAMA)))
def test_any_assignment_of_values_to_tensors_is_read_back(drawn: list[int]) -> None:
    values: dict[str, Value] = {name: float(number) for name, number in zip(LLAMA, drawn, strict=True)}
    entries = filter_entries(values)
    assert entries is not None
    for layer in ("*", "0", "1", "11", "111"):
        assert {name: read(entries, name.replace("*", layer)) for name in LLAMA} == values


@pytest.mark.parametrize("layers", [1, 2, 12, 24, 28, 32, 40, 48, 80])
def test_gradients_are_exact_where_claimed(layers: int) -> None:
    values = [float(3 * i + 1) for i in range(layers)]
    wrong = []
    for i in range(layers):
        t = i / (layers - 1) if layers > 1 else 1
        scaled = t * (layers - 1)
        low = int(scaled)
        mixed = (1 - (scaled - low)) * values[low] + (scaled - low) * values[min(layers - 1, low + 1)]
        wrong += [i] if mixed != values[i] else []
    assert gradient_is_exact(layers) == (not wrong)
    assert gradient_is_exact(layers) == (layers in (1, 2, 12, 28, 32))
