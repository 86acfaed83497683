"""Makes a pool of seven small GPT-2 classifiers of one start, with files of the forms of GLUE's.

The start is a small GPT-2 that has learnt to go on with the texts; each classifier is trained on from there on one of
the tasks of `glue_texts`, with a new head.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.demo.building import build_once, versions
from evomerge.demo.docstrings import LIBRARIES, parted
from evomerge.demo.glue_texts import LABELS, GlueExample, glue_examples

BASE = "base"
PARTS, SHARES = ("train", "validation", "test"), (0.4, 0.25, 0.35)
CALIBRATION = 256
"""Items of each task, for Fisher merging and RegMean."""


@dataclass(frozen=True)
class GlueSizes:
    """How much is read and trained.

    Attributes:
        per_library: docstrings of each library that are looked at.
        train: of each task, examples to train on at most.
        validation, test: of each task, items of the search, and those that nothing is chosen by.
        vocabulary: tokens.
        start_steps, steps: of the start, and of each classifier.
        width, layers: of the models.
    """

    per_library: int = 100_000
    train: int = 3000
    validation: int = 1000
    test: int = 2000
    vocabulary: int = 1500
    start_steps: int = 250
    steps: int = 120
    width: int = 64
    layers: int = 3


QUICK = GlueSizes(40, 60, 14, 20, 300, 3, 3, 16, 2)
"""Models of the right shape that can do next to nothing."""

LENGTH, START_RATE, RATE = 40, 3e-3, 1.5e-3
_PAD, _END, _BETWEEN = "<pad>", "<|endoftext|>", "<between>"


def make_glue(
    folder: Path,
    seed: int = 0,
    *,
    threads: int | None = None,
    quick: bool = False,
    sizes: GlueSizes | None = None,
    each_step: Callable[[str], None] = lambda name: None,
) -> Path:
    """Make the pool in `folder`, unless it already holds this very pool.

    Writes a folder per model (``base``, a `GPT2LMHeadModel`; ``cola``, ``mnli``, ``mrpc``, ``qnli``, ``qqp``, ``rte``,
    ``sst2``, `GPT2ForSequenceClassification`), ``data`` with ``TASK-PART.jsonl`` (GLUE's columns) and
    ``TASK-train.safetensors`` (tokens and labels, for statistics of data), and ``manifest.json``. No text lies in two
    parts, of whichever tasks.

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

    chosen = sizes or (QUICK if quick else GlueSizes())
    wanted: dict[str, Any] = {"glue": 2, "seed": seed, **asdict(chosen), "shares": list(SHARES)}

    def write(building: Path) -> None:
        drawn, parameters, order = streams(seed)
        parts = _parts(chosen, drawn)
        with seeded(parameters, threads):
            _write(building, parts, chosen, order, each_step)

    wanted |= {"versions": versions(*LIBRARIES, "tokenizers")}
    return build_once(Path(folder).absolute(), wanted, "pool of GPT-2 classifiers", write)


def _parts(sizes: GlueSizes, rng: np.random.Generator) -> dict[str, dict[str, list[GlueExample]]]:
    """By task and part its examples: all that were made from a text are in one part, labels as even as can be."""
    most = {part: getattr(sizes, part) for part in PARTS}
    return parted(glue_examples(sizes.per_library, rng), lambda example: example.source, LABELS, most, SHARES, rng)


def _write(
    folder: Path,
    parts: Mapping[str, Mapping[str, Sequence[GlueExample]]],
    sizes: GlueSizes,
    rng: np.random.Generator,
    each_step: Callable[[str], None],
) -> None:
    """Write the data, train the models and write them."""
    from safetensors.numpy import save_file
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

    from evomerge.demo.text_training import encoded, labelled_batches, save_text_model, train_model

    (folder / "data").mkdir()
    for task, own in parts.items():
        for part, found in own.items():
            lines = [json.dumps(example.row(task), ensure_ascii=False) + "\n" for example in found]
            (folder / "data" / f"{task}-{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    texts = sorted({example.source for own in parts.values() for example in own["train"]})
    tokenizer = _tokenizer(texts, sizes.vocabulary)

    def encode(drawn: Sequence[GlueExample]) -> Any:
        pairs = None if drawn[0].pair is None else [str(one.pair) for one in drawn]
        return encoded([one.text for one in drawn], tokenizer, pairs)

    config = {
        "vocab_size": len(tokenizer),
        "n_positions": LENGTH,
        "n_embd": sizes.width,
        "n_layer": sizes.layers,
        "n_head": 4,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        "initializer_range": 0.05,
    }
    start = GPT2LMHeadModel(GPT2Config(**config))
    start.loss_type = "ForCausalLM"  # said, so that transformers does not warn that it guesses
    train_model(start, BASE, START_RATE, sizes.start_steps, _going_on(texts, tokenizer, rng), each_step)
    save_text_model(start, tokenizer, folder / BASE)
    for task, own in parts.items():
        model = GPT2ForSequenceClassification(GPT2Config(**config, num_labels=len(LABELS[task])))
        model.transformer.load_state_dict(start.transformer.state_dict())
        batches = labelled_batches(own["train"], LABELS[task], encode, rng)
        train_model(model, task, RATE, sizes.steps, batches, each_step)
        save_text_model(model, tokenizer, folder / task)
        items = own["train"][:CALIBRATION]
        tensors = {name: tensor.numpy() for name, tensor in encode(items).items()}
        labels = np.array([int(one.label) for one in items])
        save_file({**tensors, "labels": labels}, folder / "data" / f"{task}-train.safetensors")


def _tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """A byte-level tokenizer of these texts, as GPT-2's, with a token for padding and one between two texts."""
    from tokenizers import ByteLevelBPETokenizer, processors
    from transformers import PreTrainedTokenizerFast

    made = ByteLevelBPETokenizer(lowercase=True)
    made.train_from_iterator(texts, vocabulary, special_tokens=[_PAD, _END, _BETWEEN], show_progress=False)
    made._tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair=f"$A {_BETWEEN} $B", special_tokens=[(_BETWEEN, 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer,
        pad_token=_PAD,
        eos_token=_END,
        bos_token=_END,
        unk_token=_END,
        model_max_length=LENGTH,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )


def _going_on(texts: Sequence[str], tokenizer: Any, rng: np.random.Generator) -> Callable[[], dict[str, Any]]:
    """Draws batches of texts whose every next token is to be predicted."""
    import torch

    from evomerge.demo.text_training import BATCH, encoded

    def draw() -> dict[str, Any]:
        batch = encoded([texts[i] for i in rng.integers(len(texts), size=BATCH)], tokenizer)
        labels = torch.where(batch["attention_mask"] > 0, batch["input_ids"], -100)
        return {**batch, "labels": labels}

    return draw
