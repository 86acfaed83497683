"""Makes a pool of embedding models: one start, three models that find the function that a sentence describes.

The start is a small BERT that has learnt to fill gaps in sentences and signatures; each model is trained on from there
on the functions of some packages, as sentence-transformers trains: a sentence shall be more like its own signature than
like the others of the batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.demo.building import build_once, versions
from evomerge.demo.classifiers import MODEL
from evomerge.demo.encoders import gaps, wordpiece
from evomerge.demo.signatures import functions

BASE = "base"
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "science": ("numpy", "scipy"),
    "learning": ("sklearn", "torch"),
    "symbols": ("networkx", "sympy"),
}
"""Of each task, which is a source's too, the packages whose functions are found."""

PARTS, SHARES = ("train", "search", "held_out"), (0.6, 0.14, 0.26)


@dataclass(frozen=True)
class Sizes:
    """How much is read and trained.

    Attributes:
        per_library: functions of each package at most.
        search, held_out: of each task, queries of the search, and those that nothing is chosen by, at most.
        vocabulary: tokens.
        start_steps, steps: of the start, and of each model.
    """

    per_library: int = 600
    search: int = 160
    held_out: int = 320
    vocabulary: int = 2500
    start_steps: int = 300
    steps: int = 250


QUICK = Sizes(60, 20, 30, 500, 4, 4)
"""Models of the right shape that can do next to nothing."""

LENGTH, BATCH, START_RATE, RATE, SCALE = 48, 48, 3e-3, 1e-3, 20.0

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
"""As sentence-transformers has written them since its first version."""


def make_retrieval(
    folder: Path,
    seed: int = 0,
    *,
    threads: int | None = None,
    quick: bool = False,
    sizes: Sizes | None = None,
    each_step: Callable[[str], None] = lambda stage: None,
) -> Path:
    """Make the pool in `folder`, unless it already holds this very pool.

    Writes a folder per model (``base``, ``science``, ``learning``, ``symbols``), each one of sentence-transformers;
    ``data`` with ``corpus.jsonl``, ``queries.jsonl``, ``qrels/search.tsv`` and ``qrels/held_out.tsv`` for each task;
    and ``manifest.json``. A corpus has the signatures of all functions of the task, a query is the first sentence of
    one; no query was trained on.

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
    wanted: dict[str, Any] = {"retrieval": 1, "seed": seed, **asdict(chosen), "model": dict(MODEL)}

    def write(building: Path) -> None:
        drawn, parameters, order = streams(seed)
        found = {
            task: [own for name in every for own in functions(name, chosen.per_library, drawn)]
            for task, every in PACKAGES.items()
        }
        parts = {task: drawn.choice(PARTS, len(own), p=SHARES).tolist() for task, own in found.items()}
        with seeded(parameters, threads):
            for task, own in found.items():
                _write_data(building / "data" / task, own, parts[task], chosen)
            _write_models(building, found, parts, chosen, order, each_step)

    packages = [name for every in PACKAGES.values() for name in every]
    wanted |= {"versions": versions(*packages, "tokenizers")}
    return build_once(Path(folder).absolute(), wanted, "pool of embedding models", write)


def _write_data(folder: Path, found: Sequence[tuple[str, str]], parts: Sequence[str], sizes: Sizes) -> None:
    """A task in BEIR's form: the n-th function's sentence is ``qn``, its signature ``dn``."""
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "title": "", "text": signature} for n, (_, signature) in enumerate(found)]
    queries = [{"_id": f"q{n}", "text": sentence} for n, (sentence, _) in enumerate(found)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    for part in PARTS[1:]:
        own = [n for n, drawn in enumerate(parts) if drawn == part][: getattr(sizes, part)]
        lines = ["query-id\tcorpus-id\tscore\n", *(f"q{n}\td{n}\t1\n" for n in own)]
        (folder / "qrels" / f"{part}.tsv").write_text("".join(lines), encoding="utf-8")


def _write_models(
    folder: Path,
    found: Mapping[str, Sequence[tuple[str, str]]],
    parts: Mapping[str, Sequence[str]],
    sizes: Sizes,
    rng: np.random.Generator,
    each_step: Callable[[str], None],
) -> None:
    """Train the models and write them."""
    from transformers import BertConfig, BertForMaskedLM, BertModel

    from evomerge.demo.text_training import train

    pairs = {t: [own for own, part in zip(found[t], parts[t], strict=True) if part == "train"] for t in found}
    texts = [text for own in pairs.values() for pair in own for text in pair]
    tokenizer = wordpiece(texts, sizes.vocabulary, LENGTH)
    config = BertConfig(**MODEL, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    start = BertForMaskedLM(config)
    hidden = gaps(texts, tokenizer, BATCH, rng)
    train(start, BASE, START_RATE, sizes.start_steps, lambda: start(**hidden()).loss, each_step)
    base = BertModel(config)
    base.load_state_dict(start.bert.state_dict(), strict=False)
    _save(base, tokenizer, folder / BASE)
    for task, own in pairs.items():
        model = BertModel(config)
        model.load_state_dict(base.state_dict())
        train(model, task, RATE, sizes.steps, _ranked(model, own, tokenizer, rng), each_step)
        _save(model, tokenizer, folder / task)


def _ranked(
    model: Any, pairs: Sequence[tuple[str, str]], tokenizer: Any, rng: np.random.Generator
) -> Callable[[], Any]:
    """Draws batches, and gives the cross-entropy of each sentence's own signature among all of the batch.

    sentence-transformers' MultipleNegativesRankingLoss (Henderson et al. 2017, arXiv 1705.00652, section 4.4).
    """
    import torch

    from evomerge.demo.text_training import encoded

    def draw() -> Any:
        chosen = [pairs[i] for i in rng.choice(len(pairs), min(BATCH, len(pairs)), replace=False)]
        sentences, signatures = (_embedded(model, encoded(own, tokenizer)) for own in zip(*chosen, strict=True))
        return torch.nn.functional.cross_entropy(SCALE * sentences @ signatures.T, torch.arange(len(chosen)))

    return draw


def _embedded(model: Any, batch: Any) -> Any:
    """Means of the last hidden states, of length 1, shape ``(texts, width)``."""
    import torch

    mask = batch["attention_mask"].unsqueeze(-1)
    summed = (model(**batch).last_hidden_state * mask).sum(1)
    return torch.nn.functional.normalize(summed, dim=-1)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model as sentence-transformers does."""
    from evomerge.demo.text_training import save_text_model

    save_text_model(model, tokenizer, folder)
    pooling = {"word_embedding_dimension": MODEL["hidden_size"], "pooling_mode_mean_tokens": True}
    settings: dict[str, Any] = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    content: dict[str, Any] = {
        "modules.json": MODULES,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": LENGTH, "do_lower_case": False},
        "config_sentence_transformers.json": settings,
    }
    (folder / "1_Pooling").mkdir()  # normalising has no settings
    for name, own in content.items():
        (folder / name).write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
