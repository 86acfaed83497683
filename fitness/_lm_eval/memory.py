"""What forwards take beside the model: logits, activations and the key-value cache, from the longest texts.

Every number is that of the line which allocates it: `batches._score` and transformers' layers and generation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from lm_eval.evaluator_utils import get_sample_size

from evomerge.errors import FitnessError
from evomerge.models.architecture.language_part import sees
from evomerge.models.loaded import ModelOutline
from evomerge.utils.memory import MemoryPart
from evomerge.utils.sizes import size_text
from fitness._lm_eval.arguments import ModelArguments
from fitness._lm_eval.building import build_requests
from fitness._lm_eval.continuous import PIECES
from fitness._lm_eval.forwards import Forwards
from fitness._lm_eval.loading import TaskSet, has_images
from fitness._lm_eval.settings import BuildSettings
from fitness._lm_eval.shared_forwards import MOST_LOGITS, MOST_SOFTMAX, default_tokens
from fitness._lm_eval.slot_cache import AHEAD
from fitness._lm_eval.work import written

_SHORTLIST = 64
_LONGEST = 16  # documents of a task whose prompts are built
_POSITIONS = 2048  # what lm-eval takes where a configuration does not say


@dataclass(frozen=True)
class Texts:
    """The largest batch of a kind of request.

    Attributes:
        batch: texts.
        length: tokens of the longest.
        more: of scored ones, tokens whose logarithms are taken, in the batch; of generated ones, tokens to write.
    """

    batch: int
    length: int
    more: int


def forward_memory(
    tasks: TaskSet,
    model: ModelOutline,
    settings: BuildSettings,
    arguments: ModelArguments,
    forwards: Forwards,
) -> list[MemoryPart]:
    """What the largest batch takes; nothing where the model has no tokenizer, which scoring refuses.

    Args:
        tasks: loaded; their requests are built for the longest documents only.
        model: as far as it is known.
        settings: how prompts are made.
        arguments: of the model.
        forwards: how log-likelihoods and generation are run.

    Raises:
        FitnessError: prompts that cannot be built.
    """
    if model.tokenizer is None:
        return []
    if has_images(tasks):
        if not sees(model.config):
            names = ", ".join(name for name, task in tasks.tasks.items() if getattr(task, "MULTIMODAL", False))
            raise FitnessError(
                f"tasks have images ({names}), and the model reads texts alone",
                "a pool of models that see: LLaVA's, Qwen2-VL's, SmolVLM's or Gemma 3's kind",
                "leave them out",
            )
        return []  # how many tokens an image becomes is known once it is prepared
    sizes = _Sizes.of(model, arguments.softmax_dtype)
    positions = arguments.max_length or sizes.positions
    scored, generated = _largest(tasks, model.tokenizer, settings, arguments.batch_size, positions)
    found = []
    if scored is not None and forwards.mode == "shared":
        tokens = forwards.batch_tokens or default_tokens(torch.device("cpu" if model.on_host else "cuda"), sizes.hidden)
        tokens = max(2 * tokens, scored.length)  # what one subtree may have, or a text alone
        logits = min(tokens * sizes.vocabulary * sizes.width, MOST_LOGITS) + 2 * MOST_SOFTMAX
        what = f"{tokens} tokens that texts share: logits of {sizes.vocabulary:,} words"
        found.append((max(logits, sizes.activations(1, tokens)), f"{what} {size_text(logits)}", "batch_tokens"))
    elif scored is not None:
        what = f"{scored.batch} texts of {scored.length} tokens: logits of {sizes.vocabulary:,} words"
        logits = sizes.logits(scored)
        largest = max(logits, sizes.activations(scored.batch, scored.length))
        found.append((largest, f"{what} {size_text(logits)}", "batch_size"))
    if generated is not None:
        cache = sizes.key_values(generated, forwards.generation == "continuous")
        what = f"{generated.batch} texts of {generated.length} tokens, {generated.more} more written"
        prompt = sizes.activations(generated.batch, generated.length) + sizes.next_token(generated.batch)
        found.append((cache + prompt, f"{what}: keys and values {size_text(cache)}", "batch_size"))
    if not found:
        return []
    nbytes, text, key = max(found)
    place = "host" if model.on_host else "device"
    return [MemoryPart("forwards", nbytes, text, key, place=place, during="scoring")]  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Sizes:
    """What of a configuration sizes follow from."""

    vocabulary: int
    hidden: int
    inner: int
    heads: int
    key_heads: int
    head: int
    layers: int
    positions: int
    width: int  # bytes of a number
    wide: bool  # whether logarithms are taken in float32 of narrower numbers

    @classmethod
    def of(cls, model: ModelOutline, softmax_dtype: str) -> _Sizes:
        config = model.config.get_text_config()

        def number(*names: str, otherwise: int = 0) -> int:
            found = (getattr(config, name, None) for name in names)
            return next((value for value in found if isinstance(value, int) and value > 0), otherwise)

        hidden = number("hidden_size")
        heads = number("num_attention_heads", otherwise=1)
        width = model.dtype.itemsize
        return cls(
            vocabulary=number("vocab_size"),
            hidden=hidden,
            inner=number("intermediate_size", otherwise=4 * hidden),
            heads=heads,
            key_heads=number("num_key_value_heads", otherwise=heads),
            head=number("head_dim", otherwise=hidden // heads),
            layers=model.layers,
            positions=number("n_positions", "max_position_embeddings", "n_ctx", otherwise=_POSITIONS),
            width=width,
            wide=width < 4 and softmax_dtype != "model",
        )

    def logits(self, texts: Texts) -> int:
        """Of all positions; then the wanted rows, and their logarithms (`batches._score`)."""
        rows = texts.more * self.vocabulary
        taken = rows * self.width + rows * (8 if self.wide else self.width)  # in float32: converted first
        return texts.batch * texts.length * (self.vocabulary * self.width + self.hidden * self.width) + taken

    def activations(self, batch: int, length: int) -> int:
        """Of one layer, the others' are gone: the stream and its norm in float32; queries, keys, values; inner ones."""
        attention = (self.heads + 2 * self.key_heads) * self.head + self.heads * self.head
        each = 3 * self.hidden * 4 + max(attention, 3 * self.inner) * self.width + self.hidden * self.width
        return batch * length * each

    def key_values(self, texts: Texts, continuous: bool) -> int:
        """Of all layers once the last token is written; one layer's are there twice while they grow.

        Where texts are written continuously buffers have room for more, and of some prompts they wait beside them.
        """
        length = texts.length + texts.more
        room = max(AHEAD, length // 8) if continuous else 0
        waiting = max(1, texts.batch // PIECES) * texts.length if continuous else 0
        tokens = (self.layers + 1) * texts.batch * (length + room) + self.layers * waiting
        return 2 * self.key_heads * self.head * self.width * tokens

    def next_token(self, batch: int) -> int:
        """Scores of one token in float32, and what processors make of them."""
        return batch * self.vocabulary * (self.width + 3 * 4)


def _largest(
    tasks: TaskSet, tokenizer: Any, settings: BuildSettings, batch_size: int, positions: int
) -> tuple[Texts | None, Texts | None]:
    """The largest batches of texts that are scored, and of texts that are written."""
    terms = {name: loaded.term for loaded in tasks.terms for name in loaded.tasks}
    limits = {name: settings.limit if terms[name].limit is None else terms[name].limit for name in tasks.tasks}
    samples = {name: _longest(task, limits[name]) for name, task in tasks.tasks.items()}
    build_requests(tasks, tokenizer, settings, samples)
    scored: list[tuple[int, int]] = []  # tokens of a text, and of what is scored of it
    generated: list[tuple[int, int]] = []  # tokens of a prompt, and to be written at most
    texts = {"scored": 0, "generated": 0}
    for name, task in tasks.tasks.items():
        asked = get_sample_size(task, limits[name])
        documents = len(task.eval_docs) if asked is None else min(len(task.eval_docs), int(asked))
        each = len(task.instances) / max(1, len(samples[name]))
        kind = task.get_config("output_type")
        texts["generated" if kind == "generate_until" else "scored"] += math.ceil(documents * each)
        for instance in task.instances:
            if kind == "generate_until":
                most = written(task, terms[name], settings.gen_kwargs)
                generated.append((min(_tokens(tokenizer, instance.args[0]), max(1, positions - most)), most))
            else:
                whole = min(_tokens(tokenizer, "".join(map(str, instance.args))), positions)
                prompt = _tokens(tokenizer, instance.args[0]) if len(instance.args) > 1 else 0
                scored.append((max(whole - (len(instance.args) > 1), 1), max(1, whole - min(prompt, whole))))
    return (
        _batch(scored, min(batch_size, texts["scored"]), added=True),
        _batch(generated, min(batch_size, texts["generated"]), added=False),
    )


def _batch(found: Sequence[tuple[int, int]], size: int, added: bool) -> Texts | None:
    """The batch of the longest, which are scored first; their second numbers `added` up, or the largest."""
    if not found:
        return None
    longest = sorted(found, reverse=True)[:size]
    mean = sum(more for _, more in longest) / len(longest)
    return Texts(size, longest[0][0], math.ceil(mean * size) if added else max(more for _, more in longest))


def _tokens(tokenizer: Any, text: Any) -> int:
    return len(tokenizer(str(text), add_special_tokens=False)["input_ids"])


def _longest(task: Any, limit: float | None) -> list[int]:
    """Numbers of the documents that have most to read, within the limit."""
    documents = task.eval_docs
    asked = get_sample_size(task, limit)
    count = len(documents) if asked is None else min(len(documents), int(asked))
    # in their order: a data set reads many at once
    lengths = sorted(((len(str(document)), i) for i, document in enumerate(islice(documents, count))), reverse=True)
    read = sorted(((len(str(task.doc_to_text(documents[i]))), i) for _, i in lengths[:_SHORTLIST]), reverse=True)
    return sorted(i for _, i in read[:_LONGEST])
