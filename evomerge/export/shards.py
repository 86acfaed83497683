"""Sharded safetensors written tensor by tensor: the headers come first, so nothing waits in memory."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import TracebackType

import torch

from evomerge.utils.files import write_all

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""How safetensors writes dtypes."""


@dataclass(frozen=True)
class Declared:
    """A tensor that will be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass
class _Shard:
    """One file: its header and where each of its tensors goes."""

    path: Path
    header: bytes
    offsets: dict[str, int]
    missing: dict[str, int]  # bytes of each tensor that are still to come
    file: FileIO | None = None
    expected: dict[str, Declared] = field(default_factory=dict)


class ShardWriter:
    """Writes declared tensors, in any order, into one safetensors file or into shards with an index.

    Leaving the context closes the files; `finish` writes the index and checks that nothing is missing.

    Args:
        folder: exists; the files must not.
        tensors: everything that will be written, in the order in which shards are filled.
        max_shard_bytes: tensors beyond this start another file; a larger tensor gets a file of its own.
        single: name of the file, where there is only one.
        metadata: texts of the header.
        apart: names of tensors that are in files of their own, after all others.
        shards_alike: whether shards and index are called after `single`, instead of as transformers calls them.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Sequence[Declared],
        max_shard_bytes: int,
        *,
        single: str = SINGLE,
        metadata: Mapping[str, str] | None = None,
        apart: Collection[str] = (),
        shards_alike: bool = False,
    ) -> None:
        groups = _split([tensor for tensor in tensors if tensor.name not in apart], max_shard_bytes)
        if apart:
            groups += _split([tensor for tensor in tensors if tensor.name in apart], max_shard_bytes)
        self._apart = frozenset(apart)
        stem = single.removesuffix(".safetensors") if shards_alike else SINGLE.removesuffix(".safetensors")
        self._index = f"{stem}.safetensors.index.json"
        names = (
            [single]
            if len(groups) == 1
            else [f"{stem}-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
        )
        self._folder = folder
        described = {"format": "pt", **(metadata or {})}
        self._shards = [_shard(folder / name, group, described) for name, group in zip(names, groups, strict=True)]
        self._owner = {name: shard for shard in self._shards for name in shard.offsets}

    @property
    def nbytes(self) -> int:
        """Size of all files with their headers."""
        return self.tensor_bytes + sum(len(shard.header) for shard in self._shards)

    @property
    def tensor_bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.nbytes for shard in self._shards for tensor in shard.expected.values())

    def link(self, folder: Path) -> None:
        """Take the files of all tensors that are not apart from a folder that has the same, by hard link or copy."""
        for shard in self._shards:
            if shard.missing and not self._apart & shard.missing.keys():
                try:
                    os.link(folder / shard.path.name, shard.path)
                except OSError:  # a file system without links
                    shutil.copyfile(folder / shard.path.name, shard.path)
                shard.missing.clear()

    def dtype_of(self, name: str) -> torch.dtype:
        """The declared dtype of a tensor."""
        return self._owner[name].expected[name].dtype

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor at its place; it must have the declared dtype and shape."""
        declared = self._owner[name].expected[name]
        assert tuple(tensor.shape) == declared.shape, f"{name} is {tuple(tensor.shape)}, declared {declared.shape}"
        self.write_piece(name, 0, tensor)

    def write_piece(self, name: str, begin: int, piece: torch.Tensor) -> None:
        """Write elements of a tensor from `begin` on; they must have the declared dtype, and each come once."""
        shard = self._owner[name]
        declared = shard.expected[name]
        assert piece.dtype == declared.dtype, f"{name} is {piece.dtype}, declared {declared.dtype}"
        assert piece.nbytes <= shard.missing.get(name, -1), f"{name} is written twice"
        if shard.file is None:
            shard.file = shard.path.open("xb", buffering=0)
            write_all(shard.file.fileno(), shard.header)
        flat = piece.detach().to("cpu").contiguous().reshape(-1)
        if flat.numel():
            shard.file.seek(shard.offsets[name] + begin * declared.dtype.itemsize)
            write_all(shard.file.fileno(), flat.view(torch.uint8).numpy().data)
        shard.missing[name] -= piece.nbytes
        if not shard.missing[name]:
            del shard.missing[name]
        if not shard.missing:
            shard.file.close()

    def finish(self) -> None:
        """Write the index, where there is more than one file."""
        missing = sorted(name for shard in self._shards for name in shard.missing)
        assert not missing, f"never written: {missing}"
        if len(self._shards) == 1:
            return
        tensors = [tensor for shard in self._shards for tensor in shard.expected.values()]
        index = {
            "metadata": {
                "total_parameters": sum(math.prod(tensor.shape) for tensor in tensors),
                "total_size": sum(tensor.nbytes for tensor in tensors),
            },
            "weight_map": {name: self._owner[name].path.name for name in sorted(self._owner)},
        }
        (self._folder / self._index).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for shard in self._shards:
            if shard.file is not None:
                shard.file.close()


def _split(tensors: Sequence[Declared], max_shard_bytes: int) -> list[list[Declared]]:
    """Fill shards in order."""
    groups: list[list[Declared]] = [[]]
    room = max_shard_bytes
    for tensor in tensors:
        if tensor.nbytes > room and groups[-1]:
            groups.append([])
            room = max_shard_bytes
        groups[-1].append(tensor)
        room -= tensor.nbytes
    return groups


def _shard(path: Path, tensors: Sequence[Declared], metadata: Mapping[str, str]) -> _Shard:
    """Lay out one file: 8 bytes of header length, the header padded to 8 bytes, the tensors without gaps."""
    header: dict[str, object] = {"__metadata__": metadata}
    starts: dict[str, int] = {}
    position = 0
    # Wide dtypes first: every tensor then starts at a multiple of its own width.
    for tensor in sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize):
        starts[tensor.name] = position
        end = position + tensor.nbytes
        header[tensor.name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    prefix = len(text).to_bytes(8, "little") + text
    return _Shard(
        path,
        prefix,
        {name: len(prefix) + start for name, start in starts.items()},
        {tensor.name: tensor.nbytes for tensor in tensors},
        expected={tensor.name: tensor for tensor in tensors},
    )
