"""Prompts of generation read as a tree: keys and values of what they have in common are computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from fitness._lm_eval.half_precision import float32_products
from fitness._lm_eval.model import TokenRequest
from fitness._lm_eval.prefix_tree import Node, prefix_tree
from fitness._lm_eval.token_batches import TRUNK, TokenBatch, chained, token_batches
from fitness._lm_eval.tree_mask import TreeMasks

_WORTH = 0.9
"""Of a batch's tokens, with padding: what a tree may have at most to be run instead."""
_MANY = 1 << 40
_REMEMBERED = 8
"""Beginnings whose keys and values are kept for the batches to come."""

KeyValues = list[tuple[torch.Tensor, torch.Tensor]]
"""By layer the keys and values, [1, heads, tokens, width]."""


@dataclass
class _Step:
    """A forward over tokens that come after others in the cache.

    Attributes:
        inputs, positions, ends: as of `TokenBatch`.
        before: tokens in the cache that they come after.
        rows: prompts that end here, and where in the cache their tokens then are.
    """

    inputs: torch.Tensor
    positions: torch.Tensor
    ends: torch.Tensor
    before: int
    rows: list[tuple[int, torch.Tensor]]


@dataclass
class _Group:
    """Prompts that begin alike.

    Attributes:
        beginning: tokens that all of them begin with; none where that is not worth a forward of its own.
        steps: the forwards, the first over the beginning.
    """

    beginning: NDArray[np.int64]
    steps: list[_Step]


@dataclass
class _Plan:
    tokens: int
    groups: list[_Group] = field(default_factory=list)


class SharedPrefill:
    """Computes keys and values of the prompts of one model's generation.

    Args:
        module: a decoder of those that can share tokens.
        batch_tokens: tokens of a forward, about.
        trunk: tokens that prompts must have in common for a forward of its own.

    Attributes:
        run, stock: tokens of prompts that were run for the last model, and that lm-eval would have run for it.
    """

    def __init__(self, module: Any, batch_tokens: int, trunk: int = TRUNK) -> None:
        self._trunk = trunk
        self._masks, self._most, self._device = TreeMasks(module), batch_tokens, module.device
        self._plans: dict[bytes, _Plan] = {}
        self._beginnings: list[tuple[NDArray[np.int64], KeyValues]] = []
        self.run = self.stock = 0

    def begin(self) -> None:
        """The model is another one from now on."""
        self.end()
        self.run = self.stock = 0

    def end(self) -> None:
        """Let go of the keys and values of beginnings."""
        self._beginnings.clear()

    def __call__(self, module: Any, prompts: torch.Tensor, mask: torch.Tensor) -> DynamicCache | None:
        """The cache for generation to begin with, of all tokens of the prompts but their last.

        Args:
            module: the model.
            prompts: [batch, length] token ids, padded on the left.
            mask: [batch, length], 0 where there is padding.

        Returns:
            The cache; ``None`` where the prompts have too little in common.
        """
        self.stock += int(mask.sum())
        plan = self._plan(prompts, mask)
        # A prompt alone may have its beginning in common with those before it. What is done must not depend on what
        # was done before: the texts of two candidates, or of a resumed search, would differ by rounding.
        if len(prompts) > 1 and plan.tokens + len(prompts) > _WORTH * prompts.numel():
            self.run += int(mask.sum())
            return None
        self.run += len(prompts)  # their last tokens
        made: KeyValues = []
        with torch.no_grad(), float32_products(module):
            for group in plan.groups:
                self._read(module, group, made, prompts.shape)
        cache = DynamicCache(config=module.config)
        for layer in range(len(made)):  # which copies: a layer at a time is there twice
            cache.update(*made.pop(0), layer)
        return cache

    def _read(self, module: Any, group: _Group, made: KeyValues, shape: torch.Size) -> None:
        """Run the prompts of a group, and put their keys and values into their rows of `made`."""
        cache = DynamicCache()
        for step in group.steps:
            begun = step.before
            if len(group.beginning) and step is group.steps[0]:
                begun = self._recall(group.beginning, cache)
            else:
                cache.crop(step.before - cache.get_seq_length())
            if begun < step.before + step.inputs.shape[1]:
                own = slice(begun - step.before, None)
                module(
                    input_ids=step.inputs[:, own],
                    attention_mask=self._masks(step.positions[:, own], step.ends[:, own] - own.start, begun),
                    position_ids=step.positions[:, own],
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                self.run += step.inputs[:, own].numel()
            kept = [(layer.keys, layer.values) for layer in cache.layers]
            if len(group.beginning) and step is group.steps[0]:
                self._beginnings.append((group.beginning, kept))
                del self._beginnings[:-_REMEMBERED]
            if not made:
                sizes = [[(shape[0], t.shape[1], shape[1] - 1, t.shape[3]) for t in pair] for pair in kept]
                made += [(k.new_zeros(one), v.new_zeros(two)) for (k, v), (one, two) in zip(kept, sizes, strict=True)]
            for row, places in step.rows:
                for into, found in zip(made, kept, strict=True):
                    for all_rows, tensor in zip(into, found, strict=True):
                        all_rows[row, :, shape[1] - 1 - len(places) :] = tensor[0].index_select(1, places)

    def _recall(self, beginning: NDArray[np.int64], cache: DynamicCache) -> int:
        """Fill a cache with what is known of a beginning; how many of its tokens that is."""
        most, best = 0, None
        for tokens, kept in self._beginnings:
            length = min(len(tokens), len(beginning))
            differing = np.flatnonzero(tokens[:length] != beginning[:length])
            common = int(differing[0]) if len(differing) else length
            if common >= max(self._trunk, most + 1):
                most, best = common, kept
        for layer, (keys, values) in enumerate(best or []):
            cache.update(keys[:, :, :most], values[:, :, :most], layer)
        return most

    def _plan(self, prompts: torch.Tensor, mask: torch.Tensor) -> _Plan:
        ids, real = prompts.cpu().numpy(), mask.cpu().numpy().astype(bool)
        key = ids.tobytes() + real.tobytes()
        if key not in self._plans:
            rows = [ids[row][real[row]].tolist() for row in range(len(ids))]
            requests = [TokenRequest(None, tokens[:-1], tokens[-1:]) for tokens in rows]
            roots = prefix_tree(requests, prompts.shape[1])
            plan = self._plans[key] = _Plan(sum(root.tokens for root in roots))
            short = []
            for root in map(chained, roots):
                if root.stop >= self._trunk and (root.children or len(roots) == 1):
                    plan.groups.append(self._group(root))
                else:
                    short.append(root)
            for batch in token_batches(short, self._most, _MANY, self._device):
                plan.groups.append(_Group(np.empty(0, dtype=np.int64), [*_steps([batch], 0)]))
        return self._plans[key]

    def _group(self, root: Node) -> _Group:
        """The prompts that begin as a root does, which is the first forward."""
        (first,) = token_batches([Node(root.path, 0, root.stop, [], root.scores)], root.stop, _MANY, self._device)
        first.after = token_batches(root.children, self._most, _MANY, self._device)
        return _Group(root.path[: root.stop], [*_steps([first], 0)])


def _steps(batches: Sequence[TokenBatch], before: int) -> Iterator[_Step]:
    """The forwards of batches after so many tokens, each before those that come after its tokens."""
    waiting = [(batch, before) for batch in reversed(batches)]
    while waiting:
        batch, before = waiting.pop()
        ends = batch.ends[0]
        rows = []
        for score_row, slot in zip(batch.score_rows.tolist(), batch.slots.tolist(), strict=True):
            last = int(batch.rows[score_row])
            path = torch.nonzero(ends[: last + 1] > last)[:, 0]  # a token's ancestors in the batch, and itself
            rows.append((slot, torch.cat([torch.arange(before, device=ends.device), path + before])))
        yield _Step(batch.inputs, batch.positions, batch.ends, before, rows)
        waiting.extend((after, before + len(ends)) for after in reversed(batch.after))
