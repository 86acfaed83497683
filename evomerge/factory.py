"""Builds the parts of a run from its configuration, checking every key before anything is loaded."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import typing
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from evomerge.candidate import Split
from evomerge.config import Config, to_yaml
from evomerge.errors import ConfigError, EvomergeError, nearest
from evomerge.evaluation.caching import CacheSettings
from evomerge.evaluation.worker import Worker, WorkerBuilder
from evomerge.files import write_text_atomic
from evomerge.imports import import_modules
from evomerge.ledger import Ledger, RunFolder
from evomerge.merge.methods import specs
from evomerge.mergekit.writer import to_mergekit
from evomerge.models.pool import Pool, open_pool
from evomerge.protocols import Evaluator, Fitness, SearchSpace, Strategy
from evomerge.recipe import ModelRef, Recipe
from evomerge.recipe_yaml import dump_recipe
from evomerge.search import Observer, Search, silent

TARGET = "_target_"


def build(node: Any, key: str, *args: Any, **injected: Any) -> Any:
    """Construct what a configuration node describes.

    Args:
        node: a mapping with `_target_`, a dotted name, and keyword arguments; nested nodes are built first.
        key: where the node stands in the configuration, for messages.
        args, injected: arguments that come from the program, not from the user.

    Raises:
        ConfigError: no such target, an argument it does not have or lacks, or a value of the wrong type.
    """
    values = _plain(node)
    if not isinstance(values, Mapping) or TARGET not in values:
        raise ConfigError(f"{key} is {node}", f"a group choice or a mapping with {TARGET}", f"see conf/{key}")
    target = _locate(str(values[TARGET]), f"{key}.{TARGET}")
    given = {name: _nested(value, f"{key}.{name}") for name, value in values.items() if name != TARGET}
    return target(*args, **injected, **check_arguments(target, given, key, len(args), set(injected)))


def _plain(node: Any) -> Any:
    """A configuration node as plain values, interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def check_arguments(
    target: Callable[..., Any],
    given: Mapping[str, Any],
    key: str,
    positional: int = 0,
    injected: set[str] | None = None,
) -> dict[str, Any]:
    """Check a user's arguments against the signature and annotations of `target`; returns them converted."""
    parameters = list(inspect.signature(target).parameters.values())[positional:]
    allowed = {p.name: p for p in parameters if p.name not in (injected or set())}
    function = target.__init__ if inspect.isclass(target) else target
    hints = typing.get_type_hints(function)
    converted: dict[str, Any] = {}
    for name, value in given.items():
        if name not in allowed:
            raise ConfigError(f"{key} has no key {name!r}", nearest(name, allowed))
        converted[name] = _convert(value, hints.get(name, Any), f"{key}.{name}")
    for name, parameter in allowed.items():
        if name not in given and parameter.default is parameter.empty:
            raise ConfigError(f"{key}.{name} is missing", f"{key} needs it", f"set it with {key}.{name}=...")
    return converted


def _convert(value: Any, annotation: Any, key: str) -> Any:
    if not isinstance(value, str | int | float | list | dict | None):
        return value  # an object that a nested node described
    try:
        return _adapter(annotation).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("function-", "list[")))
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        raise ConfigError(
            f"{key} is {value!r}", f"it should be {message}" + (f" (at {place})" if place else "")
        ) from error


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # dataclasses and models bring a configuration of their own
        return TypeAdapter(annotation)


def _nested(value: Any, key: str) -> Any:
    return build(value, key) if isinstance(value, Mapping) and TARGET in value else value


def _locate(path: str, key: str) -> Callable[..., Any]:
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name) if module_name else None
    except ImportError as error:
        raise ConfigError(f"{key} is {path!r}", f"it cannot be imported: {error}") from error
    target = getattr(module, name, None) if module else None
    if not callable(target):
        known = (
            [n for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module_name] if module else []
        )
        raise ConfigError(f"{key} is {path!r}", f"{module_name or path} has no such class: {nearest(name, known)}")
    return cast(Callable[..., Any], target)


def pool_from_config(config: Config) -> Pool:
    """Open the pool, reading configs and headers only."""
    settings = config.pool
    return open_pool(
        dict(settings.models),
        base=settings.base,
        root=settings.root,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
    )


def fitness_from_config(config: Config, key: str) -> Fitness:
    """Build and check the ``fitness`` or the ``held_out`` node."""
    node = getattr(config, key)
    if node is None:
        raise ConfigError(
            f"{key} is not set", "a fitness is needed", f"choose one with {key}=lm_eval and {key}.tasks=[...]"
        )
    fitness = cast(Fitness, build(node, key))
    fitness.check()
    return fitness


@dataclass
class Parts:
    """Everything a run is made of, built and checked, with nothing large loaded yet."""

    pool: Pool
    space: SearchSpace
    strategy: Strategy
    evaluator: Evaluator
    fitness: Fitness
    held_out: Fitness | None


def build_parts(config: Config) -> Parts:
    """Build and check every part; the order is that of cost, so that errors come early."""
    import_modules(config.imports, "imports")
    if config.search.evaluations < 1:
        raise ConfigError(f"search.evaluations is {config.search.evaluations}", "at least 1")
    pool = pool_from_config(config)
    space = build(config.search_space, "search_space", pool.info, specs())
    fitness = fitness_from_config(config, "fitness")
    held_out = fitness_from_config(config, "held_out") if config.held_out is not None else None
    strategy = build(config.strategy, "strategy", space.spec, fitness.objectives, seed=config.search.seed)
    target = str((_plain(config.evaluator) or {}).get(TARGET, ""))
    worker: WorkerBuilder
    if target.startswith("evomerge.evaluation.local"):
        fitnesses: dict[Split, Fitness] = {"search": fitness}
        if held_out is not None:
            fitnesses["held_out"] = held_out
        worker = functools.partial(Worker, pool, fitnesses)
    else:  # travels to other processes, which build their own
        worker = functools.partial(remote_worker, _plain(config), dict(pool.info.refs), os.getcwd())
    evaluator = build(config.evaluator, "evaluator", worker)
    return Parts(pool, space, strategy, evaluator, fitness, held_out)


def remote_worker(
    plain: dict[str, Any],
    refs: Mapping[str, ModelRef],
    folder: str,
    *,
    device: str,
    threads: int | None,
    cache: CacheSettings,
) -> Worker:
    """Build a worker in another process from the plain configuration, the pinned models and the folder of imports."""
    config = cast(Config, OmegaConf.create(plain))
    import_modules(config.imports, "imports", folder)
    settings = config.pool
    pool = open_pool(
        refs,
        base=settings.base,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
        fingerprints=False,
    )
    fitnesses: dict[Split, Fitness] = {"search": fitness_from_config(config, "fitness")}
    if config.held_out is not None:
        fitnesses["held_out"] = fitness_from_config(config, "held_out")
    return Worker(pool, fitnesses, device=device, threads=threads, cache=cache)


def keep_best(folder: RunFolder, pool: Pool) -> Callable[[Recipe], None]:
    """A function that writes a recipe into the run's ``best`` folder, atomically, both ways."""

    def keep(recipe: Recipe) -> None:
        write_text_atomic(folder.best_recipe, dump_recipe(recipe))
        try:
            write_text_atomic(folder.best_mergekit, to_mergekit(recipe, pool.layout))
        except EvomergeError as error:  # mergekit cannot express it: the recipe is the result, say why beside it
            write_text_atomic(folder.best_mergekit, f"# mergekit cannot express this recipe: {error}\n")

    return keep


def run(config: Config, parts: Parts, observe: Observer = silent) -> RunFolder:
    """Run a search into its run folder. The parts are closed at the end, whatever happens."""
    folder = RunFolder.create(config.run_dir)
    write_text_atomic(folder.config, to_yaml(cast(DictConfig, config)))
    folder.write_pool(parts.pool.info)
    with closing(parts.evaluator), Ledger(folder) as ledger:
        ledger.append(
            "started",
            seed=config.search.seed,
            evaluations=config.search.evaluations,
            genes=[gene.name for gene in parts.space.spec],
            objectives={o.name: o.direction for o in parts.fitness.objectives},
            fitness=parts.evaluator.fingerprint("search"),
        )
        Search(
            pool=parts.pool.info,
            space=parts.space,
            strategy=parts.strategy,
            evaluator=parts.evaluator,
            objective=parts.fitness.objectives[0],
            ledger=ledger,
            keep_best=keep_best(folder, parts.pool),
            evaluations=config.search.evaluations,
            baselines=config.search.baselines,
            held_out=parts.held_out is not None,
            observe=observe,
        ).run()
    return folder
