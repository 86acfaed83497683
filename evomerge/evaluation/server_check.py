"""What is checked when a search begins on a server: that it loads adapters, and that its base is the pool's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evomerge.errors import ServerError
from evomerge.evaluation.reference_scores import (
    Measured,
    draw_prompts,
    fitting_layers,
    of_transformers,
    require_close,
)
from evomerge.evaluation.server_resident import ServerResident
from evomerge.merge.planning.plan import make_plan
from evomerge.models.checkpoints.folding import FoldedCheckpoint
from evomerge.utils.memory import free_host_memory

_LOG = logging.getLogger(__name__)


def check_server(held: ServerResident) -> None:
    """Clean up after killed sessions, load and let go of an adapter, and compare both models with transformers.

    The adapter is the mean of the pool's, of the largest rank that candidates have; then comes the base, or one of the
    adapters where the base is none of the pool's models. Where a model does not fit into half of the free memory, only
    what a server says of tokens is looked at: that it takes the last of the vocabulary and a text of full length. One
    worker of a session compares; the others load and let go only.

    Args:
        held: afterwards it has the second of the two.

    Raises:
        ServerError: the server gives no answer, or none with log-likelihoods of the prompt; it takes no adapter.
        EngineError: it computes something else than transformers, beyond what rounding in the pool's dtype gives.
    """
    held.clean()
    pool, info = held.pool, held.pool.info
    names = [name for name, _ in info.refs]
    adapted = [name for name in names if isinstance(pool.checkpoints[name], FoldedCheckpoint)]
    mean = info.linear({name: 1 / len(adapted) for name in adapted} if adapted else {names[0]: 1.0})
    last = next((name for name in names if name not in adapted), names[0])
    first = held.folder.first()
    fits = fitting_layers(pool, free_host_memory()) == info.layers
    if first and not fits:
        _LOG.warning("the server is not compared with transformers: the base does not fit into half of the free memory")
    prompts = draw_prompts(pool, held.served.positions)
    longest = held.served.positions - 1
    for what, recipe in (("the mean of the pool's adapters", mean), (f"{last!r}", info.linear({last: 1.0}))):
        plan = make_plan(recipe, pool)
        held.apply(plan)
        if not first:
            continue
        if not fits:
            of_server(held, [[0] * (longest - 1) + [held.served.rows - 1]])
            continue
        found = of_server(held, prompts)
        expected = of_transformers(pool, plan, info.layers, prompts, found.tokens)
        most = held.settings.tolerance
        require_close(
            found,
            replace(expected, scores=found.scores),
            prompts,
            info.dtype,
            f"{held.settings.url} computes something else than transformers with {what}",
            f"evaluator.server.model must be {held.adapters.base.address} in pool.dtype; for one that is quantised set "
            "evaluator.server.tolerance",
            (most, most) if most is not None else None,
        )


def of_server(held: ServerResident, prompts: Sequence[Sequence[int]]) -> Measured:
    """What a server says of the prompts; of what it would write after them, nothing.

    Raises:
        ServerError: its answer has no log-likelihood for every token.
    """
    payload: dict[str, Any] = {
        "model": held.served.name,
        "prompt": [list(prompt) for prompt in prompts],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "echo": True,
    }
    choices = {choice.get("index"): choice for choice in held.served.complete(payload)["choices"]}
    texts = []
    for number, prompt in enumerate(prompts):
        found = ((choices.get(number) or {}).get("logprobs") or {}).get("token_logprobs") or []
        scores = found[1 : len(prompt)]
        if len(found) not in (len(prompt), len(prompt) + 1) or not all(isinstance(s, int | float) for s in scores):
            raise ServerError(
                f"POST {held.served.url} gave {len(found)} log-likelihoods for a prompt of {len(prompt)} tokens",
                "one for every token: it must take tokens as prompts, echo and logprobs",
                "vLLM's server does",
            )
        texts.append(float(np.sum(scores)))
    return Measured(np.array(texts), [0] * len(prompts), np.zeros(len(prompts)))
