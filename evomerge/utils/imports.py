"""Imports: modules of a user's own, for the merge methods that they register, and large ones made faster."""

from __future__ import annotations

import gc
import importlib
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from evomerge.errors import ConfigError, EvomergeError, nearest


def import_modules(names: Iterable[str], key: str, folder: str | Path | None = None) -> None:
    """Import modules by name: installed ones, else files or packages of `folder`.

    Args:
        names: as in Python's own ``import``.
        key: the configuration key or option that gave the names, for messages.
        folder: looked through last; the current folder for ``None``.

    Raises:
        ConfigError: no such module, or an error in it.
    """
    for name in names:
        here = Path(folder or Path.cwd()).resolve()
        if str(here) not in sys.path:
            sys.path.append(str(here))  # last: a file of one's own must not stand in for an installed module
        importlib.invalidate_caches()  # the file may be younger than the listing that Python remembers
        _import(name, key, here)


def _import(name: str, key: str, here: Path) -> None:
    if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
        raise ConfigError(f"{key}: {name!r} is not the name of a module", "as in Python's import: no path, no .py")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _broken(name, key, error) from error
        beside = [file.stem for file in here.glob("*.py")] + [file.parent.name for file in here.glob("*/__init__.py")]
        raise ConfigError(
            f"{key}: there is no module {name!r}",
            "an installed module or one of the current folder" + (f": {nearest(name, beside)}" if beside else ""),
            f"run evomerge where {name.split('.')[0]}.py is",
        ) from error
    except (Exception, SystemExit) as error:  # one that exits would end the program as if all were done
        raise _broken(name, key, error) from error


def _broken(name: str, key: str, error: BaseException) -> ConfigError:
    """An error inside the module, with its place in it."""
    given = f"{key}: the module {name!r} cannot be imported"
    if isinstance(error, EvomergeError):
        return ConfigError(f"{given}: {error.given}", error.allowed, error.do)
    if isinstance(error, SyntaxError):
        place = f"{Path(error.filename or name).name}:{error.lineno}"
        return ConfigError(given, f"SyntaxError: {error.msg} ({place})")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return ConfigError(given, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{place}")


def own_files(names: Iterable[str]) -> tuple[str, ...]:
    """Files and folders of the modules of these names that were imported and are not installed.

    That is what another machine lacks that has evomerge installed: files of the current folder, say.
    """
    found: dict[str, str] = {}
    for name in names:
        top = name.partition(".")[0]
        file = getattr(sys.modules.get(top), "__file__", None)
        if file is None or top in sys.stdlib_module_names or top in ("evomerge", "search_spaces", "fitness"):
            continue
        path = Path(file).resolve()
        if not {"site-packages", "dist-packages"} & set(path.parts):
            found[top] = str(path.parent if path.name == "__init__.py" else path)
    return tuple(found.values())


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep the garbage collector from going through what is imported, again and again: modules stay anyway.

    That takes a tenth of the time of importing torch and transformers.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def settled_collector() -> Iterator[None]:
    """Keep the garbage collector from going through what is there already within this: modules, a pool, items.

    A search makes little garbage, and looking for it in all that was imported takes longer than a candidate. What
    somebody else has frozen before stays frozen.
    """
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


@contextmanager
def absent(name: str) -> Iterator[None]:
    """Let an optional module be found missing within this, unless it is imported already.

    Some packages import for a rarely used function what takes longer than they do themselves.

    Args:
        name: of the module, which its importers can do without.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop(name, None)
