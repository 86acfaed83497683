"""Training of the demo models: stages of next-token prediction on drawn texts."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from evomerge.demo.items import Text, Texts
from evomerge.demo.languages import BOS, EOS, ID_OF, PAD, VOCABULARY

WIDTH = 32
"""The tokens that a model can read, and the length of a training row."""

BATCH = 64
"""Texts in a step."""

WARM_UP = 20
"""Steps over which the learning rate rises; it then falls as a cosine to `FLOOR` of its peak."""

FLOOR = 0.02


@dataclass(frozen=True)
class Stage:
    """One model's training: `steps` from the parameters of `start` (None: fresh), on a mixture of kinds of text."""

    name: str
    start: str | None
    steps: int
    learning_rate: float
    mixture: Mapping[str, float]


MODEL: Mapping[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 192,
    "max_position_embeddings": WIDTH,
    "tie_word_embeddings": True,
    "initializer_range": 0.08,  # at 0.02 the base learns more slowly
}

STAGES = (
    Stage(
        "base",
        None,
        500,
        3e-3,
        {"simple": 1.0, "sort_anywhere": 0.04, "restate": 0.4, "report": 0.4, "translate": 0.4},
    ),
    Stage("math", "base", 150, 7e-4, {"sort": 1.0, "simple": 0.4}),
    Stage("lang", "base", 250, 1e-3, {"restate": 0.5, "report": 0.5, "translate": 0.4, "simple": 0.4}),
)
"""The base reads both languages and answers about half of the sorting questions asked in E: a trace of the skill, which
both specialists share and without which their differences from the base do not combine. MATH learns to sort and
forgets J; LANG practises J and forgets how to sort. The steps and rates of the specialists take them so far from
the base that plain averages lose much of what they know, and mixing them layer by layer keeps it. A longer base, or a
slower MATH, leaves MATH fluent in J, and then merging has little to add.
"""


def new_model(seed: int) -> Any:
    """A fresh `LlamaForCausalLM` (float32) whose parameters follow from `seed`; torch's global generator is kept."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        pad_token_id=ID_OF[PAD],
        bos_token_id=ID_OF[BOS],
        eos_token_id=ID_OF[EOS],
        **MODEL,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float()


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model with its tokenizer and generation config to `folder`, as safetensors, without a progress bar."""
    from transformers.utils import logging

    model.generation_config.max_length = model.config.max_position_embeddings
    had_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if had_bar:
            logging.enable_progress_bar()
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` threads inside the block (None: as it is now)."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def streams(seed: int) -> tuple[np.random.Generator, int, np.random.Generator]:
    """What a pool's seed gives: draws of its data, the seed of its parameters, and the order of its batches."""
    drawn, parameters, order = np.random.SeedSequence(seed).spawn(3)
    return np.random.default_rng(drawn), int(parameters.generate_state(1)[0]), np.random.default_rng(order)


@contextlib.contextmanager
def seeded(seed: int, threads: int | None) -> Iterator[None]:
    """`torch_threads`, with torch's random numbers drawn from a seed inside the block alone."""
    with torch_threads(threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def learning_rate_at(step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0, as a fraction of the peak."""
    warm_up = min(WARM_UP, steps)
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress))


def draw(texts: Texts, mixture: Mapping[str, float], count: int, rng: np.random.Generator) -> list[Text]:
    """Draw `count` texts, the kind of each with probability proportional to its weight."""
    kinds = list(mixture)
    weights = np.array([mixture[kind] for kind in kinds])
    chosen = rng.choice(len(kinds), size=count, p=weights / weights.sum())
    return [texts.kinds[kinds[kind]](rng) for kind in chosen]


@dataclass(frozen=True)
class Batch:
    """Texts packed into rows of `WIDTH` tokens; each attends to itself only and counts its positions from 0.

    ids, positions: [rows, WIDTH], int64. targets: the same shape, the token to predict, or -100 where nothing is
    learnt. mask: [rows, 1, WIDTH, WIDTH], float32, added to the attention scores.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor


def pack(texts: list[Text]) -> Batch:
    """Pack texts into rows, longest first, each into the first row with room: a third fewer tokens than padding."""
    rows: list[list[Text]] = []
    for text in sorted(texts, key=lambda text: -len(text.ids)):
        size = len(text.ids) - 1  # the last token is only predicted
        fitting = (row for row in rows if sum(len(other.ids) - 1 for other in row) + size <= WIDTH)
        row = next(fitting, None)
        if row is None:
            rows.append([text])
        else:
            row.append(text)
    shape = (len(rows), WIDTH)
    ids, positions, targets, owner = np.zeros(shape, int), np.zeros(shape, int), np.full(shape, -100), np.zeros(shape)
    for number, row in enumerate(rows):
        start = 0
        for text in row:
            stop = start + len(text.ids) - 1
            ids[number, start:stop] = text.ids[:-1]
            positions[number, start:stop] = np.arange(stop - start)
            targets[number, start:stop] = np.where(text.learnt[1:], text.ids[1:], -100)
            owner[number, start:stop] = start + 1  # unlike every other text's; 0 is padding
            start = stop
    seen = (owner[:, :, None] == owner[:, None, :]) & np.tri(WIDTH, dtype=bool)
    mask = torch.from_numpy(np.where(seen, np.float32(0), np.float32(-1e9)))[:, None]
    return Batch(torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(targets), mask)


def loss_of(model: Any, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of the learnt tokens; only their rows go through the head."""
    output = model.model(input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False)
    learnt = batch.targets >= 0
    return functional.cross_entropy(model.lm_head(output.last_hidden_state[learnt]), batch.targets[learnt])


def train(model: Any, stage: Stage, texts: Texts, rng: np.random.Generator, each_step: Callable[[], None]) -> None:
    """Train `model` in place as `stage` says; `each_step` is called after every step."""
    model.train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate, betas=(0.9, 0.98), fused=True)
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * learning_rate_at(step, stage.steps)
        loss = loss_of(model, pack(draw(texts, stage.mixture, BATCH, rng)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        each_step()
    model.eval()
