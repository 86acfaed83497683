"""The tier of the layer cache that the workers of a node share: content-addressed files in shared memory or on disk."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from evomerge.merge.merged import ALIGNMENT, Merged

_SUFFIX = ".safetensors"
_SAFETENSORS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_SEEN = 1 << 20  # bytes of the table of keys that were computed once
_UNIT = 1 << 40  # priorities (seconds per byte) as the nanoseconds of a file's time


class SharedCache:
    """Merged slices as safetensors files that every worker of a node maps; safe for any number of processes.

    A file appears whole, by atomic rename, and stays readable for those who have it mapped when it is evicted. Slices
    are published when somebody computes them a second time, so that a search which never repeats itself writes nothing.
    Evicts by GreedyDual-Size (Cao and Irani, 1997); a file's modification time is its priority, that of ``age`` the
    priority evicted last, so that all there is to know lies in the folder.

    Args:
        folder: made when it is not there.
        budget: bytes of all files together.
        temporary: whether the last worker that closes the cache removes the folder.

    Raises:
        OSError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, budget: int, *, temporary: bool = True) -> None:
        self.folder, self.budget, self._temporary = folder, budget, temporary
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = open(folder / "users", "a")  # noqa: SIM115  held as long as the cache is used
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        table = folder / "seen"
        with table.open("a+b") as file:
            file.truncate(_SEEN)
        self._seen = np.memmap(table, np.uint8, "r+", shape=(_SEEN,))
        with contextlib.suppress(FileExistsError), (folder / "age").open("x"):
            os.utime(folder / "age", ns=(0, 0))
        self._marked = 0
        self._written = budget  # since the files were last counted: count first

    def get(self, key: str) -> Merged | None:
        """The slice of a key, mapped; ``None`` when it is not there."""
        path = self.folder / f"{key}{_SUFFIX}"
        try:
            with safe_open(str(path), framework="pt", device="cpu") as file:
                cost = float(file.metadata()["cost"])
                tensors = tuple(file.get_tensor(str(i)) for i in range(len(file.keys())))
            self._touch(path, cost, sum(tensor.nbytes for tensor in tensors))
        except (FileNotFoundError, OSError):
            return None
        except (SafetensorError, KeyError, ValueError):  # not ours, or of a disk that failed
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        # Kernels round alike only where tensors are aligned alike.
        tensors = tuple(t if t.data_ptr() % ALIGNMENT == 0 else t.clone() for t in tensors)
        return Merged(tensors, cost, owned=False)

    def offer(self, key: str, merged: Merged) -> bool:
        """Publish a slice that was just computed, if it was computed before by anyone; returns whether."""
        place = int(key[:8], 16) % _SEEN
        if not self._seen[place]:
            self._marked += 1
            if self._marked > _SEEN // 4:  # too full to tell keys apart
                self._seen[:] = 0
                self._marked = 0
            self._seen[place] = 1
            return False
        size = merged.nbytes
        if size > self.budget // 4:
            return False
        try:
            self._make_room(size)
            self._write(key, merged)
        except OSError:  # full, or gone: a cache may be
            return False
        self._written += size
        return True

    def _write(self, key: str, merged: Merged) -> None:
        header: dict[str, object] = {"__metadata__": {"cost": repr(merged.cost)}}
        end = 0
        for i, tensor in enumerate(merged.tensors):
            start, end = end, end + tensor.nbytes
            header[str(i)] = {
                "dtype": _SAFETENSORS[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        temporary = self.folder / f"{key}.{secrets.token_hex(4)}"
        try:
            with temporary.open("xb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for tensor in merged.tensors:
                    file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            path = self.folder / f"{key}{_SUFFIX}"
            self._touch(temporary, merged.cost, merged.nbytes)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _touch(self, path: Path, cost: float, size: int) -> None:
        """Give a file the priority of one that is used now."""
        value = os.stat(self.folder / "age").st_mtime_ns + int(cost / max(size, 1) * _UNIT)
        os.utime(path, ns=(value, value))

    def _make_room(self, size: int) -> None:
        """Evict until `size` bytes more fit; whoever comes while another evicts leaves it to him."""
        if self._written + size < self.budget // 16:
            return
        with _exclusive(self.folder / "evicting") as mine:
            if not mine:
                return
            files = sorted((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path) for entry in self._files())
            used = sum(length for _, length, _ in files)
            for value, length, path in files:
                if used + size <= self.budget:
                    break
                with contextlib.suppress(OSError):
                    os.unlink(path)
                used -= length
                os.utime(self.folder / "age", ns=(value, value))
            self._written = 0

    def _files(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self.folder) as entries:
            yield from (entry for entry in entries if entry.name.endswith(_SUFFIX))

    def close(self) -> None:
        """Stop using the folder; the last one removes it where it is temporary."""
        if self._lock.closed:
            return
        self._lock.close()
        if self._temporary:
            remove_if_unused(self.folder)


def remove_if_unused(folder: Path) -> None:
    """Remove a cache's folder unless a worker uses it."""
    with _exclusive(folder / "users") as mine:
        if mine:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[bool]:
    """Hold a lock on a file if nobody else does; says whether."""
    try:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True
    except FileNotFoundError:
        yield False
