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
    from evomerge.evaluation.vllm_resident import VllmResident

_LOG = logging.getLogger(__name__)


@torch.no_grad()
def check_engine(held: VllmResident) -> None:
    """Move an engine to every model of the pool and back, and compare what it computes with transformers on the CPU.

    One more model is between them, the first with all weights halved: it has no slice in common with any, so that a
    slice which was not changed shows however alike the models are. Texts are written before they are scored, so that
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
        seen[name] = of_engine(held.model.engine, prompts)
        expected = of_transformers(pool, plan, layers, prompts, seen[name].tokens)
        _require_close(seen[name], expected, prompts, info.dtype, f"transformers with {name!r}")
    held.apply(make_plan(first_layers(pool, info.linear({first: 1.0}), layers), pool))
    again = of_engine(held.model.engine, prompts)
    _require_close(again, seen[first], prompts, info.dtype, f"with {first!r} before {len(order)} swaps")
    if layers < info.layers:
        held.apply(make_plan(info.linear({first: 1.0}), pool))


def of_engine(llm: Any, prompts: Sequence[Sequence[int]]) -> Measured:
    """What an engine says of the prompts."""
    from vllm import SamplingParams, TokensPrompt

    asked = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
    plain = {"temperature": 0.0, "max_tokens": 1, "detokenize": False, "ignore_eos": True}
    written = llm.generate(asked, SamplingParams(**plain, logprobs=0), use_tqdm=False)
    scored = llm.generate(asked, SamplingParams(**plain, prompt_logprobs=1), use_tqdm=False)
    tokens = [int(output.outputs[0].token_ids[0]) for output in written]
    texts = [
        sum(found[token].logprob for found, token in zip(o.prompt_logprobs[1:], prompt[1:], strict=True))
        for o, prompt in zip(scored, prompts, strict=True)
    ]
    scores = [o.outputs[0].logprobs[0][token].logprob for o, token in zip(written, tokens, strict=True)]
    return Measured(np.array(texts), tokens, np.array(scores))


def _require_close(found: Measured, expected: Measured, prompts: Any, dtype: str, whose: str) -> None:
    said = f"vLLM computes something else than {whose}"
    advice = "set evaluator.engine=transformers; this version of vLLM does not take changed weights of this model"
    require_close(found, expected, prompts, dtype, said, advice)
