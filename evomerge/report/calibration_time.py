"""What making statistics of data took of a run's wall time."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.report.formatting import duration


@dataclass(frozen=True)
class CalibrationTime:
    """Of all sessions of a run whose methods read statistics of data.

    Attributes:
        seconds: that making them took; 0 where they were there before.
        others: seconds of search and of held-out scoring.
    """

    seconds: float
    others: float

    @classmethod
    def of(cls, seconds: float | None, others: float) -> CalibrationTime | None:
        """Of as many seconds; ``None`` for ``None``."""
        return None if seconds is None else cls(seconds, others)

    @property
    def share(self) -> float:
        """Of the wall time of calibration, search and held-out scoring; 0 where they were there before."""
        return self.seconds / (self.seconds + self.others) if self.seconds > 0 else 0.0

    def text(self) -> str:
        """In words: a sentence without its full stop."""
        if self.seconds <= 0:
            return "statistics of data were there before"
        whole = duration(self.seconds + self.others)
        return f"statistics of data took {duration(self.seconds)}, {100 * self.share:.1f} % of the run's {whole}"

    def as_dict(self) -> dict[str, float]:
        """JSON values."""
        return {"seconds": self.seconds, "share": self.share}
