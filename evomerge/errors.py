"""Errors that a user can act on: what was given, what is allowed, what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_DEEPEST = 20  # causes that are looked at


class EvomergeError(Exception):
    """An error with three parts, printed by the command line as one line.

    Args:
        given: what was found, naming the tensor, slice, file or config key.
        allowed: what would have been accepted.
        do: the next step.

    Attributes:
        exit_status: of a command that ends with it: 2 for what the user can mend.
    """

    exit_status = 2

    def __init__(self, given: str, allowed: str = "", do: str = "") -> None:
        self.given, self.allowed, self.do = given, allowed, do
        super().__init__(given, allowed, do)  # all parts as args, so that pickling keeps them

    def __str__(self) -> str:
        return "; ".join(part for part in (self.given, self.allowed, self.do) if part)

    def reword(self, change: Callable[[str], str]) -> None:
        """Change the words of all three parts: who lets an error pass may know what its raiser does not."""
        self.given, self.allowed, self.do = map(change, (self.given, self.allowed, self.do))
        self.args = (self.given, self.allowed, self.do, *self.args[3:])


class ConfigError(EvomergeError):
    """A configuration key, type or value that cannot be used."""


class PoolError(EvomergeError):
    """Source models that are missing, unreadable or do not fit together."""


class RecipeError(EvomergeError):
    """A recipe that is malformed or cannot be carried out."""


class InfeasibleError(EvomergeError):
    """A genome within bounds for which no merged model exists (all weights zero, say)."""


class FitnessError(EvomergeError):
    """Tasks, metrics or items that cannot be scored."""


class DeviceLostError(EvomergeError):
    """The accelerator gives this process nothing but errors from now on: another process may use it."""

    exit_status = 3


class EngineError(EvomergeError):
    """An engine that computes something else than transformers does with the same weights."""


class ServerError(EvomergeError):
    """A server that models are scored by: it gives no answer, or another one than was asked for."""


class NoMemoryError(EvomergeError):
    """Host or accelerator have no room for what is asked, however little is kept beside it."""


class OutputError(EvomergeError):
    """An output folder that is not empty, or a disk that is too small."""


class EvomergeWarning(UserWarning):
    """Something about the models or settings that makes a result other than expected; shown in one line."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from or in handling, and so on; for an `EvomergeError` the latter is no cause."""
    found: BaseException | None = error
    for _ in range(_DEEPEST):
        if found is None:
            return
        yield found
        found = found.__cause__ or (None if isinstance(found, EvomergeError) else found.__context__)


def nearest(name: str, choices: Iterable[str], limit: int = 5) -> str:
    """Describe the valid choices for a mistyped `name`, the nearest first.

    Returns a phrase such as ``did you mean 'linear'? (linear, slerp, ties)``, never empty when
    there are choices; long lists are cut to the nearest `limit`. Control characters are written out: choices may be
    names from files, and the phrase is part of a line.
    """
    known = sorted({each if each.isprintable() else repr(each)[1:-1] for each in choices})
    if not known:
        return "there are none"
    close = difflib.get_close_matches(name, known, n=limit, cutoff=0.5)
    if len(known) <= 12:
        shown = ", ".join(known)
    else:
        rest = [choice for choice in known if choice not in close]
        shown = ", ".join([*close, *rest][:limit]) + f", ... ({len(known)} in all)"
    return f"did you mean {close[0]!r}? (one of: {shown})" if close else f"one of: {shown}"


def reason_of(error: BaseException, longest: int = 300) -> str:
    """What an exception of a library says, in one line of at most `longest` characters; its class if it says nothing.

    Where the message is only a key or a value, the class is said as well.
    """
    text = " ".join(str(error).split())
    text = text if len(text) <= longest else text[: longest - 3] + "..."
    if isinstance(error, KeyError | IndexError | AttributeError | AssertionError | RecursionError) or not text:
        return f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text


def one_line(error: BaseException) -> str:
    """The error in one line; where it was raised too, unless it is evomerge's own and says what is wrong."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, EvomergeError):
        return text
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f" ({Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno})" if frame else ""
    return f"{type(error).__name__}: {text[:500]}{place}"
