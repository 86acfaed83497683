"""The tier of the layer cache that the workers of a node share: content-addressed files in shared memory or on disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from evomerge.merge.cache.merged_slice import ALIGNMENT, Merged

_SUFFIX = ".safetensors"
_SAFETENSORS = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_SEEN = 1 << 20  # bytes of the table of keys that were computed once
_UNCOUNTED = 64  # part of the budget that a worker writes before it counts all files again
_UNFINISHED = 3600  # seconds
_TRIES = 100
_MEMORY = 32  # how many slices "of late" is
_SLOW = 1e-9  # a guess to begin with
_UNIT = 1 << 40  # priorities (seconds per byte) as the nanoseconds of a file's time


def _place(key: str) -> int:
    """Where in the table of keys that were computed once a key has its mark."""
    return int(key[:8], 16) % _SEEN


class SharedCache:
    """Merged slices as safetensors files that every worker of a node maps; safe for any number of processes.

    A file appears whole, by atomic rename, and stays readable for those who have it mapped when it is evicted. Slices
    are published when they have been computed before, or when most are: a search which never repeats itself writes
    nothing. With `keep_all` they are published whenever they have been computed. Evicts by GreedyDual-Size (Cao and
    Irani, 1997); a file's modification time is its priority, that of ``age`` the priority evicted last, so that all
    there is to know lies in the folder.

    Args:
        folder: made when it is not there.
        budget: bytes of all files together.
        temporary: whether the last worker that closes the cache removes the folder.
        keep_all: whether every merged slice is published, not only those likely wanted again.

    Raises:
        OSError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, budget: int, *, temporary: bool = True, keep_all: bool = False) -> None:
        self.folder, self.budget, self._temporary, self._keep_all = folder, budget, temporary, keep_all
        self._lock = lock_folder(folder)
        table = folder / "seen"
        with table.open("a+b") as file:
            os.posix_fallocate(file.fileno(), 0, _SEEN)  # a write to a page that finds no room is a crash
        self._seen = np.memmap(table, np.uint8, "r+", shape=(_SEEN,))
        with contextlib.suppress(FileExistsError), (folder / "age").open("x"):
            os.utime(folder / "age", ns=(0, 0))
        self._marked = 0
        self._written = budget  # since the files were last counted: count first
        self._repeats = 0.0  # of late, the share of computed slices that somebody had computed before
        self._rate = _SLOW  # of late, seconds that publishing a byte takes

    def get(self, key: str) -> Merged | None:
        """The slice of a key, mapped; ``None`` when it is not there."""
        if not self._seen[_place(key)]:  # nobody computed it: no need to ask the file system
            return None
        path = self.folder / f"{key}{_SUFFIX}"
        try:
            with safe_open(str(path), framework="pt", device="cpu") as file:
                cost = float(file.metadata()["cost"])
                tensors = tuple(file.get_tensor(str(i)) for i in range(len(file.keys())))
            self._touch(path, cost, sum(tensor.nbytes for tensor in tensors))
        except (OSError, RuntimeError):  # not there, or evicted between the header and the tensors
            return None
        except (SafetensorError, KeyError, TypeError, ValueError):  # not ours, or of a disk that failed
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        # Kernels round alike only where tensors are aligned alike.
        tensors = tuple(t if t.data_ptr() % ALIGNMENT == 0 else t.clone() for t in tensors)
        return Merged(tensors, cost, owned=False)

    def offer(self, key: str, merged: Merged) -> bool:
        """Publish a slice that was just computed, if it is likely to be wanted again; returns whether.

        It is when anyone computed it before, when so much of what is computed was that publishing at once pays, or when
        all are kept.
        """
        again, size = self._mark(key), merged.nbytes
        self._repeats += (again - self._repeats) / _MEMORY
        if not (again or self._keep_all) and self._repeats * merged.cost <= self._rate * size:
            return False
        path = self.folder / f"{key}{_SUFFIX}"
        if size > self.budget // 4 or any(tensor.dtype not in _SAFETENSORS for tensor in merged.tensors):
            return False
        start = time.perf_counter()
        try:
            published = not path.exists() and self._write(path, merged)
        except OSError:  # full, or gone: a cache may be
            return False
        self._rate += ((time.perf_counter() - start) / max(size, 1) - self._rate) / _MEMORY
        return published

    def _mark(self, key: str) -> bool:
        """Whether anyone computed a key before; from now on someone did."""
        place = _place(key)
        if self._seen[place]:
            return True
        self._marked += 1
        if self._marked > _SEEN // 4:  # too full to tell keys apart
            self._seen[:] = 0
            self._marked = 0
        self._seen[place] = 1
        return False

    def _write(self, path: Path, merged: Merged) -> bool:
        """Write a file beside its place, and put it there if there is room."""
        # Of one length: readers open the file twice, and may find another of the same slice the second time.
        header: dict[str, object] = {"__metadata__": {"cost": f"{merged.cost:.12e}"}}
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
        size = 8 + len(text) + end
        temporary = self.folder / f"{path.stem}.{secrets.token_hex(4)}"
        try:
            with temporary.open("xb") as file:
                file.truncate(size)  # what others count
                if not self._make_room(size):
                    return False
                file.write(len(text).to_bytes(8, "little") + text)
                for tensor in merged.tensors:
                    file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            self._touch(temporary, merged.cost, merged.nbytes)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _touch(self, path: Path, cost: float, size: int) -> None:
        """Give a file the priority of one that is used now."""
        value = os.stat(self.folder / "age").st_mtime_ns + int(cost / max(size, 1) * _UNIT)
        os.utime(path, ns=(value, value))

    def _make_room(self, size: int) -> bool:
        """Evict until all files fit, those that are being written too; whether a file of `size` bytes may be written.

        Files are counted once in a while, with some room for what others write meanwhile. Who comes while another
        counts does not write.
        """
        self._written += size
        if self._written < self.budget // _UNCOUNTED:
            return True
        with _exclusive(self.folder / "evicting") as mine:
            if not mine:
                return False
            files, used = self._files()
            room = self.budget - self.budget // 8
            for value, length, path in files:
                if used <= room:
                    break
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                used -= length
                if value:
                    os.utime(self.folder / "age", ns=(value, value))
            self._written = 0
            return used <= room

    def _files(self) -> tuple[list[tuple[int, int, str]], int]:
        """Priority, size and path of all files that may be evicted, the first one first, and the size of all."""
        files, used = [], 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if "." not in entry.name:  # the cache's own
                    continue
                with contextlib.suppress(FileNotFoundError):
                    found = entry.stat()
                    used += found.st_size
                    if entry.name.endswith(_SUFFIX):
                        files.append((found.st_mtime_ns, found.st_size, entry.path))
                    elif time.time() - found.st_ctime > _UNFINISHED:  # of a worker that was killed
                        files.append((0, found.st_size, entry.path))
        return sorted(files), used

    def close(self) -> None:
        """Stop using the folder; the last one removes it where it is temporary."""
        if self._lock.closed:
            return
        self._lock.close()
        if self._temporary:
            remove_if_unused(self.folder)


def remove_if_unused(folder: Path) -> None:
    """Remove a folder (`lock_folder`) unless a worker uses it."""
    with _exclusive(folder / "users") as mine:
        if mine:
            # Whoever opens it meanwhile is to find all of it or nothing.
            away = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
            with contextlib.suppress(OSError):
                folder = folder.rename(away)
            shutil.rmtree(folder, ignore_errors=True)


def lock_folder(folder: Path) -> IO[str]:
    """Make a folder and lock its file of users; removing it (`remove_if_unused`) takes the same lock.

    Raises:
        OSError: the folder cannot be made or written.
    """
    for _ in range(_TRIES):
        lock = None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = open(folder / "users", "a")  # noqa: SIM115  held as long as the cache is used
            fcntl.flock(lock, fcntl.LOCK_SH)
            if os.fstat(lock.fileno()).st_nlink:
                return lock
        except (FileNotFoundError, FileExistsError):  # removed by the last of its users just now
            if folder.exists() and not folder.is_dir():
                raise
        if lock is not None:
            lock.close()
    raise OSError(errno.EBUSY, "is being removed again and again", str(folder))


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[bool]:
    """Hold a lock on a file if nobody else does; says whether."""
    try:
        file = path.open("a")
    except FileNotFoundError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = True
        except OSError:
            mine = False
        yield mine
