"""``evomerge calibrate``: statistics of data of every source model, for methods that read them."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.config.schema import Config


def run(arguments: Sequence[str]) -> int:
    """Make the statistics that the arguments describe, unless they are there."""
    from evomerge.cli.composed import hydra_app

    return hydra_app("calibrate", arguments, calibrate)


def calibrate(config: Config) -> None:
    """Make the statistics, and print what was made of what."""
    from evomerge.errors import ConfigError
    from evomerge.report.plain_console import console
    from evomerge.session.builders import fitness_from_config, pool_from_config
    from evomerge.session.calibration import check_apart, plan_calibration
    from evomerge.session.calibration_rows import made, watched_statistics
    from evomerge.session.settings import check_pool
    from evomerge.utils.imports import import_modules

    import_modules(config.imports, "imports")
    if config.calibration is None:
        raise ConfigError(
            "calibration is not set",
            "the items that statistics are made on",
            "choose them: calibration=text 'calibration.files=[my.jsonl]', or calibration=lm_eval",
        )
    check_pool(config)
    found = plan_calibration(config, pool_from_config(config), every_kind=True)
    assert found is not None, "there are items, and all kinds are asked for where none is read"
    check_apart(found.documents, fitness_from_config(config, "held_out") if config.held_out is not None else None)
    watched_statistics(config, found)
    console.print(made(found))
