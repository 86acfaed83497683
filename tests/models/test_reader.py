from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import EvomergeWarning, PoolError
from evomerge.models.checkpoints import reader
from evomerge.models.checkpoints.reader import Checkpoint

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b.weight": torch.tensor([1.5, -2.0, 0.25], dtype=torch.bfloat16),
    "c.weight": torch.tensor([[0.5]], dtype=torch.float16),
    "d.steps": torch.tensor([3, 4], dtype=torch.int64),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "transformers_version": "1"}))
    return tmp_path


def shard(folder: Path) -> None:
    """Spread the single file over two shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {"model-00001-of-00002.safetensors": ("a.weight", "d.steps"), "model-00002-of-00002.safetensors": ()}
    parts["model-00002-of-00002.safetensors"] = tuple(sorted(tensors.keys() - {"a.weight", "d.steps"}))
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    weight_map = {name: file for file, names in parts.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("sharded", [False, True])
def test_reads_every_dtype_from_one_file_and_from_shards(folder: Path, sharded: bool) -> None:
    if sharded:
        shard(folder)
    checkpoint = Checkpoint(folder)
    assert set(checkpoint.tensors) == set(TENSORS)
    for name, expected in TENSORS.items():
        read = checkpoint.read(name)
        assert read.dtype == expected.dtype
        assert torch.equal(read, expected)
        info = checkpoint.tensors[name]
        assert (info.shape, info.nbytes) == (tuple(expected.shape), expected.nbytes)
    assert [checkpoint.tensors[n].dtype for n in sorted(TENSORS)] == ["F32", "BF16", "F16", "I64"]
    assert [checkpoint.tensors[n].is_float for n in sorted(TENSORS)] == [True, True, True, False]
    assert checkpoint.nbytes == sum(t.nbytes for t in TENSORS.values())
    assert checkpoint.config["model_type"] == "llama"


def test_offsets_point_at_the_tensor_in_its_file(folder: Path) -> None:
    info = Checkpoint(folder).tensors["a.weight"]
    data = info.file.read_bytes()[info.start : info.start + info.nbytes]
    assert torch.equal(torch.frombuffer(bytearray(data), dtype=torch.float32).view(3, 4), TENSORS["a.weight"])


def test_reading_maps_the_file_without_copying(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    assert checkpoint.read("a.weight").data_ptr() == checkpoint.read("a.weight").data_ptr()


def test_unknown_tensor_is_named(folder: Path) -> None:
    with pytest.raises(PoolError, match=r"no tensor 'z\.weight'"):
        Checkpoint(folder).read("z.weight")


def test_missing_shard_is_named(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(PoolError, match=r"no shard model-00002-of-00002\.safetensors"):
        Checkpoint(folder)


def test_tensor_missing_from_its_shard_is_named(folder: Path) -> None:
    shard(folder)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["e.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(PoolError, match=r"model-00001-of-00002\.safetensors lacks tensor 'e\.weight'"):
        Checkpoint(folder)


def test_index_may_not_leave_the_folder(folder: Path) -> None:
    shard(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": "../other.safetensors"}}))
    with pytest.raises(PoolError, match=r"'a\.weight' lies outside the folder"):
        Checkpoint(folder)


def test_index_without_a_map_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(PoolError, match="no weight_map"):
        Checkpoint(folder)


def test_truncated_file_names_file_and_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(PoolError, match=r"model\.safetensors is truncated: tensor '"):
        Checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 8 + b"{}", (40).to_bytes(8, "little") + b"{}"])
def test_file_that_is_no_safetensors_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(PoolError, match="truncated or not safetensors"):
        Checkpoint(folder)


def rewrite_header(folder: Path, change: dict[str, object]) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["a.weight"] |= change
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + length :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [4, 4]}, r"tensor 'a\.weight' of shape \(4, 4\) and dtype F32 takes 64 bytes"),
        ({"shape": [-3, -4]}, r"tensor 'a\.weight' of shape \(-3, -4\)"),
        ({"dtype": "F7"}, r"tensor 'a\.weight' has dtype F7"),
        ({"data_offsets": "x"}, r"entry for tensor 'a\.weight' is malformed"),
        ({"shape": [10**12], "data_offsets": [0, 4 * 10**12]}, r"truncated: tensor 'a\.weight'"),
    ],
)
def test_header_that_lies_is_refused_by_tensor(folder: Path, change: dict[str, object], message: str) -> None:
    rewrite_header(folder, change)
    with pytest.raises(PoolError, match=message):
        Checkpoint(folder)


@pytest.mark.parametrize("opened", [False, True])
def test_file_truncated_after_opening_is_refused_when_read(folder: Path, opened: bool) -> None:
    checkpoint = Checkpoint(folder)
    last = max(checkpoint.tensors.values(), key=lambda info: info.start)
    if opened:
        checkpoint.read(last.name)
    os.truncate(last.file, last.start + last.nbytes - 1)
    with pytest.raises(PoolError, match=rf"model\.safetensors has been truncated: tensor '{last.name}' ends"):
        checkpoint.read(last.name)


def test_file_that_is_gone_or_replaced_is_refused_when_read(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    path = folder / "model.safetensors"
    path.write_bytes(b"\x00" * path.stat().st_size)
    with pytest.raises(PoolError, match=r"model\.safetensors: tensor 'a\.weight' cannot be read"):
        checkpoint.read("a.weight")
    path.unlink()
    with pytest.raises(PoolError, match=r"model\.safetensors: tensor 'a\.weight' cannot be read"):
        checkpoint.read("a.weight")


def test_memory_that_ends_while_a_file_is_read_is_not_the_files_fault(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    checkpoint = Checkpoint(folder)
    monkeypatch.setattr(reader, "_tensor", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        checkpoint.read("a.weight")


def test_index_without_tensors_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(PoolError, match=r"index\.json names no tensors"):
        Checkpoint(folder)


def test_index_that_names_a_tensor_twice_is_refused(folder: Path) -> None:
    shard(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a.weight": "model-00001-of-00002.safetensors", "a.weight": "x.safetensors"}}')
    with pytest.raises(PoolError, match=r"index\.json has 'a\.weight' twice"):
        Checkpoint(folder)


def test_tensor_in_two_shards_is_refused(folder: Path) -> None:
    shard(folder)
    second = folder / "model-00002-of-00002.safetensors"
    save_file({**load_file(second), "a.weight": TENSORS["a.weight"] + 1}, second)
    with pytest.raises(PoolError, match=r"tensor 'a\.weight' in model-00001-of-00002\.safetensors and in model-00002"):
        Checkpoint(folder)


def test_adapter_in_the_place_of_a_model(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(PoolError, match=r"holds an adapter, not a model.*base\+adapter"):
        Checkpoint(folder)


def test_header_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{]")
    with pytest.raises(PoolError, match="header is not a JSON object"):
        Checkpoint(folder)


def test_folder_without_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(PoolError, match=r"has no config\.json"):
        Checkpoint(folder)


def test_configuration_that_is_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(PoolError, match=r"config\.json is not JSON"):
        Checkpoint(folder)


def test_folder_without_safetensors_says_what_lies_there_instead(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(PoolError, match="has no safetensors files"):
        Checkpoint(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(PoolError, match=r"no safetensors, only pytorch_model\.bin"):
        Checkpoint(folder)


def test_single_file_of_any_name_is_taken_and_several_are_not(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert torch.equal(Checkpoint(folder).read("a.weight"), TENSORS["a.weight"])
    shutil.copy(folder / "weights.safetensors", folder / "more.safetensors")
    with pytest.raises(PoolError, match="2 safetensors files and neither"):
        Checkpoint(folder)


def test_fingerprint_ignores_sharding_and_the_saving_version(folder: Path) -> None:
    before = Checkpoint(folder).fingerprint()
    assert before.startswith("sha256:")
    assert len(before) == 7 + 64
    shard(folder)
    (folder / "config.json").write_text(json.dumps({"transformers_version": "2", "model_type": "llama"}))
    assert Checkpoint(folder).fingerprint() == before


@pytest.mark.parametrize("name", ["a.weight", "b.weight", "d.steps"])
def test_fingerprint_sees_one_changed_value(folder: Path, name: str) -> None:
    before = Checkpoint(folder).fingerprint()
    tensors = {**TENSORS, name: TENSORS[name].clone()}
    tensors[name].view(-1)[1] += 1
    save_file(tensors, folder / "model.safetensors")
    assert Checkpoint(folder).fingerprint() != before


def test_fingerprint_sees_the_configuration(folder: Path) -> None:
    before = Checkpoint(folder).fingerprint()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "rope_theta": 7}))
    assert Checkpoint(folder).fingerprint() != before


@pytest.mark.parametrize(("element", "seen"), [(0, True), (50_000, True), (99_999, True), (25_000, False)])
def test_large_tensors_are_sampled_at_start_middle_and_end(folder: Path, element: int, seen: bool) -> None:
    tensor = torch.zeros(100_000)
    save_file({"a": tensor}, folder / "model.safetensors")
    before = Checkpoint(folder).fingerprint()
    tensor[element] = 1
    save_file({"a": tensor}, folder / "model.safetensors")
    assert (Checkpoint(folder).fingerprint() != before) == seen


def test_the_single_file_before_an_index_as_transformers_reads(folder: Path) -> None:
    single = (folder / "model.safetensors").read_bytes()
    shard(folder)
    (folder / "model.safetensors").write_bytes(single)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the same model twice: nothing to say
        assert {info.file.name for info in Checkpoint(folder).tensors.values()} == {"model.safetensors"}
    tensors = load_file(folder / "model.safetensors")
    big = torch.zeros(40_000)
    save_file({**tensors, "e.weight": big}, folder / "model.safetensors")
    with pytest.warns(EvomergeWarning, match="holds two models: model.safetensors and the shards of"):
        Checkpoint(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()  # as save_pretrained leaves it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "e.weight" in Checkpoint(folder).tensors


def test_two_models_that_differ_in_one_value_of_a_large_tensor(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    one, other = torch.zeros(5_000_000), torch.zeros(5_000_000)
    other[4_600_003] = 1.0  # in the second piece, outside all samples
    save_file({"w": one}, tmp_path / "model.safetensors")
    save_file({"w": other}, tmp_path / "part.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "part.safetensors"}}))
    with pytest.warns(EvomergeWarning, match="holds two models"):
        checkpoint = Checkpoint(tmp_path)
    assert torch.equal(checkpoint.read("w"), one)


def test_the_file_that_the_configuration_names(folder: Path) -> None:
    save_file({"a.weight": torch.ones(2)}, folder / "ema.safetensors")
    config = {"model_type": "llama", "transformers_weights": "ema.safetensors"}
    (folder / "config.json").write_text(json.dumps(config))
    assert torch.equal(Checkpoint(folder).read("a.weight"), torch.ones(2))
    (folder / "ema.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": "ema.safetensors"}}))
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "ema.safetensors.index.json"}))
    assert torch.equal(Checkpoint(folder).read("a.weight"), torch.ones(2))
    for name in ("../x.safetensors", "/x.safetensors", "x.safetensors", "x.bin", 3, "x" * 300 + ".safetensors"):
        (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": name}))
        with pytest.raises(PoolError, match="has transformers_weights"):
            Checkpoint(folder)


@pytest.mark.parametrize("with_config", [False, True])
def test_gguf(tmp_path: Path, with_config: bool) -> None:
    (tmp_path / "llama-q4.gguf").write_bytes(b"GGUF")
    if with_config:
        (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PoolError, match=r"GGUF files \(llama-q4.gguf\).*gguf_file='llama-q4.gguf'\).*save_pretrained"):
        Checkpoint(tmp_path)
