"""Where a search for a path begins, on a deep model: `python scripts/benchmark_path_starts.py FOLDER`.

Makes two random Llamas of 30 layers and a task, and searches paths through their layers with few evaluations, as
searches begin now and as they did before `gentle_start`. The task's questions are random words, with four words to go
on with; the right one is that which a third random model, of which both are noisy copies, finds the likeliest. So there
is something to be right about without any training, and every layer matters to it. Prints a Markdown table.

FOLDER gets the models, the task and the runs; runs that are there already are read and not made again.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import evomerge
from evomerge.demo.languages import VOCABULARY, make_tokenizer
from evomerge.demo.train import WIDTH, new_model, save_model
from evomerge.report.history import read_history

LAYERS = 30
NOISE = 0.1
"""Standard deviation of what a matrix of a copy has on top at most, in those of the matrix; every layer has a share."""
QUESTIONS, WORDS, CHOICES = 120, 12, 4
EVALUATIONS = 16
STARTS = {
    "as above": [],
    "`strategy.start=0.7 search_space.gentle_start=false` (before)": [
        "strategy.start=0.7",
        "search_space.gentle_start=false",
    ],
}


def deep_model(seed: int) -> Any:
    """A random model of the demo's shape with `LAYERS` layers."""
    config = copy.deepcopy(new_model(seed).config)
    config.num_hidden_layers = LAYERS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(new_model(seed))(config).float().eval()


def noisy_copy(model: Any, rng: np.random.Generator) -> Any:
    """The model with Gaussian noise on the matrices of its layers, of another strength in every layer."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for layer in made.model.layers:
            strength = NOISE * rng.random()
            for parameter in layer.parameters():
                if parameter.ndim == 2:
                    noise = torch.from_numpy(rng.standard_normal(parameter.shape).astype(np.float32))
                    parameter.add_(noise * parameter.std() * strength)
    return made


def questions(model: Any, tokenizer: Any, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Random words, `CHOICES` words to go on with, and the number of the one that the model finds likeliest."""
    words = VOCABULARY[4:]
    rows = []
    for _ in range(QUESTIONS):
        text = " ".join(rng.choice(words, WORDS))
        choices = [str(word) for word in rng.choice(words, CHOICES, replace=False)]
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits[0, -1]
        likeliest = int(logits[torch.tensor(tokenizer.convert_tokens_to_ids(choices))].argmax())
        rows.append({"text": text, "choices": choices, "answer": likeliest})
    return rows


def make_pool(folder: Path, seed: int = 0) -> dict[str, str]:
    """The two copies and the task, in `folder`; returns the models' folders by name."""
    rng, tokenizer = np.random.default_rng(seed), make_tokenizer(WIDTH)
    whole = deep_model(seed)
    folders = {name: folder / name for name in ("model", "noisy")}
    for place in folders.values():
        save_model(noisy_copy(whole, rng), tokenizer, place)
    rows = questions(whole, tokenizer, rng)
    data = folder / "likeliest.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": "likeliest",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.absolute())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "likeliest.yaml").write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")
    return {name: str(place.absolute()) for name, place in folders.items()}


def scores(folder: Path, models: dict[str, str], words: list[str], run: Path) -> list[float]:
    """The scores of a search's candidates, in order; 0 for those without one."""
    if not run.exists():
        evomerge.search(
            *("search_space=data_flow", "strategy=catcma", *words),
            display="quiet",
            run_dir=str(run),
            pool={"models": models},
            search={"evaluations": EVALUATIONS, "baselines": False},
            fitness={"tasks": [str(folder.absolute() / "likeliest.yaml")], "batch_size": 64},
        )
    return [trial.objectives.get("score", 0.0) for trial in read_history(run).trials]


def main(arguments: list[str] | None = None) -> int:
    """Make the pool, search, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where models, task and runs go")
    parser.add_argument("--seeds", type=int, default=3, help="searches for each row (default: 3)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    models = make_pool(given.folder)
    lines = [f"| | best of {EVALUATIONS} | median of {EVALUATIONS} |", "| --- | --- | --- |"]
    first = None
    for number, (name, words) in enumerate(STARTS.items()):
        found = []
        for seed in range(given.seeds):
            run = given.folder / "runs" / f"{number}-{seed}"
            found.append(scores(given.folder, models, [*words, f"search.seed={seed}"], run))
        first = found[0][0] if first is None else first  # as searches begin now, with the input model
        best = ", ".join(f"{max(each):.3f}" for each in found)
        median = ", ".join(f"{np.median(each):.2f}" for each in found)
        lines.append(f"| {name} | {best} | {median} |")
    print(f"the input model: {first:.3f}\n\n" + "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
