"""vLLM in the benchmark of generation: the same texts by its engine, and what changing its weights takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.evaluation.vllm_resident import VllmResident
from evomerge.merge.planning.plan import make_plan
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.slices import Input, SliceId, SliceRecipe
from fitness._lm_eval.arguments import ModelArguments
from fitness._lm_eval.engine_session import engine_lm

SHORT, TOKENS = 50, 16
"""Generations of a candidate whose weights are changed, and their tokens."""


@dataclass
class EngineTexts:
    """An engine around a pool of two models, as a worker has it.

    Attributes:
        held: the engine, on the pool's first model.
        lm: lm-eval's model around it.
    """

    held: VllmResident
    lm: Any

    @classmethod
    def start(cls, folders: dict[str, str], at_once: int) -> EngineTexts:
        """Start it on the processor, for so many texts at a time.

        Args:
            folders: of two models by name.
            at_once: texts in a forward.
        """
        arguments = {"max_num_seqs": at_once, "kv_cache_memory_bytes": 1 << 30}
        held = VllmResident(open_pool(folders), "cpu", EngineSettings("vllm", arguments), CacheSettings())
        held.apply(make_plan(held.pool.info.linear({held.pool.info.config_from: 1.0}), held.pool))
        return cls(held, engine_lm(held.model, ModelArguments()))

    def texts(self, instances: Sequence[Any]) -> list[str]:
        """The texts of all instances, of a candidate whose prompts no other has read."""
        self.held.reset_prefix_cache()
        found: list[str] = self.lm.answer("generate_until", instances)[0]
        return found

    def swap(self, prompts: Sequence[str], repeats: int) -> tuple[float, float]:
        """Seconds of changing one slice (an attention block, merged anew), and of a candidate of short generations.

        Args:
            prompts: of which the first `SHORT` are gone on with.
            repeats: medians of so many are given.
        """
        settings = {"until": ["</never>"], "max_gen_toks": TOKENS}
        asked = [(prompt, settings) for prompt in prompts[:SHORT]]
        instances = [Instance("generate_until", {}, args, place, task_name="short") for place, args in enumerate(asked)]
        swaps, texts = [], []
        for number in range(repeats + 1):
            plan = make_plan(_one_changed(self.held.pool, (number + 1) / (repeats + 2)), self.held.pool)
            swaps.append(_seconds(partial(self.held.apply, plan)))
            texts.append(_seconds(partial(self.texts, instances)))
        return statistics.median(swaps[1:]), statistics.median(texts[1:])  # the first warms up


def _one_changed(pool: Pool, weight: float) -> Any:
    """The pool's first model, with the attention of its second layer averaged with the other's."""
    first, second = pool.info.sources
    recipe = pool.info.linear({first: 1.0})
    inputs = (Input(first, None, (("weight", 1 - weight),)), Input(second, None, (("weight", weight),)))
    slices = [
        SliceRecipe(s.slice, "linear", inputs, s.parameters) if s.slice == SliceId("attn", 1) else s
        for s in recipe.slices
    ]
    return pool.info.recipe(slices)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def saved(module: Any, tokenizer: Any, folder: Path) -> dict[str, str]:
    """Save a model, and one beside it whose weights are others; their folders by name."""
    import torch

    module.save_pretrained(folder / "a")
    tokenizer.save_pretrained(folder / "a")
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    module.save_pretrained(folder / "b")
    tokenizer.save_pretrained(folder / "b")
    module.load_state_dict(state)
    return {"a": str(folder / "a"), "b": str(folder / "b")}
