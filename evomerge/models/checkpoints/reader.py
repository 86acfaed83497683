"""Checkpoints on disk: headers parsed once, tensors memory-mapped and read when asked for."""

from __future__ import annotations

import copy
import hashlib
import json
import mmap
import os
import warnings
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from evomerge.errors import EvomergeWarning, PoolError
from evomerge.models.checkpoints.headers import STORED_DTYPES, TensorInfo, read_header, read_json
from evomerge.models.checkpoints.weight_files import gguf_problem, read_headers, same_bytes
from evomerge.models.memory import out_of_memory

_SAMPLE = 4096


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
                if read_header(info.file).get(info.name) != info:
                    raise PoolError("its file has another header than when it was opened")
                self._maps[info.file] = mapped(info.file)
            tensor = _tensor(self._maps[info.file], info) if size >= end else None
        except (OSError, ValueError, RuntimeError, PoolError) as error:
            if out_of_memory(error):  # the file is as it was: who merges lets something go and tries again
                raise
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

    def same(self, name: str, other: str) -> bool:
        """Whether two tensors are stored the same bit for bit: all of them is compared, in bounded memory."""
        return same_bytes(self.tensors[name], self.tensors[other])

    def stored(self, name: str) -> TensorInfo | None:
        """Where a tensor lies in a file as it is read; ``None`` for one that is computed."""
        return self.tensors[name]

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

        Covered are names, shapes, dtypes, all bytes of tensors up to 12288 bytes and three times 4096 bytes of larger
        ones: training, which changes all weights, always shows, at the cost of a few pages per tensor. Not covered
        are the bytes in between (a few edited rows of the embeddings, say), the tokenizer and other files. The
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

    _volatile: Collection[str] = ("_name_or_path", "transformers_version")
    _kind = "checkpoint"

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise PoolError(
                f"{folder} holds an adapter, not a model",
                "an adapter is folded into its base model",
                "write the two as base+adapter",
            )
        if (folder / "adapter_config.json").is_file():
            warnings.warn(
                f"{folder} holds an adapter beside a model: the model is read without it, where transformers would "
                f"load the adapter and its base. Write {folder}+{folder} to fold it in, or remove adapter_config.json",
                EvomergeWarning,
                stacklevel=2,
            )
        gguf = None if (folder / "config.json").exists() else gguf_problem(folder)
        if gguf is not None:
            raise gguf
        config = read_json(folder / "config.json", "the model's configuration")
        super().__init__(folder, config, read_headers(folder, config))

    def with_tensors(self, more: Mapping[str, TensorInfo]) -> Checkpoint:
        """The checkpoint with tensors of further files, by names that it has none of."""
        made = copy.copy(self)
        made.__dict__.pop("_fingerprint", None)
        TensorFiles.__init__(made, self.folder, self.config, {**self.tensors, **more})
        return made

    @property
    def plain(self) -> Checkpoint:
        """The checkpoint as its files, and an adapter, make it: in its own vocabulary."""
        return self

    def is_kept(self, name: str) -> bool:
        """Whether a tensor that was read stays in memory or mapped."""
        return True

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
