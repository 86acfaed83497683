"""The command that goes on with a run, to be pasted: with its folder, and what its configuration asks for."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evomerge.config.trust import FLAG, check_trust
from evomerge.errors import EvomergeError
from evomerge.run.folder import RunFolder
from evomerge.utils.files import read_bounded
from evomerge.utils.safe_yaml import MAX_CHARACTERS, parse

PLACEHOLDER = "`evomerge resume RUN"
"""How errors say it that do not know the run."""


def resume_command(run: str | Path) -> str:
    """``evomerge resume FOLDER``, quoted for a shell, with ``--trust`` where the run's configuration needs it."""
    try:
        content = parse(read_bounded(RunFolder(Path(run)).config, 4 * MAX_CHARACTERS, follow=False).decode())
        trust = needs_trust(content)
    except (OSError, ValueError, EvomergeError):
        trust = False  # resuming says what is wrong with it
    return f"evomerge resume {shlex.quote(str(run))}{f' {FLAG}' if trust else ''}"


def needs_trust(content: Any) -> bool:
    """Whether a configuration, as plain values, names what is not run unasked."""
    try:
        check_trust(content, [], "")
    except EvomergeError:
        return True
    return False


@contextmanager
def resumable(run: str | Path) -> Iterator[None]:
    """Let errors that say how a search goes on say it of this run; an interrupt gets it as its attribute `resume`."""
    try:
        yield
    except EvomergeError as error:
        if PLACEHOLDER in str(error):
            command = f"`{resume_command(run)}"
            error.reword(lambda part: part.replace(PLACEHOLDER, command))
        raise
    except KeyboardInterrupt as error:
        if RunFolder(Path(run)).ledger.is_file():
            error.resume = resume_command(run)  # type: ignore[attr-defined]
        raise
