"""What is copied beside the weights, and what is said of files that differ."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evomerge.errors import EvomergeWarning, PoolError
from evomerge.export.writer import write_model
from evomerge.models.opening import open_pool

Llamas = Callable[..., dict[str, Path]]
Folders = dict[str, Path]
KINDS = ("Transformer", "Pooling", "Normalize", "Dense")


@pytest.fixture
def folders(tmp_path: Path, llamas: Llamas) -> Folders:
    made = {name: tmp_path / "sources" / name for name in ("base", "a", "b")}
    for name, folder in made.items():
        shutil.copytree(llamas()[name], folder)
    return made


def as_encoder(folder: Path, kinds: int = 3, seed: int = 0, pooling: str = "cls") -> None:
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(KINDS[:kinds])
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"mode": pooling}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64}))
    content = {"prompts": {"query": "query: "}, "__version__": {"transformers": str(seed)}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(content))
    if kinds == 4:
        (folder / "3_Dense").mkdir()
        (folder / "3_Dense" / "config.json").write_text("{}")
        weights = {"linear.weight": torch.full((2, 2), float(seed))}
        save_file(weights, folder / "3_Dense" / "model.safetensors")


def merged(folders: Folders, out: Path, base: str | None = "base") -> Path:
    pool = open_pool({name: str(folder) for name, folder in folders.items()}, base)
    return write_model(pool.info.linear(dict.fromkeys(folders, 1 / len(folders))), pool, out)


FILES = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json")


@pytest.mark.parametrize("holders", [("base", "a", "b"), ("a", "b")])
def test_settings_of_sentence_transformers(holders: tuple[str, ...], folders: Folders, tmp_path: Path) -> None:
    for seed, name in enumerate(holders):
        as_encoder(folders[name], seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = merged(folders, tmp_path / "out")
    for file in FILES:
        assert (out / file).read_bytes() == (folders[holders[0]] / file).read_bytes()


def test_settings_that_differ_are_named(folders: Folders, tmp_path: Path) -> None:
    for name, pooling in (("base", "cls"), ("a", "mean"), ("b", "cls")):
        as_encoder(folders[name], pooling=pooling)
    (folders["b"] / "chat_template.jinja").write_text("of b")
    (folders["a"] / "generation_config.json").write_text('{"temperature": 0.5}')
    with pytest.warns(EvomergeWarning, match="the merged model") as said:
        out = merged(folders, tmp_path / "out")
    text = " ".join(str(warning.message) for warning in said)
    assert "1_Pooling/config.json (of base) than in a" in text
    assert "generation_config.json (of base) than in a" in text
    assert "none of files that only some models have: chat_template.jinja (in b)" in text
    assert json.loads((out / "1_Pooling" / "config.json").read_text()) == {"mode": "cls"}


def test_a_module_with_weights_is_kept_where_all_share_it(folders: Folders, tmp_path: Path) -> None:
    for name in folders:
        as_encoder(folders[name], kinds=4)
    out = merged(folders, tmp_path / "out")
    file = Path("3_Dense") / "model.safetensors"
    assert (out / file).read_bytes() == (folders["a"] / file).read_bytes()


def test_a_module_with_weights_of_its_own_is_refused(folders: Folders, tmp_path: Path) -> None:
    for seed, name in enumerate(folders):
        as_encoder(folders[name], kinds=4, seed=seed)
    with pytest.raises(PoolError, match=r"module 3_Dense \(Dense\) .* in model 'a' has weights that model 'base'"):
        merged(folders, tmp_path / "out")
    for name in folders:
        (folders[name] / "3_Dense" / "model.safetensors").rename(folders[name] / "3_Dense" / "pytorch_model.bin")
    with pytest.raises(PoolError, match="pickled weights"):
        merged(folders, tmp_path / "out")


@pytest.mark.parametrize(
    "text", ["{", "3", "[3]", '[{"path": "../x", "type": "a"}]', '[{"path": "/etc", "type": "a"}]', '[{"path": 3}]']
)
def test_a_list_of_modules_that_is_none(text: str, folders: Folders, tmp_path: Path) -> None:
    (folders["a"] / "modules.json").write_text(text)
    with pytest.raises(PoolError, match=r"modules\.json"):
        merged(folders, tmp_path / "out")
