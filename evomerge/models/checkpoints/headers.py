"""The headers of safetensors files, checked against their files before anything is mapped.

The format (a length of 8 bytes, a JSON object, then the tensors without gaps) leaves nothing to choose, so a file
that deviates is refused when it is opened, with the tensor's name, and not when its tensor is first read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from evomerge.errors import PoolError
from evomerge.utils.files import read_bounded

FLOAT_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
)
"""The dtypes that are merged, as safetensors headers write them."""

STORED_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        **FLOAT_DTYPES,
        "F64": torch.float64,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U64": torch.uint64,
        "U32": torch.uint32,
        "U16": torch.uint16,
        "U8": torch.uint8,
        "BOOL": torch.bool,
        "C64": torch.complex64,
    }
)
"""All dtypes that a checkpoint may store."""


_LARGEST_HEADER = 100_000_000  # what the safetensors library accepts
_LARGEST_JSON = 512 * 2**20
_MOST_BYTES = 2**62  # more than any file has
_AGAIN = "download or save it again"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as its file's header describes it.

    Attributes:
        name: as in the checkpoint.
        dtype: as safetensors writes it: ``F32``, ``BF16``, ``F16``, ``I64``, ...
        shape: in elements; empty for a scalar.
        file: the safetensors file that holds it.
        nbytes: size in the file.
        start: offset of its first byte in the file; not always a multiple of the element's size.
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


def read_json(path: Path, what: str, unique: bool = False) -> dict[str, Any]:
    """The JSON object in a file of a model's folder; `PoolError` where there is none.

    Args:
        path: the file.
        what: the object, for the message.
        unique: refuse a key that an object has twice; otherwise the last one counts, as in transformers.
    """
    try:
        text = read_bounded(path, _LARGEST_JSON).decode("utf-8")
        content = json.loads(text, object_pairs_hook=_object if unique else None)
    except FileNotFoundError:
        raise PoolError(f"{path.parent} has no {path.name}", f"it holds {what}", "name the model's folder") from None
    except _Twice as error:
        raise PoolError(f"{path} has {error.key!r} twice", f"it holds {what}", _AGAIN) from None
    except (ValueError, RecursionError) as error:
        raise PoolError(f"{path} is not JSON ({error})", f"it holds {what}", _AGAIN) from error
    except OSError as error:
        raise PoolError(f"{path} cannot be read ({error.strerror})") from error
    if not isinstance(content, dict):
        raise PoolError(f"{path} holds a {type(content).__name__}", "a JSON object", _AGAIN)
    return content


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file.

    Raises:
        PoolError: the file is truncated or malformed, or the header does not agree with it; names the tensor.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise PoolError(f"{path} is not a regular file", "a safetensors file", _AGAIN)
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise PoolError(
                    f"{path} is truncated or not safetensors: {size} bytes, header of {length}", "", "download it again"
                )
            raw = file.read(length)
    except OSError as error:
        raise PoolError(f"{path} cannot be read ({error.strerror})") from error
    try:
        # The library reads UTF-8 only, json.loads would also take bytes of other encodings.
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_object)
    except _Twice as error:
        raise PoolError(f"{path}: the header has tensor {error.key!r} twice", "every name once", _AGAIN) from None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise PoolError(f"{path}: the safetensors header is not a JSON object", "", _AGAIN)
    data = 8 + length
    tensors = {name: _info(path, name, entry, data, size) for name, entry in header.items() if name != "__metadata__"}
    _check_without_gaps(path, tensors.values(), data, size)
    return tensors


class _Twice(Exception):
    """A JSON object has a key twice."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of equal keys `json` would keep the last, the library that reads the file the first or none."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(next(key for key in keys if keys.count(key) > 1))
    return found


def _info(path: Path, name: str, entry: Any, data: int, size: int) -> TensorInfo:
    """One entry of a header; `data` is where the tensors begin and `size` where the file ends."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        dtype, shape, begin, end = None, (), None, None
    if not isinstance(dtype, str) or any(type(n) is not int for n in (*shape, begin, end)):
        raise PoolError(f"{path}: the header's entry for tensor {name!r} is malformed", "", _AGAIN)
    if dtype not in STORED_DTYPES:
        raise PoolError(f"{path}: tensor {name!r} has dtype {dtype}", f"known: {', '.join(sorted(STORED_DTYPES))}")
    expected = STORED_DTYPES[dtype].itemsize * (0 not in shape)
    for length in shape:
        expected *= length
        if expected > _MOST_BYTES:  # the product of thousands of such lies would take long
            break
    if end - begin != expected or begin < 0 or min(shape, default=0) < 0:
        raise PoolError(
            f"{path}: tensor {name!r} of shape {_shown(shape)} and dtype {dtype} takes {_shown(expected)} bytes, "
            f"but the header gives it bytes {_shown(begin)} to {_shown(end)}",
            "",
            _AGAIN,
        )
    if data + end > size:
        raise PoolError(
            f"{path} is truncated: tensor {name!r} ends at byte {data + end} of {size}", "", "download it again"
        )
    return TensorInfo(name, dtype, shape, path, end - begin, data + begin)


def _shown(value: object) -> str:
    """A number or shape of a hostile header, in a bounded number of characters."""
    if isinstance(value, int):
        return str(value) if abs(value) <= _MOST_BYTES else "more than 2^62"
    if isinstance(value, tuple) and len(value) > 8:
        return f"of {len(value)} dimensions"
    return f"({', '.join(map(_shown, value))}{',' * (len(value) == 1)})" if isinstance(value, tuple) else str(value)


def _check_without_gaps(path: Path, tensors: Iterable[TensorInfo], data: int, size: int) -> None:
    """Raise `PoolError` unless the tensors follow each other from the header's end to the file's."""
    end, before = data, "the header"
    for info in sorted(tensors, key=lambda info: (info.start, info.nbytes)):
        if info.start != end:
            what = "overlaps" if info.start < end else "leaves a gap after"
            raise PoolError(
                f"{path}: tensor {info.name!r} at byte {info.start} {what} {before}, which ends at {end}",
                "tensors follow each other without gaps",
                _AGAIN,
            )
        end, before = info.start + info.nbytes, f"tensor {info.name!r}"
    if end != size:
        raise PoolError(
            f"{path} has {size} bytes, {before} ends at {end}", "the last tensor ends with the file", _AGAIN
        )
