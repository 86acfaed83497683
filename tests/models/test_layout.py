from __future__ import annotations

import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_config

from evomerge.errors import PoolError, RecipeError
from evomerge.models.layout import layout_of, skeleton
from evomerge.models.names import match_names, tied_names
from evomerge.recipe import SliceId

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


def names_of(kind: str) -> list[str]:
    """Names of the module's own parameters, tied ones once."""
    return [name for name, _ in skeleton(tiny_config(kind)).named_parameters()]


def test_every_architecture_has_its_expectation() -> None:
    assert EXPECTED.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("kind", EXPECTED)
def test_slices_and_their_tensors(kind: str) -> None:
    prefix, layer, outer = EXPECTED[kind]
    layout = layout_of(tiny_config(kind), names_of(kind))
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
    layout = layout_of(tiny_config(kind), names_of(kind))
    module = skeleton(tiny_config(kind))
    assert all(parameter.device == torch.device("meta") for parameter in module.parameters())
    assert layout.shapes == {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def test_names_without_the_base_prefix_and_with_it() -> None:
    config, names = tiny_config("gpt2"), names_of("gpt2")
    bare = [name.removeprefix("transformer.") for name in names]
    layout = layout_of(config, bare)
    assert layout.tensors[SliceId("embed")] == ("wte.weight", "wpe.weight")
    assert layout.parameters["h.1.ln_1.weight"] == "transformer.h.1.ln_1.weight"
    assert layout.slice_of("h.1.attn.c_attn.bias") == SliceId("attn", 1)
    assert layout.at_layer("h.1.attn.c_attn.bias", 0) == "h.0.attn.c_attn.bias"


def test_renamed_modules_are_followed() -> None:
    names = [name.replace("lm_head", "embed_out") for name in names_of("gpt_neox")]
    layout = layout_of(tiny_config("gpt_neox"), names)
    assert layout.tensors[SliceId("head")] == ("embed_out.weight",)
    assert layout.parameters["embed_out.weight"] == "lm_head.weight"


def test_tied_head_may_be_stored_too_or_instead() -> None:
    config, names = tiny_config("llama_tied"), names_of("llama_tied")
    module = skeleton(config)
    assert tied_names(module) == {"lm_head.weight": "model.embed_tokens.weight"}
    twice = match_names(module, [*names, "lm_head.weight"])
    assert twice.duplicates == {"lm_head.weight": "model.embed_tokens.weight"}
    assert layout_of(config, [*names, "lm_head.weight"]) == layout_of(config, names)
    instead = ["lm_head.weight" if name == "model.embed_tokens.weight" else name for name in names]
    assert layout_of(config, instead).tensors[SliceId("embed")] == ("lm_head.weight",)


def test_old_buffers_are_ignored() -> None:
    config, names = tiny_config("gpt2"), names_of("gpt2")
    match = match_names(skeleton(config), [*names, "transformer.h.0.attn.bias"])
    assert match.ignored == ("transformer.h.0.attn.bias",)
    assert match.unexpected == ()
    llama = match_names(skeleton(tiny_config("llama")), ["model.layers.0.self_attn.rotary_emb.inv_freq"])
    assert llama.ignored == ("model.layers.0.self_attn.rotary_emb.inv_freq",)


def test_missing_and_unexpected_tensors_are_named() -> None:
    config, names = tiny_config("llama"), names_of("llama")
    with pytest.raises(PoolError, match=r"lacks tensor 'model\.norm\.weight'; LlamaForCausalLM needs it"):
        layout_of(config, [name for name in names if name != "model.norm.weight"])
    with pytest.raises(PoolError, match=r"unexpected tensor 'model\.layers\.7\.mlp\.up_proj\.weight'"):
        layout_of(config, [*names, "model.layers.7.mlp.up_proj.weight"])


def test_fused_experts_are_refused_for_now() -> None:
    names = ["model.layers.0.block_sparse_moe.experts.0.w1.weight"]
    import transformers

    config = transformers.MixtralConfig(
        hidden_size=16, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1, vocab_size=8
    )
    with pytest.raises(PoolError, match=r"experts\.0\.w1\.weight' is joined with others"):
        layout_of(config, names)


def test_encoder_decoders_are_refused() -> None:
    import transformers

    config = transformers.T5Config(d_model=8, num_layers=1, vocab_size=8, architectures=["T5ForConditionalGeneration"])
    with pytest.raises(PoolError, match="'t5' is an encoder-decoder"):
        layout_of(config, [])


def test_moving_names_between_layers() -> None:
    layout = layout_of(tiny_config("llama"), names_of("llama"))
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
    layout = layout_of(tiny_config("llama_tied"), names_of("llama_tied"))
    with pytest.raises(RecipeError, match="slice head does not exist"):
        layout.of_slice(SliceId("head"))
