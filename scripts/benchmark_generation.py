"""What a batch that stays full saves: greedy texts of one model by lm-eval, after shared prompts, and continuously."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from evomerge.merge.planning.plan import make_plan
from evomerge.models.loaded import LoadedModel
from fitness._lm_eval.arguments import ModelArguments
from fitness._lm_eval.continuous import ContinuousGeneration
from fitness._lm_eval.model import ResidentLM
from fitness._lm_eval.resident_model import resident_lm
from fitness._lm_eval.shared_forwards import default_tokens
from fitness._lm_eval.shared_prefill import SharedPrefill
from scripts.benchmark_forwards import alternating, console

_WORDS = 400
_PREAMBLE = 300
_MOST = 128
_STOP = [f"w{number} " for number in range(0, _WORDS, 40)]  # one word in forty ends a text


@dataclass(frozen=True)
class Case:
    """A model with random weights."""

    about: str
    width: int
    layers: int


CASES = {"small": Case("3M parameters", 256, 4), "peer": Case("38M parameters", 512, 12)}


def generation(names: list[str], prompts: int, batch_size: int, threads: int | None, repeats: int) -> None:
    """Print a row for each case: tokens a second, as times those of lm-eval's batches."""
    if threads is not None:
        torch.set_num_threads(threads)
    title = f"{prompts} prompts after a preamble of {_PREAMBLE} tokens, {batch_size} at a time"
    table = Table(title=f"{title}, {torch.get_num_threads()} threads, median of {repeats}")
    for column in ("case", "tokens", "longest", "stock tokens/s", "prompts shared", "continuous", "both"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for column in ("transformers'", "vLLM", "texts that differ"):
        table.add_column(column, justify="right")
    lines = []
    for name in names:
        row, line = _row(CASES[name], prompts, batch_size, repeats)
        table.add_row(name, *row)
        lines += [f"{name}: {line}"] if line else []
    console.print(table)
    for line in lines:
        console.print(line)
    for name in names:
        console.print(f"{name}: {CASES[name].about}")
    console.print("transformers': its continuous batching, told how long each text will be: it knows no stop strings")


def _row(case: Case, prompts: int, batch_size: int, repeats: int) -> tuple[list[str], str]:
    """The row, and what changing the weights of vLLM's engine takes; empty where vLLM is not installed."""
    lm = random_model(case, batch_size)
    instances = _instances(prompts)
    prefill = SharedPrefill(lm.model, default_tokens(lm.device, case.width))
    engine = ContinuousGeneration(lm.tokenizer, batch_size)

    def way(shared: bool, continuous: bool) -> Callable[[], list[str]]:
        def texts() -> list[str]:
            lm.prefill, lm.continuous = prefill if shared else None, engine if continuous else None
            return lm.generate(instances)[0]

        return texts

    ways = [way(False, False), way(True, False), way(False, True), way(True, True)]
    stock, *others = (texts() for texts in ways)
    ids = [lm.tokenizer(instance.args[0])["input_ids"] for instance in instances]
    lengths = [min(_MOST, len(text.split()) + 1) for text in stock]  # a stop string is a token, and is cut off
    timed: list[Callable[[], object]] = [*ways, lambda: _transformers(lm.model, ids, lengths, batch_size)]
    line = ""
    with tempfile.TemporaryDirectory() as folder:
        if find_spec("vllm") is not None:
            from scripts.benchmark_engine import SHORT, EngineTexts, saved

            vllm = EngineTexts.start(saved(lm.model, lm.tokenizer, Path(folder)), batch_size)
            swap, texts = vllm.swap([instance.args[0] for instance in instances], max(repeats, 5))
            line = (
                f"a swap of one slice of vLLM's engine takes {1e3 * swap:.1f} ms, {100 * swap / texts:.1f} % of "
                f"{SHORT} short generations"
            )
            vllm.held.apply(make_plan(vllm.held.pool.info.linear({"a": 1.0}), vllm.held.pool))
            timed.append(lambda: vllm.texts(instances))
            others.append(vllm.texts(instances))
        seconds = alternating(repeats, *timed)
    differ = sum(_words(a) != _words(b) for other in others for a, b in zip(stock, other, strict=True))
    faster = [f"{seconds[0] / other:.2f}x" for other in seconds[1:]] + ["-"] * (line == "")
    return [f"{sum(lengths):,}", str(max(lengths)), f"{sum(lengths) / seconds[0]:,.0f}", *faster, str(differ)], line


def _words(text: str) -> list[str]:
    """The words of a text: lm-eval's vLLM model shows special tokens, and the blank before the first word."""
    return [word for word in text.split() if not word.startswith("<")]


def random_model(case: Case, batch_size: int) -> ResidentLM:
    """A model of random weights, with a tokenizer of words."""
    words = ["<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(_WORDS))]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=case.width,
        intermediate_size=case.width * 8 // 3 // 32 * 32,
        num_hidden_layers=case.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        initializer_range=0.08,  # texts that do not run in circles
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    module = LlamaForCausalLM(config).eval()
    loaded = LoadedModel(module, tokenizer, torch.float32, torch.device("cpu"), "random")
    return resident_lm(loaded, ModelArguments(batch_size=batch_size))


def _instances(prompts: int) -> list[Any]:
    rng = random.Random(0)

    def text(count: int) -> str:
        return " ".join(f"w{rng.randrange(_WORDS)}" for _ in range(count))

    preamble, settings = text(_PREAMBLE), {"until": _STOP, "max_gen_toks": _MOST}
    asked = [(f"{preamble} {text(rng.randint(10, 60))}", settings) for _ in range(prompts)]
    return [Instance("generate_until", {}, args, place, task_name="ragged") for place, args in enumerate(asked)]


def _transformers(module: Any, prompts: list[list[int]], lengths: list[int], batch_size: int) -> None:
    """The same texts by transformers' continuous batching, with room for as many at a time."""
    columns = max(map(len, prompts)) + _MOST
    pages = ContinuousBatchingConfig(
        page_size=64,
        num_blocks=batch_size * -(-columns // 64),
        max_batch_tokens=256,
        max_requests_per_batch=batch_size,
    )
    kept = module.config._attn_implementation
    with module.continuous_batching_context_manager(continuous_batching_config=pages) as manager:
        for place, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            manager.add_request(prompt, request_id=str(place), max_new_tokens=length, eos_token_id=-1)
        waiting = len(prompts)
        while waiting:
            found = manager.get_result(timeout=1)
            waiting -= found is not None and found.is_finished()
            if found is None:
                time.sleep(0.01)
    module.set_attn_implementation(kept)
