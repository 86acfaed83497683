"""What `evomerge validate` says of memory, against the peaks of real searches in processes of their own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_tokenizer

WORDS = 600  # that items use: the least of the vocabularies

Pool = Callable[..., Path]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """A folder with a base and two models of 52 MB, or of another vocabulary, and their tasks."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    made: dict[int, Path] = {}

    def make(vocabulary: int = 1000, layers: int = 8) -> Path:
        if vocabulary in made:
            return made[vocabulary]
        root = made[vocabulary] = tmp_path_factory.mktemp(f"pool-{vocabulary}")
        for seed, name in enumerate(("base", "a", "b")):
            torch.manual_seed(seed)
            model = LlamaForCausalLM(
                LlamaConfig(
                    hidden_size=384,
                    intermediate_size=1024,
                    num_hidden_layers=layers,
                    num_attention_heads=6,
                    num_key_value_heads=6,
                    vocab_size=vocabulary,
                    max_position_embeddings=512,
                    tie_word_embeddings=True,
                    bos_token_id=1,
                    eos_token_id=2,
                    pad_token_id=0,
                )
            )
            model.save_pretrained(root / name)
            write_tokenizer(root / name, vocabulary)
        write_items(root)
        return root

    return make


def write_items(root: Path) -> None:
    words = random.Random(0)
    with (root / "items.jsonl").open("w") as file:
        for _ in range(24):
            text = " ".join(f"w{words.randrange(4, WORDS)}" for _ in range(words.randrange(100, 150)))
            file.write(json.dumps({"text": text, "target": "w7"}) + "\n")


def write_adapters(root: Path) -> None:
    """LoRA adapters of all attention and inner matrices, for models a and b of the base."""
    import torch
    from safetensors.torch import load_file, save_file

    base = load_file(root / "base" / "model.safetensors")
    for seed, name in enumerate(("lora_a", "lora_b")):
        folder = root / name
        folder.mkdir(exist_ok=True)
        draw = torch.Generator().manual_seed(seed)
        tensors, modules = {}, set()
        for key, weight in base.items():
            if "_proj" in key:
                module = key.removesuffix(".weight")
                modules.add(module.rpartition(".")[2])
                tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(8, weight.shape[1], generator=draw)
                tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(weight.shape[0], 8, generator=draw)
        save_file(tensors, folder / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": sorted(modules)}
        (folder / "adapter_config.json").write_text(json.dumps(settings))


def task(root: Path, kind: str = "loglikelihood", metric: str = "perplexity") -> str:
    data = f"dataset_path: json, dataset_kwargs: {{data_files: {{test: {root}/items.jsonl}}}}, test_split: test"
    prompt = f"doc_to_text: '{{{{text}}}}', doc_to_target: ' {{{{target}}}}', output_type: {kind}"
    return f"{{task: t, {data}, {prompt}, metric_list: [{{metric: {metric}}}]}}"


def run(words: list[str], folder: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("measured_memory.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, str(script), *words], capture_output=True, text=True, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "lora", "kind", "vocabulary", "part"),
    [
        ("linear", False, "loglikelihood", 1000, "model"),
        ("ties", False, "loglikelihood", 1000, "statistics"),
        ("dare_ties", False, "loglikelihood", 1000, "model"),
        ("ties", True, "loglikelihood", 1000, "adapters"),
        ("linear", False, "generate_until", 1000, "forwards"),
        ("linear", False, "loglikelihood", 30_000, "forwards"),
    ],
)
def test_the_peak_is_what_was_said(
    pool: Pool, tmp_path: Path, space: str, lora: bool, kind: str, vocabulary: int, part: str
) -> None:
    root = pool(vocabulary)
    models = {name: str(root / name) for name in ("base", "a", "b")}
    if lora:
        write_adapters(root)
        models |= {name: f"{root / 'base'}+{root / f'lora_{name}'}" for name in ("a", "b")}
    metric = "exact_match" if kind == "generate_until" else "perplexity"
    words = [
        "pool.models={" + ", ".join(f"{name}: '{place}'" for name, place in models.items()) + "}",
        "pool.base=base",
        f"search_space={space}",
        f"fitness.tasks=[{{task: {task(root, kind, metric)}, metrics: {{{metric}: 1}}}}]",
        "fitness.gen_kwargs={max_gen_toks: 48}",
        "fitness.batch_size=24",
        "evaluator.device=cpu",
        "evaluator.threads=1",
        "evaluator.hidden_states=0",
        "search.evaluations=4",
        "strategy.popsize=4",
        "display=quiet",
        f"run_dir='{tmp_path / 'run'}'",
    ]
    said = run(words, tmp_path)
    peak, process = said["peak"], said["parts"]["process"]
    assert said["parts"][part] > 1e7, said
    assert abs(said["machine"] - peak) <= 0.3 * peak, (said, peak)
    # What a process has before anything is loaded hides little: the rest alone is as near.
    assert abs(said["machine"] - peak) <= 0.3 * (peak - process), (said, peak)
