"""How log-likelihoods and generation are run: in lm-eval's batches, or in ways that compute less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from evomerge.errors import ConfigError, nearest

Mode = Literal["exact", "shared", "auto"]
Generation = Literal["stock", "continuous", "auto"]


@dataclass(frozen=True)
class Forwards:
    """How log-likelihoods and generation are run.

    Attributes:
        mode: ``exact``: as lm-eval does; ``shared``: every token of the requests' tree once; ``auto`` is ``exact``
            unless who builds the fitness says otherwise.
        batch_tokens: of a shared forward; None for as many as suit the device.
        generation: ``stock``: in lm-eval's batches, each until its last text has ended; ``continuous``: in a batch that
            stays full; ``auto`` is ``stock`` unless who builds the fitness says otherwise.
        compare: whether a search's winner is scored in both ways at its end, to say how far these are apart.
    """

    mode: Mode = "exact"
    batch_tokens: int | None = None
    compare: bool = True
    generation: Generation = "stock"

    def __post_init__(self) -> None:
        """Raise `ConfigError` for an unknown mode, a count below 1, or a word that is neither true nor false."""
        if self.mode not in get_args(Mode):
            raise ConfigError(f"forwards is {self.mode!r}", nearest(str(self.mode), get_args(Mode)))
        if self.generation not in get_args(Generation):
            raise ConfigError(f"generation is {self.generation!r}", nearest(str(self.generation), get_args(Generation)))
        count = self.batch_tokens
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise ConfigError(f"batch_tokens is {count!r}", "a whole number, 1 or more; null suits the device")
        if not isinstance(self.compare, bool):
            raise ConfigError(f"compare_forwards is {self.compare!r}", "true or false")

    def decides(self) -> dict[str, Any]:
        """What of it goes into a fingerprint: nothing of what lm-eval does."""
        return {"forwards": "shared", "batch_tokens": self.batch_tokens} if self.mode == "shared" else {}
