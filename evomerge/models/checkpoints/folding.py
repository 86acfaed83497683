"""Checkpoints with an adapter folded in: to readers, one model like any other.

What an adapter adds is computed in float32, and the sum rounded once to the dtype in which the base stores the tensor.
Nothing is computed before a tensor is first read.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from evomerge.models.checkpoints.headers import FLOAT_DTYPES, TensorInfo
from evomerge.models.checkpoints.reader import Checkpoint, TensorFiles


class FoldedRoom:
    """How many bytes (`limit`) of folded tensors the models of a pool keep; what finds no room is folded when read."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> bool:
        """Take up so many bytes, where there is room."""
        with self._lock:
            taken = nbytes <= self.limit - self.used
            self.used += nbytes if taken else 0
            return taken

    def give(self, nbytes: int) -> None:
        """Give back so many bytes."""
        with self._lock:
            self.used -= nbytes


class FoldedCheckpoint(Checkpoint, ABC):
    """A base model's checkpoint in which some tensors are read with an adapter's change.

    Names, shapes and dtypes are the base's. A tensor that the adapter changes is folded when it is first read and
    then kept in memory (see `memory`) until `release`, while there is room; all others stay mapped. What the headers
    give as a changed tensor's place in its file, and `sample`, are the base's.

    Args:
        base: the base model.
        adapter: what is folded in.
        changes: by tensor of the checkpoint what is done to it.
        room: for folded tensors, shared with other models; as much as the base takes for ``None``.
    """

    def __init__(
        self, base: Checkpoint, adapter: TensorFiles, changes: Mapping[str, Any], room: FoldedRoom | None = None
    ) -> None:
        TensorFiles.__init__(self, base.folder, base.config, base.tensors)
        self.base, self.adapter, self._changes = base, adapter, changes
        self._folded: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()
        self._rounded = True
        self.room = room or FoldedRoom(base.nbytes)

    def unrounded(self) -> FoldedCheckpoint:
        """The same model, whose changed tensors are read as float32: what an adapter adds to a base stored in bfloat16
        is not much larger than the rounding of the sum."""
        other = copy.copy(self)
        other._folded, other._lock, other._rounded = {}, threading.Lock(), False
        other.room = FoldedRoom(self.room.limit)
        return other

    def is_kept(self, name: str) -> bool:
        """Whether a tensor stays in memory, or mapped, until `release`: one that is read and finds no room does not."""
        return name not in self._changes or name in self._folded

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What the adapter adds to a tensor, as a product.

        Args:
            name: of the tensor in the checkpoint.

        Returns:
            ``(b, a)`` in float32, of shapes ``(rows, rank)`` and ``(rank, columns)``: ``b @ a`` is added to the base's
            tensor, the adapter's scale included; of rank 0 where the adapter leaves the tensor alone, and ``None``
            where it replaces it or adds something else.
        """
        if name in self._changes:
            return None
        rows, columns = self.tensors[name].shape
        return torch.zeros(rows, 0), torch.zeros(0, columns)

    def has_factors(self, name: str) -> bool:
        """Whether `factors` has such of a matrix."""
        return name not in self._changes

    def replaces(self, name: str) -> bool:
        """Whether the adapter holds a tensor whole, by its name in the checkpoint, and another than the base's."""
        return False

    def require_unchanged(self) -> None:
        """As for its two parts."""
        self.base.require_unchanged()
        self.adapter.require_unchanged()

    @property
    def folders(self) -> tuple[Path, ...]:
        """The model's and the adapter's."""
        return self.base.folder, self.adapter.folder

    @property
    def changed(self) -> frozenset[str]:
        """The tensors that the adapter changes, by their names in the checkpoint."""
        return frozenset(self._changes)

    @property
    def memory(self) -> int:
        """Bytes that the folded tensors take once all have been read."""
        return sum(self.tensors[name].nbytes for name in self._changes)

    def read(self, name: str) -> torch.Tensor:
        """The tensor in its stored dtype, folded where the adapter changes it: do not write to it."""
        if name not in self._changes:
            return self.base.read(name)
        kept = self._folded.get(name)
        if kept is None:
            kept = self._fold(name)
            with self._lock:  # another thread may have been as fast
                if name not in self._folded and self.room.take(kept.nbytes):
                    self._folded[name] = kept
                kept = self._folded.get(name, kept)
        return kept

    def stored(self, name: str) -> TensorInfo | None:
        """Where a tensor lies: the base's, or one that the adapter has whole and in the same dtype."""
        return None if name in self._changes else self.base.stored(name)

    def unmap(self) -> None:
        """Give back the memory that the mapped files take."""
        self.base.unmap()
        self.adapter.unmap()

    def release(self) -> None:
        """Give back the memory of folded tensors; they are folded again when they are read."""
        with self._lock:
            self.room.give(sum(tensor.nbytes for tensor in self._folded.values()))
            self._folded.clear()

    def fingerprint(self) -> str:
        """``sha256:...`` of the base's and the adapter's fingerprints."""
        both = f"{self.base.fingerprint()}+{self.adapter.fingerprint()}"
        return f"sha256:{hashlib.sha256(both.encode()).hexdigest()}"

    @abstractmethod
    def _fold(self, name: str) -> torch.Tensor:
        """A tensor with its change, in `_dtype`."""

    def _dtype(self, name: str) -> torch.dtype:
        return FLOAT_DTYPES[self.tensors[name].dtype] if self._rounded else torch.float32
