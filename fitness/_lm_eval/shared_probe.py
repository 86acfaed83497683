"""Whether a model computes a tree of tokens as it does one text after the other."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from evomerge.models.architecture.tiny_model import tiny
from fitness._lm_eval.model import TokenRequest
from fitness._lm_eval.shared_forwards import BatchLimits, SharedForwards
from fitness._lm_eval.tree_mask import TreeMasks

_NEEDED = ("attention_mask", "position_ids", "past_key_values", "logits_to_keep")
_BY_LENGTH = ("dynamic", "longrope")
"""Kinds of rotary embeddings whose frequencies follow from the longest text of a forward."""

_REACH = 6
"""Tokens that sliding windows and the like of the model that is tried reach: fewer than its texts have."""
_REACHES = re.compile(r"window|chunk_size|floor_scale|block_size")
_APART = 1e-3  # nats, of some twenty tokens in float32


def unsupported(module: Any, longest: int) -> str:
    """Why a model's tokens cannot be shared; empty where they can.

    What a model takes is asked of its signature and configuration. What it does with it is tried on a tiny one of its
    class, in float32, with random weights, and with windows shorter than its texts: the answer is the same whatever the
    model's weights are.

    Args:
        module: a transformers decoder.
        longest: tokens of the longest text that it will read.
    """
    parameters = inspect.signature(module.forward).parameters
    missing = [name for name in _NEEDED if name not in parameters]
    if missing:
        return f"its forward takes no {missing[0]}"
    config = module.config.get_text_config()
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"its attention is {config._attn_implementation}, which takes no mask of one's own"
    unknown = TreeMasks(module).unknown
    if unknown:
        return f"it has layers of the kind {unknown[0]}"
    for kind, limit in _rotary(config):
        if kind in _BY_LENGTH and longest > limit:
            return f"{kind} rotary embeddings follow from the longest text of a batch, and texts exceed {limit} tokens"
    try:
        return _tried(_small(module))
    except Exception as error:  # code of a model raises whatever it likes
        return f"a tree of tokens raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _rotary(config: Any) -> Iterator[tuple[str, int]]:
    """Kinds of rotary embeddings, and the tokens up to which each is what it is trained with."""
    whole = int(getattr(config, "max_position_embeddings", 0) or 0)
    own = int(getattr(config, "original_max_position_embeddings", 0) or 0)
    waiting = [getattr(config, name, None) for name in ("rope_parameters", "rope_scaling")]
    while waiting:
        found = waiting.pop()
        if isinstance(found, Mapping):
            kind = str(found.get("rope_type") or found.get("type") or "")
            yield kind, int(found.get("original_max_position_embeddings") or own or whole)
            waiting += found.values()


def _small(module: Any) -> Any:
    """A tiny random model of the same class and attention, whose windows are shorter than the texts to be tried."""
    config = tiny(module.config)
    for part in ("vision_config", "audio_config"):
        if hasattr(getattr(config, part, None), "num_hidden_layers"):
            getattr(config, part).num_hidden_layers = 1
    text = config.get_text_config()
    for name, value in list(vars(text).items()):
        if isinstance(value, int) and not isinstance(value, bool) and value > _REACH and _REACHES.search(name):
            setattr(text, name, _REACH)
    attention = module.config.get_text_config()._attn_implementation
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = type(module)._from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in small.parameters():  # norms and biases begin as ones and zeros, which would hide mistakes
            parameter.data = parameter.float() + 0.2 * torch.randn(parameter.shape, generator=generator)
    return small.float().eval()


def _tried(module: Any) -> str:
    """Whether texts that begin alike score in one row, and after a trunk, as they do alone."""
    words = torch.randint(1, 60, (4, 18), generator=torch.Generator().manual_seed(1)).tolist()
    requests = [TokenRequest(None, words[0], words[branch][:9]) for branch in (1, 2, 3)]
    expected = []
    for request in requests:
        tokens = torch.tensor([request.context + request.continuation])
        wanted = tokens[0, -len(request.continuation) :]
        with torch.no_grad():
            logits = module(input_ids=tokens[:, :-1]).logits[0, -len(wanted) :]
        expected.append(float(F.log_softmax(logits.float(), dim=-1).gather(1, wanted[:, None]).sum()))
    for tokens_at_once in (256, 12):
        shared = SharedForwards(
            requests, module, max_length=64, limits=BatchLimits(tokens_at_once), softmax_dtype=torch.float32
        )
        found, _ = shared.score(module)
        apart = np.abs(found - np.array(expected)).max()
        if not apart <= _APART:  # nor where it is not a number
            return f"texts of a tiny one score {apart:.2g} nats apart in a tree and alone"
    return ""
