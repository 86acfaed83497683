"""Scores a batch whose logits do not fit into the memory that this process may have: run by test_lm_eval_batches.py."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from types import SimpleNamespace

import torch

from fitness._lm_eval.batches import plan_batches, score_batches
from fitness._lm_eval.model import TokenRequest


class Wide(torch.nn.Module):
    """Logits over many tokens, out of little."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(60, 2), torch.nn.Linear(2, 30_000)

    def forward(self, inputs: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.embed(inputs)))


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = Wide()
    requests = [TokenRequest(None, [*range(4, 30), i], [7, 8]) for i in range(30, 58)]
    batches = plan_batches(requests, batch_size=28, max_length=48, device=torch.device("cpu"), grouped=True)
    whole, right, _ = score_batches(module, batches, None, len(requests))  # logits of 94 MB
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 64_000_000, resource.getrlimit(resource.RLIMIT_AS)[1]))
    values, greedy, scored = score_batches(module, batches, None, len(requests))
    try:
        module(torch.zeros(1, 2000, dtype=torch.long))
        refused = ""
    except RuntimeError as error:
        refused = str(error)
    found = {"whole": whole.tolist(), "right": right.tolist(), "values": values.tolist(), "greedy": greedy.tolist()}
    print(json.dumps({**found, "batches": len(scored), "refused": refused}))


if __name__ == "__main__":
    main()
