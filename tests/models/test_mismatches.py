"""What keeps two models from being merged is one line, which names both and says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TinyModel, write_tokenizer

from evomerge.errors import EvomergeWarning, PoolError
from evomerge.models.opening import open_pool

LEAVE = r"leave one of the two out of the pool"
COPY = LEAVE + r"; where it is meant, merge a copy of it whose config\.json says what that of 'a' says"


def config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return edit


def tokens(folder: Path) -> None:
    write_tokenizer(folder, 40, {7: "other"})


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


NORM, GATE = "model.norm.weight", "model.layers.0.mlp.gate_proj.weight"
# How the other model is made (kind and configuration), what is done to its folder, and what is said.
MISMATCHES: dict[str, tuple[str, dict[str, Any], Callable[[Path], None] | None, str]] = {
    "model type": ("qwen2", {}, None, rf"model 'b' has model_type qwen2, 'a' has llama; .*; {LEAVE}"),
    "class": (
        "llama",
        {},
        config(architectures=["LlamaModel"]),
        rf"model 'b' has architectures \['LlamaModel'\], 'a' has \['LlamaForCausalLM'\]; .*; {LEAVE}",
    ),
    "width": (
        "llama",
        {"hidden_size": 32, "head_dim": 4},
        None,
        rf"'b' has hidden_size 32 .*, 'a' has 16; .*; {LEAVE}",
    ),
    "heads": (
        "llama",
        {"num_attention_heads": 2, "head_dim": 4},
        None,
        rf"model 'b' has num_attention_heads 2 in config\.json, 'a' has 4; .*; {LEAVE}",
    ),
    "key heads": (
        "llama",
        {"num_key_value_heads": 4},
        None,
        rf"'b' has num_key_value_heads 4 .*, 'a' has 2; .*; {LEAVE}",
    ),
    "inner width": (
        "llama",
        {"intermediate_size": 32},
        None,
        rf"'b' has intermediate_size 32 .*, 'a' has 24; .*; {LEAVE}",
    ),
    "activation": (
        "llama",
        {"hidden_act": "gelu"},
        None,
        rf"model 'b' has hidden_act gelu .*, 'a' has silu; .*; {COPY}",
    ),
    "norms": (
        "llama",
        {"rms_norm_eps": 1e-3},
        None,
        rf"model 'b' has rms_norm_eps 0\.001 .*, 'a' has 1e-06; .*; {COPY}",
    ),
    "rotary base": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        None,
        rf"model 'b' has rope_parameters\.rope_theta 500000\.0 .*, 'a' has 10000\.0; .*; {COPY}",
    ),
    "biases": ("llama", {"mlp_bias": True}, None, r"'b': it has an unexpected tensor|model 'b' has mlp_bias True"),
    "rows": (
        "llama",
        {"vocab_size": 48},
        without_tokenizer,
        r"model 'b' has a vocabulary of 48, 'a' of 40; .*; copy the tokenizer of 'b' .*then set pool\.tokenizer=union",
    ),
    "tokens": ("llama", {}, tokens, r"'b'.*'a'|'a'.*'b'"),
    "missing tensor": (
        "llama",
        {},
        tensors(lambda state: state.pop(NORM)),
        r"model 'b': it lacks tensor 'model\.norm\.weight'; LlamaForCausalLM needs it; download it again",
    ),
    "unknown tensor": (
        "llama",
        {},
        tensors(lambda state: state.update(extra=torch.zeros(2))),
        r"model 'b': it has an unexpected tensor 'extra'; LlamaForCausalLM has no place for it; name the class that it",
    ),
    "shape": (
        "llama",
        {},
        tensors(lambda state: state.update({GATE: torch.zeros(24, 8)})),
        rf"tensor '{GATE}' has shape \(24, 8\) in model 'b' and \(24, 16\) in 'a'; .*; {LEAVE}",
    ),
    "integers": (
        "llama",
        {},
        tensors(lambda state: state.update({GATE: state[GATE].to(torch.int8)})),
        r"model 'b': tensor .* is stored as I8; weights are merged from .*; save the model in one of these",
    ),
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reference") / "a"


@pytest.mark.parametrize("what", MISMATCHES)
def test_it_is_one_line(what: str, tiny_model: TinyModel, reference: Path) -> None:
    if not reference.is_dir():
        shutil.copytree(tiny_model("a"), reference)
        write_tokenizer(reference, 40)
    kind, overrides, edit, said = MISMATCHES[what]
    other = tiny_model("b", kind, 1, **overrides)
    if not (other / "tokenizer.json").is_file():
        write_tokenizer(other, 40)
    if edit is not None:
        edit(other)
    with pytest.raises(PoolError, match=said) as error:
        open_pool({"a": str(reference), "b": str(other)})
    assert "\n" not in str(error.value)
    assert "problems with the pool" not in str(error.value)
    assert "'b'" in str(error.value)
    assert str(error.value).count("; ") >= 1


def test_what_is_handled_is_warned_of_or_silent(tiny_model: TinyModel) -> None:
    """Dtypes are said; heads that are tied in one model only, and depths, are seen to."""
    folders = {"a": str(tiny_model("a")), "b": str(tiny_model("b", seed=1, dtype="bfloat16"))}
    with pytest.warns(EvomergeWarning, match=r"stored in different dtypes \(a in float32, b in bfloat16\)"):
        open_pool(folders)
    tied = str(tiny_model("tied", "llama_tied", 2))
    assert open_pool({"a": folders["a"], "tied": tied}).tied is False
    deep = str(tiny_model("deep", seed=3, num_hidden_layers=3))
    assert open_pool({"a": folders["a"], "deep": deep}).info.depths == (("deep", 3),)
