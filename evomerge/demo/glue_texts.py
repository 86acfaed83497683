"""Seven tasks of the forms of GLUE's, out of the docstrings of installed packages: the same names, labels and columns.

What they ask is easier, so that small models learn it in seconds; labels are how a docstring stands in its source:

- ``cola``: whether the words of a text stand as they were written, or some neighbours were exchanged.
- ``sst2``: whether a first sentence documents a class (0) or a function (1).
- ``mnli``, ``mrpc``, ``qnli``, ``qqp``, ``rte``: a text in two parts, between which a word was taken out; which word:
  ``a an the``, ``of for``, ``is are``, ``in to``, ``and or``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from evomerge.demo.docstrings import LIBRARIES, LONGEST, NAMES, SHORTEST, docstrings

GAPS: Mapping[str, tuple[str, ...]] = {
    "mnli": ("a", "an", "the"),
    "mrpc": ("of", "for"),
    "qnli": ("is", "are"),
    "qqp": ("in", "to"),
    "rte": ("and", "or"),
}
"""The words between the two parts, in the order of the labels."""

LABELS: Mapping[str, tuple[str, ...]] = {
    "cola": ("0", "1"),
    "mnli": ("0", "1", "2"),
    **dict.fromkeys(("mrpc", "qnli", "qqp", "rte", "sst2"), ("0", "1")),
}
"""The tasks, in the order of GLUE's tables, and the numbers of their labels."""

COLUMNS: Mapping[str, tuple[str, str | None]] = {
    "cola": ("sentence", None),
    "mnli": ("premise", "hypothesis"),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "sst2": ("sentence", None),
}
"""Names of the columns of the text, and of the second of two."""

_SIDE = 2  # words on either side of a gap at least


@dataclass(frozen=True)
class GlueExample:
    """A labelled text, or two.

    Attributes:
        text, pair: it; ``None`` where there is one only.
        label: the number of the label.
        source: the text that it was made from.
    """

    text: str
    pair: str | None
    label: str
    source: str

    def row(self, task: str) -> dict[str, object]:
        """As a line of the task's file."""
        first, second = COLUMNS[task]
        both = {first: self.text, **({} if second is None else {second: self.pair})}
        return {**both, "label": int(self.label)}


def glue_examples(per_library: int, rng: np.random.Generator) -> dict[str, list[GlueExample]]:
    """The examples of every task, in an order that is drawn; a text gives one to a task at most.

    Args:
        per_library: docstrings of each library that are looked at.
        rng: draws files, gaps and order.

    Raises:
        EvomergeError: a library is not installed.
    """
    found: dict[str, list[GlueExample]] = {task: [] for task in LABELS}
    seen = set()
    for library in LIBRARIES:
        for number, (kind, docstring) in enumerate(docstrings(library, rng)):
            if number == per_library:
                break
            for place, part in enumerate(docstring.strip().split("\n\n")[:3]):
                text = NAMES.sub("it", " ".join(part.split()))[:LONGEST]
                if len(text) < SHORTEST or text.lower() in seen:
                    continue
                seen.add(text.lower())
                if place == 0:
                    found["sst2"].append(GlueExample(text, None, "0" if kind == "class" else "1", text))
                _add_order(found["cola"], text, rng)
                for task, words in GAPS.items():
                    _add_gap(found[task], text, words, rng)
    return {task: [own[i] for i in rng.permutation(len(own))] for task, own in found.items()}


def _add_order(own: list[GlueExample], text: str, rng: np.random.Generator) -> None:
    words = text.split()
    if len(words) < 4:
        return
    kept = bool(rng.integers(2))
    if not kept:
        for place in range(int(rng.integers(2)), len(words) - 1, 2):
            words[place], words[place + 1] = words[place + 1], words[place]
    own.append(GlueExample(" ".join(words), None, "1" if kept else "0", text))


def _add_gap(own: list[GlueExample], text: str, gap: tuple[str, ...], rng: np.random.Generator) -> None:
    words = text.split()
    places = [place for place in range(_SIDE, len(words) - _SIDE) if words[place] in gap]
    if not places:
        return
    place = places[int(rng.integers(len(places)))]
    label = str(gap.index(words[place]))
    own.append(GlueExample(" ".join(words[:place]), " ".join(words[place + 1 :]), label, text))
