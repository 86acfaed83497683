"""Pools as a configuration has them, of models or of pipelines that draw images, and which fitnesses go with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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
    """`FitnessError` where models are pipelines that draw images and the fitness scores texts, or the other way."""
    draws = bool(getattr(fitness, "scores_pipelines", False))
    if draws != (pool.info.network is not None):
        raise FitnessError(
            f"{type(fitness).__name__} scores {'pipelines' if draws else 'models that are no pipelines'}",
            "fitness=text_to_image for pools with pool.network, and for no others",
            "set pool.network=auto, for pipelines" if draws else "choose fitness=text_to_image",
        )
