"""A tiny random Llama with a word tokenizer, and tasks of all four output types, in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lm_eval import evaluator
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.models.loaded import LoadedModel

WORDS = [f"w{i}" for i in range(40)]
CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} . {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def _tokenizer() -> PreTrainedTokenizerFast:
    specials = ["<pad>", "<bos>", "<eos>", "<unk>"]
    words = [*specials, *WORDS, ".", ":", "system", "user", "assistant", "q", "a"]  # 51: odd, rows are not aligned
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=CHAT,
    )


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two layers with weights large enough that choices differ clearly."""
    folder = tmp_path_factory.mktemp("tiny_llama")
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=48,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


Load = Callable[..., LoadedModel]


@pytest.fixture(scope="session")
def load(model_folder: Path) -> Load:
    """A function that loads the tiny model in a dtype."""

    def loaded(dtype: torch.dtype = torch.float32) -> LoadedModel:
        module = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype).eval()
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        return LoadedModel(module, tokenizer, dtype, torch.device("cpu"), str(model_folder))

    return loaded


@pytest.fixture
def model(load: Load) -> LoadedModel:
    return load()


def accuracy(metric: str = "acc") -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


@dataclass
class TaskFolder:
    """Writes tasks and their rows where an `include_path` can point."""

    path: Path

    def write(self, name: str, rows: list[dict[str, Any]], config: dict[str, Any], train: int = 0) -> Path:
        files = {}
        for split, part in {"train": rows[:train], "test": rows[train:]}.items():
            if part:
                files[split] = str(self.path / f"{name}_{split}.jsonl")
                Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
        config = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
            **({"training_split": "train", "fewshot_split": "train"} if train else {}),
            "metadata": {"version": 1.0},
            **config,
        }
        file = self.path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        return file

    def text(self, rng: np.random.Generator, low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS, size=int(rng.integers(low, high + 1))).tolist())


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskFolder:
    """`choose` (multiple choice), `complete` (log-likelihood), `read` (rolling) and `write` (generation)."""
    folder = TaskFolder(tmp_path_factory.mktemp("tasks"))
    rng = np.random.default_rng(7)

    def choices(n: int) -> list[str]:
        single = rng.choice(WORDS, size=n, replace=False).tolist()
        return single if rng.random() < 0.5 else [folder.text(rng, 1, 4) for _ in single]

    folder.write(
        "choose",
        [{"q": folder.text(rng, 2, 12), "c": choices(3), "gold": int(rng.integers(3))} for _ in range(30)],
        {
            "output_type": "multiple_choice",
            "doc_to_text": "q : {{q}} a :",
            "doc_to_choice": "{{c}}",
            "doc_to_target": "{{gold}}",
            "metric_list": [
                accuracy(),
                accuracy("acc_norm"),
                {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
            ],
        },
        train=6,
    )
    folder.write(
        "complete",
        [{"q": folder.text(rng, 1, 10), "a": folder.text(rng, 1, 6)} for _ in range(31)],
        {
            "output_type": "loglikelihood",
            "doc_to_text": "{{q}} :",
            "doc_to_target": " {{a}}",  # lm-eval adds no delimiter here
            "metric_list": [
                accuracy(),
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            ],
        },
    )
    folder.write(
        "read",
        [{"text": folder.text(rng, 5, 120)} for _ in range(13)],
        {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"},
    )
    folder.write(
        "write",
        [{"q": folder.text(rng, 1, 8), "a": rng.choice(WORDS, 20, replace=False).tolist()} for _ in range(9)],
        {
            "output_type": "generate_until",
            "doc_to_text": "{{q}} :",
            "doc_to_target": "{{a}}",
            "generation_kwargs": {"until": ["w5 ", "."], "max_gen_toks": 6},
            "metric_list": [accuracy("exact_match")],
            "filter_list": [
                {"name": "whole", "filter": [{"function": "take_first"}]},
                {
                    "name": "word",
                    "filter": [{"function": "regex", "regex_pattern": "(w[0-9]+)"}, {"function": "take_first"}],
                },
            ],
        },
    )
    return folder


@pytest.fixture
def stock(model_folder: Path, tasks: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`simple_evaluate` as the command line calls it."""
    monkeypatch.setattr(evaluator, "add_env_info", lambda *_: None)  # a second of subprocesses

    def run(names: list[Any], dtype: str = "float32", arguments: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        return evaluator.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model_folder), "dtype": dtype, **(arguments or {})},
            tasks=names,
            device="cpu",
            task_manager=TaskManager(include_path=str(tasks.path), include_defaults=False),
            **{"batch_size": 16, "bootstrap_iters": 0, **kwargs},
        )

    return run
