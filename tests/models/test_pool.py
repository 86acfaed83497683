from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES, TinyModel, write_tokenizer

from evomerge.errors import ConfigError, PoolError, RecipeError
from evomerge.models.checkpoints import reader
from evomerge.models.opening import open_pool, pool_of_recipe
from evomerge.models.pool_settings import check_places
from evomerge.recipes.slices import Input, ModelRef, SliceRecipe, parameters


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_opens_every_architecture_from_headers_alone(
    kind: str, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: str(tiny_model(name, kind, seed)) for seed, name in enumerate(("base", "a", "b"))}

    def no_reading(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(reader, "mapped", no_reading)
    pool = open_pool(folders, base="base")
    assert pool.info.sources == ("a", "b")
    assert pool.info.base == pool.info.config_from == "base"
    assert pool.info.layers == 2
    assert pool.info.slices == pool.layout.slices
    assert pool.info.dtype == "float32"
    refs = dict(pool.info.refs)
    assert list(refs) == ["base", "a", "b"]
    for name, folder in folders.items():
        assert refs[name] == ModelRef(folder, fingerprint=pool.checkpoints[name].fingerprint())
        assert pool.folder(name) == Path(folder)
    assert len({ref.fingerprint for ref in refs.values()}) == 3


def test_without_base_the_first_model_gives_the_configuration(tiny_model: TinyModel) -> None:
    pool = open_pool({"a": str(tiny_model("a")), "b": str(tiny_model("b", seed=1))})
    assert (pool.info.base, pool.info.sources, pool.info.config_from) == (None, ("a", "b"), "a")


def test_relative_to_root_and_without_fingerprints(tiny_model: TinyModel) -> None:
    root = tiny_model("a").parent
    pool = open_pool({"a": "a"}, root=root, fingerprints=False)
    assert pool.info.refs == (("a", ModelRef(str(root / "a"))),)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_dtype_is_the_stored_one_unless_given(tiny_model: TinyModel, stored: str) -> None:
    folder = str(tiny_model("a", dtype=stored))
    assert open_pool({"a": folder}).info.dtype == stored
    assert open_pool({"a": folder}, dtype="bfloat16").info.dtype == "bfloat16"
    edit_config(Path(folder), dtype=..., torch_dtype=...)
    assert open_pool({"a": folder}).info.dtype == stored


def test_reads_by_the_layout_names_whatever_the_models_call_them(tiny_model: TinyModel) -> None:
    a, b = tiny_model("a", "gpt2"), tiny_model("b", "gpt2", seed=1)
    tensors = load_file(b / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor.clone() for name, tensor in tensors.items()}
    save_file(bare, b / "model.safetensors")
    pool = open_pool({"a": str(a), "b": str(b)})
    for name, expected in tensors.items():
        assert torch.equal(pool.read("b", name), expected)


def test_wrong_arguments(tiny_model: TinyModel) -> None:
    folder = str(tiny_model("a"))
    for base in (None, "base"):
        with pytest.raises(PoolError, match="the pool has no models"):
            open_pool({}, base)
    with pytest.raises(PoolError, match="no model besides its base 'a'"):
        open_pool({"a": folder}, base="a")
    with pytest.raises(ConfigError, match=r"pool\.base is 'aa'; did you mean 'a'"):
        open_pool({"a": folder}, base="aa")
    with pytest.raises(ConfigError, match=r"pool\.dtype is 'bfloat'; did you mean 'bfloat16'"):
        open_pool({"a": folder}, dtype="bfloat")


def test_all_models_that_cannot_be_opened_are_named_at_once(tiny_model: TinyModel, tmp_path: Path) -> None:
    good, bare = tiny_model("good"), tiny_model("bare", seed=1)
    (bare / "model.safetensors").unlink()
    with pytest.raises(PoolError) as caught:
        open_pool({"good": str(good), "gone": str(tmp_path / "god"), "bare": str(bare)})
    message = str(caught.value)
    assert message.startswith("2 problems with the pool: model 'gone': no folder")
    assert "did you mean 'good'" in message
    assert f"| model 'bare': {bare} has no safetensors files" in message


def test_other_architectures(tiny_model: TinyModel) -> None:
    with pytest.raises(PoolError, match="model 'b' has model_type mistral, 'a' has llama"):
        open_pool({"a": str(tiny_model("a")), "b": str(tiny_model("b", "mistral"))})


def test_other_class_of_the_same_type(tiny_model: TinyModel) -> None:
    a, b = tiny_model("a"), tiny_model("b", seed=1)
    edit_config(b, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(PoolError, match=r"model 'b' has architectures \['LlamaForSequenceClassification'\]"):
        open_pool({"a": str(a), "b": str(b)})


def test_other_shapes_name_key_and_models_once(tiny_model: TinyModel) -> None:
    a, b = tiny_model("a"), tiny_model("b", seed=1, intermediate_size=32)
    with pytest.raises(PoolError) as caught:
        open_pool({"a": str(a), "b": str(b)})
    message = str(caught.value)
    assert message.startswith("model 'b' has intermediate_size 32 in config.json, 'a' has 24")
    assert "has shape" not in message  # they follow from it


def test_other_vocabulary_size_is_said_once(tiny_model: TinyModel) -> None:
    a, b = tiny_model("a"), tiny_model("b", seed=1, vocab_size=44)
    (b / "tokenizer.json").unlink()  # whose rows are which cannot be told
    with pytest.raises(PoolError) as caught:
        open_pool({"a": str(a), "b": str(b)})
    assert str(caught.value) == (
        "model 'b' has a vocabulary of 44, 'a' of 40; all models of a pool share one vocabulary; "
        f"copy the tokenizer of 'b' into {b}; "
        "then set pool.tokenizer=union, or a model, to bring them to one by their tokens"
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_other_depth(kind: str, tiny_model: TinyModel) -> None:
    key = "n_layer" if kind == "gpt2" else "num_hidden_layers"
    a, b = str(tiny_model("a", kind)), str(tiny_model("b", kind, seed=1, **{key: 3}))
    pool, deep = open_pool({"a": a, "b": b}), open_pool({"b": b, "a": a})
    assert (pool.info.layers, pool.info.depth("a"), pool.info.depth("b")) == (2, 2, 3)
    assert (deep.info.layers, deep.info.depth("a"), deep.info.depth("b")) == (3, 2, 3)
    assert "a has 2, b has 3" in pool.info.uneven
    tensors = load_file(Path(b) / "model.safetensors")
    assert pool.stored["b"].keys() == deep.stored["b"].keys() == tensors.keys()
    assert all(torch.equal(pool.read("b", name), tensor) for name, tensor in tensors.items())
    assert deep.stored["a"].keys() == pool.stored["a"].keys() == load_file(Path(a) / "model.safetensors").keys()
    assert [entry.slice for entry in pool.info.linear({"b": 1.0}).slices] == list(deep.info.slices)
    with pytest.raises(RecipeError, match="a sum of a, b; the models of the pool differ in their number of layers"):
        pool.info.linear({"a": 0.5, "b": 0.5})


def test_missing_tensor_is_named(tiny_model: TinyModel) -> None:
    a, b = tiny_model("a"), tiny_model("b", seed=1)
    tensors = load_file(b / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, b / "model.safetensors")
    with pytest.raises(PoolError, match=r"model 'b': it lacks tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        open_pool({"a": str(a), "b": str(b)})


def test_weights_that_do_not_belong_to_their_configuration(tiny_model: TinyModel) -> None:
    a = tiny_model("a")
    edit_config(a, intermediate_size=32)
    with pytest.raises(
        PoolError, match=r"'model\.layers\.0\.mlp\.gate_proj\.weight' has shape \(24, 16\), config\.json"
    ):
        open_pool({"a": str(a)})


def test_quantised_and_double_precision_weights(tiny_model: TinyModel) -> None:
    a, b = tiny_model("a"), tiny_model("b", seed=1)
    edit_config(b, quantization_config={"quant_method": "gptq"})
    with pytest.raises(PoolError, match="model 'b': its weights are quantised"):
        open_pool({"a": str(a), "b": str(b)})
    edit_config(b, quantization_config=...)
    tensors = load_file(b / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].double()
    save_file(tensors, b / "model.safetensors")
    with pytest.raises(PoolError, match=r"model 'b': tensor 'model\.norm\.weight' is stored as F64"):
        open_pool({"a": str(a), "b": str(b)})


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("rope_parameters.rope_theta", {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}),
        ("rms_norm_eps", {"rms_norm_eps": 0.5}),
        ("num_attention_heads", {"num_attention_heads": 2, "head_dim": 4, "num_key_value_heads": 2}),
        ("hidden_act", {"hidden_act": "gelu"}),
    ],
)
def test_configuration_keys_that_change_the_function(tiny_model: TinyModel, key: str, changes: dict[str, Any]) -> None:
    a, b = tiny_model("a"), tiny_model("b", seed=1)
    edit_config(b, **changes)
    with pytest.raises(PoolError, match=f"model 'b' has {key} .* in config.json, 'a' has"):
        open_pool({"a": str(a), "b": str(b)})
    ignored = [key, "head_dim"] if key.startswith("num") else [key]
    assert open_pool({"a": str(a), "b": str(b)}, ignore_config=ignored).info.sources == ("a", "b")


def test_configuration_keys_that_do_not(tiny_model: TinyModel) -> None:
    a, b = tiny_model("a"), tiny_model("b", seed=1)
    edit_config(
        b, use_cache=False, attention_dropout=0.3, eos_token_id=3, initializer_range=1.0, max_position_embeddings=64
    )
    assert open_pool({"a": str(a), "b": str(b)}).info.sources == ("a", "b")


def test_other_tokenizers_name_the_first_token(tiny_model: TinyModel) -> None:
    a, b = tiny_model("a"), tiny_model("b", seed=1)
    write_tokenizer(b, renamed={30: "new", 9: "w30"})
    with pytest.raises(PoolError, match="tokenizers differ: token 'w30' has id 9 in model 'b', id 30 in 'a'"):
        open_pool({"a": str(a), "b": str(b)})
    write_tokenizer(b, renamed={30: "new"})
    with pytest.raises(PoolError, match="token 'new' has id 30 in model 'b', no id in 'a'"):
        open_pool({"a": str(a), "b": str(b)})


def test_tokenizers_written_differently_are_the_same(tiny_model: TinyModel) -> None:
    a, b = tiny_model("a"), tiny_model("b", seed=1)
    path = b / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    assert open_pool({"a": str(a), "b": str(b)}).info.sources == ("a", "b")


def test_models_without_tokenizer_are_not_compared(tiny_model: TinyModel) -> None:
    a, b = tiny_model("a"), tiny_model("b", seed=1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (b / name).unlink()
    assert open_pool({"a": str(a), "b": str(b)}).info.sources == ("a", "b")


def test_merge_rules_of_the_tokenizers(tiny_model: TinyModel) -> None:
    folders = [tiny_model("a"), tiny_model("b", seed=1)]
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4}
    for folder, merges in zip(folders, (["a b", "b c"], [["b", "c"], ["a", "b"]]), strict=True):
        model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
        (folder / "tokenizer.json").write_text(json.dumps({"model": model}))
    with pytest.raises(PoolError, match="'b' joins tokens by other merge rules than 'a'"):
        open_pool({"a": str(folders[0]), "b": str(folders[1])})


def test_tied_weights_stored_twice(tiny_model: TinyModel) -> None:
    a, b = tiny_model("a", "llama_tied"), tiny_model("b", "llama_tied", seed=1)
    tensors = load_file(b / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, b / "model.safetensors")
    pool = open_pool({"a": str(a), "b": str(b)})
    assert "lm_head.weight" not in pool.layout.parameters
    tensors["lm_head.weight"][3, 3] += 1
    save_file(tensors, b / "model.safetensors")
    with pytest.raises(PoolError, match=r"stores different values in 'model\.embed_tokens\.weight' and 'lm_head"):
        open_pool({"a": str(a), "b": str(b)})


def test_pool_of_a_recipe(tiny_model: TinyModel) -> None:
    folders = {name: str(tiny_model(name, seed=seed)) for seed, name in enumerate(("base", "a", "b"))}
    pool = open_pool(folders, base="base", dtype="bfloat16")
    entries = [
        SliceRecipe(s, "task_arithmetic", (Input("a", None, parameters({"weight": 0.5})),), base=Input("base"))
        for s in pool.info.slices
    ]
    again = pool_of_recipe(pool.info.recipe(entries))
    assert again.info == pool.info
    plain = pool_of_recipe(pool.info.linear({"a": 1.0}))  # nothing in this recipe says that base is one
    assert plain.info.base is None
    assert plain.info.config_from == "base"
    assert dict(plain.info.refs) == dict(pool.info.refs)


def test_recipe_whose_model_has_changed_since(tiny_model: TinyModel) -> None:
    folders = {"a": str(tiny_model("a")), "b": str(tiny_model("b", seed=1))}
    recipe = open_pool(folders).info.linear({"a": 0.5, "b": 0.5})
    tiny_model("b", seed=2)
    with pytest.raises(PoolError, match=r"model 'b' in .* is not the one that the recipe was made from"):
        pool_of_recipe(recipe)


def test_hub_models_are_pinned_by_commit(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "a" * 40
    repo = tmp_path / "hub" / "models--org--tiny"
    (repo / "snapshots").mkdir(parents=True)
    tiny_model("tiny").rename(repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pool = open_pool({"hub": "org/tiny@main", "local": str(tiny_model("local", seed=1))})
    refs = dict(pool.info.refs)
    assert refs["hub"] == ModelRef("org/tiny", revision=commit)
    assert refs["local"].fingerprint is not None
    again = pool_of_recipe(pool.info.linear({"hub": 0.5, "local": 0.5}))
    assert again.info == pool.info


def test_a_root_that_is_not_there_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "seed0").mkdir()
    with pytest.raises(PoolError) as caught:
        check_places({"base": "base", "math": "math"}, tmp_path / "seed1")
    message = str(caught.value)
    assert message.startswith(f"pool.root is {tmp_path / 'seed1'}, and there is no such folder; in {tmp_path}: did you")
    assert message.count("seed1") == 1
    assert "math" not in message
    check_places({"math": str(tmp_path / "seed0")}, tmp_path / "seed1")  # it is not asked for what has a place
    with pytest.raises(PoolError, match=r"^2 problems with the pool: model 'base': no folder base"):
        check_places({"base": "base", "math": "math"}, tmp_path / "seed0")
