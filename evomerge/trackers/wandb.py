"""Weights & Biases: a run of a project."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.trackers.tracker import Ending, TrackedRun, require


class WeightsAndBiases:
    """Logs to a project; its files lie in ``wandb`` of the run folder.

    Args:
        project, entity, group: where the run is listed.
        mode: ``online``, or ``offline`` to upload later with ``wandb sync``; wandb's own choice by default
            (``WANDB_MODE``).
    """

    def __init__(
        self, project: str = "evomerge", entity: str | None = None, group: str | None = None, mode: str | None = None
    ) -> None:
        require("wandb", "wandb")
        self._where: dict[str, Any] = {"project": project, "entity": entity, "group": group, "mode": mode}
        self._run: Any = None

    def begin(self, run: TrackedRun) -> str | None:
        """Start a run, or go on with one; its id is what a later session needs."""
        import wandb

        self._run = wandb.init(
            **self._where,
            name=run.name,
            id=run.before,
            resume="allow" if run.before is not None else None,
            dir=str(run.folder),
            config=dict(run.config),
            settings=wandb.Settings(silent=True, console="off", init_timeout=60),
        )
        self._run.define_metric("evaluated")
        self._run.define_metric("*", step_metric="evaluated")
        return str(self._run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of one event in one row; ``evaluated`` is the step."""
        self._run.log({**values, "evaluated": step})

    def end(self, ending: Ending) -> None:
        """Wait for the upload."""
        self._run.finish(exit_code=0 if ending == "finished" else 1)
