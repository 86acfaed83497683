"""How people rate what candidates write: what is asked of whom, and which scores there are."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

RATER = re.compile(r"\w[\w-]{0,63}")
"""What raters may be called: part of the name of a file."""
ANYONE = "rater"
"""Who rated where nobody is named."""
METRIC = "rating"
WHOLE = "all"
"""The task that the score of a candidate as a whole counts as."""


class Text(NamedTuple):
    """One text that is rated.

    Attributes:
        item: its number among those of the candidate, from 0, tasks one after the other.
        task: the name of its prompts.
        prompt: what it was written after.
        text: what the candidate wrote; of a pair the one that is shown first.
        other: of a pair the one that is shown second; empty where single texts are rated.
    """

    item: int
    task: str
    prompt: str
    text: str
    other: str = ""


@dataclass(frozen=True)
class RatingRules:
    """What is asked of raters.

    Attributes:
        objective: that the mean of their scores is.
        direction: ``maximize`` or ``minimize``.
        by: whether they score each ``item``, or the ``candidate`` as a whole, or say of each ``pair`` of an item's text
            and another candidate's which is better: 1 the first, 0 the second, 0.5 neither.
        low, high: the lowest and the highest score; ``None`` where any finite number is one.
        raters: how many must have rated a candidate before it counts.
        names: who they are; empty where anyone may be one.
        counts: by the name of the prompts how many there are.
        prompts: the prompts themselves; empty where they are not at hand.
        shuffle: the seed by which every candidate's texts are put into an order of their own; ``None`` for as they are.
        look_every: seconds between two looks at the files of scores.
        hours: after which a candidate that was not rated has failed; ``None`` for never.
    """

    objective: str = "rating"
    direction: Literal["maximize", "minimize"] = "maximize"
    by: Literal["item", "candidate", "pair"] = "item"
    low: float | None = 1.0
    high: float | None = 5.0
    raters: int = 1
    names: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    prompts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    shuffle: int | None = None
    look_every: float = 2.0
    hours: float | None = None

    @property
    def items(self) -> int:
        """Texts of a candidate."""
        return sum(self.counts.values())

    @property
    def wanted(self) -> int:
        """Scores that one rater gives a candidate."""
        return 1 if self.by == "candidate" else self.items

    @property
    def scale(self) -> str:
        """In words what a score is."""
        if self.by == "pair":
            return "1 for the first, 0 for the second, 0.5 for neither, or a number between"
        return "a finite number" if self.low is None else f"a number from {self.low:g} to {self.high:g}"

    def refusal(self, score: float) -> str:
        """Why a number is no score; empty where it is one."""
        off = self.low is not None and self.high is not None and not self.low <= score <= self.high
        return f"a score is {self.scale}" if off or not math.isfinite(score) else ""

    def texts(self, responses: Mapping[str, Sequence[str]]) -> list[Text]:
        """What a candidate wrote, beside the prompts, in their order.

        Args:
            responses: by the name of the prompts its texts.
        """
        pairs = [
            (task, prompt, text)
            for task, prompts in self.prompts.items()
            for prompt, text in zip(prompts, responses[task], strict=True)
        ]
        return [Text(number, *pair) for number, pair in enumerate(pairs)]

    def shuffled(self, texts: Sequence[Text], name: str) -> list[Text]:
        """In the order in which raters of the candidate of that name see them."""
        if self.shuffle is None:
            return list(texts)
        digest = hashlib.sha256(f"{self.shuffle} {name}".encode()).digest()
        order = np.random.default_rng(list(digest)).permutation(len(texts))
        return [texts[place] for place in order]

    def to_json(self) -> dict[str, Any]:
        """As JSON values, without the prompts."""
        kept = {name: value for name, value in vars(self).items() if name != "prompts"}
        return {**kept, "names": list(self.names), "counts": dict(self.counts)}

    @classmethod
    def from_json(cls, content: Any) -> RatingRules:
        """What `to_json` gave; `ValueError` or `TypeError` for anything else."""
        rules = cls(**{**content, "names": tuple(map(str, content["names"])), "counts": dict(content["counts"])})
        sizes = [rules.raters, *rules.counts.values()]
        if rules.by not in ("item", "candidate", "pair") or any(type(size) is not int or size < 0 for size in sizes):
            raise ValueError("no such rules")
        bounds = [] if rules.low is None and rules.high is None else [rules.low, rules.high]
        if any(isinstance(value, bool) or not isinstance(value, int | float) for value in (*bounds, rules.look_every)):
            raise ValueError("no such scale")
        if not 0 < rules.look_every < math.inf:
            raise ValueError("no such pause")
        return rules


def blind_name(fingerprint: str, split: str, model: str) -> str:
    """What a candidate's folder is called: the same for the same model, and nothing that tells which one it is.

    Args:
        fingerprint: of the fitness.
        split: which items; all but ``search`` are said in the name, since rules may differ.
        model: the hash of the recipe.
    """
    text = json.dumps([fingerprint, split, model])
    name = hashlib.sha256(text.encode()).hexdigest()[:10]
    return name if split == "search" else f"{split}-{name}"


def split_of(name: str) -> str:
    """On which items the candidate of a folder is."""
    return name.rpartition("-")[0] or "search"
