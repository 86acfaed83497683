"""What is to be least: distance to the experts' predictions on their own items, or entropy of the model's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from evomerge.calibration.encoding import Encoded
from evomerge.calibration.learning.settings import Usual


class Batch(NamedTuple):
    """Items side by side, padded on the right.

    Attributes:
        ids, mask: int64 of shape ``(items, tokens)``; the mask is 1 where there is a token.
        rows, columns: of the predictions that count.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor


def batch_of(items: Sequence[Encoded], device: torch.device) -> Batch:
    """Pack items; of each those predictions count whose likelihood counts in calibration."""
    longest = max(len(item.ids) for item in items)
    ids = torch.zeros((len(items), longest), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    rows: list[int] = []
    columns: list[int] = []
    for row, item in enumerate(items):
        count = len(item.ids)
        ids[row, :count], mask[row, :count] = torch.tensor(item.ids), 1
        rows += [row] * (count - item.start)
        columns += range(item.start - 1, count - 1)
    return Batch(ids.to(device), mask.to(device), torch.tensor(rows).to(device), torch.tensor(columns).to(device))


class Outputs(NamedTuple):
    """What a model says where it counts.

    Attributes:
        log_p: logarithms of probabilities at the temperature, float32 (or wider) of shape ``(positions, vocabulary)``.
        hidden: states of every layer, each of shape ``(positions, width)``; none where they are not compared.
    """

    log_p: torch.Tensor
    hidden: tuple[torch.Tensor, ...]


class Objective:
    """A loss of a module on batches, in parts by name.

    Args:
        module: a causal language model.
        usual: loss, temperature and weights.

    Attributes:
        parts: their names, in order.
        of_experts: whether the experts' outputs are needed.
    """

    def __init__(self, module: Any, usual: Usual) -> None:
        self._module, self._usual = module, usual
        self.of_experts = usual.loss == "experts"
        self.parts = ("divergence", *(["hidden"] if usual.hidden else [])) if self.of_experts else ("entropy",)

    def outputs(self, batch: Batch) -> Outputs:
        """What the module says as it is."""
        states = self.of_experts and self._usual.hidden > 0
        found = self._module(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=states)
        logits = found.logits[batch.rows, batch.columns]
        wide = logits if logits.dtype == torch.float64 else logits.float()
        hidden = found.hidden_states[1:] if states else ()
        kept = tuple(own[batch.rows, batch.columns].to(wide.dtype) for own in hidden)
        return Outputs(torch.log_softmax(wide / self._usual.temperature, dim=-1), kept)

    def losses(self, batch: Batch, expert: Outputs | None) -> dict[str, torch.Tensor]:
        """The parts on a batch, each with its weight: their sum is the loss.

        ``divergence`` is ``T^2 KL(q || p)``, mean over positions, in nats: the soft cross-entropy to the expert less
        the expert's own entropy, which has the same gradient and is 0 where nothing is left to learn. ``hidden`` is the
        mean of squared differences over positions, units and layers, ``entropy`` that of predictions.
        """
        own, heat = self.outputs(batch), self._usual.temperature**2
        if expert is None:
            return {"entropy": -(own.log_p.exp() * own.log_p).sum(-1).mean() * heat}
        found = {"divergence": (expert.log_p.exp() * (expert.log_p - own.log_p)).sum(-1).mean() * heat}
        if self._usual.hidden:
            each = [functional.mse_loss(a, b) for a, b in zip(own.hidden, expert.hidden, strict=True)]
            found["hidden"] = torch.stack(each).mean() * self._usual.hidden
        return found
