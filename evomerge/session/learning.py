"""What `evomerge learn` does: checked before a model is loaded, learnt, written as a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.config.construct import to_builtin
from evomerge.config.schema import Config
from evomerge.errors import ConfigError, NoMemoryError, PoolError
from evomerge.protocols import SearchSpace
from evomerge.recipes.calibration import CalibrationRef
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceRecipe
from evomerge.session.builders import phase_nodes
from evomerge.session.calibration import override_word
from evomerge.session.calibration_items import plan_items
from evomerge.session.gene_budget import fit_spaces
from evomerge.session.weight_map import weight_map
from evomerge.utils.sizes import size_text

if TYPE_CHECKING:
    from evomerge.calibration.encoding import Encoded, Item
    from evomerge.calibration.learning.factors import WeightMap
    from evomerge.calibration.learning.loop import History
    from evomerge.calibration.learning.settings import Settings
    from evomerge.models.pool import Pool

_METHODS = {"mask": "masked", "columns": "columns"}


@dataclass(frozen=True)
class Learning:
    """What is to be learnt.

    Attributes:
        pool: of the sources, with a base.
        settings: how.
        items: on what, by source.
        documents: hashes of the items, as fitnesses have them.
        space, weights: whose genes, where weights are learnt, and what these weight.
        key: ``sha256:...`` of all that changes the result.
        made_by: overrides of ``evomerge learn`` that do the same again.
    """

    pool: Pool
    settings: Settings
    items: Mapping[str, Sequence[Encoded]]
    documents: Sequence[tuple[str, str]]
    space: SearchSpace | None
    weights: WeightMap | None
    key: str
    made_by: tuple[str, ...]

    @property
    def numbers(self) -> int:
        """How many numbers are learnt, of weights and masks; of columns about as many as inputs of layers."""
        if self.weights is not None:
            return len(self.weights.start)
        sizes = self.pool.layout.shapes.values()
        if self.settings.usual(1).learns == "mask":
            return sum(self.pool.info.sizes)
        return len(self.items) * sum(shape[-1] if shape else 1 for shape in sizes)


def plan_learning(config: Config, pool: Pool) -> Learning:
    """Check what can be checked without loading a model.

    Args:
        config: with the nodes ``calibration``, ``statistics`` and ``learning``.
        pool: the source models.

    Raises:
        ConfigError, FitnessError, PoolError: keys, items or models that cannot be used.
    """
    from evomerge.calibration.learning.settings import Settings
    from evomerge.calibration.learning.tensors import refuse_joins
    from evomerge.models.architecture.layout import skeleton

    given = {str(key): value for key, value in to_builtin(config.learning).items()}
    every = given.pop("checkpoint")
    if every < 1:
        raise ConfigError(f"learning.checkpoint is {every}", "at least 1 step")
    given.pop("out")
    settings = Settings(**given, dtype=config.statistics.dtype)
    if pool.info.base is None:
        raise ConfigError("the pool has no base", "task vectors are differences from one", "name one with pool.base")
    if pool.info.uneven:
        raise ConfigError(pool.info.uneven, "merge methods go layer by layer, over models of one depth")
    refuse_joins(pool)
    module = skeleton(pool.config, pool.trust_remote_code)
    if not getattr(module, "can_generate", lambda: False)():
        raise PoolError(f"{type(module).__name__} gives texts no likelihood", "causal language models")
    usual = settings.usual(len(pool.info.sources))
    space = map_ = None
    genes: object = None
    if usual.learns == "weights":
        nodes = phase_nodes(config, pool.info)
        fit_spaces(nodes, pool.info)
        space = nodes[0].space(None)
        map_ = weight_map(space, pool.info, usual.init or 0.0)
        parts = (map_.offset, map_.slopes, map_.low, map_.high, map_.start)
        genes = [[str(own) for own in map_.slices], *(part.tolist() for part in parts)]
    read, documents = plan_items(config, pool)
    items = {model: _texts(own) for model, own in read.items()}
    refs = dict(pool.info.refs)
    identities = [refs[model].identity for model in (*pool.info.sources, pool.info.base)]
    key = settings.key(identities, [items[model] for model in pool.info.sources], genes)
    return Learning(pool, settings, items, documents, space, map_, key, _made_by(config, pool))


def use_of(recipe: Recipe, out: Path) -> str:
    """What a learnt recipe is for: a model of it, and a search that goes on from it."""
    reads = {own.method for own in recipe.slices if own.method in _METHODS.values()}
    if not reads:
        return f"`evomerge merge {out} OUT`, or search.warm_start=[{out}]"
    searched = f"search_space=parameter search_space.method={min(reads)} statistics.learned={out}"
    return f"`evomerge merge {out} OUT`, or {searched}"


def _texts(items: Sequence[Item]) -> list[Encoded]:
    """The items, all of which are texts."""
    from evomerge.calibration.encoding import Encoded

    found = [item for item in items if isinstance(item, Encoded)]
    if len(found) < len(items):
        raise ConfigError("calibration gives tensors", "texts: what is learnt is learnt on them")
    return found


def _made_by(config: Config, pool: Pool) -> tuple[str, ...]:
    """The overrides that say the same again."""
    given = {key: value for key, value in to_builtin(config.learning).items() if key not in ("out", "checkpoint")}
    statistics = to_builtin(config.statistics)
    return (
        f"pool.base={override_word(pool.info.base)}",
        f"+calibration={override_word(to_builtin(config.calibration))}",
        *(f"statistics.{key}={override_word(statistics[key])}" for key in ("dtype", "max_length")),
        *(f"learning.{key}={override_word(value)}" for key, value in given.items() if value is not None),
    )


def learnt_recipe(
    found: Learning,
    device: str = "cpu",
    every: int = 25,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Recipe, History]:
    """Learn, or take what was learnt before; the recipe of it, and what was lost on the way.

    What is written does not depend on how often it was interrupted.

    Args:
        found: by `plan_learning`.
        device: where the merged model computes.
        every: steps between two states that an interrupted one goes on from.
        progress: told the steps that are done and their number.

    Raises:
        EvomergeError: it cannot be learnt.
    """
    from evomerge.calibration.files import held
    from evomerge.calibration.learning.factors import ColumnFactors, Factors, MaskFactors, WeightFactors
    from evomerge.calibration.learning.loop import learn
    from evomerge.calibration.learning.objective import Objective
    from evomerge.calibration.learning.product import Counts, write_columns, write_mask
    from evomerge.calibration.learning.tensors import Tensors
    from evomerge.merge.resident.loading import load_on
    from evomerge.models.statistics import ModelStatistics, default_folder

    settings, pool = found.settings, found.pool
    usual = settings.usual(len(pool.info.sources))
    init = usual.init if usual.init is not None else 0.0
    _require_memory(found, device)
    folder = default_folder().parent / "learned" / found.key.removeprefix("sha256:")
    with held(folder):
        module = load_on(device, replace(pool, info=replace(pool.info, dtype=settings.dtype)), None)  # type: ignore[arg-type]
        module.config.use_cache = False  # nothing is written, all is read at once
        tensors = Tensors(pool, module)
        factors: Factors
        if found.weights is not None:
            factors = WeightFactors(tensors, found.weights, usual.pull)
        elif usual.learns == "mask":
            factors = MaskFactors(tensors, init, settings.mask_temperature, settings.seed)
        else:
            factors = ColumnFactors(tensors, module, init, usual.similarity)
        history = learn(
            module,
            tensors,
            factors,
            Objective(module, usual),
            found.items,
            steps=settings.steps,
            batch=settings.batch,
            rate=usual.rate,
            seed=settings.seed,
            folder=folder,
            every=every,
            progress=progress,
        )
    if found.space is not None:
        return found.space.decode(found.space.spec.genome(factors.values["genes"].tolist())), history
    counts = Counts(sum(map(len, found.items.values())), sum(len(i.ids) for own in found.items.values() for i in own))
    keys = {model: _part(found.key, usual.learns, model if usual.learns == "columns" else "") for model in found.items}
    into = [ModelStatistics(default_folder(), usual.learns, key) for key in keys.values()]
    if isinstance(factors, MaskFactors):
        write_mask(tensors, factors, into[0], counts)
    else:
        assert isinstance(factors, ColumnFactors), "there is no third"
        write_columns(tensors, factors, into, counts)
    ref = CalibrationRef(tuple((model, usual.learns, key) for model, key in keys.items()), found.made_by)
    scale = {"lambda": init} if usual.learns == "mask" else {}
    return _recipe(pool, _METHODS[usual.learns], scale, ref), history


def _recipe(pool: Pool, method: str, shared: Mapping[str, float], ref: CalibrationRef) -> Recipe:
    info = replace(pool.info, calibration=ref)
    assert info.base is not None, "it was checked before"
    base, inputs = Input(info.base), tuple(Input(name) for name in info.sources)
    return info.recipe(SliceRecipe(own, method, inputs, tuple(shared.items()), base) for own in info.slices)


def _part(key: str, kind: str, model: str) -> str:
    """The key of what is kept of one model, or of all."""
    import hashlib

    return f"sha256:{hashlib.sha256(f'{key} {kind} {model}'.encode()).hexdigest()}"


def _require_memory(found: Learning, device: str) -> None:
    """`NoMemoryError` where the merged model and what is learnt have no room."""
    import torch

    from evomerge.calibration.learning.tensors import needed_bytes
    from evomerge.merge.execution.sources import free_memory

    where = torch.device(device)
    width = 4 if found.settings.dtype == "float32" else 2
    needed = needed_bytes(found.pool, found.settings.usual(1).learns, width, where.type == "cpu")
    free = free_memory(where)
    if needed > free:
        raise NoMemoryError(
            f"learning takes {size_text(needed)} and activations, {size_text(free)} of {where} are free",
            "room for the merged model, and the sources on a GPU",
            "set statistics.dtype=bfloat16, or learn weights or columns instead of a mask",
        )


def write_learnt(recipe: Recipe, out: Path) -> None:
    """Write the recipe; `OutputError` where it cannot be."""
    from evomerge.recipes.yaml_reader import dump_recipe
    from evomerge.utils.files import write_text_atomic

    write_text_atomic(out, dump_recipe(recipe))
