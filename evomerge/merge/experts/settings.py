"""How experts are merged into fewer, as it is asked for. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from evomerge.errors import ConfigError, nearest

Router = Literal["mean", "dominant", "kept"]
"""Rows of the router: a group's mean by frequency, that of its dominant expert, or all rows as they were."""
Scope = Literal["layer", "model"]
Method = Literal["m_smoe", "sub_moe", "drop"]
METHODS: Mapping[str, str] = {
    "m_smoe": "each joins the most used whose router's logits are most like its own; units in order, mean by use",
    "sub_moe": "k-means on the experts' outputs; mean by use, of singular values side by side the leading",
    "drop": "the most used stay as they are, the others go",
}
ROUTERS = ("mean", "dominant", "kept")
SCOPES = ("layer", "model")


def check_settings(number: float, method: str, router: str, scope: str, rank: float, seed: int) -> None:
    """`ConfigError` for a setting that cannot be, whatever the model."""
    for key, given, known in (("--method", method, METHODS), ("--router", router, ROUTERS), ("--scope", scope, SCOPES)):
        if given not in known:
            raise ConfigError(f"{key} is {given!r}", nearest(given, known))
    for said, wrong, allowed in (
        (f"--experts is {number:g}", not 1 <= number < math.inf, "at least 1"),
        (f"--experts is {number:g}", scope == "layer" and number % 1 != 0, "a whole number, with --scope layer"),
        (f"--rank is {rank}", not 0 < rank <= 1, "a share above 0, up to 1"),
        (f"--rank is {rank}", rank < 1 and method != "sub_moe", "1; singular values are left out by --method sub_moe"),
        (f"--seed is {seed}", seed < 0, "at least 0"),
        (
            "--scope is model",
            scope == "model" and method != "m_smoe",
            "layer; one threshold for all is --method m_smoe's",
        ),
        (
            "--router is kept",
            method == "drop" and router == "kept",
            "mean or dominant: what is dropped is sent no token",
        ),
    ):
        if wrong:
            raise ConfigError(said, allowed)
    if scope == "model" and router != "kept":
        raise ConfigError(
            "--scope is model, which leaves layers with different numbers of experts",
            "the same number in each, which is all that a configuration can say",
            "--router kept writes equal experts in the place of the merged ones",
        )
