"""Log-likelihood requests in the batches that stock lm-eval would form, padded once and scored many times."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lm_eval.models.utils import Collator
from numpy.typing import NDArray

from evomerge.models.memory import Retries, out_of_memory
from fitness._lm_eval.model import TokenRequest

_ALIGNED = 16  # bytes; CUDA kernels read rows in words of this size
_MOST_LOGITS = 1 << 28  # whose logarithms are taken at a time: 2 GB of float32 and of what it is converted from
_VECTORISED = 128  # elements from which CUDA's sum depends on the alignment of its input


@dataclass(frozen=True)
class Batch:
    """Requests that share one forward.

    Attributes:
        inputs: [batch, length] token ids, padded on the right with zeros.
        rows: [rows] positions, counted through the flattened [batch * length], whose next token is scored.
        choice_rows: [tokens] for every continuation token of every request, its index in `rows`.
        choices: [tokens] the continuation tokens.
        lengths: tokens of each request; `choice_rows` and `choices` are in this order.
        requests: which request of the plan each is.
    """

    inputs: torch.Tensor
    rows: torch.Tensor
    choice_rows: torch.Tensor
    choices: torch.Tensor
    lengths: tuple[int, ...]
    requests: tuple[int, ...]


@dataclass
class TooLarge:
    """What memory did not hold, known to all batches of a kind.

    Attributes:
        tokens: of the smallest such batch, with padding; ``None`` where all had room.
        halved: how often that became less.
    """

    tokens: int | None = None
    halved: int = 0

    def cut(self, batch: Batch) -> bool:
        """Whether a batch is to be run in two halves at once."""
        return self.tokens is not None and batch.inputs.numel() >= self.tokens and len(batch.inputs) > 1


def mixed_lengths(requests: Sequence[TokenRequest]) -> list[int]:
    """Indices of requests that stock lm-eval would score at wrong positions.

    Stock code runs requests with equal ``context + continuation[:-1]`` as one and reads every
    log-likelihood from the leading positions of the longest continuation, which is wrong for shorter ones.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(tuple(request.context + request.continuation[:-1]), []).append(index)
    found = []
    for members in groups.values():
        longest = max(len(requests[index].continuation) for index in members)
        found += [index for index in members if len(requests[index].continuation) < longest]
    return sorted(found)


def plan_batches(
    requests: Sequence[TokenRequest],
    *,
    batch_size: int,
    max_length: int,
    device: torch.device,
    grouped: bool,
    first: int = 0,
) -> list[Batch]:
    """The batches of stock `_loglikelihood_tokens` for `requests`, in its order.

    Args:
        requests: all that stock code would pass in one call.
        batch_size: forwards in a batch.
        max_length: positions of the model; longer inputs lose tokens on the left.
        device: where the batches are kept.
        grouped: score requests that differ only in their last token with one forward (stock's `logits_cache`).
        first: index of the first request, when these are a part.
    """
    collator = Collator(
        [(index, request.context, request.continuation) for index, request in enumerate(requests)],
        sort_fn=lambda r: (-len(r[1] + r[2]), tuple(r[1] + r[2])),
        group_fn=lambda r: r[1] + r[2][:-1],
        group_by="contexts" if grouped else None,
    )
    groups: Any = collator._arr_with_indices if grouped else None
    chunks: Iterator[Any] = collator.get_batched(n=batch_size)
    batches = []
    for chunk in chunks:
        forwards = []
        for index, context, continuation in chunk:
            members = [inner[0] for inner in groups[tuple(context + continuation[:-1])]] if grouped else [index]
            tokens = (context + continuation)[-(max_length + 1) :][:-1]
            forwards.append((tokens, [(first + member, requests[member].continuation) for member in members]))
        batches.append(_batch(forwards, device))
    return batches


def _batch(forwards: Sequence[tuple[list[int], list[tuple[int, list[int]]]]], device: torch.device) -> Batch:
    width = max(len(tokens) for tokens, _ in forwards)
    inputs = torch.zeros(len(forwards), width, dtype=torch.long)
    rows: list[int] = []
    choice_rows: list[int] = []
    choices: list[int] = []
    lengths: list[int] = []
    requests: list[int] = []
    for row, (tokens, members) in enumerate(forwards):
        inputs[row, : len(tokens)] = torch.tensor(tokens)
        longest = max(len(continuation) for _, continuation in members)
        end = len(rows) + longest
        rows += range(row * width + len(tokens) - longest, row * width + len(tokens))
        for request, continuation in members:
            choice_rows += range(end - len(continuation), end)
            choices += continuation
            lengths.append(len(continuation))
            requests.append(request)
    scored, of_row, tokens_of = (torch.tensor(values, device=device) for values in (rows, choice_rows, choices))
    return Batch(inputs.to(device), scored, of_row, tokens_of, tuple(lengths), tuple(requests))


def score_batches(
    module: Any,
    batches: Sequence[Batch],
    softmax_dtype: torch.dtype | None,
    count: int,
    autocast: torch.dtype | None = None,
    spare: Callable[[], bool] = bool,
    too_large: TooLarge | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_], list[Batch]]:
    """Log-likelihoods of `count` requests, whether greedy decoding would give their continuations, and the batches.

    The numbers are stock lm-eval's bit for bit: the same forwards, the same logarithms of softmax, the same
    sums over one request at a time. Only rows that a continuation needs go through the softmax. A batch that there is
    no memory for is scored again once something was spared, and once with nothing left to spare; then in two halves,
    padded as it was, and all that are as large with it: the batches returned are those that were scored.

    Args:
        module: the model.
        batches: planned for its tokenizer and device.
        softmax_dtype: None for that of the logits.
        count: requests of all batches.
        autocast: dtype of the forwards, by autocast; None for the model's own.
        spare: lets go of what is only kept to save time, and says whether there was anything.
        too_large: what is known of memory; it is told what is found out.
    """
    known, retries = too_large or TooLarge(), Retries(spare)
    kwargs = {"use_cache": False} if "use_cache" in inspect.signature(module.forward).parameters else {}
    sums: list[torch.Tensor] = []
    hits: list[torch.Tensor] = []
    scored: list[Batch] = []
    waiting = deque(batches)
    with torch.no_grad():
        while waiting:
            batch = waiting.popleft()
            if known.cut(batch):
                waiting.extendleft(reversed(halves(batch)))
                continue
            try:
                found = _score(module, batch, softmax_dtype, autocast, kwargs)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                found, failed = None, error.with_traceback(None)
            if found is None:  # out of the handler, which holds on to the frames of the error
                if not retries.again():
                    if len(batch.inputs) == 1:
                        raise failed
                    known.tokens, known.halved = batch.inputs.numel(), known.halved + 1
                waiting.appendleft(batch)
                continue
            scored.append(batch)
            sums += found[0]
            hits.append(found[1])
        values = torch.stack(sums).cpu().to(torch.float64).numpy() if sums else np.empty(0)
        right = torch.cat(hits).cpu().numpy() if hits else np.empty(0, dtype=bool)
    lengths = [length for batch in scored for length in batch.lengths]
    order = np.array([request for batch in scored for request in batch.requests], dtype=np.intp)
    loglikelihoods, greedy = np.empty(count), np.empty(count, dtype=bool)
    loglikelihoods[order] = values
    if lengths:
        greedy[order] = np.logical_and.reduceat(right, np.cumsum([0, *lengths[:-1]]))
    return loglikelihoods, greedy, scored


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Two batches with the first and the second half of the forwards of one, of the same width."""
    count = len(batch.inputs) // 2
    first = count * batch.inputs.shape[1]  # position of the second half
    rows = int((batch.rows < first).sum())
    tokens = int((batch.choice_rows < rows).sum())
    requests = int(np.searchsorted(np.cumsum(batch.lengths), tokens, side="right"))
    parts = slice(None, requests), slice(requests, None)
    return (
        Batch(
            batch.inputs[:count],
            batch.rows[:rows],
            batch.choice_rows[:tokens],
            batch.choices[:tokens],
            batch.lengths[parts[0]],
            batch.requests[parts[0]],
        ),
        Batch(
            batch.inputs[count:],
            batch.rows[rows:] - first,
            batch.choice_rows[tokens:] - rows,
            batch.choices[tokens:],
            batch.lengths[parts[1]],
            batch.requests[parts[1]],
        ),
    )


def _score(
    module: Any,
    batch: Batch,
    softmax_dtype: torch.dtype | None,
    autocast: torch.dtype | None,
    kwargs: dict[str, Any],
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The log-likelihood of each request of a batch, and for each token whether it is the likeliest."""
    with torch.autocast(batch.inputs.device.type, autocast, enabled=autocast is not None):  # not of the softmax
        logits = module(batch.inputs, **kwargs).logits
    logits, wanted = _rows_to_score(logits, batch.rows, batch.choice_rows)
    step = max(1, _MOST_LOGITS // logits.shape[1])
    chosen = torch.empty(0)
    hits = torch.empty(0)
    for first in range(0, len(logits), step):
        logprobs = F.log_softmax(logits[first : first + step], dim=-1, dtype=softmax_dtype)
        # Tokens of other rows get values of one that is there, for now: which they are is known on the device only.
        rows = wanted if len(logprobs) == len(logits) else (wanted - first).clamp_(0, len(logprobs) - 1)
        values = logprobs[rows, batch.choices]
        right = logprobs.argmax(dim=-1)[rows] == batch.choices
        chosen = values if not first else torch.where(wanted >= first, values, chosen)
        hits = right if not first else torch.where(wanted >= first, right, hits)
    return [_sum(part) for part in chosen.split(batch.lengths)], hits


def _rows_to_score(
    logits: torch.Tensor, rows: torch.Tensor, choice_rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The wanted rows of logits, flat, and for each token which of them is its; or all rows, likewise.

    CUDA's softmax adds up a row in an order that depends on the row's alignment: rows may be moved only when
    every row is aligned alike.
    """
    flat = logits.flatten(0, 1)
    if logits.is_cuda and flat.shape[1] * flat.element_size() % _ALIGNED:
        return flat, rows[choice_rows]
    return flat.index_select(0, rows), choice_rows


def _sum(part: torch.Tensor) -> torch.Tensor:
    if len(part) == 1:
        return part[0]
    return (part.clone() if part.is_cuda and len(part) >= _VECTORISED else part).sum()
