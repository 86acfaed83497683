"""Tokens that log-likelihoods ran, and what prefixes and hidden states saved of those that stock lm-eval would run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.report.formatting import count


@dataclass(frozen=True)
class SavedTokens:
    """Tokens of all candidates of a search.

    Attributes:
        stock: that lm-eval would have run.
        run: of the trees that prompts make.
        hidden: of these, what hidden states saved, as whole passes through a model.
    """

    stock: float
    run: float
    hidden: float

    @classmethod
    def of(cls, tokens: Mapping[str, float]) -> SavedTokens | None:
        """As a ledger has them; ``None`` where it has none, or no such numbers."""
        stock, run, hidden = (float(tokens.get(name, 0.0)) for name in ("stock", "run", "hidden"))
        return cls(stock, run, hidden) if 0 <= hidden < run <= stock < math.inf else None

    @property
    def whole(self) -> float:
        """Passes of a token through a whole model that were run."""
        return self.run - self.hidden

    @property
    def times(self) -> float:
        """How many times as many lm-eval would have run."""
        return self.stock / self.whole

    @property
    def shares(self) -> dict[str, float]:
        """Of lm-eval's tokens, the shares that were run, and that prefixes and hidden states saved."""
        parts = {"run": self.whole, "prefixes": self.stock - self.run, "hidden states": self.hidden}
        return {name: part / self.stock for name, part in parts.items()}

    def saved(self) -> str:
        """``prefixes saved 15 %, hidden states 42 %``, what there is of it; empty where nothing was saved."""
        found = {name: share for name, share in self.shares.items() if name != "run" and share >= 0.005}
        parts = [
            f"{name} {'saved ' if place == 0 else ''}{share:.0%}" for place, (name, share) in enumerate(found.items())
        ]
        return ", ".join(parts).replace("%", " %")

    def lines(self) -> list[str]:
        """The same for a panel, with how many times fewer tokens that makes."""
        saved = self.saved()
        return [f"{self.times:.1f} times fewer tokens than lm-eval runs", saved] if saved else []


def halved_text(evaluations: int) -> str:
    """What is said where batches of so many evaluations were halved."""
    return (
        f"{count(evaluations, 'evaluation')} ran in batches that were halved since memory ran out: scores may differ "
        "in their last digits from those of whole batches"
    )
