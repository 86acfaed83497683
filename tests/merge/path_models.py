"""Tiny source models for data flow, random paths through them, and what a path means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tiny_models import ARCHITECTURES, tiny_config

from evomerge.models.architecture.stacks import find_layers
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe

LAYERS = 4
KINDS = ("llama", "qwen2", "qwen3", "mistral", "gpt2", "gpt_neox", "phi3", "gemma2", "gemma3")
IDS = torch.tensor([[5, 9, 31, 7, 12, 22, 38, 3, 17, 26, 14, 8], [4, 30, 6, 21, 11, 19, 35, 33, 10, 29, 16, 25]])

Hop = tuple[str, int, float]
"""Model, layer, and the factor on the stream on its way into it."""


def config_of(kind: str, layers: int, **other: Any) -> Any:
    """Of a model with `layers` and `other` values; Gemma's alternate between a short window and full attention."""
    if kind == "gpt2":
        return tiny_config(kind, n_layer=layers, **other)
    if kind == "gemma3":
        own = tiny_config("gemma2").to_dict()
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
        names += ("head_dim", "query_pre_attn_scalar", "bos_token_id", "eos_token_id", "pad_token_id")
        types = ["full_attention" if i % 3 == 2 else "sliding_attention" for i in range(layers)]
        return transformers.Gemma3TextConfig(
            **{name: own[name] for name in names},
            num_hidden_layers=layers,
            layer_types=types,
            sliding_window=4,
            max_position_embeddings=64,
            **other,
        )
    more = {"sliding_window": 4} if kind in ("gemma2", "mistral") else {}
    return tiny_config(kind, num_hidden_layers=layers, **more, **other)


def save_source(folder: Path, kind: str, seed: int, layers: int = LAYERS, **other: Any) -> Path:
    """A random model whose residual stream has its usual size: embeddings of unit variance."""
    name = {"gpt2": "GPT2LMHeadModel", "gemma3": "Gemma3ForCausalLM"}.get(kind)
    cls = getattr(transformers, name or f"{ARCHITECTURES[kind][0]}ForCausalLM")
    transformers.utils.logging.disable_progress_bar()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = cls(config_of(kind, layers, **other))
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
            else:
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
        model.get_input_embeddings().weight.copy_(torch.randn(model.get_input_embeddings().weight.shape))
    model.save_pretrained(folder)
    return folder


def open_sources(root: Path, kind: str, layers: int = LAYERS) -> Pool:
    """A pool of two models, `a` and `b`."""
    return open_pool({name: str(save_source(root / name, kind, seed, layers)) for seed, name in enumerate("ab")})


def random_path(rng: np.random.Generator, depth: int, layers: int = LAYERS, signs: bool = False) -> list[Hop]:
    """Layers of both models in any order, with repeats."""
    hops = []
    for _ in range(depth):
        factor = float(rng.uniform(0.7, 1.4)) * (float(rng.choice([-1.0, 1.0])) if signs else 1.0)
        hops.append((str(rng.choice(["a", "b"])), int(rng.integers(layers)), factor))
    return hops


def path_recipe(pool: Pool, path: Sequence[Hop]) -> Recipe:
    """The folded form: what a layer adds is divided by the product of the factors so far; its sign flips norms."""
    slices, product = [], 1.0
    components = [s.component for s in pool.info.slices if s.layer == 0]
    for place, (model, layer, factor) in enumerate(path):
        product *= factor
        for component in components:
            scale = (-1.0 if product < 0 else None) if component == "norm" else 1 / product if product != 1 else None
            slices.append(
                SliceRecipe(SliceId(component, place), "passthrough", (Input(model, layer),), (), None, scale)
            )
    for slice_ in pool.info.slices:
        if slice_.layer is None:
            flipped = -1.0 if slice_.component == "final_norm" and product < 0 else None
            slices.append(SliceRecipe(slice_, "passthrough", (Input("a"),), (), None, flipped))
    return pool.info.recipe(slices)


@torch.no_grad()
def by_definition(pool: Pool, path: Sequence[Hop], attn: str) -> torch.Tensor:
    """Logits of IDS: the stream is multiplied on its way into each layer, which is called as its own model calls it."""
    models, calls = {}, dict[tuple[str, int], tuple[Any, Any]]()

    def listener(key: tuple[str, int]) -> Any:
        return lambda module, args, kwargs: calls.update({key: (args, kwargs)})

    for name in ("a", "b"):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(pool.folder(name), attn_implementation=attn)
        models[name] = find_layers(loaded.eval())[1]
        for number, layer in enumerate(models[name]):
            layer.register_forward_pre_hook(listener((name, number)), with_kwargs=True)
        loaded(IDS, use_cache=False)
        if name == "a":
            outer = loaded
    stream = calls["a", 0][0][0]
    inputs = dict(calls)  # what layers are called with at home: masks and rotary embeddings
    for name, number, factor in path:
        args, kwargs = inputs[name, number]
        out = models[name][number](stream * factor, *args[1:], **kwargs)
        stream = out[0] if isinstance(out, tuple) else out
    models["a"][-1].register_forward_hook(lambda *call: stream)
    return outer(IDS, use_cache=False).logits
