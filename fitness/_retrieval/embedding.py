"""From a model's last hidden states to embeddings, and from embeddings to similarities."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from evomerge.errors import FitnessError
from evomerge.models.architecture.dense_layers import DenseLayer, attached
from evomerge.models.loaded import LoadedModel
from evomerge.models.sentence_encoder import NORMALIZE, POOL, SentenceEncoder
from fitness._token_rows import Batch, Rows, batched

_CELLS = 2**24  # similarities of tokens that are held at a time, 64 MB
_NOTHING = -1e9  # of a document without a token that is compared: below every other


@dataclass
class Embeddings:
    """Embeddings of some texts.

    Attributes:
        places: by number of a text its place here.
        vectors: float32; of shape ``(texts, width)``, or of all tokens of all texts, ``(tokens, width)``.
        ends: of each text where its tokens end; ``None`` for single embeddings.
    """

    places: Mapping[int, int]
    vectors: torch.Tensor
    ends: tuple[int, ...] | None = None

    def of(self, numbers: Sequence[int]) -> torch.Tensor | list[torch.Tensor]:
        """Of texts in this order: ``(texts, width)``, or of each ``(tokens, width)``."""
        places = [self.places[number] for number in numbers]
        if self.ends is None:
            return self.vectors[torch.tensor(places, device=self.vectors.device)]
        starts = (0, *self.ends)
        return [self.vectors[starts[place] : self.ends[place]] for place in places]


class Embedder:
    """Gives texts their embeddings.

    Args:
        encoder: from hidden states to embeddings.
        layers: the dense layers of `encoder`, in order, where the model itself does not have them.
        rows: tokens of all texts.
        counted: for each token 1 where it is pooled, or compared one by one.
        names: of the texts, for messages.
        tokenizer: that pads.
        batch_tokens: of a batch, padding included.
        device: of the model.
    """

    def __init__(
        self,
        encoder: SentenceEncoder,
        layers: Sequence[DenseLayer],
        rows: Rows,
        counted: Sequence[Sequence[int]],
        names: Sequence[str],
        tokenizer: Any,
        batch_tokens: int,
        device: torch.device,
    ) -> None:
        self._encoder, self._layers = encoder, list(layers)
        self._rows, self._counted, self._names = rows, counted, names
        self._tokenizer, self._batch_tokens, self._device = tokenizer, batch_tokens, device
        self._known: dict[tuple[int, ...], list[tuple[Batch, torch.Tensor]]] = {}

    def keep(self, numbers: Sequence[int]) -> None:
        """Batch these texts once, for every model."""
        self._known[tuple(numbers)] = list(self._batches(numbers))

    @torch.inference_mode()
    def embed(self, model: LoadedModel, groups: Sequence[Sequence[int]]) -> tuple[Embeddings, float]:
        """Embeddings of texts, and the seconds in the model.

        Args:
            model: in evaluation mode.
            groups: of numbers of texts, each batched apart; none twice.

        Raises:
            FitnessError: an embedding that is not finite, naming the text; a model without hidden states.
        """
        forward, start, found = _forward_of(model.module), time.perf_counter(), dict[int, torch.Tensor]()
        layers = self._layers or attached(model.module)
        for group in groups:
            for batch, counted in self._known.get(tuple(group)) or self._batches(group):
                made = self._finished(forward(batch.tensors).float(), batch, counted, layers)
                if not self._encoder.is_late:
                    found |= zip(batch.places.tolist(), made, strict=True)
                    continue
                for place, own, kept in zip(batch.places.tolist(), made, counted.bool(), strict=True):
                    found[place] = own[kept]
        numbers = [number for group in groups for number in group]
        pieces = [found[number] for number in numbers]
        vectors = torch.cat(pieces) if self._encoder.is_late else torch.stack(pieces)
        ends = tuple(np.cumsum([len(own) for own in pieces]).tolist()) if self._encoder.is_late else None
        wild = ~torch.isfinite(vectors).all(1)
        if bool(wild.any()):
            row = int(wild.nonzero()[0])
            place = row if ends is None else int(np.searchsorted(ends, row, "right"))
            raise FitnessError(f"the embedding of {self._names[numbers[place]]} is not finite", "finite weights")
        places = {number: place for place, number in enumerate(numbers)}
        return Embeddings(places, vectors, ends), time.perf_counter() - start

    def _batches(self, numbers: Sequence[int]) -> Iterator[tuple[Batch, torch.Tensor]]:
        for batch in batched(self._rows, numbers, self._tokenizer, self._batch_tokens, self._device):
            yield batch, self._padded(batch)

    def _padded(self, batch: Batch) -> torch.Tensor:
        """Which tokens of a batch count, float32 of shape ``(texts, tokens)``."""
        width, left = batch.tensors["input_ids"].shape[1], self._tokenizer.padding_side == "left"
        made = np.zeros((len(batch.places), width), dtype=np.float32)
        for row, place in enumerate(batch.places.tolist()):
            own = self._counted[place]
            made[row, width - len(own) :] = own if left else made[row, width - len(own) :]
            made[row, : len(own)] = made[row, : len(own)] if left else own
        return torch.from_numpy(made).to(self._device)

    def _finished(
        self, states: torch.Tensor, batch: Batch, counted: torch.Tensor, layers: Sequence[DenseLayer]
    ) -> torch.Tensor:
        """The steps behind the model: shape ``(texts, width)``, or ``(texts, tokens, width)``."""
        remaining = iter(layers)
        for step in self._encoder.steps:
            if step == POOL:
                mask = batch.tensors.get("attention_mask", torch.ones_like(batch.tensors["input_ids"]))
                states = pooled(states, counted, mask, self._encoder.pooling)
            elif step == NORMALIZE:
                states = functional.normalize(states, dim=-1)
            else:
                states = next(remaining)(states).float()
        return states


def pooled(states: torch.Tensor, counted: torch.Tensor, mask: torch.Tensor, ways: Sequence[str]) -> torch.Tensor:
    """One embedding of each text out of its tokens'.

    Args:
        states: float32, shape ``(texts, tokens, width)``.
        counted: 1 for tokens that are pooled, shape ``(texts, tokens)``.
        mask: 1 for tokens that are no padding, likewise.
        ways: of `POOLING`; embeddings of several lie behind each other.

    Returns:
        Shape ``(texts, ways * width)``.
    """
    counted = counted.to(states.dtype)
    weights, found = counted.unsqueeze(-1), []
    order = torch.arange(states.shape[1], device=states.device)
    for way in ways:
        if way == "cls":
            found.append(_at(states, counted.argmax(1)))
        elif way == "last":
            found.append(_at(states, torch.where(counted > 0, order, -1).max(1).values.clamp(min=0)))
        elif way == "max":
            found.append(states.masked_fill(weights == 0, -torch.inf).max(1).values)
        elif way == "weighted":  # by the place behind the padding, prompts included
            places = (order + 1 - mask.int().argmax(1, keepdim=True)).to(states.dtype) * counted
            found.append((states * places.unsqueeze(-1)).sum(1) / places.sum(1, keepdim=True).clamp(min=1e-9))
        else:
            count = counted.sum(1, keepdim=True).clamp(min=1e-9)
            found.append((states * weights).sum(1) / (count if way == "mean" else count.sqrt()))
    return torch.cat(found, dim=-1)


def _at(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return states[torch.arange(len(states), device=states.device), places]


def similarities(one: Any, two: Any, kind: str) -> torch.Tensor:
    """How like texts are, larger is more, float32 of shape ``(len(one), len(two))``.

    Args:
        one, two: single embeddings ``(texts, width)``, or of each text those of its tokens.
        kind: one of `SIMILARITIES` or `LATE_SIMILARITIES`.
    """
    if not isinstance(one, torch.Tensor):
        return maxsim(one, two, mean=kind == "meanmaxsim")
    if kind == "cosine":
        one, two = functional.normalize(one, dim=-1), functional.normalize(two, dim=-1)
    if kind in ("cosine", "dot"):
        found: torch.Tensor = one @ two.T
        return found
    return -torch.cdist(one, two, 2.0 if kind == "euclidean" else 1.0, "donot_use_mm_for_euclid_dist")


def paired(one: Any, two: Any, kind: str) -> torch.Tensor:
    """How like each text is to the other of its pair, float32 of shape ``(pairs,)``."""
    if not isinstance(one, torch.Tensor):
        return torch.cat([similarities([a], [b], kind)[0] for a, b in zip(one, two, strict=True)])
    if kind == "cosine":
        one, two = functional.normalize(one, dim=-1), functional.normalize(two, dim=-1)
    if kind in ("cosine", "dot"):
        found: torch.Tensor = (one * two).sum(-1)
        return found
    away: torch.Tensor = torch.linalg.vector_norm(one - two, 2.0 if kind == "euclidean" else 1.0, dim=-1)
    return -away


def maxsim(one: Sequence[torch.Tensor], two: Sequence[torch.Tensor], mean: bool = False) -> torch.Tensor:
    """Of each query and document the sum over the query's tokens of their largest similarity to any of the document's.

    ``sum_i max_j q_i . d_j`` (ColBERT, arXiv 2004.12832, equation 3); over the query's tokens its mean where that is
    asked for. Documents without tokens come last.

    Args:
        one, two: of each query and each document the embeddings of its tokens, ``(tokens, width)``.
        mean: whether it is divided by the query's tokens.

    Returns:
        Float32 of shape ``(queries, documents)``.
    """
    queries = torch.cat(list(one))
    counts = torch.tensor([len(own) for own in one], device=queries.device)
    owner = torch.repeat_interleave(torch.arange(len(one), device=queries.device), counts)
    order = sorted(range(len(two)), key=lambda place: len(two[place]))
    scores = queries.new_empty((len(one), len(two)))
    start = 0
    while start < len(order):
        stop, longest = start, 1
        while stop < len(order):
            longest = max(1, len(two[order[stop]]))  # they come by length
            if stop > start and (stop + 1 - start) * longest * len(queries) > _CELLS:
                break
            stop += 1
        places = order[start:stop]
        longest = max(1, max(len(two[place]) for place in places))
        padded = queries.new_zeros((len(places), longest, queries.shape[1]))
        absent = torch.ones((len(places), longest), dtype=torch.bool, device=queries.device)
        for row, place in enumerate(places):
            padded[row, : len(two[place])] = two[place]
            absent[row, : len(two[place])] = False
        like = (queries @ padded.flatten(0, 1).T).unflatten(1, absent.shape)
        best = like.masked_fill_(absent, -torch.inf).amax(2)
        sums = queries.new_zeros((len(one), len(places))).index_add_(0, owner, best)
        scores[:, torch.tensor(places, device=queries.device)] = sums
        start = stop
    scores = scores / counts.clamp(min=1).unsqueeze(1) if mean else scores
    empty = torch.tensor([len(own) == 0 for own in two], device=queries.device)
    return scores.masked_fill(empty, _NOTHING)


def _forward_of(module: Any) -> Any:
    """What gives the last hidden states of a batch: the model without its head, of two stacks the encoder."""
    base = module.base_model
    if getattr(module.config, "is_encoder_decoder", False):
        base = module.get_encoder()
    known = inspect.signature(base.forward).parameters
    takes_all = any(own.kind is inspect.Parameter.VAR_KEYWORD for own in known.values())
    more = {"use_cache": False} if "use_cache" in known else {}

    def forward(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        own = tensors if takes_all else {name: tensor for name, tensor in tensors.items() if name in known}
        states = getattr(base(**own, **more), "last_hidden_state", None)
        if not isinstance(states, torch.Tensor) or states.ndim != 3:
            raise FitnessError(f"{type(module).__name__} gives no hidden states", "an encoder or a decoder of texts")
        return states

    return forward
