"""Checkpoints on disk: headers parsed once, tensors memory-mapped and read when asked for."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from evomerge.errors import PoolError
from evomerge.models.location import resolve

__all__ = ["FLOAT_DTYPES", "Checkpoint", "TensorInfo", "resolve"]

FLOAT_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
)
"""The dtypes that are merged, as safetensors headers write them."""

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
_BYTES |= {"U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8}

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_LARGEST_HEADER = 100_000_000  # what the safetensors library accepts
_SAMPLE = 4096

# Keys of config.json that change from one save to the next without changing the model.
_VOLATILE_CONFIG = ("_name_or_path", "transformers_version")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as its file's header describes it.

    Attributes:
        name: as in the checkpoint.
        dtype: as safetensors writes it: ``F32``, ``BF16``, ``F16``, ``I64``, ...
        shape: in elements.
        file: the safetensors file that holds it.
        nbytes: size in the file.
        start: offset of its first byte in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    nbytes: int
    start: int

    @property
    def is_float(self) -> bool:
        """Whether it is of a dtype that is merged."""
        return self.dtype in FLOAT_DTYPES


class Checkpoint:
    """A folder with ``config.json`` and safetensors, in one file or in shards with an index.

    Opening reads ``config.json`` and the headers only. `read` maps a tensor into memory without copying it.

    Raises:
        PoolError: a file is missing, truncated or malformed, or a header does not agree with its file; the
            file is named, and the tensor where there is one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config: dict[str, Any] = _read_json(self.folder / "config.json", "the model's configuration")
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(_read_headers(self.folder))
        self._open: dict[Path, Any] = {}

    def read(self, name: str) -> torch.Tensor:
        """The tensor in its stored dtype, on the CPU, backed by the mapped file: do not write to it.

        Raises:
            PoolError: there is no such tensor, or its file cannot be read.
        """
        info = self.tensors.get(name)
        if info is None:
            raise PoolError(f"{self.folder} has no tensor {name!r}", f"it has {len(self.tensors)} others")
        try:
            if info.file not in self._open:
                self._open[info.file] = safe_open(str(info.file), framework="pt", device="cpu")
            tensor: torch.Tensor = self._open[info.file].get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise PoolError(
                f"{info.file}: tensor {name!r} cannot be read ({error})", "", "download or save the file again"
            ) from error
        return tensor

    def sample(self, name: str) -> bytes:
        """The first, the middle and the last 4096 bytes of a tensor; all of one up to 12288 bytes."""
        info = self.tensors[name]
        last = info.nbytes - _SAMPLE
        starts = (0,) if info.nbytes <= 3 * _SAMPLE else (0, last // 2, last)
        length = info.nbytes if len(starts) == 1 else _SAMPLE
        try:
            with info.file.open("rb", buffering=0) as file:
                return b"".join(os.pread(file.fileno(), length, info.start + start) for start in starts)
        except OSError as error:
            raise PoolError(f"{info.file}: tensor {name!r} cannot be read ({error.strerror})") from error

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by name."""
        return {name: info.shape for name, info in self.tensors.items()}

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(info.nbytes for info in self.tensors.values())

    def fingerprint(self) -> str:
        """``sha256:...`` of the configuration, the headers and a sample of every tensor's bytes.

        A `sample` is enough to tell any two trained models apart at the cost of a few pages per tensor. The
        fingerprint does not depend on how tensors are spread over files, nor on the version that saved them.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(b"evomerge checkpoint 1\n")
        config = {key: value for key, value in self.config.items() if key not in _VOLATILE_CONFIG}
        digest.update(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
        for name in sorted(self.tensors):
            info = self.tensors[name]
            digest.update(json.dumps([name, info.dtype, info.shape]).encode())
            digest.update(self.sample(name))
        return f"sha256:{digest.hexdigest()}"


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PoolError(f"{path.parent} has no {path.name}", f"it holds {what}", "name the model's folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PoolError(f"{path} is not JSON ({error})", f"it holds {what}", "download or save it again") from error
    if not isinstance(content, dict):
        raise PoolError(f"{path} holds a {type(content).__name__}", "a JSON object", "download or save it again")
    return content


def _read_headers(folder: Path) -> dict[str, TensorInfo]:
    """The tensors of a checkpoint folder from its files' headers."""
    index = folder / _INDEX
    if index.exists():
        return _read_sharded(folder, index)
    files = sorted(folder.glob("*.safetensors"))
    if (folder / _SINGLE) in files:
        files = [folder / _SINGLE]
    if len(files) == 1:
        return _read_header(files[0])
    if files:
        raise PoolError(
            f"{folder} has {len(files)} safetensors files and neither {_SINGLE} nor {_INDEX}",
            "one file, or shards with their index",
            "save the model again with save_pretrained",
        )
    pickled = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth") for f in folder.glob(pattern))
    if pickled:
        raise PoolError(
            f"{folder} has no safetensors, only {pickled[0]}"
            + (f" and {len(pickled) - 1} more" if pickled[1:] else ""),
            "pickled weights can run code when read, so they are not opened",
            "convert them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)",
        )
    raise PoolError(f"{folder} has no safetensors files", "a model's folder holds config.json and *.safetensors")


def _read_sharded(folder: Path, index: Path) -> dict[str, TensorInfo]:
    """The tensors of all shards; every tensor and shard that the index names must be there."""
    weight_map = _read_json(index, "the shards' index").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise PoolError(f"{index} has no weight_map", "tensor names with the shard that holds each")
    found: dict[str, TensorInfo] = {}
    headers: dict[str, dict[str, TensorInfo]] = {}
    for name, shard in weight_map.items():
        if shard not in headers:
            path = folder / shard
            if Path(shard).is_absolute() or ".." in Path(shard).parts:
                raise PoolError(
                    f"{index}: tensor {name!r} lies outside the folder ({shard})", "a file beside the index"
                )
            if not path.is_file():
                raise PoolError(
                    f"{folder} has no shard {shard}, which {_INDEX} names for tensor {name!r}",
                    f"{len(set(weight_map.values()))} shards",
                    "download the missing shard",
                )
            headers[shard] = _read_header(path)
        if name not in headers[shard]:
            raise PoolError(
                f"{folder / shard} lacks tensor {name!r}, which {_INDEX} places there", "", "download both again"
            )
        found[name] = headers[shard][name]
    for header in headers.values():  # transformers loads what the shards hold, listed or not
        for name, info in header.items():
            found.setdefault(name, info)
    return found


def _read_header(path: Path) -> dict[str, TensorInfo]:
    """Parse one file's header and check it against the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise PoolError(
                f"{path} is truncated or not safetensors: {size} bytes, header of {length}", "", "download it again"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise PoolError(f"{path}: the safetensors header is not a JSON object", "", "download or save it again")
    data = 8 + length
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
            begin, end = (int(n) for n in entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise PoolError(
                f"{path}: the header's entry for tensor {name!r} is malformed", "", "save it again"
            ) from None
        if dtype not in _BYTES:
            raise PoolError(f"{path}: tensor {name!r} has dtype {dtype}", f"known: {', '.join(sorted(_BYTES))}")
        expected = math.prod(shape) * _BYTES[dtype]
        if end - begin != expected or begin < 0 or min(shape, default=0) < 0:
            raise PoolError(
                f"{path}: tensor {name!r} of shape {shape} and dtype {dtype} takes {expected} bytes, "
                f"but the header gives it bytes {begin} to {end}",
                "",
                "download or save it again",
            )
        if data + end > size:
            raise PoolError(
                f"{path} is truncated: tensor {name!r} ends at byte {data + end} of {size}", "", "download it again"
            )
        tensors[name] = TensorInfo(name, dtype, shape, path, end - begin, data + begin)
    return tensors
