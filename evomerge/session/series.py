"""Pools from a training run's folder: `pool.checkpoints` becomes `pool.models`, once, where a run begins."""

from __future__ import annotations

from typing import Any

from evomerge.config.construct import to_builtin
from evomerge.config.schema import Config
from evomerge.errors import ConfigError
from evomerge.models.pool_settings import check_names


def fill_checkpoints(config: Config) -> None:
    """Put the checkpoints that `pool.checkpoints` names behind `pool.models`; the first is the base if there is none.

    `pool.checkpoints` is ``None`` afterwards: what a run folder keeps are the models that were found, so that a run
    goes on with them whatever the training has added since.

    Raises:
        ConfigError: settings that cannot be, or a name that `pool.models` has already.
        PoolError: no such folder, or too few checkpoints.
    """
    pool: Any = config.pool
    given = to_builtin(pool.get("checkpoints"))
    if given is None:
        return
    from evomerge.models.checkpoints.series import KEY, SeriesSettings, series_models  # torch: not before it is wanted

    models = to_builtin(pool.models)
    check_names(models)
    found = series_models(SeriesSettings.of(given), pool.root, models.get(pool.base))
    twice = [name for name in found if name in models]
    if twice:
        raise ConfigError(
            f"pool.models has {twice[0]!r}, as {KEY} calls one of its own",
            "every name once",
            "call the model otherwise in pool.models, or leave it out",
        )
    pool.models = {**models, **found}
    if pool.base is None:
        pool.base = next(iter(found))
    pool.checkpoints = None
