"""What one model's predictions say beside another's: the arithmetic of every metric, position by position.

All tensors have a row for every position. Arithmetic is in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fitness._unlabelled.store import Distribution


@dataclass
class Predictions:
    """A model's predictions at some positions.

    Attributes:
        log_p: logarithms of the probabilities, float32 of shape ``(positions, vocabulary)``.
    """

    log_p: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> Predictions:
        """From logits of any dtype, of shape ``(positions, vocabulary)``."""
        return cls(torch.log_softmax(logits.float(), dim=1))

    def surprise(self, targets: Tensor) -> Tensor:
        """Minus the log-likelihood of a token at each position, in nats; `targets` int64 of shape ``(positions,)``."""
        return -self.log_p.gather(1, targets[:, None])[:, 0]

    def entropy(self) -> Tensor:
        """``-sum p log p`` in nats: the objective of AdaMerging (arXiv 2310.02575)."""
        return _expectation(self.log_p.exp(), -self.log_p)

    def likeliest(self) -> Tensor:
        """The likeliest token; of equals the first. int64 of shape ``(positions,)``."""
        return self.log_p.argmax(dim=1)

    def cross_entropy(self, other: Distribution) -> Tensor:
        """``-sum q log p`` in nats, with ``q`` the other's (Expert Merging, arXiv 2509.25712, its logit alignment).

        Of an `other` that kept its likeliest tokens only, the rest of the vocabulary counts as one token.
        """
        log_q, log_p = self._beside(other)
        return _expectation(log_q.exp(), -log_p)

    def divergence_from(self, other: Distribution) -> Tensor:
        """``KL(q || p) = sum q (log q - log p)`` in nats, with ``q`` the other's; 0 for itself, never below.

        Of an `other` that kept its likeliest tokens only, the rest of the vocabulary counts as one token: less than
        what all tokens give by ``r KL(q' || p')``, with ``r`` the probability of the rest under ``q``, and ``q'`` and
        ``p'`` the two within the rest.
        """
        log_q, log_p = self._beside(other)
        found: Tensor = _expectation(log_q.exp(), log_q - log_p).clamp(min=0)
        return found

    def _beside(self, other: Distribution) -> tuple[Tensor, Tensor]:
        """Both over the same outcomes: all tokens, or those that `other` kept and the rest as one."""
        if other.tokens is None:
            return other.log_q, self.log_p
        tokens = other.tokens.long()
        kept = self.log_p.gather(1, tokens)
        rest = self.log_p.scatter(1, tokens, -torch.inf).logsumexp(dim=1, keepdim=True)
        return other.log_q, torch.cat([kept, rest], dim=1)


def hidden_distance(states: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Mean over layers and units of the squared difference of hidden states, each of shape ``(positions, units)``."""
    each = [(own.float() - other.float()).square().mean(dim=1) for own, other in zip(states, others, strict=True)]
    return torch.stack(each).mean(dim=0)


def _expectation(p: Tensor, values: Tensor) -> Tensor:
    """``sum p values`` by row, where nothing counts whose probability is 0, whatever its logarithm; NaN stays."""
    return torch.where(p == 0, 0.0, p * values).sum(dim=1)
