"""Models small enough to be trained in seconds, for the tutorial notebook: a base and two that each do one thing well.

A prompt is three numbers or three letters; the answer is the next of each, from the last to the first: ``3 7 5 :`` asks
for ``6 8 4``. The base half knows how. One copy then learns numbers, the other letters, and each forgets the rest.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ALPHABETS = {"numbers": [str(number) for number in range(16)], "letters": list("abcdefghijklmnop")}
WORDS = ["<pad>", "<s>", ":", *ALPHABETS["numbers"], *ALPHABETS["letters"]]
NUMBER = {word: number for number, word in enumerate(WORDS)}
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}


def make_pool(folder: Path, seed: int = 0) -> Path:
    """Write the models ``base``, ``numbers`` and ``letters`` into `folder`, and their tasks into ``folder/tasks``."""
    folder = folder.resolve()
    words = Tokenizer(WordLevel(NUMBER, unk_token="<pad>"))
    words.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<pad>", "bos_token": "<s>", "eos_token": "<s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=16, tie_word_embeddings=True, **SHAPE)
    models = {"base": train(LlamaForCausalLM(config), tuple(ALPHABETS), 50, 3e-3, rng)}
    for name in ALPHABETS:
        models[name] = LlamaForCausalLM(config)
        models[name].load_state_dict(models["base"].state_dict())
        train(models[name], (name,), 45, 1e-3, rng)
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "tasks").mkdir(exist_ok=True)
    for name in ALPHABETS:
        write_task(folder / "tasks", name, name, 100, rng)
        write_task(folder / "tasks", f"{name}_held_out", name, 400, rng)
    return folder


def draw(kind: str, rng: np.random.Generator) -> tuple[str, str]:
    """A prompt and its answer."""
    alphabet, places = ALPHABETS[kind], rng.integers(16, size=3)
    return f"{' '.join(alphabet[i] for i in places)} :", " ".join(alphabet[(i + 1) % 16] for i in places[::-1])


def train(
    model: LlamaForCausalLM, kinds: tuple[str, ...], steps: int, learning_rate: float, rng: np.random.Generator
) -> LlamaForCausalLM:
    """Teach a model to answer: next-token prediction on the answers of 64 prompts a step."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        rows = [" ".join(draw(kinds[i % len(kinds)], rng)).split() for i in range(64)]
        tokens = torch.tensor([[NUMBER[word] for word in row] for row in rows])
        labels = tokens.clone()
        labels[:, :4] = -100
        optimiser.zero_grad()
        model(tokens, labels=labels).loss.backward()
        optimiser.step()
    return model.eval()


def write_task(folder: Path, name: str, kind: str, items: int, rng: np.random.Generator) -> None:
    """A task for the lm-evaluation-harness: is the answer what the model would say?"""
    rows = ({"prompt": prompt, "answer": answer} for prompt, answer in (draw(kind, rng) for _ in range(items)))
    (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / name}.jsonl}}}}\n"
        "test_split: test\n"
        "output_type: loglikelihood\n"
        'doc_to_text: "{{prompt}}"\n'
        'doc_to_target: " {{answer}}"\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
