"""TensorBoard: event files in the run folder, ``tensorboard --logdir runs``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.trackers.tracker import Ending, TrackedRun, require


class TensorBoard:
    """Writes event files, whose values are float32.

    Args:
        folder: where to; ``tensorboard`` in the run folder by default.
    """

    def __init__(self, folder: str | None = None) -> None:
        require("tensorboard", "tensorboard")
        self._folder = folder
        self._writer: Any = None

    def begin(self, run: TrackedRun) -> str | None:
        """Begin another file: TensorBoard reads all of a folder as one."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = Path(self._folder) / run.name if self._folder else run.folder / "tensorboard"
        self._writer = EventFileWriter(str(folder), flush_secs=10)
        return None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one event."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        found = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=found)))

    def end(self, ending: Ending) -> None:
        """Write what is left."""
        self._writer.close()
