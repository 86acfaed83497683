"""A run's log: warnings and tracebacks go to RUN/log.txt, what concerns the user also to the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TextIO

from evomerge.errors import EvomergeWarning

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_HELD = 1000  # records kept until the run has a folder
_OURS = ("evomerge", "fitness", "search_spaces")


class RunLog(logging.Handler):
    """While open, takes what is logged: evomerge's from INFO on, libraries' and Python's warnings from WARNING on.

    The run folder may not be there yet: what is logged is held until `open_file`, and lost when that never comes.

    Args:
        path: the file, appended to.
        tell: shows a line to the user: what evomerge itself warns of.
        streams: also keep what is printed to standard output and error off the terminal, where they are one.
    """

    def __init__(self, path: Path, tell: Callable[[str], None], *, streams: bool = False) -> None:
        super().__init__()
        self._path, self._tell, self._take_streams = path, tell, streams
        self._file: logging.FileHandler | None = None
        self._held: list[logging.LogRecord] = []
        self._levels: dict[str, int] = {}
        self._streams: tuple[TextIO, TextIO] | None = None
        self._set_aside: list[logging.Handler] = []
        self._turned: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []
        self._show: object = None

    def __enter__(self) -> RunLog:
        for name in _OURS:
            logger = logging.getLogger(name)
            self._levels[name] = logger.level
            logger.setLevel(logging.INFO)
        root = logging.getLogger()
        self._set_aside = [handler for handler in root.handlers if _stream_of(handler) is not None]
        for handler in self._set_aside:  # Hydra's, which writes everything to standard output
            root.removeHandler(handler)
        root.addHandler(self)
        self._show, warnings.showwarning = warnings.showwarning, _show_warning
        if self._take_streams:
            self._turn_streams()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._streams is not None:
            sys.stdout, sys.stderr = self._streams
        for stream_handler, stream in self._turned:
            stream_handler.setStream(stream)
        warnings.showwarning = self._show  # type: ignore[assignment]
        root = logging.getLogger()
        root.removeHandler(self)
        for handler in self._set_aside:
            root.addHandler(handler)
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk
                self._file.close()

    def _turn_streams(self) -> None:
        """Let what is printed to a terminal go to the log, also by the handlers that libraries have made."""
        self._streams = sys.stdout, sys.stderr
        lines = [
            (_to_log(name) if stream.isatty() else stream)
            for name, stream in zip(("stdout", "stderr"), self._streams, strict=True)
        ]
        loggers = [found for found in logging.root.manager.loggerDict.values() if isinstance(found, logging.Logger)]
        for handler in [handler for logger in loggers for handler in logger.handlers]:
            stream = _stream_of(handler)
            for before, after in zip(self._streams, lines, strict=True):
                if stream is before and isinstance(handler, logging.StreamHandler):
                    self._turned.append((handler, before))
                    handler.setStream(after)
        sys.stdout, sys.stderr = lines

    def open_file(self) -> None:
        """The run folder is there: write what was held, and from now on all."""
        if self._file is not None:
            return
        self._file = _File(self._path, encoding="utf-8", errors="backslashreplace")
        self._file.setFormatter(logging.Formatter(_FORMAT))
        held, self._held = self._held, []
        for record in held:
            self._file.emit(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, and tell the user of evomerge's own warnings."""
        if self._file is not None:
            self._file.emit(record)
        elif len(self._held) < _HELD:
            self._held.append(record)
        if record.levelno >= logging.WARNING and record.name.partition(".")[0] in _OURS:
            self._tell(f"{record.levelname.lower()}: {record.getMessage()}")


class _File(logging.FileHandler):
    """A file that may be on a full disk: what cannot be written is lost."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: where it would be said leads back here."""


class _Lines(io.TextIOBase):
    """A stream whose lines go to a logger; of a progress bar that redraws its line, only the last state."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger, self._rest = logger, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        lines = (self._rest + text).split("\n")
        self._rest = lines.pop().rpartition("\r")[2]
        for line in lines:
            shown = line.rstrip("\r").rpartition("\r")[2].rstrip()
            if shown:
                self._logger.warning("%s", shown)
        return len(text)


def _stream_of(handler: logging.Handler) -> TextIO | None:
    """Standard output or error, where a handler writes to it."""
    stream = vars(handler).get("stream") if isinstance(handler, logging.StreamHandler) else None
    return stream if stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__) else None


def _to_log(name: str) -> TextIO:
    return _Lines(logging.getLogger(name))  # type: ignore[return-value]


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, EvomergeWarning):  # told to the user as well
        logging.getLogger("evomerge").warning("%s", message)
        return
    text = warnings.formatwarning(message, category, filename, lineno, line)
    logging.getLogger("py.warnings").warning("%s", text.strip())
