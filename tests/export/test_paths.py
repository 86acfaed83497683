"""Folded paths are what the definition says: resident, exported and loaded by transformers, as mergekit writes them.

``EVOMERGE_PATHS=200 pytest -s tests/export/test_paths.py --basetemp=/dev/shm/paths`` tries 200 paths of every
architecture (2 by default) and prints the largest differences.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export.export_paths import by_definition, difference, random_steps, recipe_of
from export.mergekit_paths import by_mergekit, with_old_buffers
from merge.path_models import save_source
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from evomerge.export.writer import write_model
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.mergekit.reader import read_mergekit
from evomerge.mergekit.writer import to_mergekit
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool

PATHS = int(os.environ.get("EVOMERGE_PATHS", "2"))
TOLERANCE = 1e-4
LAYERS = 3
TOKENS = torch.tensor([[5, 9, 31, 12, 7, 22, 3, 30], [4, 8, 15, 16, 23, 38, 11, 6]])
EPSILON = {"gpt2": "layer_norm_epsilon", "gpt_neox": "layer_norm_eps"}
BY_MERGEKIT = ("llama", "mistral", "gpt2", "phi3", "qwen2", "qwen3", "gpt_neox")
KINDS = (*BY_MERGEKIT, "gemma2", "gemma3")  # mergekit cannot multiply Gemma's 1 + w


def load(folder: Path) -> Any:
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def opened(kind: str, root: Path) -> tuple[Pool, dict[str, Any]]:
    """Two models whose residual stream has its usual size: what the norms' epsilon does is below the tolerance then."""
    epsilon = {EPSILON.get(kind, "rms_norm_eps"): 1e-6}
    folders = {name: save_source(root / name, kind, seed, LAYERS, **epsilon) for seed, name in enumerate("ab")}
    if kind == "gpt_neox":
        for folder in folders.values():
            with_old_buffers(folder)
    return open_pool({name: str(folder) for name, folder in folders.items()}), {n: load(f) for n, f in folders.items()}


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module(input_ids=TOKENS, use_cache=False).logits


def generated(module: Any, cache: bool) -> torch.Tensor:
    """Greedy tokens after each of the prompts."""
    return module.generate(  # type: ignore[no-any-return]
        TOKENS[:, :4], attention_mask=torch.ones(2, 4), max_new_tokens=6, do_sample=False, use_cache=cache,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_random_paths(kind: str, tmp_path: Path) -> None:
    pool, modules = opened(kind, tmp_path)
    resident = Resident(pool)
    rng = np.random.default_rng(0)
    worst: dict[str, float] = {}
    for number in range(PATHS):
        steps = random_steps(rng, {name: pool.info.depth(name) for name in modules})
        definition, recipe = by_definition(modules, steps), recipe_of(pool, steps)
        resident.apply(make_plan(recipe, pool))
        exported = write_model(recipe, pool, tmp_path / "exported")
        ways = {"resident": resident.model.module, "export": load(exported)}
        assert ways["export"].config.num_hidden_layers == len(steps)
        if kind in BY_MERGEKIT:
            text = to_mergekit(recipe, pool.layout)
            ways["mergekit"] = load(by_mergekit(kind, text, tmp_path / "theirs", exported))
            if number < 2:
                again = write_model(read_mergekit(text).recipe(pool), pool, tmp_path / "again")
                ways["read back"] = load(again)
        wanted, tokens = logits(definition), generated(definition, cache=True)
        assert torch.equal(generated(definition, cache=False), tokens), steps
        for way, module in ways.items():
            worst[way] = max(worst.get(way, 0.0), difference(logits(module), wanted))
            for cache in (True, False):
                assert torch.equal(generated(module, cache), tokens), (number, way, cache, steps)
        assert max(worst.values()) <= TOLERANCE, (number, steps, worst)
        for name in ("exported", "theirs", "again"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
    differences = ", ".join(f"{way} {value:.1e}" for way, value in worst.items())
    print(f"\n{kind}: {PATHS} paths, largest relative differences: {differences}", flush=True)
