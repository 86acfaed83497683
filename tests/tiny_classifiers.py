"""Tiny BERT classifiers on one encoder, with heads of their own, and files of labelled texts for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import write_tokenizer

LABELS: Mapping[str, Sequence[str]] = {
    "mood": ("bad", "good"),
    "topic": ("arts", "law", "news", "sport", "trade"),
}
WORDS = 40


def config(labels: Sequence[str] | None = None, **more: Any) -> Any:
    from transformers import BertConfig

    if labels is not None:
        more |= {"num_labels": len(labels), "id2label": dict(enumerate(labels))}
        more["label2id"] = {label: number for number, label in enumerate(labels)}
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertConfig(vocab_size=WORDS, max_position_embeddings=32, initializer_range=0.3, **small, **more)


def save(folder: Path, seed: int, labels: Sequence[str] | None = None, **more: Any) -> Path:
    """Write a classifier; without labels a base that fills gaps, which has neither a pooler nor a head."""
    from transformers import BertForMaskedLM, BertForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        own = config(labels, **more)
        model = BertForMaskedLM(own) if labels is None else BertForSequenceClassification(own)
    model.save_pretrained(folder)
    write_tokenizer(folder, WORDS)
    return folder


def save_pool(folder: Path) -> Path:
    """A base and a classifier for each task of `LABELS`."""
    save(folder / "base", 0)
    for seed, (name, labels) in enumerate(LABELS.items(), 1):
        save(folder / name, seed, labels)
    return folder


def rows(labels: Sequence[Any], count: int, seed: int) -> list[dict[str, Any]]:
    """Labelled texts of 2 to 12 words; every label occurs."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        words = " ".join(f"w{word}" for word in rng.integers(4, WORDS, rng.integers(2, 13)))
        label = labels[number] if number < len(labels) else labels[int(rng.integers(len(labels)))]
        found.append({"text": f"{words} w{4 + number % 36}", "label": label})
    return found


def write_rows(file: Path, found: Sequence[Mapping[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return str(file)
