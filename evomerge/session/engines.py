"""What can be said of an engine before it is started: that it is there, and holds and scores what is asked."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.config.construct import to_builtin
from evomerge.errors import ConfigError, EvomergeError, RecipeError
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.protocols import Fitness, SearchSpace

if TYPE_CHECKING:
    from evomerge.config.schema import Config
    from evomerge.merge.planning.slice_plan import Plan
    from evomerge.models.pool import Pool

_GENOMES = 16
"""How many of a search space are looked at, its start included."""


def engine_of(config: Config, session: str | None = None) -> EngineSettings:
    """The engine that a configuration's evaluator names.

    Args:
        config: of the whole experiment.
        session: of the run, by which a server's adapters are told apart; ``None`` for what belongs to no run.

    Raises:
        ConfigError: there is no such engine, or it does not take its arguments.
    """
    owner = ("", "")
    if session is not None:
        run = hashlib.sha256(str(Path(config.run_dir).absolute()).encode()).hexdigest()[:8]
        owner = run, session
    return EngineSettings.of(to_builtin(getattr(config, "evaluator", None)), owner)


def require_engine(config: Config, session: str | None = None, *, full: bool = False) -> EngineSettings:
    """The engine, where it can be started from here: workers of a cluster have environments of their own.

    Args:
        config, session: as for `engine_of`.
        full: whether its weights are to be in full precision all the same.

    Raises:
        ConfigError: as for `engine_of`; it is not installed.
    """
    engine, node = engine_of(config, session), to_builtin(config.evaluator)
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
    elif not engine.holds_modules:
        raise ConfigError(
            f"evaluator.engine is {engine.name} and {key} is {type(fitness).__name__}",
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


def check_vllm_heads(engine: EngineSettings, pool: Pool, evaluator: Any) -> None:
    """Check that vLLM takes the pool's heads, where it will run on this machine's processor.

    Args:
        engine, pool, evaluator: as for `check_quantised`.

    Raises:
        ConfigError: they are of a width that it has no attention for there.
    """
    from evomerge.evaluation.devices import computes_on_host
    from evomerge.evaluation.vllm_source import check_heads

    node = to_builtin(evaluator)
    if engine.is_vllm and isinstance(node, Mapping) and not node.get("address") and computes_on_host(node):
        check_heads(pool.config, pool.info.config_from)


def check_held(engine: EngineSettings, pool: Pool, spaces: Sequence[SearchSpace], keys: Sequence[str]) -> None:
    """Check on some genomes of every search space that the engine can hold what they describe.

    Raises:
        ConfigError: one that it cannot, with the reason. Of others it may still turn out when they are evaluated.
    """
    refusing: Callable[[Plan], str]
    if engine.is_vllm and pool.vocabulary is not None:
        raise ConfigError(
            "evaluator.engine is vllm, and the pool's models are brought to one vocabulary",
            "models with one tokenizer and equally many rows",
            "set evaluator.engine=transformers",
        )
    if not engine.holds_modules and pool.info.kept is not None:
        what = f"{pool.info.kept.tensors[0]} of {pool.info.kept.model}"
        raise ConfigError(
            f"evaluator.engine is {engine.name}, and the pool keeps {what}",
            "pools whose tensors are all merged",
            "set evaluator.engine=transformers, or pool.kept=null",
        )
    if engine.is_vllm:
        from evomerge.evaluation.vllm_paths import FixedLayers

        refusing = FixedLayers(pool).refusal
        allowed = (
            "paths of as many layers as the model has that gives the configuration, each in the place of one "
            "of its kind"
        )
        advice = "set evaluator.engine=transformers, or min_layers and max_layers of the search space to that number"
    elif engine.is_server:
        from evomerge.merge.adapters.exact import ADAPTER_METHODS, ExactAdapters

        try:
            refusing = ExactAdapters(pool).refusal
        except RecipeError as error:
            given = f"evaluator.engine is server, and the pool is none of adapters: {error.given}"
            raise ConfigError(given, error.allowed, error.do) from error
        allowed = f"candidates that are adapters of their base: {ADAPTER_METHODS}"
        advice = "set evaluator.engine=transformers or vllm, which hold any merge, or another method"
    else:
        return
    for space, key in zip(spaces, keys, strict=True):
        for plan in some_plans(space, pool):
            refusal = refusing(plan)
            if refusal:
                given = f"evaluator.engine is {engine.name}, and {key} describes models that it cannot hold: {refusal}"
                raise ConfigError(given, allowed, advice)


def some_plans(space: SearchSpace, pool: Pool, genomes: int = _GENOMES) -> Iterator[Plan]:
    """The plans of so many genomes, the space's start first."""
    from evomerge.merge.planning.plan import make_plan

    spec: Any = space.spec
    rng = np.random.default_rng(0)
    for number in range(genomes):
        with contextlib.suppress(EvomergeError):  # some genomes have no recipe
            yield make_plan(space.decode(spec.sample(rng) if number else spec.initial), pool)
