"""Pools as a configuration has them, of models or of pipelines that draw images, and which fitnesses go with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from evomerge.config.construct import to_builtin
from evomerge.config.schema import Config
from evomerge.errors import FitnessError
from evomerge.models.trusted_code import remember
from evomerge.protocols import Fitness
from evomerge.recipes.slices import ModelRef
from evomerge.session.opening_settings import opening_settings

if TYPE_CHECKING:
    from evomerge.models.pool import Pool


def pool_from_config(config: Config) -> Pool:
    """Open the pool, reading configs and headers, and of sources some attention layers that may be rotated."""
    from evomerge.models.opening import open_pool
    from evomerge.models.rotated import refuse_rotated

    settings: Any = config.pool
    if settings.get("network") is not None:
        return network_pool(settings, to_builtin(settings.models))
    pool = open_pool(
        to_builtin(settings.models),
        *(settings.base, settings.root, settings.dtype, settings.trust_remote_code),
        **opening_settings(settings),
    )
    if settings.trust_remote_code:
        remember(checkpoint.folders[0] for checkpoint in pool.checkpoints.values())
    refuse_rotated(pool)
    return pool


def network_pool(
    settings: Any, models: Mapping[str, str] | Mapping[str, ModelRef], *, fingerprints: bool = True
) -> Pool:
    """Open the pipelines that the node ``pool`` of a configuration names, of which `network` is merged.

    Args:
        settings: the node.
        models: by name, locations or what pins them.
        fingerprints: hash their content.
    """
    from evomerge.models.pipelines.opening import open_pipelines

    return open_pipelines(
        models,
        settings.base,
        settings.root,
        settings.dtype,
        network=settings.network,
        others=settings.get("others"),
        fingerprints=fingerprints,
    )


def check_scored(pool: Pool, fitness: Fitness) -> None:
    """Check that a fitness, or each part of several, scores models of the pool's kind.

    Raises:
        FitnessError: models are pipelines that draw images and the fitness scores others, or the other way round; the
            fitness has an attribute `reads` and the models read something else.
    """
    _check_read(pool, fitness)
    draws = bool(getattr(fitness, "scores_pipelines", False))
    if draws != (pool.info.network is not None):
        raise FitnessError(
            f"{type(fitness).__name__} scores {'pipelines' if draws else 'models that are no pipelines'}",
            "fitness=text_to_image for pools with pool.network, and for no others",
            "set pool.network=auto, for pipelines" if draws else "choose fitness=text_to_image",
        )


class _Kind(NamedTuple):
    """What models of a class are for.

    Attributes:
        name: what they are called.
        reads: what fitnesses that score them say in their attribute of this name.
        fitness: that scores them.
    """

    name: str
    reads: str
    fitness: str


_KINDS = {
    "ForImageClassification": _Kind("image classifiers", "images", "images"),
    "ForSemanticSegmentation": _Kind("segmenters", "masks", "segmentation"),
    "SamModel": _Kind("segmenters", "masks", "segmentation"),
    "SamHQModel": _Kind("segmenters", "masks", "segmentation"),
    "SamVisionModel": _Kind("image encoders of segmenters", "masks", "segmentation"),
    "CLIPVisionModel": _Kind("image towers", "images", "images"),
    "CLIPVisionModelWithProjection": _Kind("image towers", "images", "images"),
    "SiglipVisionModel": _Kind("image towers", "images", "images"),
    "ForSequenceClassification": _Kind("classifiers of texts", "texts", "classification"),
    "ForCausalLM": _Kind("language models", "texts", "lm_eval"),
    "ForMaskedLM": _Kind("encoders of texts", "texts", "retrieval"),
    "ForConditionalGeneration": _Kind("language models", "texts", "lm_eval"),
}
"""By the end of a class's name; of others nothing is said here."""


def _check_read(pool: Pool, fitness: Any) -> None:
    """`FitnessError` where a fitness says that it reads something else than the pool's models do."""
    if pool.info.network is not None:
        return
    for part in getattr(fitness, "parts", {}).values():
        _check_read(pool, part)
    wanted, names = getattr(fitness, "reads", None), tuple(getattr(pool.config, "architectures", None) or ())
    kind = next((_KINDS[end] for end in _KINDS if names and str(names[0]).endswith(end)), None)
    if wanted is None or kind is None or wanted == kind.reads:
        return
    raise FitnessError(
        f"{type(fitness).__name__} scores models that read or give {wanted}, and the models are {kind.name} "
        f"({names[0]})",
        f"fitness={kind.fitness} for {kind.name}",
        f"choose fitness={kind.fitness}, with fitness.tasks of its own",
    )
