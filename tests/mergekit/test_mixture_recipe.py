from __future__ import annotations

from typing import Any

import pytest
import yaml

from evomerge.errors import RecipeError
from evomerge.mergekit.mixture_recipe import MixtureRecipe, kind_of, looks_like_a_mixture, read_mixture


def content(**changes: Any) -> dict[str, Any]:
    experts = [
        {"source_model": "org/math+org/adapter", "positive_prompts": ["2 + 2"], "negative_prompts": ["a poem"]},
        {"source_model": "org/code@abc", "positive_prompts": ["def f"], "noise_scale": 0.1, "residual_scale": 0.5},
    ]
    own = {"base_model": "org/base", "gate_mode": "cheap_embed", "dtype": "bfloat16", "experts": experts, **changes}
    return {key: value for key, value in own.items() if value is not None}


def read(**changes: Any) -> MixtureRecipe:
    return read_mixture(yaml.safe_dump(content(**changes)))


def test_what_a_file_says() -> None:
    found = read()
    assert [str(own) for own in found.references] == ["org/base", "org/math+org/adapter", "org/code@abc"]
    assert found.experts[0].positive == ("2 + 2",)
    assert found.experts[0].negative == ("a poem",)
    assert (found.experts[1].noise, found.experts[1].scale) == (0.1, 0.5)
    assert (found.gate, found.dtype, found.chosen, found.shared, found.architecture) == (
        "cheap_embed", "bfloat16", 2, None, None,
    )  # fmt: skip
    assert looks_like_a_mixture(content())
    assert not looks_like_a_mixture({"merge_method": "linear", "models": []})
    assert read(gate_mode=None, dtype=None).gate == "hidden"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gate_mode": "cheap_embd"}, "gate_mode is 'cheap_embd'.*cheap_embed"),
        ({"gate": "random"}, "unknown key gate.*gate_mode"),
        ({"dtype": "bf16"}, "dtype is 'bf16'"),
        ({"experts_per_token": 3}, "experts_per_token is 3.*1 to 2"),
        ({"experts": []}, "experts is"),
        ({"base_model": None}, "base_model"),
        ({"shared_experts": [{"source_model": "a"}, {"source_model": "b"}]}, "shared_experts has 2"),
        ({"shared_experts": [{"source_model": "a"}]}, r"shared_experts\[0\] has no positive_prompts"),
        ({"experts": [{"source_model": "a", "positive_prompts": []}]}, "positive_prompts"),
        ({"experts": [{"source_model": "a", "prompts": ["x"]}]}, r"experts\[0\]\.prompts"),
        ({"experts": [{"source_model": name, "positive_prompts": ["x"]} for name in "ab"]}, "same prompts"),
        (
            {"experts": [{"source_model": "a", "positive_prompts": [p]} for p in "xy"]},
            "all experts are one model.*--allow-equal",
        ),
    ],
)
def test_mistakes_name_their_key(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        read(**changes)


def test_noise_needs_no_prompts() -> None:
    experts = [{"source_model": name} for name in "ab"]
    assert read(gate_mode="random", experts=experts).experts[0].positive == ()
    with pytest.raises(RecipeError, match=r"experts\[0\] has no positive_prompts"):
        read(experts=experts)


def test_what_is_made_of_which_models() -> None:
    shared = [{"source_model": "org/base", "positive_prompts": ["all"]}]
    assert kind_of(read(), "llama") == kind_of(read(architecture="mix"), "mistral") == "mixtral"
    assert kind_of(read(), "qwen3") == "qwen3_moe"
    assert kind_of(read(shared_experts=shared), "llama") == kind_of(read(shared_experts=shared), "qwen2") == "qwen2_moe"
    for changes, kind, says in (
        ({}, "qwen2", "'qwen2' models with no shared expert"),
        ({"shared_experts": shared}, "qwen3", "one shared expert"),
        ({"architecture": "deepseek"}, "llama", "DeepSeek's is not written"),
        ({"architecture": "qwen3"}, "llama", "architecture 'qwen3'"),
    ):
        with pytest.raises(RecipeError, match=says):
            kind_of(read(**changes), kind)
