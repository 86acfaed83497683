"""Log-likelihoods with every token of the requests' tree computed once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import DynamicCache

from evomerge.models.memory import Retries, out_of_memory
from fitness._lm_eval.half_precision import float32_products
from fitness._lm_eval.layer_states import LayerStates
from fitness._lm_eval.model import TokenRequest
from fitness._lm_eval.prefix_tree import prefix_tree
from fitness._lm_eval.token_batches import TokenBatch, token_batches
from fitness._lm_eval.tree_mask import TreeMasks

if TYPE_CHECKING:
    from evomerge.models.loaded import KeptStates, Several

_log = logging.getLogger(__name__)

MOST_LOGITS = 128 * 2**20
"""Bytes of logits in a batch, at most."""
MOST_SOFTMAX = 32 * 2**20
"""Bytes of logarithms of softmax at a time."""
_FEWEST_ROWS = 32
_FEWEST_TOKENS = 32
_SHORTEST_LINE = 64
"""Tokens of a line from which on it is cut, or an eighth of a model's width: attention is then a few percent."""


def default_tokens(device: torch.device, width: int) -> int:
    """Tokens of a batch: as few as keep the device busy, since tokens of other branches are attended to in vain.

    Args:
        device: of the model.
        width: of its hidden states; a processor's caches hold few tokens of a wide one.
    """
    return max(256, min(1024, 2**17 // max(width, 1))) if device.type == "cpu" else 2048


@dataclass
class BatchLimits:
    """What a batch may have, known to all forwards of a fitness: where memory ends for one, it does for the others.

    Attributes:
        tokens: that are run together, about.
        share: of the rows of logits that `MOST_LOGITS` allows.
        halved: how often both became half of what they were.
    """

    tokens: int
    share: float = 1.0
    halved: int = 0

    def rows(self, width: int) -> int:
        """Rows of logits of so many bytes."""
        return max(1, int(self.share * max(_FEWEST_ROWS, MOST_LOGITS // width)))

    def smaller(self, width: int) -> bool:
        """Allow half as much; whether that is less than before."""
        if self.tokens <= _FEWEST_TOKENS and self.rows(width) == 1:
            return False
        self.tokens, self.share = max(min(self.tokens, _FEWEST_TOKENS), self.tokens // 2), self.share / 2
        self.halved += 1
        return True


def _repeated(mask: Any, count: int) -> Any:
    """A mask of lines, or masks by kind of layer, for so many models."""
    if isinstance(mask, dict):
        return {kind: _repeated(own, count) for kind, own in mask.items()}
    return mask.repeat(count, 1, 1, 1)


class _Trunks(DynamicCache):
    """Keys and values of trunks, of the layers that ran."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the trunks; asked of none in particular, of any: the first may not have run."""
        if layer_idx:
            return int(super().get_seq_length(layer_idx))
        return max((int(layer.get_seq_length()) for layer in self.layers), default=0)


class SharedForwards:
    """The requests of a fitness, in batches of their tree.

    Args:
        requests: as lm-eval asks them.
        module: a model like those to be scored: its device, vocabulary and kinds of layers.
        max_length: positions of the model.
        limits: of a forward; shared with others.
        softmax_dtype, autocast: as for `batches.score_batches`.

    Attributes:
        tokens: that are run for a candidate, some of them in its upper layers alone.
    """

    def __init__(
        self,
        requests: Sequence[TokenRequest],
        module: Any,
        *,
        max_length: int,
        limits: BatchLimits,
        softmax_dtype: torch.dtype | None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._requests, self._max_length = requests, max_length
        self._device, self._softmax_dtype, self._autocast = module.device, softmax_dtype, autocast
        self._lengths = [len(request.continuation) for request in requests]
        self._masks = TreeMasks(module)
        self._width = int(module.get_output_embeddings().weight.shape[0]) * module.dtype.itemsize  # of a row of logits
        self._line = max(_SHORTEST_LINE, int(module.config.get_text_config().hidden_size) // 8)
        self._limits = limits
        self._plan(module)

    @property
    def hidden(self) -> float:
        """Of the tokens of the last model, those that hidden states saved, as whole passes through it."""
        return self._states.saved

    @property
    def halved(self) -> int:
        """How often batches became half as large since memory ran out; 0 where there are none."""
        return self._limits.halved if self._batches else 0

    def score(
        self, module: Any, spare: Callable[[], bool] = bool, states: KeptStates | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The log-likelihood of each request, in nats, and whether greedy decoding gives its continuation.

        See `score_several`.
        """
        values, greedy = self.score_several(module, None, spare, states)
        return values[0], greedy[0]

    def score_several(
        self,
        module: Any,
        several: Several | None,
        spare: Callable[[], bool] = bool,
        states: KeptStates | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """For each model the log-likelihood of each request, in nats, and whether it is the greedy continuation.

        Where memory ends, all is run again: after something was spared, once with nothing left to spare, then in
        smaller batches, as are all others of these limits from then on.

        Args:
            module: the model.
            several: the models that it is; ``None`` for one.
            spare: as for `batches.score_batches`.
            states: hidden states of models before it; ``None`` to run all layers.

        Returns:
            Two arrays of shape ``(models, requests)``.
        """
        retries = Retries(spare)
        while True:
            try:
                if self._planned != self._limits:
                    self._plan(module)
                self._states.begin(module, states)
                return self._scored(module, several)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                failed = error.with_traceback(None)
            # out of the handler, which holds on to the frames of the error
            if retries.again():
                continue
            if not self._limits.smaller(self._width):
                raise failed
            _log.warning(
                "not enough memory: %d tokens are run at a time from now on; scores may differ in their last digits",
                self._limits.tokens,
            )

    def _plan(self, module: Any) -> None:
        roots = prefix_tree(self._requests, self._max_length)
        self._batches: list[TokenBatch] = []  # those before give their memory back
        self._planned: BatchLimits | None = None  # memory may end here, too
        most = self._limits.tokens, self._limits.rows(self._width)
        self._batches = token_batches(roots, *most, self._device, line=self._line)
        sizes = [[batch.count for batch in root.walk()] for root in self._batches]
        self.tokens = sum(map(sum, sizes))
        self._states = LayerStates(sizes, module)
        self._planned = replace(self._limits)

    def _scored(self, module: Any, several: Several | None) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        count = 1 if several is None else several.count
        chosen = torch.zeros(count, sum(self._lengths), dtype=torch.float32, device=self._device)
        greedy = torch.zeros(count, sum(self._lengths), dtype=torch.bool, device=self._device)
        with torch.no_grad(), float32_products(module):
            for number, batch in enumerate(self._batches):
                step = self._together(batch)
                for begin in range(0, count, step):
                    own = slice(begin, min(begin + step, count))
                    rows_of = nullcontext() if several is None else several.only(own.start, own.stop)
                    with rows_of, self._states.tree(number):
                        self._run(module, batch, chosen[own], greedy[own])
            values = chosen.cpu().to(torch.float64).numpy()
            right = greedy.cpu().numpy()
        if not self._lengths:
            return np.empty((count, 0)), np.empty((count, 0), dtype=bool)
        first = np.cumsum([0, *self._lengths[:-1]])
        return np.add.reduceat(values, first, axis=1), np.logical_and.reduceat(right, first, axis=1)

    def _together(self, root: TokenBatch) -> int:
        """How many models' copies of a batch, and of those that come after it, are run in one forward."""
        tokens = max(batch.inputs.numel() for batch in root.walk())
        rows = max(len(batch.rows) for batch in root.walk())
        room: int = min(self._limits.tokens // max(tokens, 1), self._limits.rows(self._width) // max(rows, 1))
        return max(1, room)

    def _run(self, module: Any, root: TokenBatch, chosen: torch.Tensor, greedy: torch.Tensor) -> None:
        """Run a batch, of all models, then all that come after its tokens: keys and values are kept meanwhile."""
        cache, count = (_Trunks() if root.after else None), len(chosen)
        waiting: list[tuple[TokenBatch, int, bool]] = [(root, 0, False)]
        while waiting:
            batch, before, done = waiting.pop()
            own = batch.inputs.numel()
            if done:  # all after this batch too
                if cache is not None and before:
                    cache.crop(-own)  # so many tokens less
                continue
            # A model computes a row of logits at least.
            rows = batch.rows if len(batch.rows) else torch.zeros(1, dtype=torch.long, device=self._device)
            each, inputs, positions = len(rows), batch.inputs, batch.positions
            mask = self._masks(positions, batch.ends, before)
            if count > 1:
                rows = torch.cat([rows + number * own for number in range(count)])
                inputs, positions, mask = inputs.repeat(count, 1), positions.repeat(count, 1), _repeated(mask, count)
            with (
                torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None),
                _head_of(module, rows) if len(inputs) > 1 else nullcontext(rows) as keep,
            ):
                logits = module(
                    input_ids=inputs,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=cache is not None,
                    logits_to_keep=keep,
                ).logits.flatten(0, -2)
            if len(logits) > len(rows):  # of a head that is no module
                logits = logits[rows]
            for number in range(count):
                of_model = slice(number * each, (number + 1) * each)
                self._read(logits[of_model], batch, chosen[number], greedy[number])
            del logits
            waiting.append((batch, before, True))
            waiting.extend((after, before + own, False) for after in reversed(batch.after))

    def _read(self, logits: torch.Tensor, batch: TokenBatch, chosen: torch.Tensor, greedy: torch.Tensor) -> None:
        step = max(1, MOST_SOFTMAX // (logits.shape[1] * 4))
        for first in range(0, len(batch.rows), step):
            part = slice(*batch.scores_of(first, min(first + step, len(batch.rows))))
            rows, tokens, slots = batch.score_rows[part] - first, batch.tokens[part], batch.slots[part]
            logprobs = F.log_softmax(logits[first : first + step], dim=-1, dtype=self._softmax_dtype)
            chosen[slots] = logprobs[rows, tokens].float()
            greedy[slots] = logprobs.argmax(dim=-1)[rows] == tokens


@contextmanager
def _head_of(module: Any, rows: torch.Tensor) -> Iterator[int]:
    """Let a model's head see rows of several lines, which ``logits_to_keep`` cannot say, within this.

    Args:
        module: the model.
        rows: [rows] of the hidden states, flattened to [lines * length, width].

    Returns:
        What ``logits_to_keep`` is to be: all that reaches the head.
    """

    def chosen(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return args[0].flatten(0, -2).index_select(0, rows.to(args[0].device))[None], *args[1:]

    hook = module.get_output_embeddings().register_forward_pre_hook(chosen)
    try:
        yield 0
    finally:
        hook.remove()
