"""What transformers computes with merged weights on the processor: engines are compared with it when they begin."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evomerge.errors import EngineError
from evomerge.merge.execution.engine import TORCH_DTYPES, merge_slice
from evomerge.merge.planning.slice_plan import Plan
from evomerge.merge.resident.layer_kinds import lists_of
from evomerge.models.architecture.layout import skeleton
from evomerge.models.pool import Pool
from evomerge.models.progress_bars import no_progress_bar
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import SliceRecipe

PROMPTS, LONGEST = 12, 160
"""How many texts are compared, and the tokens of the longest."""

TOLERANCE = {"float32": (1e-3, 2e-3), "float16": (1e-2, 0.1), "bfloat16": (0.05, 0.5)}
"""By dtype, nats: of a text's log-likelihood for each of its tokens, and of the token that is written after it."""

HOST_SHARE = 0.5
"""Of the free memory: what a model of transformers may take here; of larger ones the first layers are compared."""

_NOTHING = 1e-30
"""A scale on what layers add to the residual stream that leaves nothing of it."""


@dataclass(frozen=True)
class Measured:
    """What a model says of the prompts.

    Attributes:
        texts: [prompts] log-likelihood of each prompt's tokens but the first, nats.
        tokens: [prompts] the token that it writes after each, greedily.
        scores: [prompts] log-likelihood of that token.
    """

    texts: np.ndarray[Any, np.dtype[np.float64]]
    tokens: list[int]
    scores: np.ndarray[Any, np.dtype[np.float64]]


def fitting_layers(pool: Pool, free: int) -> int:
    """How many of the layers transformers can have on the CPU beside the engine, at least one.

    Args:
        pool: the source models.
        free: bytes of main memory.
    """
    width = TORCH_DTYPES[pool.info.dtype].itemsize
    sizes = dict(zip(pool.info.slices, pool.info.sizes, strict=True))
    outer = sum(size for s, size in sizes.items() if s.layer is None) * width
    each = max(sum(size for s, size in sizes.items() if s.layer == i) for i in range(pool.info.layers)) * width
    if pool.residual.unscalable:  # then the others cannot be left out
        return pool.info.layers
    return max(1, min(pool.info.layers, int(free * HOST_SHARE - outer) // max(1, each)))


def first_layers(pool: Pool, recipe: Recipe, layers: int) -> Recipe:
    """The recipe with no residual outputs to speak of beyond its first layers: it computes what they compute."""
    if layers >= pool.info.layers:
        return recipe
    slices = [
        SliceRecipe(s.slice, s.method, s.inputs, s.parameters, s.base, scale=_NOTHING)
        if s.slice.layer is not None and s.slice.layer >= layers and s.slice.component in ("attn", "mlp")
        else s
        for s in recipe.slices
    ]
    return pool.info.recipe(slices, recipe.seed)


def draw_prompts(pool: Pool, positions: int) -> list[list[int]]:
    """Random tokens, of other lengths; each shares its first half with the longest, as prompts of a task do."""
    rng = np.random.default_rng(0)
    rows = int(pool.config.get_text_config().vocab_size)
    longest = max(4, min(LONGEST, positions - 2))
    common = rng.integers(0, rows, longest)
    lengths = np.linspace(4, longest, PROMPTS).astype(int)
    return [[*map(int, common[: n // 2]), *map(int, rng.integers(0, rows, n - n // 2))] for n in lengths]


@torch.no_grad()
def of_transformers(
    pool: Pool, plan: Plan, layers: int, prompts: Sequence[Sequence[int]], tokens: Sequence[int]
) -> Measured:
    """What transformers says on the CPU of the prompts and of the `tokens` after them, with the first layers of a plan.

    Merged slice by slice as a file of the model would be, without anything of the engine.
    """
    tensors: dict[str, torch.Tensor] = {}
    for entry in plan.slices:
        if entry.slice.layer is None or entry.slice.layer < layers:
            tensors |= merge_slice(entry, pool)
    config = copy.deepcopy(pool.config)
    text = config.get_text_config()
    for name, values in lists_of(text, pool.info.layers).items():
        setattr(text, name, values[:layers])
    text.num_hidden_layers = layers
    cls: Any = type(skeleton(pool.config, pool.trust_remote_code))
    with no_progress_bar():
        module = cls.from_pretrained(None, config=config, state_dict=tensors, dtype=TORCH_DTYPES[plan.dtype]).eval()
    texts, scores = [], []
    for prompt, token in zip(prompts, tokens, strict=True):
        logits = module(torch.tensor([list(prompt)]), use_cache=False).logits[0].float().log_softmax(dim=-1)
        targets = torch.tensor(list(prompt[1:]))[:, None]
        texts.append(float(logits[:-1].double().gather(1, targets).sum()))
        scores.append(float(logits[-1, token]))
    return Measured(np.array(texts), list(tokens), np.array(scores))


def require_close(
    found: Measured,
    expected: Measured,
    prompts: Sequence[Sequence[int]],
    dtype: str,
    what_differs: str,
    advice: str,
    most: tuple[float, float] | None = None,
) -> None:
    """Compare what an engine says with what it should say.

    Args:
        found, expected: of the prompts.
        prompts: their tokens.
        dtype: that both compute in.
        what_differs: how a difference is said: the engine, and what it is compared with.
        advice: what to do then.
        most: nats, as `TOLERANCE` has them; those of the dtype for ``None``.

    Raises:
        EngineError: a difference beyond them, NaN among them.
    """
    most = most or TOLERANCE[dtype]
    lengths = np.array([len(prompt) - 1 for prompt in prompts])
    kinds = ("a text's log-likelihood per token", "the log-likelihood of the token that is written next")
    for what, one, other, each, limit in (
        (kinds[0], found.texts, expected.texts, lengths, most[0]),
        (kinds[1], found.scores, expected.scores, np.ones(len(prompts)), most[1]),
    ):
        apart = np.abs(one - other) / each
        worst = int(np.argmax(np.where(np.isfinite(apart), apart, np.inf)))
        if not apart[worst] <= limit:
            raise EngineError(
                f"{what_differs}: {what} differs by {apart[worst]:.3g} nats "
                f"(prompt {worst + 1} of {len(prompts)}, {len(prompts[worst])} tokens: {one[worst]:.5g} and "
                f"{other[worst]:.5g})",
                f"at most {limit:g} nats in {dtype}",
                advice,
            )
