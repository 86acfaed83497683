from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.demo import pool as demo_pool
from evomerge.demo.pool import MODELS, make_demo_pool
from evomerge.errors import OutputError


@pytest.fixture(scope="module")
def quick_pool(tmp_path_factory):
    return make_demo_pool(tmp_path_factory.mktemp("demo") / "pool", seed=0, threads=1, quick=True, progress=False)


def test_models_load_and_read_the_tasks(quick_pool):
    weights = {}
    for name in MODELS:
        model = AutoModelForCausalLM.from_pretrained(quick_pool / name)
        assert type(model).__name__ == "LlamaForCausalLM"
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        weights[name] = model.model.layers[2].mlp.up_proj.weight
    assert not torch.equal(weights["base"], weights["math"])
    assert not torch.equal(weights["math"], weights["lang"])
    tokenizer = AutoTokenizer.from_pretrained(quick_pool / "base")
    assert tokenizer.is_fast
    row = json.loads((quick_pool / "tasks" / "demo_j_maths.jsonl").read_text().splitlines()[0])
    ids = tokenizer(row["text"] + " " + row["answer"])["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids[1:]) == row["text"] + " " + row["answer"]


def test_a_current_pool_is_not_trained_again(quick_pool, monkeypatch):
    monkeypatch.setattr(demo_pool, "_build", lambda *_: pytest.fail("trained again"))
    assert make_demo_pool(quick_pool, seed=0, quick=True, progress=False) == quick_pool


def test_the_same_seed_makes_the_same_pool_and_another_seed_replaces_it(quick_pool, tmp_path):
    def weights(folder):
        return load_file(folder / "lang" / "model.safetensors")["model.norm.weight"]

    other = make_demo_pool(tmp_path / "pool", seed=0, threads=1, quick=True, progress=False)
    assert torch.equal(weights(other), weights(quick_pool))
    items = "tasks/demo_e_maths.jsonl"
    assert (other / items).read_text() == (quick_pool / items).read_text()
    make_demo_pool(other, seed=1, threads=1, quick=True, progress=False)
    assert not torch.equal(weights(other), weights(quick_pool))
    assert (other / items).read_text() != (quick_pool / items).read_text()
    assert json.loads((other / "manifest.json").read_text())["seed"] == 1


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(building, *_):
        (building / "base").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_pool, "_build", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_demo_pool(tmp_path / "pool", quick=True, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="holds no demo pool"):
        make_demo_pool(tmp_path, quick=True, progress=False)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.slow
def test_stock_lm_eval_scores_the_tasks(quick_pool, tmp_path):
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", "demo_j_maths,demo_e_maths_held_out"]
    command += ["--model_args", f"pretrained={quick_pool / 'base'},dtype=float32", "--device", "cpu"]
    command += ["--include_path", str(quick_pool / "tasks"), "--batch_size", "16", "--output_path", str(tmp_path)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = tmp_path.rglob("results_*.json")
    found = json.loads(results.read_text())
    assert found["n-samples"]["demo_j_maths"]["effective"] == demo_pool.QUICK_SEARCH_ITEMS
    assert found["results"]["demo_e_maths_held_out"]["perplexity,none"] > 1
    assert 0 <= found["results"]["demo_j_maths"]["acc,none"] <= 1
