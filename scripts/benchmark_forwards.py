"""What sharing the tokens of prompts saves: log-likelihoods of one model, shared, exact and as plain forwards."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from fitness._lm_eval.batches import plan_batches, score_batches
from fitness._lm_eval.model import TokenRequest
from fitness._lm_eval.shared_forwards import BatchLimits, SharedForwards, default_tokens

console = Console(width=None if sys.stdout.isatty() else 150)  # tables are read from files too
_SHAPES = ((1, 128), (1, 256), (1, 512), (4, 64), (4, 128), (8, 128), (16, 64))  # of plain batches, texts by tokens


@dataclass(frozen=True)
class Case:
    """A model with random weights, and items of four choices.

    Attributes:
        about: what it stands for.
        vocabulary, width, layers: of the model.
        preamble: tokens that all prompts begin with.
        question: tokens of each item of its own.
        items: how many.
    """

    about: str
    vocabulary: int
    width: int
    layers: int
    preamble: int
    question: int
    items: int

    def model(self, dtype: torch.dtype) -> Any:
        """The model, the same at every call."""
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.width * 8 // 3 // 32 * 32,
            num_hidden_layers=self.layers,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=2048,
        )
        return LlamaForCausalLM(config).to(dtype).eval()

    def requests(self) -> list[TokenRequest]:
        """Four answers of three to eight tokens to each question."""
        rng = random.Random(0)

        def text(count: int) -> list[int]:
            return [rng.randrange(3, self.vocabulary) for _ in range(count)]

        preamble, found = text(self.preamble), []
        for _ in range(self.items):
            question = text(self.question)
            found += [TokenRequest(None, preamble + question, text(rng.randint(3, 8))) for _ in range(4)]
        return found


CASES = {
    "peer": Case("39M parameters, 2 shots of their own, answers of 100 items", 300, 512, 12, 1, 48, 100),
    "preamble": Case("200 items after a preamble of 600 tokens", 300, 256, 4, 600, 24, 200),
    "vocabulary": Case("a vocabulary of 262,144 over a width of 640", 262_144, 640, 4, 1, 48, 50),
}


def forwards(names: list[str], dtypes: list[str], threads: int | None, repeats: int) -> None:
    """Print a row for each case and dtype."""
    if threads is not None:
        torch.set_num_threads(threads)
    table = Table(title=f"one candidate's log-likelihoods, {torch.get_num_threads()} threads, median of {repeats}")
    for column in ("case", "dtype", "tokens exact", "shared", "exact s", "shared s", "faster", "plain s", "over plain"):
        table.add_column(column, justify="left" if column in ("case", "dtype") else "right")
    for column in ("apart, nats", "logits exact MB", "shared MB"):
        table.add_column(column, justify="right")
    for name in names:
        for dtype in dtypes:
            table.add_row(*_row(name, CASES[name], dtype, repeats))
    console.print(table)
    for name in names:
        console.print(f"{name}: {CASES[name].about}")


def _row(name: str, case: Case, dtype_name: str, repeats: int) -> list[str]:
    dtype = getattr(torch, dtype_name)
    module, requests = case.model(dtype), case.requests()
    softmax = None if dtype == torch.float32 else torch.float32
    batches = plan_batches(requests, batch_size=16, max_length=2048, device=torch.device("cpu"), grouped=True)
    tokens = default_tokens(module.device, module.config.hidden_size)
    shared = SharedForwards(requests, module, max_length=2048, limits=BatchLimits(tokens), softmax_dtype=softmax)
    rows: list[int] = []
    hook = module.lm_head.register_forward_hook(lambda _, __, out: rows.append(out.shape[:-1].numel()))
    expected = score_batches(module, batches, softmax, len(requests))[0]
    most_exact = max(rows)
    rows.clear()
    found, _ = shared.score(module)
    most_shared = max(rows)
    hook.remove()
    exact_s, shared_s = alternating(
        repeats,
        lambda: score_batches(module, batches, softmax, len(requests)),
        lambda: shared.score(module),
    )
    plain_s = min(_plain(module, shared.tokens, *shape) for shape in _SHAPES)
    stock = sum(len(r.context) + len(r.continuation) - 1 for r in requests)
    megabytes = [rows_ * case.vocabulary * dtype.itemsize / 1e6 for rows_ in (most_exact, most_shared)]
    return [
        name,
        dtype_name,
        f"{stock:,}",
        f"{shared.tokens:,}",
        f"{exact_s:.2f}",
        f"{shared_s:.2f}",
        f"{exact_s / shared_s:.1f}x",
        f"{plain_s:.2f}",
        f"{shared_s / plain_s:.2f}x",
        f"{np.abs(found - expected).max():.1e}",
        *(f"{size:,.1f}" for size in megabytes),
    ]


def alternating(repeats: int, *calls: Callable[[], Any]) -> list[float]:
    """Median seconds of each call, in turns so that a busy machine hits all alike."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, of_call in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            of_call.append(time.perf_counter() - start)
    return [statistics.median(of_call) for of_call in seconds]


def _plain(module: Any, tokens: int, texts: int, length: int) -> float:
    """Seconds of forwards over so many tokens in batches of one shape, without logits but the last."""
    ids = torch.randint(0, module.config.vocab_size, (texts, length))
    count = max(1, round(tokens / ids.numel()))
    with torch.no_grad():
        module(input_ids=ids, use_cache=False, logits_to_keep=1)
        start = time.perf_counter()
        for _ in range(count):
            module(input_ids=ids, use_cache=False, logits_to_keep=1)
        return (time.perf_counter() - start) * tokens / (count * ids.numel())
