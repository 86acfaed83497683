"""Texts that a tokenizer does not know the words of: models then read little but one token, again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_MANY = 0.2
"""Of a file's tokens: below, texts still say most of what they say."""


class UnknownTokens:
    """Counts tokens that are unknown to tokenizers, by where the texts are from."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], list[int]] = {}

    def add(self, file: str, ids: Sequence[int], tokenizer: Any, reader: str = "") -> None:
        """Count the tokens of a text.

        Args:
            file: that it is from.
            ids: of its tokens; those that no word stands for do not count.
            tokenizer: that made them. One without an unknown token, or for which that is also its first, last or
                padding token as of byte-level ones, knows all.
            reader: whose tokenizer it is.
        """
        unknown = getattr(tokenizer, "unk_token_id", None)
        others = [getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "cls", "sep")]
        if unknown is None or unknown in others:
            return
        counts = self._counts.setdefault((file, reader), [0, 0])
        counts[0] += sum(token == unknown for token in ids)
        counts[1] += sum(token not in others for token in ids)

    @property
    def shares(self) -> dict[str, float]:
        """By name of a file the largest share of its tokens, of all tokenizers that read it."""
        found: dict[str, float] = {}
        for (file, _), (unknown, total) in self._counts.items():
            found[file] = max(found.get(file, 0.0), unknown / max(1, total))
        return found

    def lines(self, key: str) -> list[str]:
        """A sentence for every file of which many tokens are unknown.

        Args:
            key: that names the files.
        """
        return [
            f"{key}: {share:.0%} of the tokens of {file} are unknown to the tokenizer, and all the same to a model; "
            "take texts in the words that it knows"
            for file, share in self.shares.items()
            if share > _MANY
        ]
