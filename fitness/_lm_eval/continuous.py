"""Greedy generation in a batch that stays full: a text that has ended makes place for the next prompt at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from fitness._lm_eval.finite_scores import NotFinite
from fitness._lm_eval.slot_cache import SlotCache

PIECES = 4
"""Of a batch's prompts, a share of one in so many is read ahead at a time: what waits takes memory."""


@dataclass(frozen=True)
class Call:
    """What lm-eval asks of `generate` for one batch.

    Attributes:
        prompts: [batch, length] token ids, padded on the left.
        mask: [batch, length], 0 where there is padding.
        stop: strings that end a text.
        most: tokens of a text.
        names: the prompts as texts.
    """

    prompts: torch.Tensor
    mask: torch.Tensor
    stop: tuple[str, ...]
    most: int
    names: Sequence[str] = ()


@dataclass
class _Text:
    """A text that is being written: of which prompt, when it ends, and its tokens so far."""

    call: int
    row: int
    stop: tuple[str, ...]
    lookback: int
    most: int
    tokens: list[int] = field(default_factory=list)


@dataclass
class _Ready:
    """A prompt that was read: keys and values of all its tokens but the last are a row of a cache."""

    text: _Text
    cache: DynamicCache
    row: int
    length: int
    last: int


class ContinuousGeneration:
    """Writes texts token by token, each as if it were alone.

    Prompts begin in lm-eval's order, in the slot of whichever text ends first, so that no forward computes texts that
    have ended, as those of a batch in `generate` do until its last has. Which texts are written beside each other
    follows from the model and the prompts alone: a candidate's texts do not depend on what was scored before it.

    Args:
        tokenizer: tells which tokens are a stop string.
        slots: texts at a time.

    Attributes:
        steps: forwards that wrote tokens of the last model's texts.
    """

    def __init__(self, tokenizer: Any, slots: int) -> None:
        self._tokenizer, self.slots = tokenizer, slots
        self._lookback: dict[tuple[str, ...], int] = {}
        self.steps = 0

    def write(self, module: Any, calls: Sequence[Call], prefill: Any = None) -> list[torch.Tensor]:
        """Greedy texts of all calls.

        Args:
            module: a decoder of those that `no_continuous` has nothing against.
            calls: in the order in which their prompts begin.
            prefill: of type `model.Prefill`; ``None`` to read every prompt whole.

        Returns:
            For each call what `generate` returns: the prompts and after them the texts, padded on the right.

        Raises:
            NotFinite: a score of a next token is not finite; says of which call and row.
        """
        self.steps = 0
        eos = module.generation_config.eos_token_id
        ends = set(eos if isinstance(eos, list) else [] if eos is None else [eos])
        texts = [self._texts(index, call) for index, call in enumerate(calls)]
        waiting = deque(_pieces(calls, texts, max(1, self.slots // PIECES)))
        with torch.no_grad():
            self._run(module, calls, waiting, ends, prefill)
        pad = self._tokenizer.pad_token_id or 0
        return [_joined(call, own, pad) for call, own in zip(calls, texts, strict=True)]

    def _run(
        self,
        module: Any,
        calls: Sequence[Call],
        waiting: deque[tuple[int, slice, list[_Text]]],
        ends: set[int],
        prefill: Any,
    ) -> None:
        slots = min(self.slots, sum(len(texts) for _, _, texts in waiting))
        ready: deque[_Ready] = deque()
        cache = SlotCache(slots)
        live: list[_Text | None] = [None] * slots
        lengths, last = [0] * slots, [0] * slots  # of each slot: tokens that the cache holds, and the one to be read
        device = module.device
        while True:
            for slot in [slot for slot, text in enumerate(live) if text is None]:
                if not ready and waiting:
                    index, rows, texts = waiting.popleft()
                    ready.extend(_read(module, calls[index], rows, texts, prefill))
                if ready:
                    one = ready.popleft()
                    cache.put(slot, one.cache, one.row, one.length)
                    live[slot], lengths[slot], last[slot] = one.text, one.length, one.last
            kept = [slot for slot, text in enumerate(live) if text is not None]
            if not kept:
                return
            if len(kept) < len(live):
                cache.keep(kept)
                live, lengths, last = ([values[slot] for slot in kept] for values in (live, lengths, last))  # type: ignore[assignment]
            longest = max(lengths)
            cache.use(longest)
            positions = torch.tensor(lengths, device=device)[:, None]
            logits = module(
                input_ids=torch.tensor(last, device=device)[:, None],
                attention_mask=(torch.arange(longest, -1, -1, device=device) <= positions).long(),
                position_ids=positions,
                past_key_values=cache.cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
            self.steps += 1
            scores = logits[:, -1].float()
            finite = torch.isfinite(scores.amax(dim=-1))  # NaN if any is NaN
            last = torch.where(finite, scores.argmax(dim=-1), -1).tolist()
            for slot, token in enumerate(last):
                text = live[slot]
                assert text is not None
                if token < 0:
                    raise NotFinite(text.row, len(calls[text.call].prompts), text.call)
                text.tokens.append(token)
                lengths[slot] += 1
                if token in ends or len(text.tokens) >= text.most or self._stops(text):
                    live[slot] = None

    def _stops(self, text: _Text) -> bool:
        """Whether a text ends in a stop string, or has one in the tokens that lm-eval looks at."""
        if not text.stop:
            return False
        written = self._tokenizer.decode(text.tokens[-text.lookback :])
        return any(stop in written for stop in text.stop)

    def _texts(self, index: int, call: Call) -> list[_Text]:
        if call.stop not in self._lookback:  # two tokens more than a stop string has, as lm-eval
            encoded = [self._tokenizer.encode(stop, add_special_tokens=False) for stop in call.stop]
            self._lookback[call.stop] = max(map(len, encoded), default=0) + 2
        lookback = self._lookback[call.stop]
        return [_Text(index, row, call.stop, lookback, call.most) for row in range(len(call.prompts))]


def _pieces(calls: Sequence[Call], texts: Sequence[list[_Text]], size: int) -> Iterator[tuple[int, slice, list[_Text]]]:
    """The prompts, so many at a time: the call, its rows, and their texts."""
    for index, own in enumerate(texts):
        for first in range(0, len(own), size):
            rows = slice(first, first + size)
            yield index, rows, own[rows]


def _read(module: Any, call: Call, rows: slice, texts: Sequence[_Text], prefill: Any) -> Iterator[_Ready]:
    """Read prompts of a call."""
    prompts, mask = call.prompts[rows], call.mask[rows]
    lengths = mask.sum(dim=1).tolist()
    width = max(lengths)
    prompts, mask = prompts[:, -width:], mask[:, -width:]
    cache = None if prefill is None else prefill(module, prompts, mask)
    if cache is None:
        cache = DynamicCache()
        if width > 1:
            positions = (mask.cumsum(dim=1) - 1).clamp_(min=0)
            module(
                input_ids=prompts[:, :-1],
                attention_mask=mask[:, :-1],
                position_ids=positions[:, :-1],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
    for row, (text, last) in enumerate(zip(texts, prompts[:, -1].tolist(), strict=True)):
        yield _Ready(text, cache, row, lengths[row] - 1, last)


def _joined(call: Call, texts: Sequence[_Text], pad: int) -> torch.Tensor:
    longest = max(len(text.tokens) for text in texts)
    written = [text.tokens + [pad] * (longest - len(text.tokens)) for text in texts]
    return torch.cat([call.prompts, torch.tensor(written, dtype=call.prompts.dtype, device=call.prompts.device)], dim=1)
