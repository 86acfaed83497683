"""Results on an accelerator are found to be finite there: asked for together, so that the host waits once for many."""

from __future__ import annotations

from collections.abc import Callable

import torch

from evomerge.errors import EvomergeError


class FiniteChecks:
    """What is not known yet: whether merged tensors are finite."""

    def __init__(self) -> None:
        self._open: list[tuple[torch.Tensor, Callable[[], EvomergeError]]] = []

    @property
    def settled(self) -> bool:
        """Whether nothing is left to ask."""
        return not self._open

    def add(self, finite: torch.Tensor, error: Callable[[], EvomergeError]) -> None:
        """Ask later.

        Args:
            finite: bool of no dimension, on the device where the others are.
            error: makes what to raise where it is false.
        """
        self._open.append((finite, error))

    def settle(self) -> None:
        """Wait for the device and look at all of them, which are then forgotten.

        Raises:
            EvomergeError: the first result that is not finite; nothing is forgotten.
        """
        if self._open:
            known = torch.stack([finite for finite, _ in self._open]).tolist()
            for finite, (_, error) in zip(known, self._open, strict=True):
                if not finite:
                    raise error()
            self._open.clear()
