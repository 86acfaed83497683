"""Slices that are equal in all models of a pool: found from where tensors lie, and from all of their bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from models.test_folding import make_adapter
from safetensors.torch import load_file, save_file
from tiny_models import TinyModel

from evomerge.models.opening import open_pool

LAYERS = 2


def constant(models: dict[str, str], base: str | None = None) -> set[str]:
    return {str(own) for own in open_pool(models, base).info.constant}


def every(models: dict[str, str]) -> set[str]:
    return {str(own) for own in open_pool(models).info.slices}


def edited(folder: Path, change: dict[str, tuple[int, ...]]) -> Path:
    """The folder with single elements of tensors changed."""
    weights = load_file(folder / "model.safetensors")
    for name, place in change.items():
        weights[name][place] += 1.0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_what_no_adapter_changes_is_equal_and_is_not_read(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_model("base")
    one = make_adapter(base, tmp_path / "one", target_modules=["q_proj"])
    two = make_adapter(base, tmp_path / "two", target_modules=["v_proj", "up_proj"], layers_to_transform=[1])
    models = {"base": str(base), "one": f"{base}+{one}", "two": f"{base}+{two}"}
    monkeypatch.setattr("evomerge.models.checkpoints.weight_files._pieces", lambda info: 1 / 0)
    wanted = {"embed", "layers.0.mlp", "layers.0.norm", "layers.1.norm", "final_norm", "head"}
    assert constant(models, "base") == wanted
    assert constant({"one": models["one"]}) == set(), "a model alone is equal to nothing"


def test_a_copy_that_an_adapter_saves_whole_is_compared(tiny_model: TinyModel, tmp_path: Path) -> None:
    base = tiny_model("base")
    one = make_adapter(base, tmp_path / "one", target_modules=["q_proj"], modules_to_save=["lm_head", "norm"])
    models = {"base": str(base), "one": f"{base}+{one}"}
    changed = constant(models, "base")
    assert {"final_norm", "head"}.isdisjoint(changed)
    weights = load_file(one / "adapter_model.safetensors")
    for name in weights:
        if "lm_head" in name:
            weights[name] = load_file(base / "model.safetensors")["lm_head.weight"]
    save_file(weights, one / "adapter_model.safetensors", {"format": "pt"})
    assert constant(models, "base") == changed | {"head"}


def test_whole_models_are_compared_by_all_of_their_bytes(tiny_model: TinyModel) -> None:
    base, same = tiny_model("base", vocab_size=2000), tiny_model("same", vocab_size=2000)
    models = {"base": str(base), "same": str(same)}
    assert constant(models, "base") == every(models)
    # In the embeddings a place that no sample of three times 4 kB has.
    edited(same, {"model.embed_tokens.weight": (700, 3), "model.layers.1.mlp.up_proj.weight": (0, 0)})
    assert constant(models, "base") == every(models) - {"embed", "layers.1.mlp"}
    assert constant(models) == every(models) - {"embed", "layers.1.mlp"}, "without a base, of the sources"


def test_equal_numbers_in_other_dtypes_are_not_equal_bits(tiny_model: TinyModel) -> None:
    with pytest.warns(UserWarning, match="stored in different dtypes"):
        found = constant({"a": str(tiny_model("a", dtype="bfloat16")), "b": str(tiny_model("b"))})
    assert found == set()


def test_models_of_different_depth_have_none(tiny_model: TinyModel) -> None:
    models = {"a": str(tiny_model("a")), "b": str(tiny_model("b", num_hidden_layers=3))}
    assert constant(models) == set()


def test_mixed_dtypes_of_a_pool_are_said_with_every_model(tiny_model: TinyModel) -> None:
    models = {"base": str(tiny_model("base")), "a": str(tiny_model("a", seed=1, dtype="bfloat16"))}
    with pytest.warns(UserWarning, match=r"base in float32, a in bfloat16.*pool\.dtype decides"):
        open_pool(models, "base")
