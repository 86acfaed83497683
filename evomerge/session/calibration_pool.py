"""What every verb that runs sources over calibration items begins with and is held to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.config.schema import Config
from evomerge.errors import ConfigError
from evomerge.session.builders import fitness_from_config
from evomerge.session.calibration import check_apart
from evomerge.session.pools import pool_from_config
from evomerge.session.series import fill_models
from evomerge.session.settings import check_pool
from evomerge.utils.imports import import_modules

if TYPE_CHECKING:
    from evomerge.models.pool import Pool


def calibration_pool(config: Config) -> Pool:
    """The pool whose sources are run; `pool.checkpoints` and `pool.adapters` become `pool.models`.

    Raises:
        EvomergeError: there are no calibration items, or the pool cannot be opened.
    """
    import_modules(config.imports, "imports")
    if config.calibration is None:
        raise ConfigError(
            "calibration is not set",
            "the items that sources are run on",
            "choose them: calibration=text 'calibration.files=[my.jsonl]', or calibration=lm_eval",
        )
    fill_models(config)
    check_pool(config)
    return pool_from_config(config)


def check_not_held_out(config: Config, documents: Sequence[tuple[str, str]]) -> None:
    """Refuse calibration items that are the configuration's held-out items.

    Args:
        config: of the experiment.
        documents: of the calibration items, as fitnesses have them.

    Raises:
        ConfigError: some are.
    """
    check_apart(documents, fitness_from_config(config, "held_out") if config.held_out is not None else None)
