"""Pools of pipelines that draw images, as a configuration has them, and the fitnesses that go with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evomerge.errors import FitnessError
from evomerge.protocols import Fitness
from evomerge.recipes.slices import ModelRef

if TYPE_CHECKING:
    from evomerge.models.pool import Pool


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
    """`FitnessError` where models are pipelines that draw images and the fitness scores texts, or the other way round."""
    parts: Any = getattr(fitness, "fitnesses", None)
    if isinstance(parts, Mapping):
        for part in parts.values():
            check_scored(pool, part)
        return
    draws = bool(getattr(fitness, "scores_pipelines", False))
    if draws != (pool.info.network is not None):
        raise FitnessError(
            f"{type(fitness).__name__} scores {'pipelines that draw images' if draws else 'models that are no pipelines'}",
            "fitness=text_to_image for pools with pool.network, and for no others",
            "set pool.network=auto, for pipelines" if draws else "choose fitness=text_to_image",
        )
