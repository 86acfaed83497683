"""What a user says of a classifier that scores what candidates write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from evomerge.errors import ConfigError, nearest
from fitness._unlabelled.values import require_keys, whole

Reads = Literal["all", "answer"]
_KEYS = ("model", "tokens", "label", "reads", "batch_size")
_MOST_TOKENS = 4096
_MOST_TEXTS = 4096


@dataclass(frozen=True)
class RewardTerm:
    """How candidates' own texts are scored.

    Attributes:
        model: folder of a sequence classifier.
        tokens: that a candidate writes after each prompt, at most.
        label: whose probability is the reward: a name, or a number as text; empty for a classifier with one output,
            which is the reward itself.
        reads: what the classifier reads: ``all``, or the ``answer`` alone.
        batch_size: texts that it reads at once.
    """

    model: str
    tokens: int = 64
    label: str = ""
    reads: Reads = "all"
    batch_size: int = 16


def parse_reward(value: Any, key: str) -> RewardTerm:
    """The reward that a user describes: a folder alone, or a mapping.

    Raises:
        ConfigError: naming the key.
    """
    given: Any = {"model": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key} is {value!r}", f"a classifier's folder, or a mapping with {', '.join(_KEYS)}")
    require_keys(given, _KEYS, key)
    model, label = given.get("model"), given.get("label")
    reads: Any = given.get("reads") or "all"
    if not isinstance(model, str) or not model:
        raise ConfigError(f"{key}.model is {model!r}", "the folder of a sequence classifier")
    if label is not None and (isinstance(label, bool) or not isinstance(label, str | int)):
        raise ConfigError(f"{key}.label is {label!r}", "the name or the number of one of the classifier's labels")
    if reads not in get_args(Reads):
        raise ConfigError(f"{key}.reads is {reads!r}", nearest(str(reads), get_args(Reads)))
    return RewardTerm(
        model,
        whole(given.get("tokens", 64), f"{key}.tokens", 1, _MOST_TOKENS),
        "" if label is None else str(label),
        reads,
        whole(given.get("batch_size", 16), f"{key}.batch_size", 1, _MOST_TEXTS),
    )
