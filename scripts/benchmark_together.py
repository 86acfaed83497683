"""What it saves to score candidates that are adapters at once: vLLM's engine, in one run."""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from rich.table import Table

from evomerge.evaluation.adapter_files import write_adapter
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.evaluation.vllm_resident import VllmResident
from evomerge.merge.adapters.exact import ExactAdapters
from evomerge.merge.adapters.places import Kind
from evomerge.merge.methods.low_rank import Factors
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.slices import Input, SliceRecipe
from fitness._lm_eval.arguments import ModelArguments
from scripts.benchmark_forwards import console
from scripts.benchmark_generation import CASES, random_model

CANDIDATES = 8
ADAPTERS, RANK = 3, 8
SEQUENCES = 64
"""Requests in a forward, at most."""


class Candidates:
    """An engine and candidates that are new every time.

    Args:
        pool: a base and adapters of it.
        adapters: room for so many in the engine; 0 for an engine that merges.
    """

    def __init__(self, pool: Pool, adapters: int) -> None:
        from fitness._lm_eval.engine_session import engine_lm  # imports vLLM

        arguments = {"max_num_seqs": SEQUENCES, "kv_cache_memory_bytes": 1 << 28, "max_model_len": 256}
        self.held = VllmResident(pool, "cpu", EngineSettings("vllm", arguments, adapters=adapters), CacheSettings())
        self._lm: Any = engine_lm(self.held.model, ModelArguments())
        self._pool, self._instances = pool, list[Any]()
        self._rng = np.random.default_rng(0)

    def plan(self) -> Plan:
        """A candidate with weights of its own for every adapter and slice."""
        names = [name for name, _ in self._pool.info.refs if name != "base"]
        slices = [
            SliceRecipe(
                own,
                "task_arithmetic",
                tuple(Input(name, None, (("weight", float(self._rng.uniform(0.1, 0.9))),)) for name in names),
                (),
                Input("base"),
            )
            for own in self._pool.info.slices
        ]
        return make_plan(self._pool.info.recipe(slices), self._pool)

    def timed(self, instances: Sequence[Any], ways: Sequence[int], repeats: int) -> list[float]:
        """Median seconds of a candidate that is asked these, for each number at once; the first time warms up."""
        self._instances = list(instances)
        for way in ways:
            self.seconds(way)
        times = [[self.seconds(way) for way in ways] for _ in range(repeats)]
        return [statistics.median(own) / CANDIDATES for own in zip(*times, strict=True)]

    def seconds(self, at_once: int) -> float:
        """Of `CANDIDATES` candidates, so many at once; 0 for merged one after the other."""
        plans = [self.plan() for _ in range(CANDIDATES)]
        start = time.perf_counter()
        if not at_once:
            for plan in plans:
                self.held.apply(plan)
                self._lm.rebind(self.held.model)
                self._lm.answer("generate_until", self._instances)
            return time.perf_counter() - start
        models = self.held.adapter_models
        assert models is not None
        models.begin()
        for first in range(0, CANDIDATES, at_once):
            found = [models.find(plan) for plan in plans[first : first + at_once]]
            loaded = [models.load(adapter)[0] for adapter in found if adapter is not None]
            answers, _ = self._lm.answer_together("generate_until", [self._instances] * at_once, loaded)
            assert all(isinstance(own, list) for own in answers)
        return time.perf_counter() - start


def together(names: Sequence[str], prompts: Sequence[int], tokens: int, threads: int | None, repeats: int) -> None:
    """Print a row for each case and number of prompts: candidates a second, merged and as adapters.

    Args:
        names: of `CASES`.
        prompts: that each candidate goes on with.
        tokens: that it writes after each.
        threads: of torch.
        repeats: medians of so many are given.
    """
    if find_spec("vllm") is None:
        sys.exit("vLLM is not installed: scripts/vllm_environment.sh makes an environment with it")
    if threads is not None:
        torch.set_num_threads(threads)
    title = f"prompts of 10 to 60 tokens, {tokens} written after each, {ADAPTERS} adapters of rank {RANK}"
    table = Table(title=f"{title}, {torch.get_num_threads()} threads, median of {repeats}")
    for column in ("case", "prompts", "merged, candidates/s", "requests/s", "1 at once", "4 at once", "8 at once"):
        table.add_column(column, justify="left" if column == "case" else "right")
    rng = random.Random(0)
    settings = {"until": ["</never>"], "max_gen_toks": tokens}
    texts = [" ".join(f"w{rng.randrange(400)}" for _ in range(rng.randint(10, 60))) for _ in range(max(prompts))]
    instances = [Instance("generate_until", {}, (text, settings), n, task_name="short") for n, text in enumerate(texts)]
    ways = (1, 4, 8)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            pool = _pool(name, Path(folder))
            merging = Candidates(pool, 0)
            before = [merging.timed(instances[:count], (0,), repeats)[0] for count in prompts]
            merging.held.close()
            engine = Candidates(pool, 8)
            after = [engine.timed(instances[:count], ways, repeats) for count in prompts]
            engine.held.close()
        for count, merged, others in zip(prompts, before, after, strict=True):
            each = [f"{1 / own:.2f} ({merged / own:.2f}x)" for own in others]
            table.add_row(CASES[name].about, f"{count}", f"{1 / merged:.2f}", f"{count / merged:.0f}", *each)
    console.print(table)
    console.print("merged: slices that changed are merged into an engine without adapters, one candidate at a time")


def _pool(name: str, folder: Path) -> Pool:
    """A base of random weights, and adapters of all of its linear layers."""
    lm = random_model(CASES[name], 16)
    lm.model.save_pretrained(folder / "base")
    lm.tokenizer.save_pretrained(folder / "base")
    models = {"base": str(folder / "base")}
    plain = ExactAdapters(open_pool({**models, "itself": models["base"]}, base="base"))
    linear = {path: module for path, module in lm.model.model.named_modules() if isinstance(module, torch.nn.Linear)}
    for number in range(ADAPTERS):
        generator = torch.Generator().manual_seed(number)
        factors: dict[str, tuple[Factors, Kind]] = {}
        for path, module in linear.items():
            rows, columns = module.weight.shape
            b, a = (0.02 * torch.randn(shape, generator=generator) for shape in ((rows, RANK), (RANK, columns)))
            factors[f"model.{path}"] = Factors(b, a), "linear"
        target = folder / f"adapter{number}"
        target.mkdir()
        write_adapter(target, factors, plain.base, plain.places)
        models[f"a{number}"] = f"{folder / 'base'}+{target}"
    return open_pool(models, base="base")
