"""Next-token scores of generation, which must be finite."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor


class NotFinite(Exception):
    """A score is not finite: in which row of how many, and of which call where several are made at once."""

    def __init__(self, row: int, rows: int, call: int = 0) -> None:
        super().__init__(row, rows, call)
        self.row, self.rows, self.call = row, rows, call


class FiniteScores(LogitsProcessor):
    """Sees the scores of every next token and changes none.

    Args:
        at_once: raise before a token is drawn from scores that are not finite (drawing would fail, and on a GPU take
            the process along); otherwise the device is asked once, by `require_finite`.
    """

    def __init__(self, at_once: bool) -> None:
        self._at_once = at_once
        self._sums: torch.Tensor | None = None  # [rows]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        best = scores.amax(dim=-1)  # NaN if any is NaN
        self._sums = best if self._sums is None else self._sums + best
        if self._at_once:
            self.require_finite()
        return scores

    def require_finite(self) -> None:
        """Raise `NotFinite` for the first row that had a score which is not finite."""
        bad = torch.isfinite(self._sums).logical_not().tolist() if self._sums is not None else []
        if True in bad:
            raise NotFinite(bad.index(True), len(bad))
