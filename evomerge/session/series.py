"""Pools that a folder gives: `pool.checkpoints` and `pool.adapters` become `pool.models`, once, where a run begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from evomerge.config.composing_words import left_open
from evomerge.config.construct import to_builtin
from evomerge.config.schema import Config
from evomerge.errors import ConfigError, nearest
from evomerge.models.pool_settings import check_names


def fill_models(config: Config) -> None:
    """Put what `pool.checkpoints` and `pool.adapters` name behind `pool.models`.

    Both are ``None`` afterwards: what a run folder keeps are the models that were found, so that a run goes on with
    them whatever has been saved since. Without a base, the first checkpoint is the base, and of adapters the one
    model that there is.

    Raises:
        ConfigError: settings that cannot be or are not given, or a name that `pool.models` has already.
        PoolError: no such folder, or too few checkpoints or adapters.
    """
    pool: Any = config.pool
    for key in sorted(OmegaConf.missing_keys(pool)):
        raise left_open(key)
    _fill_checkpoints(config)
    _fill_adapters(config)


def _fill_checkpoints(config: Config) -> None:
    pool: Any = config.pool
    given = to_builtin(pool.get("checkpoints"))
    if given is None:
        return
    from evomerge.models.checkpoints.series import KEY, SeriesSettings, series_models  # torch: not before it is wanted

    models = to_builtin(pool.models)
    check_names(models)
    found = series_models(SeriesSettings.of(given), pool.root, models.get(pool.base))
    pool.models = _joined(models, found, KEY)
    if pool.base is None:
        pool.base = next(iter(found))
    pool.checkpoints = None


def _fill_adapters(config: Config) -> None:
    pool: Any = config.pool
    given = to_builtin(pool.get("adapters"))
    if given is None:
        return
    models = to_builtin(pool.models)
    check_names(models)
    if pool.base is None and len(models) == 1:
        pool.base = next(iter(models))
    if pool.base is None or pool.base not in models:
        raise ConfigError(
            f"pool.adapters is {str(given)[:80]!r} and pool.base is {pool.base!r}",
            nearest(pool.base, models)
            if pool.base is not None and models
            else "the model that adapters are folded into",
            "name that model in pool.models, and its name in pool.base",
        )
    from evomerge.models.checkpoints.repository import KEY, repository_models  # torch: not before it is wanted

    pool.models = _joined(models, repository_models(given, models[pool.base], pool.root), KEY)
    pool.adapters = None


def _joined(models: Mapping[str, str], found: Mapping[str, str], key: str) -> dict[str, str]:
    """The models of a pool, and those that were found."""
    twice = [name for name in found if name in models]
    if twice:
        raise ConfigError(
            f"pool.models has {twice[0]!r}, as {key} calls one of its own",
            "every name once",
            "call the model otherwise in pool.models, or leave it out",
        )
    return {**models, **found}
