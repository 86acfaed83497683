"""Tiny embedding models in sentence-transformers' folders, and corpora in BEIR's form for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tiny_classifiers import WORDS, config
from tiny_models import write_tokenizer

WIDTH = 16
CLASSES = "sentence_transformers.models"
POOLING: Mapping[str, Any] = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}


def save_encoder(
    folder: Path,
    seed: int,
    pooling: Mapping[str, Any] | None = POOLING,
    dense: int = 0,
    normalize: bool = True,
    settings: Mapping[str, Any] | None = None,
    transformer: Mapping[str, Any] | None = None,
    modules: Sequence[tuple[str, str, Mapping[str, Any]]] = (),
) -> Path:
    """Write one; with `dense`, a layer of so many outputs; with `modules`, these in place of all others."""
    from transformers import BertModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config())
        weights = torch.randn(dense or WIDTH, WIDTH + 1)
    model.save_pretrained(folder)
    write_tokenizer(folder, WORDS)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    words = {"mask_token": "w39", "model_max_length": 32}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | words))
    listed = list(modules)
    if not listed:
        listed = [("Pooling", "", pooling or {})] if pooling is not None else []
        if dense:
            own = {
                "in_features": WIDTH,
                "out_features": dense,
                "activation_function": "torch.nn.modules.activation.Tanh",
            }
            listed.append(("Dense", "", own))
        listed += [("Normalize", "", {})] if normalize else []
    entries = [{"idx": 0, "name": "0", "path": "", "type": f"{CLASSES}.Transformer"}]
    for number, (kind, whole, content) in enumerate(listed, 1):
        place = folder / f"{number}_{kind}"
        place.mkdir()
        (place / "config.json").write_text(json.dumps(content))
        if kind == "Dense":
            own = weights[: content["out_features"]]
            held = {"linear.weight": own[:, :-1].contiguous(), "linear.bias": own[:, -1].contiguous()}
            if not content.get("bias", True):
                del held["linear.bias"]
            save_file(held, place / "model.safetensors")
        entries.append({"idx": number, "name": str(number), "path": place.name, "type": whole or f"{CLASSES}.{kind}"})
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24, **(transformer or {})}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings or {"prompts": {}}))
    return folder


LATE: Sequence[tuple[str, str, Mapping[str, Any]]] = (
    (
        "Dense",
        "pylate.models.Dense.Dense",
        {
            "in_features": WIDTH,
            "out_features": 6,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    ),
)
"""Modules of PyLate: an embedding of every token."""

LATE_SETTINGS: Mapping[str, Any] = {
    "model_type": "ColBERT",
    "query_prefix": "w4 ",
    "document_prefix": "w5 ",
    "query_length": 12,
    "document_length": 20,
    "skiplist_words": ["w6", "w7"],
    "do_query_expansion": True,
    "attend_to_expansion_tokens": False,
}


def words(rng: np.random.Generator, least: int = 2, most: int = 12) -> str:
    return " ".join(f"w{word}" for word in rng.integers(8, WORDS - 1, rng.integers(least, most)))


def write_corpus(folder: Path, documents: int = 30, queries: int = 12, seed: int = 0) -> Path:
    """A corpus, and queries that are parts of documents; every third has two right ones, of grades 2 and 1."""
    rng = np.random.default_rng(seed)
    texts = [words(rng, 4) for _ in range(documents)]
    corpus = [{"_id": f"d{i}", "title": f"w{8 + i % 30}", "text": text} for i, text in enumerate(texts)]
    asked = [{"_id": f"q{i}", "text": " ".join(texts[i].split()[:3]) + f" w{8 + i}"} for i in range(queries)]
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, rows in (("corpus", corpus), ("queries", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["query-id\tcorpus-id\tscore\n"]
    for i in range(queries):
        lines.append(f"q{i}\td{i}\t{2 if i % 3 == 0 else 1}\n")
        lines += [f"q{i}\td{(i + 7) % documents}\t1\n"] if i % 3 == 0 else []
        lines += [f"q{i}\td{(i + 11) % documents}\t0\n"] if i % 3 == 1 else []
    (folder / "qrels" / "test.tsv").write_text("".join(lines))
    return folder


def write_pairs(file: Path, count: int = 14, seed: int = 1) -> Path:
    """Pairs of texts with a number from 0 to 5."""
    rng = np.random.default_rng(seed)
    rows = [
        {"sentence1": words(rng), "sentence2": words(rng), "score": float(rng.integers(0, 6))} for _ in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
