"""Statistics of data from Python."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from evomerge.api.searching import composed
from evomerge.session.calibration_rows import calibrated


def calibrate(
    *overrides: str,
    display: Literal["auto", "live", "plain", "quiet"] | None = None,
    trust: bool = False,
    config_dir: str | os.PathLike[str] | None = None,
    **keys: Any,
) -> dict[str, dict[str, Path]]:
    """Make statistics of data of every source model: `evomerge calibrate` with the same keys, groups and experiments.

    A search makes what it needs by itself; this is for doing it before. What is there already is not made again.

    Args:
        overrides, trust, config_dir, keys: as for `search`: ``calibration="text"``,
            ``**{"calibration.files": ["texts.jsonl"]}``, ``statistics={"kinds": ["fisher"]}``.
        display: ``quiet`` shows no progress.

    Returns:
        By model and kind (``fisher``, ``gram``) the folder that they are kept in.

    Raises:
        EvomergeError: the configuration, the models or the items cannot be used; some items are held-out items.

    >>> made = evomerge.calibrate(
    ...     "experiment=demo", calibration="text", display="quiet",
    ...     **{"calibration.files": ["demo_pool/seed0/tasks/demo_e_maths.jsonl"], "calibration.items": 2},
    ... )
    >>> sorted(made), sorted(made["math"]), (made["math"]["gram"] / "statistics.json").is_file()
    (['lang', 'math'], ['fisher', 'gram'], True)
    """
    config = composed(overrides, keys, display, trust, config_dir)
    found: dict[str, dict[str, Path]] = {}
    for job in calibrated(config, quiet=config.display == "quiet").jobs:
        found.setdefault(job.model, {})[job.kind] = job.into.folder
    return found
