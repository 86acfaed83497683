"""LoRA adapters on the demo pool's base, many of them, each trained on a mixture of texts of its own.

The pool is `evomerge.demo.pool`'s and stays as it is: its items are withheld.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.demo.building import build_once
from evomerge.errors import ConfigError

if TYPE_CHECKING:
    from evomerge.demo.low_rank import LowRank

FOLDER = "adapters"
"""Of a demo pool, where the adapters lie."""

MOST = 1000
"""Adapters, of 230 kB each."""

RANK, ALPHA = 4, 8
STEPS, QUICK_STEPS = 40, 1
LEARNING_RATE, BATCH = 5e-3, 16

KINDS = ("sort", "restate", "report", "translate", "simple")
CONCENTRATION = 0.3
"""Of the Dirichlet distribution that mixtures are drawn from: most adapters learn one kind of text or two."""

_STREAM = 4  # of the pool's seed: the pool uses the first three, its checkpoints the next


def make_adapters(
    pool: Path,
    seed: int,
    count: int,
    *,
    threads: int | None = None,
    quick: bool = False,
    each_step: Callable[[], None] = lambda: None,
) -> Path:
    """Train `count` LoRA adapters on the base of a demo pool, each on its own mixture of texts.

    Writes ``adapters/00-sort``, ``01-report``, ... into the pool's folder, as PEFT saves them, each called after the
    kind of text that it saw most of, unless these very adapters are there. An adapter's bits do not depend on how many
    there are.

    Args:
        pool: the folder of a pool that `pool.make_demo_pool` made with this `seed`.
        seed: of the pool.
        count: how many.
        threads: torch threads to train with; torch's number for ``None``.
        quick: one step of each instead of the whole training.
        each_step: called after every step.

    Returns:
        The folder of the adapters.

    Raises:
        ConfigError: `count` is out of range.
        OutputError: the folder holds something else.
    """
    if not 2 <= count <= MOST:
        raise ConfigError(f"{count} adapters are asked for", f"2 to {MOST}")
    folder = pool / FOLDER
    wanted: dict[str, Any] = {"seed": seed, "quick": quick, "adapters": count, "rank": RANK, "alpha": ALPHA}
    wanted |= {"steps": QUICK_STEPS if quick else STEPS, "learning_rate": LEARNING_RATE, "batch": BATCH}
    return build_once(
        folder,
        wanted,
        "adapters",
        lambda building: _train(pool, building, count, wanted["steps"], seed, quick, threads, each_step),
    )


def _train(
    pool: Path,
    folder: Path,
    count: int,
    steps: int,
    seed: int,
    quick: bool,
    threads: int | None,
    each_step: Callable[[], None],
) -> None:
    """Train one after the other, and write each."""
    import torch
    from torch.nn.utils import parametrize
    from transformers import AutoModelForCausalLM

    from evomerge.demo.low_rank import LowRank
    from evomerge.demo.texts import texts_to_learn
    from evomerge.demo.train import draw, learning_rate_at, loss_of, pack, torch_threads

    streams = np.random.SeedSequence(seed).spawn(_STREAM + 1)
    texts = texts_to_learn(streams[0], quick)
    with torch_threads(threads):
        model = AutoModelForCausalLM.from_pretrained(pool / "base").float().requires_grad_(False)
        layers = {name: own for name, own in model.model.named_modules() if isinstance(own, torch.nn.Linear)}
        parts = {name: LowRank(own.weight, RANK, ALPHA) for name, own in layers.items()}
        for name, own in layers.items():
            parametrize.register_parametrization(own, "weight", parts[name])
        model.train()
        for number, stream in enumerate(streams[_STREAM].spawn(count)):
            rng = np.random.default_rng(stream)
            mixture = dict(zip(KINDS, rng.dirichlet([CONCENTRATION] * len(KINDS)).tolist(), strict=True))
            generator = torch.Generator().manual_seed(int(stream.generate_state(1)[0]))
            for part in parts.values():
                part.begin(generator)
            own_parameters = [p for part in parts.values() for p in part.parameters()]
            optimizer = torch.optim.AdamW(own_parameters, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = LEARNING_RATE * learning_rate_at(step, steps)
                with parametrize.cached():
                    loss = loss_of(model, pack(draw(texts, mixture, BATCH, rng)))
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(own_parameters, 1.0)
                optimizer.step()
                each_step()
            most = max(mixture, key=lambda kind: mixture[kind])
            width = len(str(count - 1)) if count > 100 else 2
            _save(folder / f"{number:0{width}d}-{most}", parts, pool / "base", mixture)


def _save(folder: Path, parts: dict[str, LowRank], base: Path, mixture: dict[str, float]) -> None:
    """Write an adapter as PEFT does, and beside it what it was trained on."""
    from safetensors.torch import save_file

    tensors = {}
    for name, part in parts.items():
        for letter, factor in (("A", part.a), ("B", part.b)):
            tensors[f"base_model.model.model.{name}.lora_{letter}.weight"] = factor.detach().clone()
    targets = sorted({name.rpartition(".")[2] for name in parts})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": RANK}
    settings |= {"lora_alpha": ALPHA, "target_modules": targets, "bias": "none", "inference_mode": True}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    for name, content in (("adapter_config.json", settings), ("mixture.json", mixture)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
