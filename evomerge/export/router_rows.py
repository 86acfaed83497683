"""Rows of the router of a mixture that is made of dense models: mergekit-moe's ways, without training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from evomerge.errors import EvomergeWarning, PoolError, reason_of
from evomerge.mergekit.mixture_recipe import Expert

_ILL = 5.0
"""Condition number from which mergekit calls the rows of a layer degenerate."""


def router_rows(
    experts: Sequence[Expert],
    gate: str,
    shape: tuple[int, int],
    generator: torch.Generator,
    embeddings: Callable[[], torch.Tensor],
    module: Callable[[], Any],
    tokenizer: Callable[[], Any],
) -> torch.Tensor:
    """The rows for each layer and expert, of shape ``(layers, experts, width)``.

    Args:
        experts: with their prompts.
        gate: of `mixture_recipe.GATES`.
        shape: layers and width.
        generator: of rows that are noise.
        embeddings: gives those of tokens, of shape ``(tokens, width)``.
        module: gives the base model in bfloat16, as mergekit runs it.
        tokenizer: gives the base's, which this changes: it pads on the left.

    Raises:
        PoolError: the tokenizer cannot pad, or refuses a prompt.
    """
    layers, width = shape
    if gate == "random":
        return torch.randn((layers, len(experts), width), generator=generator)
    if gate == "uniform_random":
        bound = math.sqrt(1 / width)
        return torch.rand((layers, len(experts), width), generator=generator) * 2 * bound - bound
    encode = _encoder(tokenizer())
    if gate == "cheap_embed":
        table = embeddings().float()

        def state(prompts: Sequence[str]) -> torch.Tensor:
            return _embedded(table, encode(prompts)).repeat(layers, 1)

    else:
        model = module()

        def state(prompts: Sequence[str]) -> torch.Tensor:
            return _hidden(model, encode(prompts), mean=gate == "hidden_avg")

    rows = []
    for own in experts:
        found = state(own.positive)
        if own.negative:
            found = found - state(own.negative)
        rows.append(found / found.norm(dim=-1, keepdim=True).clamp(min=1e-8))
    found = torch.stack(rows, dim=1)
    _warn_if_alike(found)
    return found


def _encoder(tokenizer: Any) -> Callable[[Sequence[str]], Any]:
    """Prompts as mergekit gives them to a model: after the token of a beginning, padded on the left."""
    if tokenizer is None:
        raise PoolError("the base model has no tokenizer", "one that reads the prompts", "gate_mode random needs none")
    tokenizer.padding_side = "left"
    tokenizer.pad_token_id = tokenizer.bos_token_id
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token

    def encode(prompts: Sequence[str]) -> Any:
        texts = [(tokenizer.bos_token or "") + prompt for prompt in prompts]
        try:
            return tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        except Exception as error:  # tokenizers raise what they like
            raise PoolError(f"the base's tokenizer refuses a prompt ({reason_of(error)})") from error

    return encode


def _embedded(table: torch.Tensor, encoded: Any) -> torch.Tensor:
    """The direction of the sum of all tokens' embeddings, of shape ``(1, width)``."""
    found = table[encoded["input_ids"]] * encoded["attention_mask"].unsqueeze(-1)
    total = found.sum(dim=1).sum(dim=0, keepdim=True)
    direction: torch.Tensor = total / total.norm(dim=-1, keepdim=True).clamp(min=1e-8)
    return direction


def _hidden(model: Any, encoded: Any, mean: bool) -> torch.Tensor:
    """What each layer reads at the prompts' last tokens, or on average, over prompts: ``(layers, width)``."""
    given = {key: encoded[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        states = torch.stack(model(**given, output_hidden_states=True).hidden_states[:-1])
    states = states.sum(dim=2) / states.shape[2] if mean else states[:, :, -1, :]
    found: torch.Tensor = states.sum(dim=1) / states.shape[1]
    return found


def _warn_if_alike(rows: torch.Tensor) -> None:
    ill = [layer for layer, own in enumerate(rows) if float(torch.linalg.cond(own.float())) > _ILL]
    if ill:
        which = "all layers" if len(ill) == len(rows) else f"layers {', '.join(map(str, ill))}"
        warnings.warn(
            f"the experts' rows of the router are much alike in {which}, so that some experts will be sent few tokens: "
            "their prompts may be too similar",
            EvomergeWarning,
            stacklevel=3,
        )
