"""Statistics of data for a run: which its search space reads, on what, and made where they are not there yet."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.config.construct import to_builtin
from evomerge.config.schema import Config
from evomerge.errors import ConfigError, EvomergeError, nearest
from evomerge.protocols import Fitness
from evomerge.recipes.calibration import LEARNED, MEASURED, OF_EXPERTS, USUAL, CalibrationRef
from evomerge.session.calibration_items import plan_items
from evomerge.utils.sizes import byte_count

if TYPE_CHECKING:
    from evomerge.calibration.encoding import Item
    from evomerge.calibration.measurement import Measurement
    from evomerge.models.pool import Pool
    from evomerge.models.statistics import ModelStatistics


@dataclass(frozen=True)
class Job:
    """The statistics of one model.

    Attributes:
        model: its name in the pool.
        kind: that methods ask for.
        how, items: what is measured, and on which tokens.
        into: where they are kept.
    """

    model: str
    kind: str
    how: Measurement
    items: Sequence[Item]
    into: ModelStatistics


@dataclass(frozen=True)
class Calibration:
    """What a run's methods read of data.

    Attributes:
        pool: with the names of all statistics.
        jobs: what they are made of, whether they are there or not.
        documents: hashes of the items, as fitnesses have them.
    """

    pool: Pool
    jobs: tuple[Job, ...]
    documents: Sequence[tuple[str, str]]


def wanted_kinds(config: Config) -> tuple[str, ...]:
    """The kinds of statistics that are to be measured: those of the configuration, or those that its methods read.

    Raises:
        ConfigError: a kind that there is not.
    """
    given = to_builtin(config.statistics.kinds)
    if given is not None:
        for kind in given:
            if kind not in MEASURED:
                raise ConfigError(f"statistics.kinds has {kind!r}", nearest(str(kind), MEASURED))
        return tuple(kind for kind in MEASURED if kind in given)
    read = _read_kinds(config)
    return tuple(kind for kind in MEASURED if kind in read)


def _read_kinds(config: Config) -> set[str]:
    """The kinds that the search's methods read."""
    from evomerge.merge.methods import specs

    words = {word for node in (config.search_space, config.phases) for word in _words(to_builtin(node))}
    return {kind for name, spec in specs().items() if name in words for kind in spec.kinds}


def _words(value: Any) -> Iterator[str]:
    """Every text in plain values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for own in value.values():
            yield from _words(own)
    elif isinstance(value, list | tuple):
        for own in value:
            yield from _words(own)


def plan_calibration(config: Config, pool: Pool, *, every_kind: bool = False) -> Calibration | None:
    """Find out which statistics a run needs, from the items' tokens; no model is loaded.

    Args:
        config: with the nodes ``calibration`` and ``statistics``.
        pool: the source models.
        every_kind: the usual kinds, where the search space reads none.

    Returns:
        ``None`` where there is nothing to read.

    Raises:
        ConfigError, FitnessError: keys or items that cannot be used, or no items where methods read statistics.
    """
    kinds = wanted_kinds(config) or (USUAL if every_kind else ())
    if not every_kind and (learnt := [kind for kind in LEARNED if kind in _read_kinds(config)]):
        return _learnt(config, pool, learnt, kinds)
    if kinds and config.calibration is None:
        raise ConfigError(
            f"the search reads statistics of data ({', '.join(kinds)}), and calibration is not set",
            "the items that they are made on",
            "choose them: calibration=text 'calibration.files=[my.jsonl]', or calibration=lm_eval",
        )
    if config.calibration is None or not kinds:
        return None
    from evomerge.calibration.measurement import Measurement
    from evomerge.models.opening import with_statistics
    from evomerge.models.statistics import ModelStatistics, default_folder

    settings = config.statistics
    if settings.memory is not None:
        byte_count(settings.memory, "statistics.memory")
    for kind in kinds:
        if kind in OF_EXPERTS:
            _require_mixtures(pool, kind)
    hows = [Measurement(k, settings.labels, settings.grams, settings.dtype, settings.seed) for k in kinds]
    read, documents = plan_items(config, pool)
    jobs = []
    refs = dict(pool.info.refs)
    for model, each in itertools.product(pool.info.sources, hows):
        how = _of_model(each, pool, model, settings.optimizer)
        items = [] if how.kind == "curvature" else read[model]
        into = ModelStatistics(default_folder(), each.kind, how.key(_identity(refs[model].identity, pool), items))
        jobs.append(Job(model, each.kind, how, items, into))
    ref = CalibrationRef(tuple((job.model, job.kind, job.into.key) for job in jobs), _made_by(config, kinds))
    return Calibration(with_statistics(pool, ref), tuple(jobs), documents)


def _require_mixtures(pool: Pool, kind: str) -> None:
    """Refuse statistics of mixtures of experts where there are none, before any model is loaded."""
    from evomerge.calibration.experts import require_mixtures
    from evomerge.models.architecture.layout import skeleton

    require_mixtures(skeleton(pool.config, pool.trust_remote_code), kind)


def _identity(own: str, pool: Pool) -> str:
    """What a model's statistics depend on: also the vocabulary that it reads texts in."""
    return own if pool.vocabulary is None else f"{own} in vocabulary {pool.vocabulary.digest}"


def _of_model(how: Measurement, pool: Pool, model: str, optimizer: bool) -> Measurement:
    """What is measured of one model: its curvature is that of its optimizer's state, or squared gradients."""
    from evomerge.calibration.optimizer_states import optimizer_state

    if how.kind != "curvature":
        return how
    state = optimizer_state(pool.checkpoints[model].folder) if optimizer else None
    return replace(how, kind="fisher") if state is None else replace(how, state=state)


def _learnt(config: Config, pool: Pool, kinds: Sequence[str], measured: Sequence[str]) -> Calibration:
    """What `evomerge learn` left for methods that read it: named by the recipe that it wrote."""
    from evomerge.calibration.learning.settings import METHODS
    from evomerge.models.opening import with_statistics
    from evomerge.recipes.yaml_reader import read_recipe_file

    learns: dict[str, str] = {usual.learns: name for name, usual in METHODS.items()}
    given = config.statistics.learned
    reads = f"the search reads what is learnt ({', '.join(kinds)})"
    if measured:
        raise ConfigError(f"{reads} and statistics ({', '.join(measured)})", "one of them", "choose other methods")
    if given is None:
        raise ConfigError(
            f"{reads}, and statistics.learned is not set",
            "the recipe that evomerge learn wrote",
            "evomerge learn learning.method=concrete, or dam; then statistics.learned=learned.yaml",
        )
    try:
        recipe = read_recipe_file(Path(given))
    except EvomergeError as error:
        raise ConfigError(f"statistics.learned={given}: {error.given}", error.allowed, error.do) from error
    ref, own = recipe.calibration, dict(recipe.models)
    for model, wanted in pool.info.refs:
        for kind in kinds if model in pool.info.sources else ():
            if ref is None or model not in own or ref.key(model, kind) is None:
                raise ConfigError(
                    f"statistics.learned={given} has no {kind} of {model}",
                    f"a recipe of this pool that learning.method={learns[kind]} wrote",
                )
        if model in own and own[model].identity != wanted.identity:
            raise ConfigError(f"statistics.learned={given} is of another {model}", "a recipe of these very models")
    assert ref is not None, "a pool has sources"
    found = with_statistics(pool, ref)
    for model in found.info.sources:
        for kind in kinds:
            found.statistics_of(model, kind, ref.key(model, kind) or "")
    return Calibration(found, (), ())


def _made_by(config: Config, kinds: Sequence[str]) -> tuple[str, ...]:
    """The overrides that say the same again."""
    statistics = {**to_builtin(config.statistics), "kinds": list(kinds)}
    own = [
        f"statistics.{key}={override_word(statistics[key])}"
        for key in ("kinds", "labels", "grams", "dtype", "max_length")
    ]
    if not statistics["optimizer"]:
        own.append("statistics.optimizer=false")
    if statistics["labels"] == "sampled" or "hessian" in kinds:
        own.append(f"statistics.seed={statistics['seed']}")
    return f"+calibration={override_word(to_builtin(config.calibration))}", *own


def override_word(value: Any) -> str:
    """A value as Hydra's overrides write it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {override_word(own)}" for key, own in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(override_word(own) for own in value) + "]"
    if isinstance(value, str):
        return value if value.replace("_", "").isalnum() else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


def check_apart(found: Sequence[tuple[str, str]], held_out: Fitness | None) -> None:
    """Refuse calibration items that are held-out items.

    Args:
        found: documents of the calibration items, as fitnesses have them.
        held_out: the fitness of held-out items, if there is one.

    Raises:
        ConfigError: some are.
    """
    asked: Callable[[], Sequence[tuple[str, str]]] | None = getattr(held_out, "documents", None)
    if not found or asked is None:
        return
    known = [{document[of] for document in found} for of in (0, 1)]
    same = sum(document[0] in known[0] or document[1] in known[1] for document in asked())
    if same:
        raise ConfigError(
            f"{same:,} held-out items are calibration items",
            "others: merges are made with these",
            "change calibration: training documents (calibration.split=train), or the search's own items",
        )


def make_statistics(
    found: Calibration | None,
    device: str = "cpu",
    memory: int | None = None,
    every: float = 30.0,
    begin: Callable[[Job], Callable[[int, int], None]] = lambda job: lambda done, total: None,
) -> float:
    """Make the statistics that are not there; returns the seconds that it took.

    Args:
        found: by `plan_calibration`.
        device: where the models compute.
        memory: bytes for sums; a quarter of what is free where they are kept by default.
        every: as for `calibration.measure.measure`.
        begin: told of each model's, gives what is told of the progress.

    Raises:
        EvomergeError: they cannot be made.
    """
    jobs = [job for job in found.jobs if not job.into.complete] if found is not None else []
    if found is None or not jobs:
        return 0.0
    import torch

    from evomerge.calibration.measure import measure
    from evomerge.merge.execution.sources import free_memory
    from evomerge.models.opening import open_pool

    start, refs = time.perf_counter(), dict(found.pool.info.refs)
    room = memory if memory is not None else free_memory(torch.device(device)) // 4
    trust = found.pool.trust_remote_code
    for job in jobs:
        own = open_pool({job.model: refs[job.model]}, dtype=job.how.dtype, trust_remote_code=trust, fingerprints=False)
        into: ModelStatistics = job.into
        measure(own, job.items, job.how, into, memory=room, device=device, every=every, progress=begin(job))
    return time.perf_counter() - start
