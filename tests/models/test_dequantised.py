"""Quantised sources: read as plain weights once, with a warning; or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_file import EOS, write_gguf
from tiny_models import TinyModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from evomerge.errors import EvomergeWarning, PoolError
from evomerge.export.writer import write_model
from evomerge.models.opening import open_pool, pool_of_recipe


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dequantised"


def test_a_gguf_file_is_a_source(cache: Path, tmp_path: Path) -> None:
    """Every tensor is what the file's package makes of it; the second time the folder in the cache is taken."""
    pytest.importorskip("gguf", reason="the package gguf writes the file that is read here")
    (tmp_path / "m").mkdir()
    kept = write_gguf(tmp_path / "m" / "a-q8_0.gguf")
    with pytest.warns(EvomergeWarning, match=r"a-q8_0\.gguf is a GGUF file: .* dequantised now into"):
        pool = open_pool({"a": str(tmp_path / "m" / "a-q8_0.gguf")})
    assert {name: pool.read("a", name).shape for name in kept} == {name: own.shape for name, own in kept.items()}
    for name, own in kept.items():
        assert torch.equal(pool.read("a", name), torch.from_numpy(own)), name
    (folder,) = cache.iterdir()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    with pytest.warns(EvomergeWarning, match="dequantised before into"):
        again = open_pool({"a": str(tmp_path / "m"), "b": str(tmp_path / "m" / "a-q8_0.gguf")})
    assert again.folder("a") == again.folder("b") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    recipe = pool.info.linear({"a": 1.0})
    assert recipe.ref("a").location == str(tmp_path / "m" / "a-q8_0.gguf")
    with pytest.warns(EvomergeWarning):
        out = write_model(recipe, pool_of_recipe(recipe), tmp_path / "out")
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert (tokenizer("abcd")["input_ids"], model.config.eos_token_id) == ([26, 27], EOS)
    (tmp_path / "m" / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(PoolError, match=r"holds 2 GGUF files; one of them: a-q8_0\.gguf, other\.gguf; name it"):
        open_pool({"a": str(tmp_path / "m")})


def test_what_is_no_gguf_file(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and nothing else")
    with pytest.raises(PoolError, match=r"model 'a': (transformers cannot read .*broken\.gguf|.*pip install gguf)"):
        open_pool({"a": str(tmp_path / "broken.gguf")})
    assert not list(cache.glob("*")), "nothing half-made stays"


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_is_undone(bits: int, cache: Path, tiny_model: TinyModel, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    plain = tiny_model("plain", hidden_size=64, intermediate_size=64, head_dim=16)
    how: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if bits == 4 else {"load_in_8bit": True}
    config = BitsAndBytesConfig(**how)
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=config, dtype=torch.float32)
    model.save_pretrained(tmp_path / "small")
    for file in plain.glob("token*"):
        (tmp_path / "small" / file.name).write_bytes(file.read_bytes())
    with pytest.warns(EvomergeWarning, match=r"small is quantised \(bitsandbytes\): .* dequantised now into"):
        pool = open_pool({"plain": str(plain), "small": str(tmp_path / "small")}, dtype="float32")
    model.config.dtype = torch.float32
    wanted = model.dequantize().state_dict()
    for name in pool.layout.parameters:
        own, theirs = pool.read("small", name).float(), wanted[name].float()
        torch.testing.assert_close(own, theirs, rtol=1e-2, atol=1e-3)
        away = (own - pool.read("plain", name)).abs().max() / pool.read("plain", name).abs().max()
        assert away < (0.2 if bits == 4 else 0.02)


def test_methods_without_a_way_back_are_refused(cache: Path, tiny_model: TinyModel) -> None:
    folder = tiny_model("a")
    path = folder / "config.json"
    for method, shown in (("gptq", "gptq"), ("awq", "awq"), (None, "None"), ("x\n", r"'x\\n'")):
        content = json.loads(path.read_text()) | {"quantization_config": {"quant_method": method, "bits": 4}}
        path.write_text(json.dumps(content))
        said = rf"model 'a': its weights are quantised \({shown}\), and transformers has no way back .*quantised from"
        with pytest.raises(PoolError, match=said):
            open_pool({"a": str(folder)})
