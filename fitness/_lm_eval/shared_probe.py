"""Whether a model computes a tree of tokens as it does one text after the other."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from evomerge.models.architecture.stacks import find_layers
from evomerge.models.architecture.tiny_model import tiny
from evomerge.models.memory import device_lost, out_of_memory
from fitness._lm_eval.model import TokenRequest
from fitness._lm_eval.shared_forwards import BatchLimits, SharedForwards
from fitness._lm_eval.shared_prefill import SharedPrefill
from fitness._lm_eval.tree_mask import TreeMasks

_NEEDED = ("attention_mask", "position_ids", "past_key_values", "logits_to_keep")
_BY_LENGTH = ("dynamic", "longrope")
"""Kinds of rotary embeddings whose frequencies follow from the longest text of a forward."""

_REACH = 6
"""Tokens that sliding windows and the like of the model that is tried reach: fewer than its texts have."""
_REACHES = re.compile(r"window|chunk_size|floor_scale|block_size")
_WRITTEN = 9
"""Tokens that are generated to try it: more than windows reach."""
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
    if lacks := lacking(module):
        return lacks
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
        return _tried(small(module))
    except Exception as error:  # code of a model raises whatever it likes
        return raised("a tree of tokens", error)


def lacking(module: Any) -> str:
    """Why a model's forward cannot be given tokens of several texts; empty where its signature has all that takes."""
    parameters = inspect.signature(module.forward).parameters
    missing = next((name for name in _NEEDED if name not in parameters), "")
    return f"its forward takes no {missing}" if missing else ""


def no_states(module: Any) -> str:
    """Why hidden states of a model that shares tokens cannot be kept; empty where they can.

    Tried on a tiny one of its class: it must score the same, bit for bit, from every layer on, also where the weights
    below are not numbers.

    Args:
        module: a transformers decoder.
    """
    tiny_one = small(module)
    layers = list(find_layers(tiny_one)[1])
    states = _States(layers)
    shared = SharedForwards(_texts(), tiny_one, max_length=64, limits=BatchLimits(12), softmax_dtype=torch.float32)
    try:
        expected, _ = shared.score(tiny_one, states=states)
        for depth, layer in enumerate(layers, 1):
            for tensor in layer.parameters():
                tensor.data.fill_(torch.nan)
            states.known = {states.keys[depth]}
            found, _ = shared.score(tiny_one, states=states)
            if not shared.hidden:
                return "its layers give more than hidden states"
            if not np.array_equal(found, expected):
                return f"a tiny one scores otherwise from layer {depth} on"
    except Exception as error:  # code of a model raises whatever it likes
        return raised("beginning above a layer", error)
    return ""


def no_prefill(module: Any) -> str:
    """Why generation cannot begin with keys and values of prompts that begin alike; empty where it can.

    Args:
        module: a transformers decoder that shares tokens.
    """
    kind = module.generation_config.cache_implementation
    if kind:
        return f"its generation settings ask for a cache of the kind {kind}"
    tiny_one = small(module)
    texts = [request.context[:8] + request.continuation[:5] for request in _texts()]  # models of 32 positions do
    prompts = torch.tensor([texts[0], texts[1], [0] * 3 + texts[2][:-3]])
    mask = torch.ones_like(prompts)
    mask[2, :3] = 0
    asked = {
        "input_ids": prompts,
        "attention_mask": mask,
        "max_new_tokens": _WRITTEN,
        "do_sample": False,
        "use_cache": True,
    }
    asked |= {"pad_token_id": 0, "eos_token_id": None, "output_logits": True, "return_dict_in_generate": True}
    try:
        cache = SharedPrefill(tiny_one, batch_tokens=12, trunk=4)(tiny_one, prompts, mask)
        expected, found = tiny_one.generate(**asked), tiny_one.generate(**asked, past_key_values=cache)
    except Exception as error:  # code of a model raises whatever it likes
        return raised("a cache of its prompts", error)
    apart = max(float((x - y).abs().max()) for x, y in zip(expected.logits, found.logits, strict=True))
    if not torch.equal(expected.sequences, found.sequences) or not apart <= _APART:
        return f"a tiny one goes on {apart:.2g} apart after prompts in a tree and alone"
    return ""


def raised(what: str, error: Exception) -> str:
    """What a trial that raised says of the model: nothing where memory has run out or the device is gone.

    Taken for the model's, that would have this worker run as lm-eval does for ever, and others not. Who prepares a
    fitness lets something go and tries again.
    """
    if out_of_memory(error) or device_lost(error):
        raise error
    return f"{what} raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"


class _States:
    """Keeps the hidden states of every layer, and gives those of the known keys."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.keys = tuple(f"after {depth}" for depth in range(len(layers) + 1))
        self.seen = len(layers)
        self.likely = True
        self.budget = 1 << 40
        self.known: set[str] = set()
        self._kept: dict[str, tuple[torch.Tensor, ...]] = {}

    def get(self, key: str) -> tuple[torch.Tensor, ...] | None:
        return self._kept.get(key) if any(key.endswith(f" {known}") for known in self.known) else None

    def put(self, key: str, tensors: Sequence[torch.Tensor], cost: float) -> None:
        self._kept.setdefault(key, tuple(tensors))


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


def small(module: Any) -> Any:
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


def _texts() -> list[TokenRequest]:
    """Three that begin alike, and two that begin otherwise, which lie in a line of their own."""
    words = torch.randint(1, 60, (4, 18), generator=torch.Generator().manual_seed(1)).tolist()
    alike = [TokenRequest(None, words[0], words[branch][:9]) for branch in (1, 2, 3)]
    return [*alike, *(TokenRequest(None, words[1][:11], words[branch][4:11]) for branch in (2, 3))]


def _tried(module: Any) -> str:
    """Whether texts that begin alike score in one row, and after a trunk, as they do alone."""
    requests = _texts()
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
