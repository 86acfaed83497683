"""Log-likelihoods with every token of the requests' tree computed once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import DynamicCache

from evomerge.models.memory import Retries, out_of_memory
from fitness._lm_eval.model import TokenRequest
from fitness._lm_eval.prefix_tree import prefix_tree
from fitness._lm_eval.token_batches import TokenBatch, token_batches
from fitness._lm_eval.tree_mask import TreeMasks

_log = logging.getLogger(__name__)

MOST_LOGITS = 128 * 2**20
"""Bytes of logits in a batch, at most."""
MOST_SOFTMAX = 32 * 2**20
"""Bytes of logarithms of softmax at a time."""
_FEWEST_ROWS = 32
_FEWEST_TOKENS = 32


def default_tokens(device: torch.device) -> int:
    """Tokens of a batch: as few as keep the device busy, since tokens of other branches are attended to in vain."""
    return 256 if device.type == "cpu" else 2048


@dataclass
class BatchLimits:
    """What a batch may have, known to all forwards of a fitness: where memory ends for one, it does for the others.

    Attributes:
        tokens: that are run together, about.
        share: of the rows of logits that `MOST_LOGITS` allows.
    """

    tokens: int
    share: float = 1.0

    def rows(self, width: int) -> int:
        """Rows of logits of so many bytes."""
        return max(1, int(self.share * max(_FEWEST_ROWS, MOST_LOGITS // width)))

    def smaller(self, width: int) -> bool:
        """Allow half as much; whether that is less than before."""
        if self.tokens <= _FEWEST_TOKENS and self.rows(width) == 1:
            return False
        self.tokens, self.share = max(min(self.tokens, _FEWEST_TOKENS), self.tokens // 2), self.share / 2
        return True


class SharedForwards:
    """The requests of a fitness, in batches of their tree.

    Args:
        requests: as lm-eval asks them.
        module: a model like those to be scored: its device, vocabulary and kinds of layers.
        max_length: positions of the model.
        limits: of a forward; shared with others.
        softmax_dtype, autocast: as for `batches.score_batches`.

    Attributes:
        tokens: that are run for a candidate.
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
        self._limits = limits
        self._plan()

    def score(self, module: Any, spare: Callable[[], bool] = bool) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The log-likelihood of each request, in nats, and whether greedy decoding gives its continuation.

        Where memory ends, all is run again: after something was spared, once with nothing left to spare, then in
        smaller batches, as are all others of these limits from then on.

        Args:
            module: the model.
            spare: as for `batches.score_batches`.
        """
        retries = Retries(spare)
        while True:
            try:
                if self._planned != self._limits:
                    self._plan()
                return self._scored(module)
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

    def _plan(self) -> None:
        roots = prefix_tree(self._requests, self._max_length)
        self._batches: list[TokenBatch] = []  # those before give their memory back
        self._planned = replace(self._limits)
        self._batches = token_batches(roots, self._limits.tokens, self._limits.rows(self._width), self._device)
        self.tokens = sum(batch.inputs.numel() for root in self._batches for batch in root.walk())

    def _scored(self, module: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        chosen = torch.zeros(sum(self._lengths), dtype=torch.float32, device=self._device)
        greedy = torch.zeros(sum(self._lengths), dtype=torch.bool, device=self._device)
        with torch.no_grad():
            for batch in self._batches:
                self._run(module, batch, chosen, greedy)
            values = chosen.cpu().to(torch.float64).numpy()
            right = greedy.cpu().numpy()
        if not self._lengths:
            return np.empty(0), np.empty(0, dtype=bool)
        first = np.cumsum([0, *self._lengths[:-1]])
        return np.add.reduceat(values, first), np.logical_and.reduceat(right, first)

    def _run(self, module: Any, root: TokenBatch, chosen: torch.Tensor, greedy: torch.Tensor) -> None:
        """Run a batch, then all that come after its tokens, whose keys and values are kept meanwhile."""
        cache = DynamicCache() if root.after else None
        waiting: list[tuple[TokenBatch, int | None]] = [(root, None)]
        while waiting:
            batch, keep = waiting.pop()
            if keep is not None:  # all after this batch are done
                if cache is not None and keep:
                    cache.crop(keep - cache.get_seq_length())  # negative: so many tokens less
                continue
            before = cache.get_seq_length() if cache is not None else 0
            # A model computes a row of logits at least.
            rows = batch.rows if len(batch.rows) else torch.zeros(1, dtype=torch.long, device=self._device)
            with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
                logits = module(
                    input_ids=batch.inputs,
                    attention_mask=self._masks(batch.positions, batch.ends, before),
                    position_ids=batch.positions,
                    past_key_values=cache,
                    use_cache=cache is not None,
                    logits_to_keep=rows,
                ).logits[0]
            self._read(logits, batch, chosen, greedy)
            del logits
            waiting.append((batch, before))
            waiting.extend((after, None) for after in reversed(batch.after))

    def _read(self, logits: torch.Tensor, batch: TokenBatch, chosen: torch.Tensor, greedy: torch.Tensor) -> None:
        step = max(1, MOST_SOFTMAX // (logits.shape[1] * 4))
        for first in range(0, len(batch.rows), step):
            part = slice(*batch.scores_of(first, min(first + step, len(batch.rows))))
            rows, tokens, slots = batch.score_rows[part] - first, batch.tokens[part], batch.slots[part]
            logprobs = F.log_softmax(logits[first : first + step], dim=-1, dtype=self._softmax_dtype)
            chosen[slots] = logprobs[rows, tokens].float()
            greedy[slots] = logprobs.argmax(dim=-1)[rows] == tokens
