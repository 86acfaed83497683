"""What is said of a candidate that raised an error."""

from __future__ import annotations

from pathlib import Path

from evomerge.errors import EvomergeError


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
