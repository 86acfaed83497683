"""Folded paths are what the definition says: exported, loaded by plain transformers, and as mergekit writes them.

``EVOMERGE_PATHS=200 pytest tests/export/test_paths.py`` tries 200 paths of every architecture (6 by default).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from export_paths import by_definition, difference, random_steps, recipe_of
from tiny_models import TinyModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from evomerge.export.writer import write_model
from evomerge.merge.assemble import Resident
from evomerge.merge.plan import make_plan
from evomerge.mergekit.reader import read_mergekit
from evomerge.mergekit.writer import to_mergekit
from evomerge.models.pool import Pool, open_pool

PATHS = int(os.environ.get("EVOMERGE_PATHS", "6"))
TOLERANCE = 1e-4
TOKENS = torch.tensor([[5, 9, 31, 12, 7, 22, 3, 30], [4, 8, 15, 16, 23, 38, 11, 6]])
EPSILON = {"gpt2": "layer_norm_epsilon", "gpt_neox": "layer_norm_eps"}
# mergekit's table of GPT-NeoX wants a buffer that transformers no longer writes; of Qwen it cannot save a configuration
# of another depth, as `layer_types` keeps its length; it cannot multiply Gemma's 1 + w.
BY_MERGEKIT = ("llama", "mistral", "gpt2", "phi3")
KINDS = (*BY_MERGEKIT, "qwen2", "qwen3", "gpt_neox", "gemma2")


def load(folder: Path) -> Any:
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def opened(kind: str, tiny_model: TinyModel, **deeper: int) -> tuple[Pool, dict[str, Any]]:
    """Two models with embeddings of unit variance: what the norms' epsilon does is below the tolerance then."""
    folders = {}
    for seed, name in enumerate(("a", "b")):
        epsilon = {EPSILON.get(kind, "rms_norm_eps"): 1e-6}
        folders[name] = tiny_model(name, kind, seed, **epsilon, **(deeper if name == "b" else {}))
        module = load(folders[name])
        with torch.no_grad():
            table = module.get_input_embeddings().weight
            table.div_(table.std())
        module.save_pretrained(folders[name])
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


def merged_by_mergekit(text: str, out: Path) -> Path:
    config = pytest.importorskip("mergekit.config")
    merge = pytest.importorskip("mergekit.merge")
    options = pytest.importorskip("mergekit.options")
    logging.disable_progress_bar()
    quiet = options.MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)
    merge.run_merge(config.MergeConfiguration.model_validate(yaml.safe_load(text)), str(out), quiet)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_random_paths(kind: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    pool, modules = opened(kind, tiny_model)
    resident = Resident(pool)
    rng = np.random.default_rng(0)
    worst = dict.fromkeys(("export", "mergekit", "resident"), 0.0)
    for number in range(PATHS):
        steps = random_steps(rng, {name: pool.info.depth(name) for name in modules})
        definition, recipe = by_definition(modules, steps), recipe_of(pool, steps)
        wanted, tokens = logits(definition), generated(definition, cache=True)
        assert torch.equal(generated(definition, cache=False), tokens), steps

        exported = load(write_model(recipe, pool, tmp_path / "exported"))
        assert exported.config.num_hidden_layers == len(steps)
        worst["export"] = max(worst["export"], difference(logits(exported), wanted))
        assert torch.equal(generated(exported, cache=True), tokens), steps
        assert torch.equal(generated(exported, cache=False), tokens), steps

        resident.apply(make_plan(recipe, pool))
        worst["resident"] = max(worst["resident"], difference(logits(resident.model.module), wanted))
        assert torch.equal(generated(resident.model.module, cache=True), tokens), steps
        assert torch.equal(generated(resident.model.module, cache=False), tokens), steps

        if kind in BY_MERGEKIT:
            text = to_mergekit(recipe, pool.layout)
            theirs = load(merged_by_mergekit(text, tmp_path / "theirs"))
            worst["mergekit"] = max(worst["mergekit"], difference(logits(theirs), wanted))
            again = write_model(read_mergekit(text).recipe(pool), pool, tmp_path / "read")
            worst["export"] = max(worst["export"], difference(logits(load(again)), wanted))
        for name in ("exported", "theirs", "read"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        assert max(worst.values()) <= TOLERANCE, (number, steps, worst)
    print(f"{kind}: {PATHS} paths, largest relative differences {worst}")
