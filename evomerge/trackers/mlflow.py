"""MLflow: a run of an experiment."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.trackers.tracker import Ending, TrackedRun, require

_ENDINGS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_LONGEST = 500  # characters of a parameter
_BATCH = 100  # parameters that a server takes at once


class Mlflow:
    """Logs to a tracking server, a database or a folder. Characters that MLflow refuses in names become ``_``.

    Args:
        experiment: its name.
        tracking_uri: where; MLflow's own choice by default (``MLFLOW_TRACKING_URI``).
    """

    def __init__(self, experiment: str = "evomerge", tracking_uri: str | None = None) -> None:
        require("mlflow", "mlflow")
        self._experiment, self._uri = experiment, tracking_uri
        self._client: Any = None
        self._run = ""

    def begin(self, run: TrackedRun) -> str | None:
        """Make a run, or go on with one; its id is what a later session needs."""
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = client = MlflowClient(tracking_uri=self._uri)
        if run.before is not None:
            self._run = run.before
            client.update_run(self._run, status="RUNNING")
            return self._run
        found = client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found is not None else client.create_experiment(self._experiment)
        made = client.create_run(experiment, run_name=run.name, tags={"mlflow.source.name": "evomerge"})
        self._run = str(made.info.run_id)
        params = [Param(_name(key), str(value)[:_LONGEST]) for key, value in _leaves(run.config)]
        for first in range(0, len(params), _BATCH):
            client.log_batch(self._run, params=params[first : first + _BATCH])
        return self._run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of one event together."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(_name(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def end(self, ending: Ending) -> None:
        """End the run with a status."""
        self._client.set_terminated(self._run, status=_ENDINGS[ending])


def _name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in text)[:250]


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif key:
        yield key, node
