"""Writes the files of ``protocol=gpt2_glue``: `python scripts/glue_files.py data/glue`, with GLUE from the hub.

For each of seven tasks: ``TASK-test.jsonl``, GLUE's validation split (MNLI's matched one), on which fusion_bench tests;
``TASK-validation.jsonl``, `--search` items of the training split, for searches and grids; and
``TASK-train.safetensors``, `--calibration` others of the training split as tokens with labels, for Fisher merging and
RegMean.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.demo.glue_texts import COLUMNS
from evomerge.errors import EvomergeError
from evomerge.utils.files import write_text_atomic

TEST_SPLITS = {"mnli": "validation_matched"}
"""Of tasks whose tested split is not called ``validation``."""


def row_of(task: str, example: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a task's file: its columns, and the label."""
    return {name: example[name] for name in (*COLUMNS[task], "label") if name is not None}


def split_rows(count: int, search: int, calibration: int, seed: int) -> tuple[list[int], list[int]]:
    """Places in a training split for searches, and others for statistics of data; each once.

    Args:
        count: of the split.
        search, calibration: how many; fewer where there are not so many.
        seed: of the draw.
    """
    order = [int(place) for place in np.random.default_rng(seed).permutation(count)]
    first = min(search, count // 2)
    return order[:first], order[first : first + calibration]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON lines."""
    write_text_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_tensors(path: Path, task: str, rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> None:
    """Write tokens and labels, padded to the longest."""
    from safetensors.numpy import save_file

    text, pair = COLUMNS[task]
    both = [[row[name] for row in rows] for name in (text, pair) if name is not None]
    tokens = tokenizer(*both, padding=True, truncation=True, max_length=512, return_tensors="np")
    labels = np.array([row["label"] for row in rows], dtype=np.int64)
    save_file({**{name: np.asarray(own) for name, own in tokens.items()}, "labels": labels}, path)


def main(arguments: list[str] | None = None) -> int:
    """Write the files; returns the exit status."""
    parser = argparse.ArgumentParser(description="Files of GLUE for protocol=gpt2_glue.")
    parser.add_argument("folder", type=Path, help="where they go")
    parser.add_argument(
        "--search", type=int, default=500, help="items of each training split to search on (default: 500)"
    )
    parser.add_argument("--calibration", type=int, default=256, help="and for statistics of data (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    options = parser.parse_args(arguments)
    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("openai-community/gpt2")
    tokenizer.pad_token = tokenizer.eos_token
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        for task in COLUMNS:
            glue = datasets.load_dataset("nyu-mll/glue", task)
            train, test = glue["train"], glue[TEST_SPLITS.get(task, "validation")]
            searched, measured = split_rows(len(train), options.search, options.calibration, options.seed)
            write_rows(options.folder / f"{task}-test.jsonl", [row_of(task, example) for example in test])
            write_rows(options.folder / f"{task}-validation.jsonl", [row_of(task, train[place]) for place in searched])
            rows = [row_of(task, train[place]) for place in measured]
            write_tensors(options.folder / f"{task}-train.safetensors", task, rows, tokenizer)
            print(f"{task}: {len(test)} to test on, {len(searched)} to search on")
    except EvomergeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
