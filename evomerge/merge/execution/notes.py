"""What was found out about source tensors, kept within budgets for the candidates to come."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_MOST_NOTES = 1 << 18
_RECENT = 8  # variants of what is derived that are remembered without being kept


@dataclass
class Notes:
    """What was found out about source tensors, for the candidates to come.

    Attributes:
        budget: bytes for the large ones (`large`, `derived`); the small ones are numbers.
        device_budget: bytes for those on an accelerator (`on_device`, `derived`).
        used, device_used: bytes of them.
        seconds: that finding out took, of what lasts as long as the pool does.
    """

    budget: int
    device_budget: int = 0
    used: int = 0
    device_used: int = 0
    seconds: float = 0.0
    _begun: float | None = field(default=None, repr=False)
    _small: dict[Hashable, Any] = field(default_factory=dict, repr=False)
    _large: dict[Hashable, Any] = field(default_factory=dict, repr=False)
    _on_device: dict[Hashable, Any] = field(default_factory=dict, repr=False)
    _derived: dict[Hashable, dict[Hashable, tuple[torch.Tensor, ...]]] = field(default_factory=dict, repr=False)
    _seen: dict[Hashable, deque[Hashable]] = field(default_factory=dict, repr=False)
    _asked: set[Hashable] = field(default_factory=set, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def busy(self) -> bool:
        """Whether something is being found out, that lasts; another thread may ask."""
        return self._begun is not None

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Count the time inside as that of noting; once, where one note takes another."""
        if self._begun is not None:
            yield
            return
        self._begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - self._begun
            self._begun = None

    def clear(self) -> None:
        """Let the large ones go, and keep half as much from now on: memory has run out."""
        with self._lock:
            self._large.clear()
            self._derived.clear()
            self._asked.clear()
            self._on_device.clear()
            self.used, self.budget = 0, self.budget // 2
            self.device_used, self.device_budget = 0, self.device_budget // 2

    def small(self, key: Hashable, find: Callable[[], T], *, lasting: bool = False) -> T:
        """What `find` returned when `key` was first asked for; `lasting` where every candidate will ask for it."""
        try:
            found: T = self._small[key]
        except KeyError:
            with self.noting() if lasting else nullcontext():
                found = find()
            with self._lock:
                if len(self._small) >= _MOST_NOTES:  # of continuous parameters, say: those of old candidates
                    del self._small[next(iter(self._small))]
                self._small[key] = found
        return found

    def large(self, key: Hashable, cost: int, find: Callable[[], T], *, at_once: bool = False) -> T | None:
        """What `find` returned, which takes `cost` bytes to keep; ``None`` where there is no room.

        Also ``None`` the first time that it is asked for, unless `at_once`: what takes long to find is found when it
        is wanted again.
        """
        if key not in self._large:
            if cost > self.budget - self.used:
                return None
            if not at_once and key not in self._asked:
                self._asked.add(key)
                return None
            with self.noting():
                found = find()
            with self._lock:  # another thread may have been as fast
                self.used += cost if key not in self._large else 0
                self._large[key] = found
        kept: T | None = self._large[key]
        return kept

    def on_device(self, key: Hashable, cost: int, find: Callable[[], T]) -> T:
        """What `find` returned, on an accelerator; kept where there is room for its `cost` bytes."""
        if key in self._on_device:
            kept: T = self._on_device[key]
            return kept
        with self.noting():
            found = find()
        if cost <= self.device_budget - self.device_used:
            self.device_used += cost
            self._on_device[key] = found
        return found

    def derived(
        self,
        key: Hashable,
        variant: Hashable,
        device: torch.device,
        find: Callable[[], tuple[torch.Tensor, ...]],
        *,
        changing: bool = False,
        cost: int | None = None,
    ) -> tuple[torch.Tensor, ...] | None:
        """Tensors that `find` made of sources on a device; kept there, or in main memory, where there is room.

        Candidates of a search may each ask for another variant of the same: the one that nobody asked for longest then
        makes room for it, and only of the same key. What others have keeps its place.

        Args:
            key: what they are made of, and by which method.
            variant: by which parameters.
            device: where they are wanted.
            find: makes them.
            changing: whether variants beside the first are kept only when they are asked for again.
            cost: bytes of them, from who can do without: ``None`` is then returned where they would not be kept.
        """
        known = self._derived.get(key)
        kept = known.get(variant) if known else None
        if known and kept:
            with self._lock:
                known[variant] = known.pop(variant, kept)  # the last one used
            return tuple(tensor.to(device, non_blocking=True) for tensor in kept)
        worth = not changing or self._lasts(key, variant)
        if not worth:
            with self._lock:
                self._seen.setdefault(key, deque(maxlen=_RECENT)).append(variant)
        if cost is not None and not (worth and self._has_room(cost - self._freed(key, device), device)):
            return None
        with self.noting() if known is None else nullcontext():
            found = find()
        if not worth:
            return found
        cost = sum(tensor.nbytes for tensor in found)
        with self._lock:
            known = self._derived.setdefault(key, {})
            while known and not self._has_room(cost, device):
                self._charge(known.pop(next(iter(known))), -1)
            if variant not in known and self._has_room(cost, device):
                there = device.type == "cpu" or cost <= self.device_budget - self.device_used
                known[variant] = found if there else _in_main_memory(found)
                self._charge(known[variant], 1)
        return found

    def would_keep(self, key: Hashable, variant: Hashable, cost: int, changing: bool = False) -> bool:
        """Whether `derived` would find something that is not kept, and has `cost` bytes of main memory free."""
        if variant in self._derived.get(key, ()) or (changing and not self._lasts(key, variant)):
            return False
        return cost <= self.budget - self.used

    def _lasts(self, key: Hashable, variant: Hashable) -> bool:
        """Whether a variant is the first of its key, or was asked for not long ago."""
        return not self._derived.get(key) or variant in self._seen.get(key, ())

    def _freed(self, key: Hashable, device: torch.device) -> int:
        """Bytes that other variants of a key would make room for, where that is needed."""
        kept = [tensor for tensors in self._derived.get(key, {}).values() for tensor in tensors]
        return sum(tensor.nbytes for tensor in kept if tensor.device.type == device.type)

    def _has_room(self, cost: int, device: torch.device) -> bool:
        on_device = device.type != "cpu" and cost <= self.device_budget - self.device_used
        return on_device or cost <= self.budget - self.used

    def _charge(self, tensors: tuple[torch.Tensor, ...], sign: int) -> None:
        """Count what is kept, or no longer."""
        cost = sign * sum(tensor.nbytes for tensor in tensors)
        if tensors[0].device.type == "cpu":
            self.used += cost
        else:
            self.device_used += cost


def _in_main_memory(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Tensors of an accelerator; pinned for a GPU, so that nobody waits for their way back."""
    there = tensors[0].device.type == "cuda"
    return tuple(tensor.cpu().pin_memory() if there else tensor.cpu() for tensor in tensors)
