"""What candidates are scored with, which cannot change in a run that goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from evomerge.errors import ConfigError
from evomerge.utils.argument_text import arguments_in

_WEIGHTS = ("quantise", "quantise_held_out")
_ENGINE = ("engine", "engine_args", "adapters_at_once", "server")
_POSITIONS = "engine_args.max_model_len"


def scored_with(config: DictConfig) -> dict[str, Any]:
    """The values of an evaluator's node that say which engine scores and with which weights; by the key."""
    node = _evaluator(config)
    found = {name: node.get(name) or None for name in _WEIGHTS}
    engine = node.get("engine") or "transformers"
    return {"engine": engine, **found, _POSITIONS: _positions(config, node) if engine == "vllm" else None}


def take_over(config: DictConfig, chosen: DictConfig) -> None:
    """Give an evaluator that is chosen anew the engine and weights of the one before; `chosen` is changed."""
    node = _evaluator(config)
    chosen.update({name: node[name] for name in (*_WEIGHTS, *_ENGINE) if node.get(name) is not None and name in chosen})


def keep_scored_with(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """`ConfigError` where candidates would no longer be scored as they were: scores would not be comparable."""
    for name, old in before.items():
        if name == _POSITIONS and None in (old, now[name]):  # the model's own may be the same
            continue
        if now[name] != old:
            raise ConfigError(
                f"evaluator.{name} is {now[name] or 'null'} and was {old or 'null'} when the run began",
                "what candidates are scored with cannot change in a run that goes on",
                f"leave evaluator.{name} out, or start a new one with search.warm_start=[RUN]",
            )


def _evaluator(config: DictConfig) -> Mapping[str, Any]:
    node = None if OmegaConf.is_missing(config, "evaluator") else config.evaluator
    return node if isinstance(node, DictConfig) else {}


def _positions(config: DictConfig, node: Mapping[str, Any]) -> Any:
    """The positions of vLLM's engine where they are those of the fitness, which cuts prompts at them."""
    fitness = None if OmegaConf.is_missing(config, "fitness") else config.fitness
    if isinstance(fitness, DictConfig) and (fitness.get("max_length") or fitness.get("model_args")):
        return None
    given = node.get("engine_args") or {}
    if isinstance(given, str):
        given = arguments_in(given, "evaluator.engine_args", "'{max_model_len: 4096}'")
    return given.get("max_model_len")
