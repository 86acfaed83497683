"""A checkpoint whose embeddings and head are read in the rows of a common vocabulary."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from evomerge.models.checkpoints.folding import FoldedRoom
from evomerge.models.checkpoints.headers import FLOAT_DTYPES, TensorInfo
from evomerge.models.checkpoints.reader import Checkpoint, TensorFiles
from evomerge.models.vocabularies.row_map import RowMap

_WRITTEN = {dtype: name for name, dtype in FLOAT_DTYPES.items()}


@dataclass(frozen=True)
class RowTensor:
    """A tensor with a row for every token.

    Attributes:
        axis: of the rows.
        stored: its name in the checkpoint of every model.
    """

    axis: int
    stored: Mapping[str, str]


def aligned_name(name: str) -> str:
    """What a tensor in the rows of the common vocabulary is called: a checkpoint may hold one tensor in two roles."""
    return f"{name} (common vocabulary)"


class AlignedCheckpoint(Checkpoint):
    """A model's checkpoint with some tensors in the rows of a common vocabulary, beside those that its files hold.

    Their names are `aligned_name` of the layout's. What a row of others is taken from is read when the tensor is first
    asked for; then it is kept until `release`, while there is room. A tensor that is trimmed only stays mapped. Rows
    that are means are computed in float32, and make the tensor float32.

    Args:
        model: whose checkpoint it is.
        checkpoints: of all models, as they are.
        tensors: the tensors with rows, by their names in the layout.
        rows: where each row comes from.
        room: for what is kept.
    """

    def __init__(
        self,
        model: str,
        checkpoints: Mapping[str, Checkpoint],
        tensors: Mapping[str, RowTensor],
        rows: RowMap,
        room: FoldedRoom,
    ) -> None:
        self.model, self.inner = model, checkpoints[model]
        self._others, self._rows, self._room = checkpoints, rows, room
        self._tensors = {aligned_name(name): tensor for name, tensor in tensors.items()}
        self._trims = rows.trims(model)
        self._kept: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()
        added = {name: self._info(name) for name in self._tensors}
        TensorFiles.__init__(self, self.inner.folder, self.inner.config, {**self.inner.tensors, **added})

    @property
    def plain(self) -> Checkpoint:
        """The checkpoint as its files, and an adapter, make it."""
        return self.inner

    def _info(self, name: str) -> TensorInfo:
        tensor = self._tensors[name]
        own = self.inner.tensors[tensor.stored[self.model]]
        shape = (*own.shape[: tensor.axis], self._rows.count, *own.shape[tensor.axis + 1 :])
        dtype = own.dtype if self._trims else _WRITTEN[self._dtype(tensor)]
        size = FLOAT_DTYPES[dtype].itemsize * int(np.prod(shape, dtype=object))
        return replace(own, name=name, dtype=dtype, shape=shape, nbytes=size)

    def _dtype(self, tensor: RowTensor) -> torch.dtype:
        """The narrowest dtype that holds every row exactly, float32 where rows are means."""
        missing = self._rows.rows[self.model] < 0
        counts = np.zeros(self._rows.count, np.int64)
        found = FLOAT_DTYPES[self.inner.tensors[tensor.stored[self.model]].dtype]
        for donor in self._rows.donors:
            wanted = missing[donor.places]
            counts[donor.places[wanted]] += 1
            if wanted.any():
                own = self._others[donor.model].tensors[tensor.stored[donor.model]]
                found = torch.promote_types(found, FLOAT_DTYPES[own.dtype])
        return torch.float32 if counts.max(initial=0) > 1 or len(self._rows.averaged) else found

    def read(self, name: str) -> torch.Tensor:
        """The tensor in its dtype, on the CPU: do not write to it."""
        if name not in self._tensors:
            return self.inner.read(name)
        if self._trims:
            return self._trimmed(self._tensors[name])
        kept = self._kept.get(name)
        if kept is None:
            kept = self._made(name)
            with self._lock:  # another thread may have been as fast
                if name not in self._kept and self._room.take(kept.nbytes):
                    self._kept[name] = kept
                kept = self._kept.get(name, kept)
        return kept

    def _trimmed(self, tensor: RowTensor) -> torch.Tensor:
        own = self.inner.read(tensor.stored[self.model])
        return own.narrow(tensor.axis, 0, self._rows.count).contiguous()  # no copy where rows come first

    def _made(self, name: str) -> torch.Tensor:
        tensor, info, rows = self._tensors[name], self.tensors[name], self._rows
        dtype = FLOAT_DTYPES[info.dtype]

        def source(model: str) -> torch.Tensor:
            stored = self._others[model].read(tensor.stored[model])
            return stored.movedim(tensor.axis, 0)

        mine = source(self.model)
        out = torch.zeros((rows.count, *mine.shape[1:]), dtype=dtype)
        own = rows.rows[self.model]
        places = np.flatnonzero(own >= 0)
        out[torch.from_numpy(places)] = mine[torch.from_numpy(own[places])].to(dtype)
        counts = np.zeros(rows.count, np.int64)
        for donor in rows.donors:
            wanted = own[donor.places] < 0
            if wanted.any():
                places = donor.places[wanted]
                out[torch.from_numpy(places)] += source(donor.model)[torch.from_numpy(donor.rows[wanted])].to(dtype)
                counts[places] += 1
        several = torch.from_numpy(np.flatnonzero(counts > 1))
        if len(several):
            out[several] /= torch.from_numpy(counts)[several].to(dtype).view(-1, *(1,) * (out.dim() - 1))
        if len(rows.averaged):
            out[torch.from_numpy(rows.averaged)] = out[torch.from_numpy(rows.tokens)].mean(0)
        return out.movedim(0, tensor.axis).contiguous()

    def stored(self, name: str) -> TensorInfo | None:
        """Where a tensor lies in a file as it is read: also one whose last rows are left out."""
        if name not in self._tensors:
            return self.inner.stored(name)
        tensor = self._tensors[name]
        own = self.inner.stored(tensor.stored[self.model])
        if not self._trims or tensor.axis or own is None:
            return None
        return replace(own, shape=self.tensors[name].shape, nbytes=self.tensors[name].nbytes)

    def is_kept(self, name: str) -> bool:
        """Whether a tensor stays in memory, or mapped, until `release`."""
        if name not in self._tensors:
            return self.inner.is_kept(name)
        return self._trims or name in self._kept

    def require_unchanged(self) -> None:
        """As for the models whose rows it has."""
        for checkpoint in self._others.values():
            checkpoint.require_unchanged()

    @property
    def folders(self) -> tuple[Path, ...]:
        """The model's own, and its adapter's."""
        return self.inner.folders

    @property
    def changed(self) -> frozenset[str]:
        """The tensors that are read otherwise than the files hold them."""
        return self.inner.changed | (frozenset() if self._trims else frozenset(self._tensors))

    @property
    def memory(self) -> int:
        """Bytes that the tensors in the common vocabulary take once all have been read."""
        return 0 if self._trims else sum(self.tensors[name].nbytes for name in self._tensors)

    @property
    def nbytes(self) -> int:
        """Size of all tensors of the files in bytes."""
        return self.inner.nbytes

    def fingerprint(self) -> str:
        """Of the model as it is."""
        return self.inner.fingerprint()

    def unmap(self) -> None:
        """Give back the memory that the mapped files take."""
        self.inner.unmap()

    def release(self) -> None:
        """Give back the memory of what is kept; it is made again when it is read."""
        with self._lock:
            self._room.give(sum(tensor.nbytes for tensor in self._kept.values()))
            self._kept.clear()
        self.inner.release()
