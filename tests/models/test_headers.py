"""Headers of safetensors files made byte by byte: what they may say, and how a lie is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.errors import PoolError
from evomerge.models.checkpoints.headers import read_header
from evomerge.models.checkpoints.reader import Checkpoint


def write(folder: Path, header: dict[str, Any] | str | bytes, data: bytes, pad: int = 0) -> Path:
    """A file with this header, `pad` spaces at its end."""
    raw = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    raw += b" " * pad
    path = folder / "model.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    (folder / "config.json").write_text("{}")
    return path


def entry(shape: Any, begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


DATA = torch.arange(4, dtype=torch.float32).numpy().tobytes()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, "tensor 'b' at byte .* overlaps tensor 'a'"),
        ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, "tensor 'b' at byte .* overlaps tensor 'a'"),
        ({"a": entry([1], 0, 4), "b": entry([2], 8, 16)}, "tensor 'b' at byte .* leaves a gap after tensor 'a'"),
        ({"a": entry([3], 4, 16)}, "tensor 'a' at byte .* leaves a gap after the header"),
        ({"a": entry([3], 0, 12)}, r"has \d+ bytes, tensor 'a' ends at"),
        ({"a": entry([4], 8, 24)}, r"truncated: tensor 'a' ends at byte \d+ of"),
        ({"a": entry([2], -8, 0)}, "tensor 'a' .* bytes -8 to 0"),
        ({"a": entry([4], 16, 0)}, "tensor 'a' .* takes 16 bytes, but the header gives it bytes 16 to 0"),
        ({"a": entry([4], 0, 16, "BF16")}, "tensor 'a' of shape .4,. and dtype BF16 takes 8 bytes"),
        ({"a": entry([2**62, 2**62], 0, 16)}, r"tensor 'a' .* takes more than 2\^62 bytes"),
        (
            {"a": entry([2**62, 4], 0, 0)},
            "tensor 'a' .* takes more than 2.62 bytes, but .* bytes 0 to 0",
        ),
        ({"a": entry([2**31] * 100_000, 0, 16)}, "tensor 'a' of shape of 100000 dimensions"),
        ({"a": entry([-(2**62), 4], 0, 16)}, "tensor 'a' of shape .-4611686018427387904, 4"),
        ({"a": entry([-2, -2], 0, 16)}, "tensor 'a' of shape .-2, -2"),
        ({"a": entry([4.0], 0, 16)}, "entry for tensor 'a' is malformed"),
        ({"a": entry(["4"], 0, 16)}, "entry for tensor 'a' is malformed"),
        ({"a": entry([True, 4], 0, 16)}, "entry for tensor 'a' is malformed"),
        ({"a": entry(4, 0, 16)}, "entry for tensor 'a' is malformed"),
        ({"a": entry([4], 0, 16) | {"dtype": 32}}, "entry for tensor 'a' is malformed"),
        ({"a": entry([4], 0, 16) | {"data_offsets": [0, 16, 16]}}, "entry for tensor 'a' is malformed"),
        ({"a": [1]}, "entry for tensor 'a' is malformed"),
        ({"a": entry([4], 0, 16, "F4")}, "tensor 'a' has dtype F4"),
        ('{"a":%s,"a":%s}' % ((json.dumps(entry([4], 0, 16)),) * 2), "the header has tensor 'a' twice"),
        (json.dumps({"a": entry([4], 0, 16)}).encode("utf-16"), "header is not a JSON object"),
        (b'{"\xff": ' + json.dumps(entry([4], 0, 16)).encode() + b"}", "header is not a JSON object"),
        ('{"a":' + "[" * 100_000, "header is not a JSON object"),
        ("[]", "header is not a JSON object"),
    ],
)
def test_header_that_lies_names_file_and_tensor(tmp_path: Path, header: Any, message: str) -> None:
    path = write(tmp_path, header, DATA)
    with pytest.raises(PoolError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


def test_header_longer_than_any_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(300_000_000)  # sparse: takes no room
    with pytest.raises(PoolError, match="not safetensors: 300000000 bytes, header of 200000000"):
        read_header(path)


def test_tensors_without_elements_and_scalars(tmp_path: Path) -> None:
    header = {
        "empty": entry([0, 3], 4, 4),
        "scalar": entry([], 0, 4),
        "flat": entry([2**40, 0, 2**40], 4, 4),
        "rest": entry([1, 3], 4, 16),
    }
    write(tmp_path, header, DATA)
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.read("scalar").shape == ()
    assert checkpoint.read("scalar").item() == 0
    assert checkpoint.read("empty").shape == (0, 3)
    assert checkpoint.read("rest").tolist() == [[1, 2, 3]]
    assert checkpoint.sample("empty") == b""
    assert checkpoint.tensors["flat"].nbytes == 0
    assert checkpoint.nbytes == 16
    assert checkpoint.fingerprint().startswith("sha256:")


@pytest.mark.parametrize("pad", range(8))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64"])
def test_tensors_at_any_byte_are_read_right(tmp_path: Path, pad: int, dtype: str) -> None:
    # The format does not demand alignment, neither of the data nor, after a tensor of odd size, of the next.
    values = torch.tensor([1, -2, 3, 100]).to(getattr(torch, dtype))
    raw = values.view(torch.uint8).numpy().tobytes()
    name = {"float32": "F32", "bfloat16": "BF16", "int64": "I64"}[dtype]
    header = {"odd": entry([3], 0, 3, "U8"), "a": entry([4], 3, 3 + len(raw), name)}
    write(tmp_path, header, b"\x01\x02\x03" + raw, pad)
    checkpoint = Checkpoint(tmp_path)
    read = checkpoint.read("a")
    assert read.dtype == values.dtype
    assert torch.equal(read, values)
    assert read.data_ptr() % read.element_size() == 0
    assert checkpoint.sample("a") == raw
