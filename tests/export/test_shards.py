"""Files written tensor by tensor are what the safetensors library writes and reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from evomerge.export.shards import INDEX, SINGLE, Declared, ShardWriter

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
    "b": torch.arange(5, dtype=torch.bfloat16) / 3,
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "ids": torch.arange(3),
    "half": torch.arange(7, dtype=torch.float16).reshape(7, 1),
    "flags": torch.tensor([True, False, True]),
}


def declare(tensors: dict[str, torch.Tensor]) -> list[Declared]:
    return [Declared(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]


def write(folder: Path, tensors: dict[str, torch.Tensor], limit: int, order: list[str]) -> ShardWriter:
    with ShardWriter(folder, declare(tensors), limit) as writer:
        for name in order:
            writer.write(name, tensors[name])
        writer.finish()
    return writer


def test_one_file_holds_every_tensor_bit_for_bit(tmp_path: Path) -> None:
    writer = write(tmp_path, TENSORS, 10**6, list(reversed(TENSORS)))
    assert [file.name for file in tmp_path.iterdir()] == [SINGLE]
    loaded = load_file(tmp_path / SINGLE)
    assert set(loaded) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert (tmp_path / SINGLE).stat().st_size == writer.nbytes
    with safe_open(tmp_path / SINGLE, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_tensors_start_at_multiples_of_their_width(tmp_path: Path) -> None:
    write(tmp_path, TENSORS, 10**6, list(TENSORS))
    raw = (tmp_path / SINGLE).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for name, tensor in TENSORS.items():
        assert (8 + length + header[name]["data_offsets"][0]) % tensor.element_size() == 0


def test_shards_are_filled_in_order_and_listed(tmp_path: Path) -> None:
    tensors = {f"w{i}": torch.full((10,), float(i)) for i in range(5)} | {"large": torch.ones(100)}
    write(tmp_path, tensors, 90, ["w3", "large", "w0", "w4", "w1", "w2"])
    index = json.loads((tmp_path / INDEX).read_text())
    parts = [f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    assert index["weight_map"] == {
        "large": parts[3],
        "w0": parts[0],
        "w1": parts[0],
        "w2": parts[1],
        "w3": parts[1],
        "w4": parts[2],
    }
    assert index["metadata"] == {"total_parameters": 150, "total_size": 600}
    for part in parts:
        for name, tensor in load_file(tmp_path / part).items():
            assert index["weight_map"][name] == part
            assert torch.equal(tensor, tensors[name])


def test_views_and_strided_tensors_are_written_as_they_read(tmp_path: Path) -> None:
    base = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    tensors = {"transposed": base.T, "column": base[:, 3], "tail": base[4:]}
    write(tmp_path, tensors, 10**6, list(tensors))
    loaded = load_file(tmp_path / SINGLE)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_a_tensor_that_is_not_as_declared_is_a_bug(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, declare({"a": torch.zeros(3)}), 100) as writer:
        with pytest.raises(AssertionError, match=r"a is torch\.bfloat16"):
            writer.write("a", torch.zeros(3, dtype=torch.bfloat16))
        with pytest.raises(AssertionError, match="never written"):
            writer.finish()
