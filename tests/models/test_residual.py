"""What writes to the residual stream, what reads it, and how their parameters follow a factor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from merge.path_models import KINDS, config_of

from evomerge.models.architecture.residual import Residual
from evomerge.models.architecture.residual_probe import calls_of, first_tensor
from evomerge.models.architecture.residual_rules import residual_of
from evomerge.models.architecture.stacks import find_layers
from evomerge.models.architecture.tiny_model import build

CLASSES = {"gpt2": "GPT2LMHeadModel", "gpt_neox": "GPTNeoXForCausalLM", "gemma3": "Gemma3ForCausalLM"}


def config(kind: str, **other: Any) -> Any:
    made = config_of(kind, 4, **other)
    name = type(made).__name__.removesuffix("Config").removesuffix("Text")
    made.architectures = [CLASSES.get(kind, f"{name}ForCausalLM")]
    return made


def of_class(name: str, **values: Any) -> Residual:
    """Of another architecture, as small as transformers' defaults allow."""
    made = getattr(transformers, f"{name}Config")(num_hidden_layers=2, **values)
    made.architectures = [f"{name}ForCausalLM"]
    return residual_of(made)


def test_a_pre_norm_architecture() -> None:
    found = residual_of(config("llama"))
    assert found.layers == "model.layers"
    assert found.writers == {"attn": ("self_attn.o_proj",), "mlp": ("mlp.down_proj",)}
    assert found.readers == ("input_layernorm", "post_attention_layernorm")
    assert {name: (rule.component, rule.offset) for name, rule in found.rules.items()} == {
        "self_attn.o_proj.weight": ("attn", 0.0),
        "mlp.down_proj.weight": ("mlp", 0.0),
        "input_layernorm.weight": ("norm", 0.0),
        "post_attention_layernorm.weight": ("norm", 0.0),
        "model.norm.weight": ("final_norm", 0.0),
    }


def test_biases_of_writers_follow_and_those_of_norms_do_not() -> None:
    found = residual_of(config("gpt2"))
    assert found.writers == {"attn": ("attn.c_proj",), "mlp": ("mlp.c_proj",)}
    own = {name: rule.component for name, rule in found.rules.items()}
    assert own["attn.c_proj.bias"] == "attn"
    assert own["mlp.c_proj.bias"] == "mlp"
    assert own["ln_1.weight"] == own["ln_2.weight"] == "norm"
    assert own["transformer.ln_f.weight"] == "final_norm"
    assert not {"ln_1.bias", "ln_2.bias", "transformer.ln_f.bias", "attn.c_attn.weight"} & own.keys()


@pytest.mark.parametrize("kind", ["gemma2", "gemma3"])
def test_norms_after_a_block_write_as_one_plus_their_weight(kind: str) -> None:
    found = residual_of(config(kind))
    assert found.writers == {"attn": ("post_attention_layernorm",), "mlp": ("post_feedforward_layernorm",)}
    assert found.readers == ("input_layernorm", "pre_feedforward_layernorm")
    assert found.rules["post_attention_layernorm.weight"].component == "attn"
    assert {rule.offset for rule in found.rules.values()} == {1.0}
    weight = torch.tensor([0.0, 0.5, -3.0])
    scaled = found.scaled("model.layers.2.post_attention_layernorm.weight", weight, 0.25)
    assert scaled.tolist() == [-0.75, -0.625, -1.5]
    assert weight.tolist() == [0.0, 0.5, -3.0]
    turned = found.scaled("model.norm.weight", weight, -1.0)
    assert turned.tolist() == [-2.0, -2.5, 1.0]


def test_scaling_rounds_once_and_leaves_other_parameters() -> None:
    found = residual_of(config("llama"))
    weight = torch.tensor([1.0, 1.0078125, -3.0], dtype=torch.bfloat16)
    scaled = found.scaled("model.layers.0.mlp.down_proj.weight", weight, 1 / 3)
    assert scaled.dtype == torch.bfloat16
    assert torch.equal(scaled, (weight.float() / 3).bfloat16())
    assert found.scaled("model.layers.0.mlp.up_proj.weight", weight, 1 / 3) is weight
    assert found.scaled("model.embed_tokens.weight", weight, 1 / 3) is weight


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_layer_with_scaled_parameters_takes_and_gives_a_scaled_stream(kind: str) -> None:
    made = config(kind)
    found = residual_of(made)
    assert (found.unscalable, found.unflippable, found.immovable) == ("", "", "")
    module = build(made)
    for layer, call in zip(find_layers(module)[1], calls_of(module, find_layers(module)[1]).values(), strict=True):
        stream = 8.0 * torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))
        args, kwargs = call.args[1:], {k: v for k, v in call.kwargs.items() if k != "hidden_states"}
        kept = {name: parameter.data for name, parameter in layer.named_parameters()}
        wanted = first_tensor(layer(stream, *args, **kwargs))
        assert wanted is not None
        for factor in (2.5, -0.5):
            for name, parameter in layer.named_parameters():
                rule = found.rules.get(name)
                own = 1.0 if rule is None else factor if rule.component != "norm" else -1.0 if factor < 0 else 1.0
                parameter.data = found.scaled(f"{found.layers}.0.{name}", kept[name], own)
            given = first_tensor(layer(factor * stream, *args, **kwargs))
            assert given is not None
            torch.testing.assert_close(given, factor * wanted, rtol=1e-3, atol=1e-3)
        for name, parameter in layer.named_parameters():
            parameter.data = kept[name]


def test_architectures_that_cannot_be_scaled_say_why() -> None:
    assert of_class("Olmo2").unscalable == "its self_attn.q_proj reads the residual stream without normalising it"
    assert "without normalising" in of_class("OPT", do_layer_norm_before=False).unscalable


def test_norms_without_weights_cannot_be_turned_around() -> None:
    found = of_class("Olmo")
    assert found.unscalable == ""
    assert (
        found.unflippable
        == "its layers depend on the sign of the residual stream in other ways than by norms with weights"
    )


def test_layers_that_compute_by_their_number_stay_in_place() -> None:
    found = residual_of(config("gpt2", scale_attn_by_inverse_layer_idx=True))
    assert found.immovable == "its layer 1 computes something else than layer 0 with the same weights"
    assert found.unscalable == ""


def test_settings_of_single_layers_keep_them_in_place() -> None:
    found = residual_of(config("llama", per_layer_config={0: {"intermediate_size": 32}}))
    assert found.immovable == found.unscalable
    assert "settings of their own for single layers (per_layer_config)" in found.immovable


def test_nothing_is_raised_for_what_cannot_be_tried_out() -> None:
    strange = config("llama")
    strange.architectures = ["NoSuchModel"]
    assert "cannot be tried out" in residual_of(strange).unscalable
    own_code = config("llama")
    own_code.auto_map = {"AutoModelForCausalLM": "modeling.Own"}
    assert residual_of(own_code, trust_remote_code=True).unscalable == "the model brings its own code"


def test_the_same_architecture_is_tried_out_once() -> None:
    wide = config("llama", hidden_size=32, intermediate_size=48, vocab_size=99)
    assert residual_of(wide) is residual_of(config("llama"))
