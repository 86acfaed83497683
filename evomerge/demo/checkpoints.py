"""Checkpoints of one more training for the demo, in the folders that a trainer leaves: ``checkpoint-20`` and so on.

The pool is `evomerge.demo.pool`'s and stays as it is: the training begins with its base, and its items are withheld.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from evomerge.demo.building import build_once
from evomerge.errors import ConfigError

FOLDER = "training"
"""Of a demo pool, where the checkpoints lie."""

MOST = 200
"""Checkpoints, of 3 MB each."""

STEPS, QUICK_STEPS = 20, 1
"""Between two checkpoints."""

LEARNING_RATE, BATCH = 3e-3, 16
"""A rate that never falls and small batches, as trainings have that are far from their end: each checkpoint is some way
off the course of all."""

MIXTURE = {"sort": 1.0, "restate": 0.5, "report": 0.5, "translate": 0.4, "simple": 0.4}
"""Of texts: what both specialists of the pool learn."""

_STREAM = 3  # of the pool's seed; the pool itself uses the first three


def make_checkpoints(
    pool: Path,
    seed: int,
    count: int,
    *,
    threads: int | None = None,
    quick: bool = False,
    each_step: Callable[[], None] = lambda: None,
) -> Path:
    """Train the base of a demo pool on all of its skills, at a rate that does not fall, and keep `count` checkpoints.

    Writes ``training/checkpoint-20``, ``-40``, ... into the pool's folder (`STEPS` between two; `QUICK_STEPS` for a
    quick one), unless these very checkpoints are there: safetensors, configuration and tokenizer each.

    Args:
        pool: the folder of a pool that `pool.make_demo_pool` made with this `seed`.
        seed: of the pool; its texts here are others than the pool's models were trained on.
        count: how many.
        threads: torch threads to train with; torch's number for ``None``.
        quick: a step or two instead of the whole training.
        each_step: called after every step.

    Returns:
        The folder of the checkpoints.

    Raises:
        ConfigError: `count` is out of range.
        OutputError: the folder holds something else.
    """
    if not 2 <= count <= MOST:
        raise ConfigError(f"{count} checkpoints are asked for", f"2 to {MOST}")
    folder, steps = pool / FOLDER, QUICK_STEPS if quick else STEPS
    names = [f"checkpoint-{steps * number}" for number in range(1, count + 1)]
    wanted = {"seed": seed, "quick": quick, "checkpoints": names, "learning_rate": LEARNING_RATE, "batch": BATCH}
    return build_once(
        folder,
        wanted,
        "checkpoints",
        lambda building: _train(pool, building, names, steps, seed, threads, each_step),
    )


def _train(
    pool: Path,
    folder: Path,
    names: list[str],
    steps: int,
    seed: int,
    threads: int | None,
    each_step: Callable[[], None],
) -> None:
    """Train, and write a checkpoint after every so many steps."""
    import torch
    from transformers import AutoModelForCausalLM

    from evomerge.demo.languages import make_tokenizer
    from evomerge.demo.texts import texts_to_learn
    from evomerge.demo.train import MODEL, WARM_UP, draw, loss_of, pack, save_model, torch_threads

    streams = np.random.SeedSequence(seed).spawn(_STREAM + 1)
    texts = texts_to_learn(streams[0], quick=steps == QUICK_STEPS)
    rng = np.random.default_rng(streams[_STREAM])
    tokenizer = make_tokenizer(MODEL["max_position_embeddings"])
    with torch_threads(threads):
        model = AutoModelForCausalLM.from_pretrained(pool / "base").float()
        optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        model.train()
        for number, name in enumerate(names):
            for step in range(steps * number, steps * (number + 1)):
                optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP)
                loss = loss_of(model, pack(draw(texts, MIXTURE, BATCH, rng)))
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                each_step()
            save_model(model, tokenizer, folder / name)
