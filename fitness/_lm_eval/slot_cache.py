"""Keys and values of texts that begin and end at different times, each in a slot of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

AHEAD = 32
"""Tokens that buffers have room for beyond those that are there, at least; an eighth of these where that is more."""


class _SlotLayer(DynamicLayer):
    """One layer's keys and values in buffers that stay: the texts' last tokens lie below each other.

    Attributes:
        first, end: columns of the buffers that are in use; shorter texts have meaningless ones on their left.
    """

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.first = self.end = 0
        self._buffers: list[torch.Tensor] = []  # of keys and values, [slots, heads, columns, width]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a token of every slot into its buffers, and return what is in use with it."""
        new, slots = (key_states, value_states), len(key_states)
        count = key_states.shape[2]
        self.make_room(new, slots, self.end - self.first, count)
        for buffer, states in zip(self._buffers, new, strict=True):
            buffer[:, :, self.end : self.end + count] = states
        self.end += count
        self._show()
        return self.keys, self.values

    def make_room(self, like: Sequence[torch.Tensor], slots: int, before: int, after: int) -> None:
        """Move to larger buffers unless there are so many columns before the end, and after it.

        Args:
            like: keys and values, whose heads, width and dtype the buffers have.
            slots: of new buffers.
        """
        if self._buffers and self.end >= before and self.end + after <= self._buffers[0].shape[2]:
            return
        used = self.end - self.first
        end = max(before, used)
        columns = end + max(after, AHEAD, end // 8)
        for place, states in enumerate(like):
            new = states.new_zeros(slots, states.shape[1], columns, states.shape[3])
            if place < len(self._buffers):
                new[:, :, end - used : end] = self._buffers[place][:, :, self.first : self.end]
                self._buffers[place] = new
            else:
                self._buffers.append(new)
        self.first, self.end = end - used, end
        self._show()

    def put(self, slot: int, states: Sequence[torch.Tensor], length: int) -> None:
        """Write the last so many columns of a text's keys and values, [heads, columns, width], where they end alike."""
        for buffer, own in zip(self._buffers, states, strict=True):
            count = min(length, own.shape[1])  # of a sliding window fewer are left: its mask hides what is before
            buffer[slot, :, self.end - count : self.end] = own[:, own.shape[1] - count :]
        self.first = min(self.first, self.end - length)  # what moves to larger buffers, if that is next

    def use(self, columns: int) -> None:
        """Have so many columns in use from now on."""
        self.first = self.end - columns
        self._show()

    def keep(self, slots: torch.Tensor) -> None:
        """Keep these slots only, in this order."""
        self._buffers = [buffer.index_select(0, slots.to(buffer.device)) for buffer in self._buffers]
        self._show()

    def get_seq_length(self) -> int:
        """Tokens of the longest text."""
        return self.end - self.first

    def _show(self) -> None:
        if self._buffers:
            self.keys, self.values = (buffer[:, :, self.first : self.end] for buffer in self._buffers)
            self.is_initialized = True


class SlotCache:
    """The cache of a batch whose texts are replaced one by one.

    All texts end in the same column, so that the distance of two tokens of one is that of their columns: sliding
    windows see what they see in a text alone. Padding is on the left, as lm-eval's.

    Args:
        slots: texts at a time.

    Attributes:
        cache: what a model's forward takes; a token of every text at a time.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self.cache = Cache(layer_class_to_replicate=_SlotLayer)

    @property
    def _layers(self) -> list[_SlotLayer]:
        layers: list[_SlotLayer] = self.cache.layers
        return layers

    def put(self, slot: int, found: DynamicCache, row: int, length: int) -> None:
        """Let a text begin in a slot.

        Args:
            slot: whose text has ended.
            found: of prompts, padded on the left; with nothing in its layers where all are empty.
            row: the prompt in it.
            length: its tokens.
        """
        if not length:
            return
        while len(self._layers) < len(found.layers):
            self._layers.append(_SlotLayer())
        for layer, of_prompts in zip(self._layers, found.layers, strict=False):
            states = (of_prompts.keys, of_prompts.values)
            layer.make_room(states, self._slots, length, 1)
            layer.put(slot, [tensor[row] for tensor in states], length)

    def use(self, longest: int) -> None:
        """Have the model read as many columns as the longest text has tokens."""
        for layer in self._layers:
            layer.use(longest)

    def keep(self, slots: Sequence[int]) -> None:
        """Keep these slots only, in this order."""
        self._slots = len(slots)
        chosen = torch.tensor(slots)
        for layer in self._layers:
            layer.keep(chosen)
