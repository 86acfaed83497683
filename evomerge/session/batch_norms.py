"""The batch-norm statistics that a run's models were scored with, computed again where one is exported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from evomerge.candidate import Split
from evomerge.config.construct import to_builtin
from evomerge.config.trust import check_trust
from evomerge.errors import FitnessError
from evomerge.evaluation.batch_norms import computes_batch_norms, has_batch_norms, is_source
from evomerge.export.in_memory import merged_model
from evomerge.merge.execution.engine import TORCH_DTYPES
from evomerge.merge.planning.plan import make_plan
from evomerge.models.loaded import LoadedModel
from evomerge.models.pool import Pool
from evomerge.protocols import Fitness
from evomerge.recipes.recipe import Recipe
from evomerge.run.folder import RunFolder
from evomerge.session.builders import check_fitnesses, fitness_from_config
from evomerge.session.resume import read_config
from evomerge.utils.imports import import_modules

if TYPE_CHECKING:
    import torch

    from evomerge.config.schema import Config

NOTE = "batch-norm statistics are merged as weights are, which is seldom what the merged weights give"
"""Said of a model whose statistics nobody computes."""


def batch_norms_of_run(
    folder: RunFolder, recipe: Recipe, pool: Pool, *, trust: bool = False, device: str = "cpu"
) -> dict[str, torch.Tensor]:
    """The statistics of a recipe's model as the run's fitness gives them, by the names of a checkpoint's tensors.

    Args:
        folder: of the run.
        recipe: one of its models.
        pool: the recipe's.
        trust: build a fitness that is not evomerge's.
        device: where the model is merged and its statistics are computed.

    Returns:
        Nothing where the pool's models have no batch norms, the recipe is one of them as it is, or the run leaves
        statistics as they are merged.

    Raises:
        ConfigError: the run's configuration names code that is not evomerge's.
        FitnessError: the run's images are not there any more.
    """
    if not has_batch_norms(pool) or is_source(make_plan(recipe, pool), pool):
        return {}
    config = cast("Config", read_config(folder))
    if not trust:
        check_trust(to_builtin(config), (), "the run's configuration")
    import_modules(config.imports, "imports")
    fitness: Any = fitness_from_config(config, "fitness", files=False)
    if not computes_batch_norms(pool, fitness):
        return {}
    try:
        check_fitnesses(fitness, pool=pool)
        module = merged_model(recipe, pool, device)
        name = str(pool.folder(pool.info.config_from))
        model = LoadedModel(module, module.tokenizer, TORCH_DTYPES[recipe.dtype], module.device, name)
        fitness.prepare(model)
        found = fitness.batch_norms(model)
    except FitnessError as error:
        error.do = "; ".join(part for part in (error.do, "or leave statistics as merged: --batch-norms merged") if part)
        error.args = (error.given, error.allowed, error.do)
        raise
    return by_tensor(found, pool)


def giving_batch_norms(config: Config, pool: Pool) -> dict[Split, Fitness]:
    """The search's fitness, for a worker that scores on other items, where it gives statistics."""
    if config.fitness is None or not has_batch_norms(pool):
        return {}
    fitness = fitness_from_config(config, "fitness", exact=True)
    if not computes_batch_norms(pool, fitness):
        return {}
    check_fitnesses(fitness, pool=pool)
    return {"search": fitness}


def mixes_batch_norms(recipe: Recipe, pool: Pool) -> bool:
    """Whether whoever merges a recipe tensor by tensor, mergekit say, mixes the statistics of batch norms."""
    return has_batch_norms(pool) and not is_source(make_plan(recipe, pool), pool)


def give_batch_norms(model: Any, tensors: Mapping[str, torch.Tensor], pool: Pool) -> None:
    """Write statistics into a model, given by the names of a checkpoint's tensors."""
    if tensors:
        places = _places(pool)
        model.load_state_dict({places[name]: own for name, own in tensors.items()}, strict=False)


def by_tensor(buffers: Mapping[str, torch.Tensor], pool: Pool) -> dict[str, torch.Tensor]:
    """Tensors by their names in a checkpoint, given by those of a module's buffers; a head's of its own too."""
    places = _places(pool)
    return {name: buffers[place] for name, place in places.items() if place in buffers}


def _places(pool: Pool) -> dict[str, str]:
    """By names of a checkpoint's tensors those of the module's."""
    heads = {} if pool.heads is None else {name: place for place, name in pool.heads.names.items()}
    return {**pool.layout.parameters, **heads}
