"""Networks in single files with the names of their first authors' code, read in diffusers' names.

diffusers converts such files: it renames tensors, and cuts some along their first dimension or puts their pieces in
another order. The conversion is done once, on the numbers of the rows in the place of the rows, and says which rows of
which stored tensor each of the network's tensors is. What is one run of rows is read where it lies; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from evomerge.errors import PoolError, reason_of
from evomerge.models.checkpoints.headers import TensorInfo, read_header
from evomerge.models.checkpoints.reader import Checkpoint, TensorFiles
from evomerge.models.memory import out_of_memory
from evomerge.models.pipelines.checkpoint import VOLATILE
from evomerge.models.pipelines.libraries import quiet

_BITS = 32  # of a row's number; the tensor's own is above
_TIED = "model_ema."

Run = tuple[str, int, int]
"""A stored tensor, its first row, and the one after its last."""


class SingleFile(Checkpoint):
    """The network in a single file, by the names that diffusers gives its tensors.

    Args:
        file: the file.
        config: the network's configuration, which the file does not hold.

    Attributes:
        runs: by name the runs of stored rows that a tensor consists of.
        original: the headers' entries of all that the file holds, by the names that it has there.

    Raises:
        PoolError: the file is malformed, or diffusers does not know its layout.
    """

    _volatile = VOLATILE
    _kind = "network"

    def __init__(self, file: Path, config: dict[str, Any]) -> None:
        self.original: Mapping[str, TensorInfo] = MappingProxyType(read_header(file))
        self.runs = runs_of(self.original, config, file)
        self._pieces = {name: [_piece(self.original[r[0]], r) for r in runs] for name, runs in self.runs.items()}
        tensors = {name: _whole(name, pieces) for name, pieces in self._pieces.items()}
        TensorFiles.__init__(self, file, config, tensors)
        self._stored = TensorFiles(file, config, self.original)

    @property
    def folders(self) -> tuple[Path, ...]:
        """None: what lies beside a single file is not of it."""
        return ()

    def read(self, name: str) -> torch.Tensor:
        """The tensor in its stored dtype: mapped where its rows lie in a row, else a copy."""
        runs = self.runs.get(name)
        if runs is None:
            raise PoolError(f"{self.folder} has no tensor {name!r}", f"it has {len(self.runs)} others")
        parts = [self._stored.read(stored)[first:last] for stored, first, last in runs]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole.view(self.tensors[name].shape)

    def unmap(self) -> None:
        """Give back the memory that the mapped file takes."""
        self._stored.unmap()

    def sample(self, name: str) -> bytes:
        """The samples of the pieces that a tensor consists of, one after the other."""
        found = []
        for piece in self._pieces[name]:
            file = TensorFiles(self.folder, {}, {piece.name: piece})
            found.append(file.sample(piece.name))
        return b"".join(found)

    def stored(self, name: str) -> TensorInfo | None:
        """Where a tensor lies in the file; ``None`` for one of several pieces."""
        pieces = self._pieces[name]
        return self.tensors[name] if len(pieces) == 1 else None

    def is_kept(self, name: str) -> bool:
        """Whether a tensor that was read stays mapped: one of several pieces does not."""
        return len(self.runs[name]) == 1


def _piece(info: TensorInfo, run: Run) -> TensorInfo:
    """Some rows of a stored tensor, as a tensor."""
    _, first, last = run
    rows = info.shape[0] if info.shape else 1
    width = info.nbytes // max(rows, 1)
    shape = (last - first, *info.shape[1:]) if info.shape else ()
    return replace(info, shape=shape, nbytes=(last - first) * width, start=info.start + first * width)


def _whole(name: str, pieces: list[TensorInfo]) -> TensorInfo:
    """What the pieces make together."""
    first = pieces[0]
    shape = (sum(piece.shape[0] for piece in pieces), *first.shape[1:]) if first.shape else ()
    return replace(first, name=name, shape=shape, nbytes=sum(piece.nbytes for piece in pieces))


def runs_of(original: Mapping[str, TensorInfo], config: dict[str, Any], file: Path) -> dict[str, tuple[Run, ...]]:
    """By the names of a network of diffusers, the rows of stored tensors that each of its tensors is.

    Raises:
        PoolError: diffusers does not know the layout, or does more to tensors than to move their rows.
    """
    names = [name for name in original if not name.startswith(_TIED)]
    rows = {
        name: torch.arange(original[name].shape[0] if original[name].shape else 1) + (number << _BITS)
        for number, name in enumerate(names)
    }
    converted = _converted(rows, config, file)
    found: dict[str, tuple[Run, ...]] = {}
    for name, own in converted.items():
        if not isinstance(own, torch.Tensor) or own.dtype != torch.int64 or own.dim() != 1 or not len(own):
            raise PoolError(
                f"{file}: diffusers makes {name!r} in another way than by moving rows",
                "files whose tensors are renamed, cut or put together",
                "load it with diffusers and save it as a folder",
            )
        ends = torch.nonzero(own.diff() != 1).flatten() + 1
        parts = torch.tensor_split(own, ends)
        found[name] = tuple(
            (names[int(part[0]) >> _BITS], int(part[0]) & (2**_BITS - 1), (int(part[-1]) & (2**_BITS - 1)) + 1)
            for part in parts
        )
    return found


def _converted(rows: dict[str, torch.Tensor], config: dict[str, Any], file: Path) -> dict[str, Any]:
    """What diffusers' own conversion makes of tensors by their original names."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    name = str(config.get("_class_name"))
    known = SINGLE_FILE_LOADABLE_CLASSES.get(name)
    if known is None:
        raise PoolError(
            f"{file} is a single file, and diffusers reads no {name} from one",
            f"one of {', '.join(sorted(SINGLE_FILE_LOADABLE_CLASSES))}",
            "name the folder of a pipeline",
        )
    try:
        with quiet(), torch.no_grad():
            made: dict[str, Any] = known["checkpoint_mapping_fn"](config=dict(config), checkpoint=dict(rows))
    except Exception as error:  # it indexes what it takes for granted
        if out_of_memory(error):
            raise
        raise PoolError(
            f"{file} is not in the layout of a {name} ({reason_of(error)})",
            "a single file of the kind that pool.others is",
            "name the folder of its own kind of pipeline in pool.others",
        ) from error
    return made
