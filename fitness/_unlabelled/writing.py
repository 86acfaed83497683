"""Texts that a model writes, once per run: the base's own samples, or what an expert answers to prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.errors import FitnessError
from evomerge.models.loaded import LoadedModel
from fitness._unlabelled.terms import WriteTerm

Tokens = tuple[int, ...]


def begin_token(tokenizer: object) -> int:
    """What texts that begin with nothing begin with: BOS, or EOS where there is none.

    Raises:
        FitnessError: the tokenizer has neither.
    """
    for name in ("bos_token_id", "eos_token_id"):
        found = getattr(tokenizer, name, None)
        if isinstance(found, int):
            return found
    raise FitnessError("the tokenizer has neither BOS nor EOS", "a token that a text without a prompt begins with")


@torch.inference_mode()
def write(model: LoadedModel, prompts: Sequence[Tokens], term: WriteTerm, batch_tokens: int) -> list[Tokens]:
    """Go on with every prompt: the whole texts, prompt and end-of-text token included.

    The likeliest token at temperature 0, of equals the first; else one drawn by the inverse of the distribution
    function with random numbers that belong to the seed, the text's number and its token's, so that the batch does not
    matter but for rounding. Prompts of one length are gone on with together: nothing is padded.

    Args:
        model: who writes.
        prompts: of at least one token.
        term: how.
        batch_tokens: of a batch.
    """
    ends = _ends(model)
    by_length: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(place)
    found: dict[int, Tokens] = {}
    model.module.eval()
    for length, places in sorted(by_length.items()):
        size = max(1, batch_tokens // (length + term.tokens))
        for begin in range(0, len(places), size):
            batch = places[begin : begin + size]
            draws = np.array([_draws(term, place) for place in batch])
            written = _go_on(model, [prompts[place] for place in batch], term, draws, ends)
            found |= dict(zip(batch, written, strict=True))
    return [found[place] for place in range(len(prompts))]


def write_greedily(model: LoadedModel, prompts: Sequence[Tokens], tokens: int, batch_tokens: int) -> list[Tokens]:
    """Go on with every prompt by at most so many tokens, the likeliest each time: the whole texts, as `write` does."""
    return write(model, prompts, WriteTerm("", tokens, temperature=0.0), batch_tokens)


def _go_on(
    model: LoadedModel, prompts: Sequence[Tokens], term: WriteTerm, draws: NDArray[np.float64], ends: frozenset[int]
) -> list[Tokens]:
    ids = torch.tensor(prompts, dtype=torch.long, device=model.device)
    texts = [list(prompt) for prompt in prompts]
    open_ = set(range(len(texts)))
    out = model.module(input_ids=ids, use_cache=True)
    for step in range(term.tokens):
        chosen = _choose(out.logits[:, -1], term.temperature, draws[:, step])
        for row in sorted(open_):
            texts[row].append(int(chosen[row]))
            if int(chosen[row]) in ends:
                open_.discard(row)
        if not open_ or step == term.tokens - 1:
            break
        column = chosen[:, None].to(model.device)
        cache = getattr(out, "past_key_values", None)
        if cache is None:  # a class that keeps nothing reads it all again
            ids = torch.cat([ids, column], dim=1)
            out = model.module(input_ids=ids, use_cache=False)
        else:
            out = model.module(input_ids=column, past_key_values=cache, use_cache=True)
    return [tuple(text) for text in texts]


def _choose(logits: Tensor, temperature: float, draws: NDArray[np.float64]) -> Tensor:
    """A token for each row, int64 on the processor."""
    logits = logits.double().cpu()
    if not torch.isfinite(logits).any(dim=1).all():
        raise FitnessError("a model that writes texts predicts nothing that is finite", "finite weights")
    if temperature == 0:
        return logits.argmax(dim=1)
    below = torch.softmax(logits / temperature, dim=1).cumsum(dim=1)
    at = torch.from_numpy(draws)[:, None] * below[:, -1:]
    return torch.searchsorted(below, at, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def _draws(term: WriteTerm, place: int) -> NDArray[np.float64]:
    """Numbers from 0 to 1 for the tokens of one text."""
    return np.random.default_rng([term.seed, place]).random(term.tokens)


def _ends(model: LoadedModel) -> frozenset[int]:
    """Tokens that end a text, as the tokenizer, the configuration and the generation settings say."""
    found: set[int] = set()
    config = getattr(model.module, "generation_config", None)
    for holder in (model.tokenizer, config, model.module.config):
        ids = getattr(holder, "eos_token_id", None)
        found |= {ids} if isinstance(ids, int) else set(ids or ())
    return frozenset(found)
