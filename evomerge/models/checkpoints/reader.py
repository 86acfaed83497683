"""Checkpoints on disk: headers parsed once, tensors memory-mapped and read when asked for."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from evomerge.errors import PoolError
from evomerge.models.checkpoints.headers import STORED_DTYPES, TensorInfo, read_header, read_json

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SAMPLE = 4096
_LONGEST_NAME = 255


class TensorFiles:
    """A folder with a configuration and tensors in safetensors files, of which the headers have been read.

    Attributes:
        folder: where the files lie.
        config: the configuration, as it is stored.
        tensors: the headers' entries by tensor name.
    """

    _volatile: Collection[str] = ()  # keys that change from one save to the next without changing the model
    _kind = "tensors"

    def __init__(self, folder: Path, config: dict[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
        self.folder, self.config = folder, config
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(dict(tensors))
        self._maps: dict[Path, mmap.mmap] = {}
        self._stamps = {file: _stamp(file) for file in {info.file for info in tensors.values()}}

    def require_unchanged(self) -> None:
        """Ask the file system, a file at a time, whether the files are as they were when they were opened.

        Raises:
            PoolError: one has been removed, written to or cut short. Reading on would mix two models, or end the
                process: what is mapped and is no longer there cannot be read.
        """
        for file, stamp in self._stamps.items():
            now = _stamp(file)
            if now != stamp and stamp is not None:
                what = "is gone" if now is None else "was written to"
                if now is not None and now[0] != stamp[0]:
                    what = f"has {now[0]} bytes instead of {stamp[0]}"
                raise PoolError(
                    f"{file} has changed since it was opened: it {what}",
                    "models stay as they are while they are merged: scores would not be comparable",
                    "put it back as it was; `evomerge resume RUN` goes on with a search",
                )

    def read(self, name: str) -> torch.Tensor:
        """The tensor in its stored dtype, on the CPU, backed by the mapped file: do not write to it.

        A file that is cut short while its tensors are in use cannot be survived; one that has become shorter
        since it was opened is refused here.

        Raises:
            PoolError: there is no such tensor, or its file cannot be read.
        """
        info = self.tensors.get(name)
        if info is None:
            raise PoolError(f"{self.folder} has no tensor {name!r}", f"it has {len(self.tensors)} others")
        end = info.start + info.nbytes
        try:
            size = os.stat(info.file).st_size
            if size >= end and info.file not in self._maps:
                if read_header(info.file).get(name) != info:
                    raise PoolError("its file has another header than when it was opened")
                self._maps[info.file] = mapped(info.file)
            tensor = _tensor(self._maps[info.file], info) if size >= end else None
        except (OSError, ValueError, RuntimeError, PoolError) as error:
            reason = error.given if isinstance(error, PoolError) else str(error)
            raise PoolError(
                f"{info.file}: tensor {name!r} cannot be read ({reason})", "", "download or save the file again"
            ) from error
        if tensor is None:
            raise PoolError(
                f"{info.file} has been truncated: tensor {name!r} ends at byte {end} of {size}", "", "download it again"
            )
        return tensor

    def unmap(self) -> None:
        """Give back the memory that the mapped files take: what is read of them again comes from the disk's cache."""
        for content in self._maps.values():
            if hasattr(mmap, "MADV_DONTNEED"):
                content.madvise(mmap.MADV_DONTNEED)

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
        digest = hashlib.sha256(f"evomerge {self._kind} 1\n".encode())
        config = {key: value for key, value in self.config.items() if key not in self._volatile}
        digest.update(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
        for name in sorted(self.tensors):
            info = self.tensors[name]
            digest.update(json.dumps([name, info.dtype, info.shape]).encode())
            digest.update(self.sample(name))
        return f"sha256:{digest.hexdigest()}"


class Checkpoint(TensorFiles):
    """A folder with ``config.json`` and safetensors, in one file or in shards with an index.

    Opening reads ``config.json`` and the headers only. `read` maps a tensor into memory without copying it.

    Raises:
        PoolError: a file is missing, truncated or malformed, or a header does not agree with its file; the
            file is named, and the tensor where there is one.
    """

    _volatile = ("_name_or_path", "transformers_version")
    _kind = "checkpoint"

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise PoolError(
                f"{folder} holds an adapter, not a model",
                "an adapter is folded into its base model",
                "write the two as base+adapter",
            )
        config = read_json(folder / "config.json", "the model's configuration")
        super().__init__(folder, config, _read_headers(folder))

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders that it is read from: its own and, with an adapter, the adapter's."""
        return (self.folder,)

    @property
    def changed(self) -> frozenset[str]:
        """The tensors that are read otherwise than the files hold them."""
        return frozenset()

    @property
    def memory(self) -> int:
        """Bytes of memory that its tensors come to take beyond the mapped files."""
        return 0

    def release(self) -> None:
        """Give back the memory of tensors that are not mapped, should there be any."""


def _stamp(file: Path) -> tuple[int, int] | None:
    """Size and time of the last change, in nanoseconds; ``None`` where there is no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def mapped(file: Path) -> mmap.mmap:
    """A file in memory: private, so that torch takes it for writable, and never written to."""
    with file.open("rb") as opened:
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)


def _tensor(content: mmap.mmap, info: TensorInfo) -> torch.Tensor:
    """A tensor where it lies in its mapped file."""
    dtype = STORED_DTYPES[info.dtype]
    if not info.nbytes:
        return torch.empty(info.shape, dtype=dtype)
    raw = torch.frombuffer(content, dtype=torch.uint8, count=info.nbytes, offset=info.start)
    if info.start % dtype.itemsize:  # files need not be aligned, compiled kernels may: the odd tensor is copied
        raw = raw.clone()
    return raw.view(dtype).view(info.shape)


def _read_headers(folder: Path) -> dict[str, TensorInfo]:
    """The tensors of a checkpoint folder from its files' headers."""
    index = folder / _INDEX
    if index.exists():
        return _read_sharded(folder, index)
    files = sorted(folder.glob("*.safetensors"))
    if (folder / _SINGLE) in files:
        files = [folder / _SINGLE]
    if len(files) == 1:
        return read_header(files[0])
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
    weight_map = read_json(index, "the shards' index", unique=True).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise PoolError(f"{index} has no weight_map", "tensor names with the shard that holds each")
    if not weight_map:
        raise PoolError(f"{index} names no tensors", "tensor names with the shard that holds each", "download it again")
    found: dict[str, TensorInfo] = {}
    headers: dict[str, dict[str, TensorInfo]] = {}
    for name, shard in weight_map.items():
        if shard not in headers:
            path = folder / shard
            if Path(shard).is_absolute() or ".." in Path(shard).parts:
                raise PoolError(
                    f"{index}: tensor {name!r} lies outside the folder ({shard})", "a file beside the index"
                )
            if len(shard) > _LONGEST_NAME or not path.is_file():
                raise PoolError(
                    f"{folder} has no shard {shard[:_LONGEST_NAME]}, which {_INDEX} names for tensor {name!r}",
                    f"{len(set(weight_map.values()))} shards",
                    "download the missing shard",
                )
            headers[shard] = read_header(path)
        if name not in headers[shard]:
            raise PoolError(
                f"{folder / shard} lacks tensor {name!r}, which {_INDEX} places there", "", "download both again"
            )
        found[name] = headers[shard][name]
    for shard, header in headers.items():  # transformers loads what the shards hold, listed or not
        for name, info in header.items():
            other = found.setdefault(name, info)
            if other.file != info.file:
                raise PoolError(
                    f"{folder} has tensor {name!r} in {other.file.name} and in {shard}",
                    "every tensor in one shard",
                    "save the model again with save_pretrained",
                )
    return found
