"""What can be said of an engine before it is started: that it is there, and holds and scores what is asked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.config.construct import to_builtin
from evomerge.errors import ConfigError, EvomergeError
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.protocols import Fitness, SearchSpace

if TYPE_CHECKING:
    from evomerge.config.schema import Config
    from evomerge.models.pool import Pool

_GENOMES = 16
"""How many of a search space are looked at, its start included."""


def engine_of(config: Config) -> EngineSettings:
    """The engine that a configuration's evaluator names.

    Raises:
        ConfigError: there is no such engine, or it does not take its arguments.
    """
    return EngineSettings.of(to_builtin(getattr(config, "evaluator", None)))


def require_engine(config: Config, *, full: bool = False) -> EngineSettings:
    """The engine, where it can be started from here: workers of a cluster have environments of their own.

    Args:
        config: of the experiment.
        full: whether its weights are to be in full precision all the same.

    Raises:
        ConfigError: as for `engine_of`; it is not installed.
    """
    engine, node = engine_of(config), to_builtin(config.evaluator)
    engine = engine.in_full if full else engine
    if not (isinstance(node, Mapping) and node.get("address")):
        engine.require_installed()
    return engine


def check_engine(engine: EngineSettings, fitness: Fitness, key: str) -> None:
    """Check that a fitness can be scored with an engine.

    Raises:
        ConfigError: it looks at the modules of a model.
        FitnessError: it asks for what the engine does not do.
    """
    check: Callable[[str], None] | None = getattr(fitness, "check_engine", None)
    if check is not None:
        check(engine.name)
    elif engine.is_vllm:
        raise ConfigError(
            f"evaluator.engine is vllm and {key} is {type(fitness).__name__}",
            "a fitness that asks for log-likelihoods and texts: fitness=lm_eval",
            "set evaluator.engine=transformers",
        )


def check_quantised(engine: EngineSettings, pool: Pool, evaluator: Any) -> None:
    """Check that the pool's models can be quantised, and, where they are on this processor, that it can do it.

    Args:
        engine: with what weights are quantised to.
        pool: the source models.
        evaluator: its node.

    Raises:
        ConfigError: they cannot, or it cannot.
    """
    if engine.quantise is None:
        return
    import torch

    from evomerge.evaluation.devices import computes_on_host
    from evomerge.merge.resident.codecs import codec_of
    from evomerge.merge.resident.resident_memory import quantised_bytes

    quantised_bytes(pool, engine.quantise)
    node = to_builtin(evaluator)
    if isinstance(node, Mapping) and not node.get("address") and computes_on_host(node):
        codec_of(engine.quantise, torch.device("cpu"))


def check_held(engine: EngineSettings, pool: Pool, spaces: Sequence[SearchSpace], keys: Sequence[str]) -> None:
    """Check on some genomes of every search space that the engine can hold what they describe.

    Raises:
        ConfigError: one that it cannot, with the reason. Of others it may still turn out when they are evaluated.
    """
    if not engine.is_vllm:
        return
    from evomerge.evaluation.vllm_paths import FixedLayers
    from evomerge.merge.planning.plan import make_plan

    layers, rng = FixedLayers(pool), np.random.default_rng(0)
    for space, key in zip(spaces, keys, strict=True):
        spec: Any = space.spec
        for number in range(_GENOMES):
            plan = None
            with contextlib.suppress(EvomergeError):  # some genomes have no recipe
                plan = make_plan(space.decode(spec.sample(rng) if number else spec.initial), pool)
            refusal = layers.refusal(plan) if plan is not None else ""
            if refusal:
                raise ConfigError(
                    f"evaluator.engine is vllm, and {key} describes models that it cannot hold: {refusal}",
                    "paths of as many layers as the model has that gives the configuration, each in the place of one "
                    "of its kind",
                    "set evaluator.engine=transformers, or min_layers and max_layers of the search space to that "
                    "number",
                )
