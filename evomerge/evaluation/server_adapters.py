"""The folder that a server reads candidates' adapters from: what is in it, and whose it is."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from evomerge.errors import OutputError
from evomerge.evaluation.adapter_files import write_adapter
from evomerge.evaluation.server_settings import ServerSettings
from evomerge.merge.adapters.places import AdapterBase, Kind, Places
from evomerge.merge.methods.low_rank import Factors


class AdapterFolder:
    """Writes adapters as PEFT does, under names that say whose they are.

    A name is ``evomerge-RUN-SESSION-CONTENT``: the run, so that what a killed session left is found by the next one;
    the session and the worker; a hash of what the adapter is made of.

    Args:
        settings: of the server; `owner` are the run and the session, drawn for a worker that belongs to none.
    """

    def __init__(self, settings: ServerSettings) -> None:
        run, session = settings.owner
        self._run = f"evomerge-{run or secrets.token_hex(4)}-"
        self._session = f"{self._run}{session or secrets.token_hex(3)}"
        self._worker = f"{self._session}{secrets.token_hex(2)}-"
        self.path = Path(settings.adapters).expanduser().absolute()
        self._there = PurePosixPath(settings.adapters_there or str(self.path))
        self._mark = self.path / f".{self._session}.checked"

    def make(self) -> None:
        """Make the folder where it is not there.

        Raises:
            OutputError: it cannot be written.
        """
        with _written(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._mark.with_suffix(".trial").touch()
            self._mark.with_suffix(".trial").unlink()

    def name(self, content: str) -> str:
        """What an adapter is called whose content has this hash."""
        return f"{self._worker}{content[:16]}"

    def there(self, name: str) -> str:
        """Its folder, as the server sees it."""
        return str(self._there / name)

    def write(self, name: str, factors: Mapping[str, tuple[Factors, Kind]], base: AdapterBase, places: Places) -> None:
        """Write an adapter; it is there whole or not at all.

        Args:
            name: its folder.
            factors, base, places: as for `write_adapter`.

        Raises:
            OutputError: the disk is full, or the folder cannot be written.
        """
        unfinished = self.path / f".{name}"
        with _written(self.path):
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            write_adapter(unfinished, factors, base, places)
            for file in (unfinished, *unfinished.iterdir()):  # the server may be another user's
                file.chmod(file.stat().st_mode | (0o555 if file.is_dir() else 0o444))
            os.rename(unfinished, self.path / name)

    def remove(self, name: str) -> None:
        """Delete an adapter's folder, where it is there."""
        shutil.rmtree(self.path / name, ignore_errors=True)

    def left(self, names: Iterable[str]) -> list[str]:
        """Of names those that an earlier session of this run has left."""
        return [name for name in names if name.startswith(self._run) and not name.startswith(self._session)]

    def clean(self) -> None:
        """Delete what earlier sessions of this run have left."""
        for path in self.path.iterdir():
            if self.left([path.name.removeprefix(".")]):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def first(self) -> bool:
        """Whether no worker of this session has asked before: one comparison of the base is enough for all."""
        try:
            self._mark.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def forget(self) -> None:
        """Let the next worker of this session be the first."""
        self._mark.unlink(missing_ok=True)


@contextlib.contextmanager
def _written(folder: Path) -> Any:
    """Name the folder where something in it cannot be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # safetensors has errors of its own
        raise OutputError(
            f"evaluator.server.adapters is {folder}, which cannot be written: {error}",
            "a folder with room that this process writes and the server reads",
        ) from error
