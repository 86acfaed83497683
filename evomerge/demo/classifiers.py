"""Makes a pool of three classifiers with heads of their own: one start, three tasks, 2, 5 and 9 labels.

The start is a small BERT that has learnt to fill gaps in the texts of `docstrings`; each classifier is trained on from
there on one of the tasks, with a new head.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.demo.building import build_once, versions
from evomerge.demo.docstrings import LABELS, LIBRARIES, Example, examples, parted

BASE = "base"
TASKS = tuple(LABELS)
"""Names of the tasks, of their sources, and of their files."""

PARTS, SHARES = ("train", "search", "held_out"), (0.6, 0.12, 0.28)


@dataclass(frozen=True)
class Sizes:
    """How much is read and trained.

    Attributes:
        per_library: docstrings of each library that are looked at.
        train: of each task, examples to train on at most.
        search, held_out: of each task, items of the search, and those that nothing is chosen by.
        vocabulary: tokens.
        start_steps, steps: of the start, and of each classifier.
    """

    per_library: int = 1200
    train: int = 3600
    search: int = 300
    held_out: int = 750
    vocabulary: int = 2000
    start_steps: int = 300
    steps: int = 200


QUICK = Sizes(60, 180, 60, 90, 400, 4, 4)
"""Models of the right shape that can do next to nothing."""

MODEL: Mapping[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.05,
}
LENGTH, START_RATE, RATE = 48, 3e-3, 1e-3


def make_classifiers(
    folder: Path,
    seed: int = 0,
    *,
    threads: int | None = None,
    quick: bool = False,
    sizes: Sizes | None = None,
    each_step: Callable[[str], None] = lambda stage: None,
) -> Path:
    """Make the pool in `folder`, unless it already holds this very pool.

    Writes a folder per model (``base``, a `BertForMaskedLM`; ``kind``, ``section``, ``library``,
    `BertForSequenceClassification`), ``data`` with ``TASK-PART.jsonl`` for each task and part (``text``, ``label``),
    and ``manifest.json``. No text lies in two parts, of whichever tasks.

    Args:
        folder: where the pool goes; an earlier one there is replaced, anything else is left alone.
        seed: decides texts and parameters; the same pool comes out for the same seed, packages and threads.
        threads: torch threads to train with; torch's number for ``None``.
        quick: `QUICK`, instead of the whole training.
        sizes: others than `quick` says.
        each_step: called after every step with the name of the model that is trained.

    Returns:
        The absolute path of `folder`.

    Raises:
        OutputError: `folder` holds something else.
    """
    from evomerge.demo.train import seeded, streams

    chosen = sizes or (QUICK if quick else Sizes())
    wanted: dict[str, Any] = {"classifiers": 1, "seed": seed, **asdict(chosen), "model": dict(MODEL)}

    def write(building: Path) -> None:
        drawn, parameters, order = streams(seed)
        parts = _parts(chosen, drawn)
        with seeded(parameters, threads):
            _write(building, parts, chosen, order, each_step)

    wanted |= {"versions": versions(*LIBRARIES, "tokenizers")}
    return build_once(Path(folder).absolute(), wanted, "pool of classifiers", write)


def _parts(sizes: Sizes, rng: np.random.Generator) -> dict[str, dict[str, list[Example]]]:
    """By task and part its examples; a text is in one part for all tasks, and labels are as even as they can be."""
    most = {part: getattr(sizes, part) for part in PARTS}
    return parted(examples(sizes.per_library, rng), lambda example: example.text, LABELS, most, SHARES, rng)


def _write(
    folder: Path,
    parts: Mapping[str, Mapping[str, Sequence[Example]]],
    sizes: Sizes,
    rng: np.random.Generator,
    each_step: Callable[[str], None],
) -> None:
    """Write the data, train the models and write them."""
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    from evomerge.demo.encoders import gaps, wordpiece
    from evomerge.demo.text_training import BATCH, encoded, labelled_batches, save_text_model, train_model

    (folder / "data").mkdir()
    for task, own in parts.items():
        for part, found in own.items():
            lines = [json.dumps(asdict(example), ensure_ascii=False) + "\n" for example in found]
            (folder / "data" / f"{task}-{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    texts = [example.text for own in parts.values() for example in own["train"]]
    tokenizer = wordpiece(texts, sizes.vocabulary, LENGTH)
    config = {**MODEL, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    start = BertForMaskedLM(BertConfig(**config))
    train_model(start, BASE, START_RATE, sizes.start_steps, gaps(texts, tokenizer, BATCH, rng), each_step)
    save_text_model(start, tokenizer, folder / BASE)
    for task, own in parts.items():
        labels = LABELS[task]
        names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        model = BertForSequenceClassification(BertConfig(**config, num_labels=len(labels), **names))
        model.bert.load_state_dict(start.bert.state_dict(), strict=False)  # the pooler begins anew
        batches = labelled_batches(
            own["train"], labels, lambda drawn: encoded([one.text for one in drawn], tokenizer), rng
        )
        train_model(model, task, RATE, sizes.steps, batches, each_step)
        save_text_model(model, tokenizer, folder / task)
