"""What is checked when an engine starts: that changed weights compute what transformers computes with them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evomerge.evaluation.reference_scores import (
    Measured,
    draw_prompts,
    first_layers,
    fitting_layers,
    of_transformers,
    require_close,
)
from evomerge.merge.planning.plan import make_plan
from evomerge.utils.memory import free_host_memory

if TYPE_CHECKING:
    from evomerge.evaluation.vllm_adapters import EngineAdapters
    from evomerge.evaluation.vllm_resident import VllmResident

_LOG = logging.getLogger(__name__)

MODELS = 3
"""Models of the pool, at most, that are compared as adapters, besides their mean."""

_CHANGED = "set evaluator.engine=transformers; this version of vLLM does not take changed weights of this model"
_APART = "set evaluator.adapters_at_once=0; this version of vLLM computes adapters of this model wrongly"


@torch.no_grad()
def check_engine(held: VllmResident) -> None:
    """Move an engine to every model of the pool and back, and compare what it computes with transformers on the CPU.

    One more model is between them, the first with all weights halved: it has no slice in common with any, so that a
    slice which was not changed shows however alike the models are. An engine that takes adapters is asked for several
    models of the pool at once besides. Texts are written before they are scored, so that
    keys and values of earlier weights show.

    Args:
        held: the engine; afterwards it holds the pool's first model.

    Raises:
        EngineError: a difference beyond what rounding in the dtype gives; names the model and how far apart they are.
    """
    pool = held.pool
    info = pool.info
    layers = fitting_layers(pool, free_host_memory())
    if layers < info.layers:
        _LOG.warning("vLLM is compared with transformers on the first %d of %d layers", layers, info.layers)
    names = [name for name, _ in info.refs if info.depth(name) == info.layers]
    first = info.config_from
    rest = [name for name in names if name != first]
    order = [(first, first, 1.0), (f"{first} halved", first, 0.5), *((name, name, 1.0) for name in rest)]
    prompts = draw_prompts(pool, held.model.engine.llm_engine.model_config.max_model_len)
    seen: dict[str, Measured] = {}
    for name, model, weight in order:
        plan = make_plan(first_layers(pool, info.linear({model: weight}), layers), pool)
        held.apply(plan)
        (seen[name],) = of_engine(held.model.engine, prompts)
        expected = of_transformers(pool, plan, layers, prompts, seen[name].tokens)
        _require_close(seen[name], expected, prompts, info.dtype, f"transformers with {name!r}")
    held.apply(make_plan(first_layers(pool, info.linear({first: 1.0}), layers), pool))
    (again,) = of_engine(held.model.engine, prompts)
    _require_close(again, seen[first], prompts, info.dtype, f"with {first!r} before {len(order)} swaps")
    if layers < info.layers:
        held.apply(make_plan(info.linear({first: 1.0}), pool))
    if held.adapter_models is not None and layers < info.layers:
        _LOG.warning("adapters in vLLM are not compared with transformers: their base does not fit beside the engine")
    elif held.adapter_models is not None:
        _check_adapters(held, held.adapter_models, prompts)


def _check_adapters(held: VllmResident, models: EngineAdapters, prompts: Sequence[Sequence[int]]) -> None:
    """Ask the engine for several models of the pool at once.

    Raises:
        EngineError: as `check_engine`.
    """
    pool, info = held.pool, held.pool.info
    names = [name for name, _ in info.refs]
    recipes = {repr(name): info.linear({name: 1.0}) for name in names[:MODELS]}
    recipes["the mean of the pool"] = info.linear({name: 1 / len(names) for name in names})
    plans = [(name, make_plan(recipe, pool)) for name, recipe in recipes.items()]
    models.begin()
    for at in range(0, len(plans), models.at_once):
        found = [(name, plan, models.find(plan)) for name, plan in plans[at : at + models.at_once]]
        loaded = [(name, plan, models.load(adapter)[0]) for name, plan, adapter in found if adapter is not None]
        seen = of_engine(held.model.engine, prompts, [model.adapter for _, _, model in loaded])
        for (name, plan, _), measured in zip(loaded, seen, strict=True):
            expected = of_transformers(pool, plan, info.layers, prompts, measured.tokens)
            _require_close(measured, expected, prompts, info.dtype, f"transformers with {name} as an adapter", _APART)


def of_engine(llm: Any, prompts: Sequence[Sequence[int]], adapters: Sequence[Any] = (None,)) -> list[Measured]:
    """What an engine says of the prompts with each of some adapters, asked at once; ``None`` are its own weights."""
    from vllm import SamplingParams, TokensPrompt

    asked = [TokensPrompt(prompt_token_ids=list(prompt)) for _ in adapters for prompt in prompts]
    whose = [adapter for adapter in adapters for _ in prompts]
    plain = {"temperature": 0.0, "max_tokens": 1, "detokenize": False, "ignore_eos": True}
    written = llm.generate(asked, SamplingParams(**plain, logprobs=0), use_tqdm=False, lora_request=whose)
    scored = llm.generate(asked, SamplingParams(**plain, prompt_logprobs=1), use_tqdm=False, lora_request=whose)
    tokens = [int(output.outputs[0].token_ids[0]) for output in written]
    texts = [
        sum(found[token].logprob for found, token in zip(o.prompt_logprobs[1:], prompt[1:], strict=True))
        for o, prompt in zip(scored, [*prompts] * len(adapters), strict=True)
    ]
    scores = [o.outputs[0].logprobs[0][token].logprob for o, token in zip(written, tokens, strict=True)]
    parts = [slice(at, at + len(prompts)) for at in range(0, len(asked), len(prompts))]
    return [Measured(np.array(texts[part]), tokens[part], np.array(scores[part])) for part in parts]


def _require_close(
    found: Measured, expected: Measured, prompts: Any, dtype: str, whose: str, advice: str = _CHANGED
) -> None:
    said = f"vLLM computes something else than {whose}"
    require_close(found, expected, prompts, dtype, said, advice)
