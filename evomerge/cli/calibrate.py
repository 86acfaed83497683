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
    from evomerge.report.plain_console import console
    from evomerge.session.calibration_rows import calibrated, made

    console.print(made(calibrated(config)))
