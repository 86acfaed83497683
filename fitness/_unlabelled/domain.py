"""The texts of one domain as tokens, in batches, with what other models said of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.errors import FitnessError
from evomerge.models.loaded import LoadedModel
from fitness._unlabelled.divergences import Predictions, hidden_distance
from fitness._unlabelled.judge import Judge
from fitness._unlabelled.store import Precision, Store
from fitness._unlabelled.terms import TextTerm

MOST_NUMBERS = 2**24
"""Logits that are looked at at once."""


@dataclass(frozen=True)
class Text:
    """An item.

    Attributes:
        tokens: what the model reads.
        first, last: positions whose predictions count, from the first to the last, from 0: the prediction at a position
            is of the token after it.
    """

    tokens: tuple[int, ...]
    first: int
    last: int

    @property
    def positions(self) -> int:
        """How many count."""
        return self.last - self.first + 1


def read_text(term: TextTerm, number: int, tokens: Sequence[int], prompt: int | None = None) -> Text:
    """The item of a text.

    Args:
        term: of its domain.
        number: its place, for messages.
        tokens: of the whole text.
        prompt: tokens that another wrote the rest after: of these none is scored.

    Raises:
        FitnessError: a text without a token to score.
    """
    targets = prompt is not None or term.has("perplexity", "forgetting")
    if len(tokens) < (2 if targets else 1):
        few = "no token" if not tokens else "one token"
        raise FitnessError(f"text {number} of {term.name} has {few}", "two, of which the second is predicted")
    if prompt is not None:
        return Text(tuple(tokens), prompt - 1, len(tokens) - 2)
    return Text(tuple(tokens), len(tokens) - 1 if term.positions == "last" else 0, len(tokens) - 1)


@dataclass
class Domain:
    """A term with its texts.

    Attributes:
        texts: in the order of per-item scores.
        layers: indices of hidden states that are compared, as ``hidden_states`` of transformers has them.
        batch_tokens: of a forward, padding included; a longer text is read alone.
        expert, base: what they said.
        judge: reads what candidates write after the texts.
    """

    term: TextTerm
    texts: Sequence[Text]
    layers: Sequence[int]
    batch_tokens: int
    expert: Store | None = None
    base: Store | None = None
    judge: Judge | None = None
    _begins: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._begins = np.cumsum([0, *(text.positions for text in self.texts)])

    @property
    def positions(self) -> int:
        """Predictions that count, of all texts."""
        return int(self._begins[-1])

    def learn(self, model: LoadedModel, precision: Precision, *, expert: bool, base: bool) -> None:
        """Keep what a model of the pool says of all texts.

        Args:
            model: it.
            precision: of its distributions.
            expert, base: as what: the domain's expert, the pool's base, or both.
        """
        wants, store = self.term.has, Store(self.positions, precision)
        compared = (expert and wants("soft_cross_entropy")) or (base and wants("kl_to_base"))
        layers = self.layers if expert and wants("hidden_distance") else ()
        for rows, logits, targets, states in self._read(model, range(len(self.texts)), layers, [0.0]):
            predictions = Predictions.of(logits)
            if compared:
                store.put_distribution(rows, predictions.log_p)
            numbers = {"likeliest": predictions.likeliest()} if expert and wants("agreement") else {}
            if base and wants("forgetting"):
                numbers["surprise"] = _surprise(predictions, targets)
            store.put(rows, numbers, dict(zip(layers, states, strict=True)))
        self.expert = store if expert else self.expert
        self.base = store if base else self.base

    def score(self, model: LoadedModel, places: Sequence[int], seconds: list[float]) -> dict[str, NDArray[np.float64]]:
        """By metric a value for each text, NaN where it was not read: means over its positions.

        Args:
            model: the candidate.
            places: of the texts to read, ascending.
            seconds: the time inside model calls is added to the first.

        Raises:
            FitnessError: a value that is not finite, naming the text.
        """
        wanted = [metric.name for metric in self.term.metrics if not metric.kind.writes]
        layers = self.layers if "hidden_distance" in wanted else ()
        values = {name: np.full(self.positions, np.nan) for name in wanted}
        for rows, logits, targets, states in self._read(model, places if wanted else (), layers, seconds):
            at = rows.cpu().numpy()
            for name, found in self._measure(wanted, rows, logits, targets, states).items():
                values[name][at] = found.double().cpu().numpy()
        means = {name: self._means(name, own, places) for name, own in values.items()}
        if self.judge is not None:
            means["reward"] = self._rewards(self.judge, model, places, seconds)
        return means

    def _rewards(
        self, judge: Judge, model: LoadedModel, places: Sequence[int], seconds: list[float]
    ) -> NDArray[np.float64]:
        started = time.perf_counter()
        found = np.full(len(self.texts), np.nan)
        prompts = [self.texts[place].tokens for place in places]
        found[list(places)] = judge.rewards(model, prompts, self.batch_tokens, self.term.name)
        seconds[0] += time.perf_counter() - started
        return found

    def _measure(
        self, wanted: Sequence[str], rows: Tensor, logits: Tensor, targets: Tensor, states: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        predictions, found = Predictions.of(logits), {}
        for name in wanted:
            if name == "entropy":
                found[name] = predictions.entropy()
            elif name == "perplexity":
                found[name] = _surprise(predictions, targets)
            elif name == "soft_cross_entropy":
                found[name] = predictions.cross_entropy(_known(self.expert).distribution(rows))
            elif name == "kl_to_base":
                found[name] = predictions.divergence_from(_known(self.base).distribution(rows))
            elif name == "agreement":
                likeliest = _known(self.expert).likeliest
                assert likeliest is not None
                right = predictions.likeliest() == likeliest[rows]
                unknown = predictions.log_p[:, 0].isnan()  # of NaN something is the largest too
                found[name] = right.float().masked_fill(unknown, torch.nan)
            elif name == "forgetting":
                before = _known(self.base).surprise
                assert before is not None
                found[name] = _surprise(predictions, targets) - before[rows]
            else:
                kept = _known(self.expert).states
                found[name] = hidden_distance(
                    states, [kept[layer][rows.to(kept[layer].device)] for layer in self.layers]
                )
        return found

    def _means(self, name: str, values: NDArray[np.float64], places: Sequence[int]) -> NDArray[np.float64]:
        means = np.full(len(self.texts), np.nan)
        for place in places:
            begin, end = self._begins[place], self._begins[place + 1]
            text = self.texts[place]
            if text.last == len(text.tokens) - 1 and name in ("perplexity", "forgetting"):
                end -= 1  # nothing comes after the last token
            means[place] = values[begin:end].mean()
            if not np.isfinite(means[place]):
                raise FitnessError(
                    f"text {place} of {self.term.name}: its {name} is not finite",
                    "finite numbers",
                    "the model's weights are NaN, infinite or out of the range of its dtype",
                )
        return means

    def _read(
        self, model: LoadedModel, places: Sequence[int], layers: Sequence[int], seconds: list[float]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, list[Tensor]]]:
        """Read texts; gives pieces of rows, logits ``(rows, vocabulary)``, targets (-1 for none) and hidden states."""
        for batch in self.batches(places):
            started = time.perf_counter()
            logits, states = forward(model, [self.texts[place].tokens for place in batch], layers)
            seconds[0] += time.perf_counter() - started
            which, at, targets, rows = self._index(batch)
            size = max(1, MOST_NUMBERS // logits.shape[-1])
            for begin in range(0, len(which), size):
                piece = slice(begin, begin + size)
                index = _on(which[piece], logits), _on(at[piece], logits)
                own = [state[_on(which[piece], state), _on(at[piece], state)] for state in states]
                yield _on(rows[piece], logits), logits[index], _on(targets[piece], logits), own

    def _index(self, batch: Sequence[int]) -> tuple[NDArray[np.int64], ...]:
        """Of the positions that count in a batch: the text's number in it, the position, its target and its row."""
        parts: list[list[NDArray[np.int64]]] = [[], [], [], []]
        for number, place in enumerate(batch):
            text = self.texts[place]
            at = np.arange(text.first, text.last + 1)
            targets = np.array([*text.tokens, -1], dtype=np.int64)[at + 1]
            rows = self._begins[place] + np.arange(text.positions)
            for part, values in zip(parts, (np.full(len(at), number), at, targets, rows), strict=True):
                part.append(values)
        which, at, targets, rows = (np.concatenate(part).astype(np.int64) for part in parts)
        return which, at, targets, rows

    def batches(self, places: Sequence[int]) -> list[list[int]]:
        """Places of texts that are read together: the longest first, so that memory runs out at once or never."""
        found: list[list[int]] = []
        for place in sorted(places, key=lambda place: (-len(self.texts[place].tokens), place)):
            longest = len(self.texts[found[-1][0]].tokens) if found else 0
            if found and longest * (len(found[-1]) + 1) <= self.batch_tokens:
                found[-1].append(place)
            else:
                found.append([place])
        return found


@torch.inference_mode()
def forward(model: LoadedModel, texts: Sequence[Sequence[int]], layers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Logits of shape ``(texts, tokens of the longest, vocabulary)`` and hidden states of `layers`.

    Raises:
        FitnessError: the model has no such layer, or gives no logits.
    """
    longest = max(map(len, texts))
    ids = torch.zeros((len(texts), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(texts):
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        mask[row, : len(tokens)] = 1
    model.module.eval()
    out = model.module(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        output_hidden_states=bool(layers),
        use_cache=False,
    )
    states = out.hidden_states if layers else ()
    for layer in layers:
        if not -len(states) <= layer < len(states):
            allowed = f"{-len(states)} to {len(states) - 1}: the model has {len(states) - 1} layers"
            raise FitnessError(f"hidden_layers has {layer}", allowed)
    return out.logits, [states[layer] for layer in layers]


def _surprise(predictions: Predictions, targets: Tensor) -> Tensor:
    """Of the next token; NaN where there is none."""
    found: Tensor = predictions.surprise(targets.clamp(min=0))
    return torch.where(targets >= 0, found, torch.nan)


def _known(store: Store | None) -> Store:
    if store is None:
        raise FitnessError("the models to compare with were not read yet", "refer(...) comes after prepare(model)")
    return store


def _on(values: NDArray[np.int64], like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device)
