from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_config

from evomerge.errors import PoolError, RecipeError
from evomerge.models.architecture.layout import layout_of, skeleton
from evomerge.models.architecture.names import match_names, tied_names
from evomerge.recipes.slices import SliceId

# What each slice of layer 1 holds, without the layer's prefix.
LLAMA = {
    "attn": [
        "self_attn.q_proj.weight",
        "self_attn.k_proj.weight",
        "self_attn.v_proj.weight",
        "self_attn.o_proj.weight",
    ],
    "mlp": ["mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"],
    "norm": ["input_layernorm.weight", "post_attention_layernorm.weight"],
}
QWEN2 = LLAMA | {"attn": [*LLAMA["attn"], *(f"self_attn.{p}_proj.bias" for p in "qkv")]}
QWEN3 = LLAMA | {"attn": [*LLAMA["attn"], "self_attn.q_norm.weight", "self_attn.k_norm.weight"]}
GEMMA2 = LLAMA | {
    "norm": [*LLAMA["norm"], "pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight"],
}
PHI3 = LLAMA | {
    "attn": ["self_attn.o_proj.weight", "self_attn.qkv_proj.weight"],
    "mlp": ["mlp.gate_up_proj.weight", "mlp.down_proj.weight"],
}


def both(*names: str) -> list[str]:
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


GPT2 = {"attn": both("attn.c_attn", "attn.c_proj"), "mlp": both("mlp.c_fc", "mlp.c_proj"), "norm": both("ln_1", "ln_2")}
NEOX = {
    "attn": both("attention.query_key_value", "attention.dense"),
    "mlp": both("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    "norm": both("input_layernorm", "post_attention_layernorm"),
}
OUTER = {"embed": ["model.embed_tokens.weight"], "final_norm": ["model.norm.weight"], "head": ["lm_head.weight"]}
TIED = {"embed": OUTER["embed"], "final_norm": OUTER["final_norm"]}
GPT2_OUTER = {"embed": ["transformer.wte.weight", "transformer.wpe.weight"], "final_norm": both("transformer.ln_f")}
NEOX_OUTER = {
    "embed": ["gpt_neox.embed_in.weight"],
    "final_norm": both("gpt_neox.final_layer_norm"),
    "head": ["lm_head.weight"],
}
EXPECTED = {
    "llama": ("model.layers", LLAMA, OUTER),
    "llama_tied": ("model.layers", LLAMA, TIED),
    "mistral": ("model.layers", LLAMA, OUTER),
    "qwen2": ("model.layers", QWEN2, OUTER),
    "qwen3": ("model.layers", QWEN3, OUTER),
    "gemma2": ("model.layers", GEMMA2, TIED),
    "phi3": ("model.layers", PHI3, OUTER),
    "gpt2": ("transformer.h", GPT2, GPT2_OUTER),
    "gpt_neox": ("gpt_neox.layers", NEOX, NEOX_OUTER),
}


Shapes = dict[str, tuple[int, ...]]


def shapes_of(kind: str) -> Shapes:
    """Shapes of the module's own parameters, tied ones once."""
    return {name: tuple(parameter.shape) for name, parameter in skeleton(tiny_config(kind)).named_parameters()}


def test_every_architecture_has_its_expectation() -> None:
    assert EXPECTED.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("kind", EXPECTED)
def test_slices_and_their_tensors(kind: str) -> None:
    prefix, layer, outer = EXPECTED[kind]
    layout = layout_of(tiny_config(kind), shapes_of(kind))
    assert layout.layers == 2
    inner = [f"layers.{i}.{c}" for i in range(2) for c in ("attn", "mlp", "norm")]
    assert [str(s) for s in layout.slices] == ["embed", *inner, *(c for c in ("final_norm", "head") if c in outer)]
    for component, names in layer.items():
        for i in range(2):
            found = layout.tensors[SliceId(component, i)]  # type: ignore[arg-type]
            assert sorted(found) == sorted(f"{prefix}.{i}.{name}" for name in names)
    for component, names in outer.items():
        assert list(layout.tensors[SliceId(component)]) == names  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", EXPECTED)
def test_shapes_are_those_of_the_class(kind: str) -> None:
    layout = layout_of(tiny_config(kind), shapes_of(kind))
    module = skeleton(tiny_config(kind))
    assert all(parameter.device == torch.device("meta") for parameter in module.parameters())
    assert layout.shapes == {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def test_names_without_the_base_prefix_and_with_it() -> None:
    config, shapes = tiny_config("gpt2"), shapes_of("gpt2")
    bare = {name.removeprefix("transformer."): shape for name, shape in shapes.items()}
    layout = layout_of(config, bare)
    assert layout.tensors[SliceId("embed")] == ("wte.weight", "wpe.weight")
    assert layout.parameters["h.1.ln_1.weight"] == "transformer.h.1.ln_1.weight"
    assert layout.slice_of("h.1.attn.c_attn.bias") == SliceId("attn", 1)
    assert layout.at_layer("h.1.attn.c_attn.bias", 0) == "h.0.attn.c_attn.bias"


def test_renamed_modules_are_followed() -> None:
    shapes = {name.replace("lm_head", "embed_out"): shape for name, shape in shapes_of("gpt_neox").items()}
    layout = layout_of(tiny_config("gpt_neox"), shapes)
    assert layout.tensors[SliceId("head")] == ("embed_out.weight",)
    assert layout.parameters["embed_out.weight"] == "lm_head.weight"


def test_tied_head_may_be_stored_too_or_instead() -> None:
    config, shapes = tiny_config("llama_tied"), shapes_of("llama_tied")
    module = skeleton(config)
    assert tied_names(module) == {"lm_head.weight": "model.embed_tokens.weight"}
    head = {"lm_head.weight": shapes["model.embed_tokens.weight"]}
    twice = match_names(module, shapes | head)
    assert twice.duplicates == {"lm_head.weight": "model.embed_tokens.weight"}
    assert layout_of(config, shapes | head) == layout_of(config, shapes)
    del shapes["model.embed_tokens.weight"]
    assert layout_of(config, shapes | head).tensors[SliceId("embed")] == ("lm_head.weight",)


def test_a_head_that_comes_before_the_embeddings_is_tied_to_nothing() -> None:
    """CamemBERT registers its head first: the embeddings are tied to it, and it is not tied to itself."""
    from transformers import CamembertConfig

    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = CamembertConfig(**small, vocab_size=40, architectures=["CamembertForMaskedLM"])
    tied = tied_names(skeleton(config))
    assert tied["roberta.embeddings.word_embeddings.weight"] == "lm_head.decoder.weight"
    assert all(name != other for name, other in tied.items())


def test_old_buffers_are_ignored() -> None:
    config, shapes = tiny_config("gpt2"), shapes_of("gpt2")
    match = match_names(skeleton(config), shapes | {"transformer.h.0.attn.bias": (1, 1, 32, 32)})
    assert match.ignored == ("transformer.h.0.attn.bias",)
    assert match.unexpected == ()
    llama = match_names(skeleton(tiny_config("llama")), {"model.layers.0.self_attn.rotary_emb.inv_freq": (2,)})
    assert llama.ignored == ("model.layers.0.self_attn.rotary_emb.inv_freq",)


def test_missing_and_unexpected_tensors_are_named() -> None:
    config, shapes = tiny_config("llama"), shapes_of("llama")
    with pytest.raises(PoolError, match=r"lacks tensor 'model\.norm\.weight'; LlamaForCausalLM needs it"):
        layout_of(config, {name: shape for name, shape in shapes.items() if name != "model.norm.weight"})
    with pytest.raises(PoolError, match=r"unexpected tensor 'model\.layers\.7\.mlp\.up_proj\.weight'"):
        layout_of(config, shapes | {"model.layers.7.mlp.up_proj.weight": (24, 16)})


def mixtral() -> tuple[Any, Shapes, Shapes]:
    """A configuration with three experts, the shapes of its module, and those of its experts one by one."""
    import transformers

    config = transformers.MixtralConfig(
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        vocab_size=8,
        num_local_experts=3,
        architectures=["MixtralForCausalLM"],
    )
    joined = {name: tuple(parameter.shape) for name, parameter in skeleton(config).named_parameters()}
    weights = {"w1": (24, 16), "w2": (16, 24), "w3": (24, 16)}
    prefixes = [f"model.layers.{i}.block_sparse_moe.experts.{j}" for i in range(2) for j in range(3)]
    return config, joined, {f"{p}.{w}.weight": shape for p in prefixes for w, shape in weights.items()}


def test_experts_stored_one_by_one_belong_to_the_layer_that_joins_them() -> None:
    config, joined, experts = mixtral()
    shapes = {name: shape for name, shape in joined.items() if ".experts." not in name}
    layout = layout_of(config, shapes | experts)
    mlp = layout.tensors[SliceId("mlp", 1)]
    assert set(mlp) == {name for name in experts if ".layers.1." in name} | {"model.layers.1.mlp.gate.weight"}
    assert {name: layout.shapes[name] for name in experts} == experts
    name = "model.layers.1.block_sparse_moe.experts.0.w3.weight"
    assert layout.parameters[name] == "model.layers.1.mlp.experts.gate_up_proj"
    assert layout.at_layer(name, 0) == "model.layers.0.block_sparse_moe.experts.0.w3.weight"
    together = layout_of(config, joined)
    assert together.slices == layout.slices
    assert together.joins == ()
    assert together.shapes == joined


def test_experts_that_do_not_fit_together() -> None:
    config, joined, experts = mixtral()
    shapes = {name: shape for name, shape in joined.items() if ".experts." not in name}

    def without(*parts: str) -> Shapes:
        return shapes | {name: shape for name, shape in experts.items() if not any(part in name for part in parts)}

    first = r"tensor 'model\.layers\.0\.block_sparse_moe\.experts\.0\.w1\.weight'"
    gate_up = r"'model\.layers\.0\.mlp\.experts\.gate_up_proj'"
    with pytest.raises(PoolError, match=f"{first} and 4 more cannot be joined to {gate_up}"):
        layout_of(config, without("layers.0.block_sparse_moe.experts.1.w3."))
    with pytest.raises(PoolError, match=rf"{gate_up}: they make \(2, 48, 16\), MixtralForCausalLM has \(3, 48, 16\)"):
        layout_of(config, without(".experts.2.w1.", ".experts.2.w3."))
    with pytest.raises(PoolError, match=r"lacks tensor 'model\.layers\.0\.mlp\.experts\.down_proj' and 1 more"):
        layout_of(config, without(".w2."))
    twice = shapes | experts | {gate_up.replace("\\", "").strip("'"): (3, 48, 16)}
    with pytest.raises(PoolError, match=f"unexpected tensor {gate_up}"):
        layout_of(config, twice)


def test_moving_names_between_layers() -> None:
    layout = layout_of(tiny_config("llama"), shapes_of("llama"))
    name = "model.layers.1.mlp.up_proj.weight"
    assert layout.at_layer(name, 0) == "model.layers.0.mlp.up_proj.weight"
    assert layout.at_layer("model.norm.weight", 5) == "model.norm.weight"
    assert layout.of_slice(SliceId("norm", 11)) == (
        "model.layers.11.input_layernorm.weight",
        "model.layers.11.post_attention_layernorm.weight",
    )
    with pytest.raises(RecipeError, match=r"no slice has a tensor 'model\.nrm\.weight'; did you mean 'model\.norm"):
        layout.slice_of("model.nrm.weight")


def test_slices_that_do_not_exist() -> None:
    layout = layout_of(tiny_config("llama_tied"), shapes_of("llama_tied"))
    with pytest.raises(RecipeError, match="slice head does not exist"):
        layout.of_slice(SliceId("head"))
