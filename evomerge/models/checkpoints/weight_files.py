"""Which safetensors files of a model's folder hold its weights: those that transformers would read.

The order is that of transformers' ``_get_resolved_checkpoint_files``: what ``transformers_weights`` in config.json
names, else ``model.safetensors``, else the shards of ``model.safetensors.index.json``. A folder in which neither of
them lies may have one safetensors file of any name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import EvomergeWarning, PoolError
from evomerge.models.checkpoints.headers import TensorInfo, read_header, read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
NAMES_FILES = ("transformers_weights",)
"""The keys of config.json that name weight files: a merged model's configuration does not have them."""

_LONGEST_NAME = 255
_FIRST, _CHUNK = 4096, 16 * 2**20


def read_headers(folder: Path, config: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """The tensors of a checkpoint folder from its files' headers.

    Warns where a folder holds two complete sets of weights that differ.

    Args:
        folder: the model's.
        config: its config.json.

    Raises:
        PoolError: there are no such files, or they are malformed or incomplete.
    """
    named = config.get("transformers_weights")
    if named is not None:
        return _read_named(folder, named)
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        found = read_header(single)
        if index.is_file():
            _warn_of_other(folder, found, index)
        return found
    if index.exists():
        return read_sharded(folder, index)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return read_header(files[0])
    if files:
        raise PoolError(
            f"{folder} has {len(files)} safetensors files and neither {SINGLE} nor {INDEX}",
            "one file, or shards with their index",
            "save the model again with save_pretrained",
        )
    raise _without_safetensors(folder)


def same_bytes(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two stored tensors are the same bit for bit: all of their bytes, 4 kB and then pieces of 16 MB.

    Raises:
        PoolError: a file cannot be read.
    """
    if (one.dtype, one.shape, one.nbytes) != (other.dtype, other.shape, other.nbytes):
        return False
    if (one.file, one.start) == (other.file, other.start):
        return True
    return all(a == b for a, b in zip(_pieces(one), _pieces(other), strict=True))


def _pieces(info: TensorInfo) -> Iterator[bytes]:
    try:
        with info.file.open("rb", buffering=0) as file:
            file.seek(info.start)
            left, size = info.nbytes, _FIRST  # most tensors that differ do so at once
            while left:
                piece = file.read(min(left, size))
                if not piece:
                    raise PoolError(f"{info.file} has been truncated: it ends in tensor {info.name!r}")
                left -= len(piece)
                # A short read is made up for, so that both tensors come in the same pieces.
                while len(piece) < size and left:
                    more = file.read(min(left, size - len(piece)))
                    if not more:
                        raise PoolError(f"{info.file} has been truncated: it ends in tensor {info.name!r}")
                    piece, left = piece + more, left - len(more)
                yield piece
                size = _CHUNK
    except OSError as error:
        raise PoolError(f"{info.file}: tensor {info.name!r} cannot be read ({error.strerror})") from error


def _read_named(folder: Path, named: object) -> dict[str, TensorInfo]:
    """The tensors of the file or index that config.json names."""
    where = f"{folder / 'config.json'} has transformers_weights {str(named)[:_LONGEST_NAME]!r}"
    allowed = "a .safetensors file or a .safetensors.index.json in the model's folder"
    if not isinstance(named, str) or not named.endswith((".safetensors", ".safetensors.index.json")):
        raise PoolError(where, allowed, "name one, or leave the key out")
    if Path(named).is_absolute() or ".." in Path(named).parts:
        raise PoolError(f"{where}, which lies outside the folder", allowed, "name one, or leave the key out")
    if len(named) > _LONGEST_NAME or not (folder / named).is_file():
        raise PoolError(f"{where}, which is no file there", allowed, "name one, or leave the key out")
    path = folder / named
    return read_sharded(folder, path) if named.endswith(".json") else read_header(path)


def _warn_of_other(folder: Path, found: Mapping[str, TensorInfo], index: Path) -> None:
    """Say that the shards of an index, should all be there, hold other weights than the file beside it."""
    try:
        other = read_sharded(folder, index)
    except PoolError:  # an index that save_pretrained left behind when it removed the shards
        return
    same = found.keys() == other.keys() and all(same_bytes(info, other[name]) for name, info in found.items())
    if not same:
        warnings.warn(
            f"{folder} holds two models: {SINGLE} and the shards of {INDEX} differ; {SINGLE} is read, as "
            f"transformers does. Remove the one that is not meant",
            EvomergeWarning,
            stacklevel=2,
        )


def read_sharded(folder: Path, index: Path) -> dict[str, TensorInfo]:
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
            path = index.parent / shard
            if Path(shard).is_absolute() or ".." in Path(shard).parts:
                raise PoolError(
                    f"{index}: tensor {name!r} lies outside the folder ({shard})", "a file beside the index"
                )
            if len(shard) > _LONGEST_NAME or not path.is_file():
                raise PoolError(
                    f"{folder} has no shard {shard[:_LONGEST_NAME]}, which {index.name} names for tensor {name!r}",
                    f"{len(set(weight_map.values()))} shards",
                    "download the missing shard",
                )
            headers[shard] = read_header(path)
        if name not in headers[shard]:
            raise PoolError(
                f"{index.parent / shard} lacks tensor {name!r}, which {index.name} places there",
                "",
                "download both again",
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


def _without_safetensors(folder: Path) -> PoolError:
    pickled = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth") for f in folder.glob(pattern))
    if pickled:
        return PoolError(
            f"{folder} has no safetensors, only {pickled[0]}"
            + (f" and {len(pickled) - 1} more" if pickled[1:] else ""),
            "pickled weights can run code when read, so they are not opened",
            "convert them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)",
        )
    return gguf_problem(folder) or PoolError(
        f"{folder} has no safetensors files", "a model's folder holds config.json and *.safetensors"
    )


def gguf_problem(folder: Path) -> PoolError | None:
    """The error for a folder with GGUF files in the place of safetensors; ``None`` where there are none."""
    files = sorted(file.name for file in folder.glob("*.gguf"))
    if not files:
        return None
    return PoolError(
        f"{folder} holds GGUF files ({files[0]}), not config.json and safetensors",
        "merging takes the weights before they were quantised",
        "name the model that the GGUF was made from, or convert it: "
        "model = AutoModelForCausalLM.from_pretrained(folder, "
        f"gguf_file={files[0]!r}); model.hf_quantizer = None; del model.config.quantization_config; "
        "model.save_pretrained(new_folder); and the tokenizer: AutoTokenizer.from_pretrained with the same file",
    )
