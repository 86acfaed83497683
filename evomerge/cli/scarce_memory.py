"""Memory that a shell or a machine limits so far that the program itself finds no room: said as such.

The system refuses addresses to whoever asks next: Python, the loader of shared libraries, a thread that begins. What
they raise does not speak of memory, or says nothing at all.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path

from evomerge.errors import NoMemoryError, causes
from evomerge.utils.sizes import size_text

_LIBRARIES = {"search", "resume", "validate", "demo", "merge", "align", "experts", "mixture", "evaluate", "methods"}
_LEAST = 512 * 1024**2
"""Bytes of addresses below which the libraries of `_LIBRARIES` do not load; some then end the process, or wait."""

_ENOUGH = "room for the program itself, about 4 GB of addresses, and for the models"
_NEAR = 512 * 1024**2  # what a library, or a thread's stack, asks for at once
_TEXTS = ("failed to map segment", "cannot allocate memory", "can't start new thread", "can't allocate memory")


def require_addresses(verb: str) -> None:
    """Raise `NoMemoryError` where this process may not have the addresses that a verb's libraries take."""
    limit = _limit()
    if limit is not None and limit < _LEAST and verb in _LIBRARIES:
        raise _lack(limit)


def lack_of_memory(error: BaseException) -> NoMemoryError | None:
    """The error to show for one that memory's end caused, by whatever name it goes now; ``None`` for another."""
    limit = _limit()
    for found in causes(error):
        if isinstance(found, NoMemoryError):
            return None
        if _is_lack(found, limit):
            lack = _lack(limit)
            lack.__cause__ = error
            return lack
    return None


def _is_lack(error: BaseException, limit: int | None) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if isinstance(error, ImportError | OSError | RuntimeError | SystemError):
        if any(text in str(error).lower() for text in _TEXTS):
            return True
        # A library that does not load says so in words of its own: near the limit there is one reason.
        loading = isinstance(error, ImportError | SystemError) or (isinstance(error, OSError) and error.errno is None)
        return loading and limit is not None and _addresses() + _NEAR > limit
    return False


def _lack(limit: int | None) -> NoMemoryError:
    has = "the machine has none left" if limit is None else f"this process may have {size_text(limit)} of addresses"
    do = "end other programs" if limit is None else "raise the limit: `ulimit -v unlimited`, or the batch system's"
    return NoMemoryError(f"there is no memory left for the program: {has}", _ENOUGH, do)


def _limit() -> int | None:
    """Bytes of addresses that this process may have; ``None`` for no limit, or where the system has none."""
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if most == resource.RLIM_INFINITY or most < 0 or most >= sys.maxsize else most


def _addresses() -> int:
    """Bytes of addresses that this process has taken; 0 where the system does not say."""
    try:
        import resource

        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError, IndexError):
        return 0
