"""Labelled texts out of the docstrings of installed packages: real text that is there wherever evomerge is.

Three tasks, told from how a docstring stands in its source, which nobody had to label:

- ``kind`` (2 labels): whether the first sentence documents a ``class`` or a ``function``.
- ``section`` (5): what part of a docstring a paragraph is: ``parameters``, ``returns``, ``raises``, ``notes`` or
  ``examples``.
- ``library`` (9): which package a first sentence is from; names of packages are taken out.
"""

from __future__ import annotations

import bisect
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from evomerge.errors import EvomergeError

LIBRARIES = ("networkx", "numpy", "optuna", "plotly", "scipy", "sklearn", "sympy", "torch", "transformers")
"""All are dependencies of evomerge, or of these."""

SECTIONS: Mapping[str, Sequence[str]] = {
    "parameters": ("parameters", "args", "arguments", "attributes"),
    "returns": ("returns", "return", "yields"),
    "raises": ("raises", "warns"),
    "notes": ("notes", "note"),
    "examples": ("examples", "example"),
}

LABELS: Mapping[str, tuple[str, ...]] = {
    "kind": ("class", "function"),
    "section": tuple(SECTIONS),
    "library": LIBRARIES,
}
"""The tasks, and their labels in order."""

_SECTION_OF = {word: label for label, words in SECTIONS.items() for word in words}
_UNDERLINED = re.compile(r"^([A-Z][a-z]+)[ \t]*\n-{3,}[ \t]*$", re.MULTILINE)
_COLON = re.compile(r"^([A-Z][a-z]+)::?[ \t]*$", re.MULTILINE)
_HEAD = re.compile(r"^[ \t]*(class|def)[ \t]+(\w+)", re.MULTILINE)
_DOCSTRING = re.compile(r':[ \t]*\n[ \t]*[rR]?"""(.*?)"""', re.DOTALL)
NAMES = re.compile(rf"\b({'|'.join(LIBRARIES)}|scikit-learn|pytorch|nx|np|hugging ?face)\b", re.IGNORECASE)
LONGEST = 160  # characters
SHORTEST = 12
_LARGEST_FILE = 400_000  # bytes


@dataclass(frozen=True)
class Example:
    """A labelled text."""

    text: str
    label: str


def examples(per_library: int, rng: np.random.Generator) -> dict[str, list[Example]]:
    """The examples of all tasks, each text once, in an order that is drawn.

    Args:
        per_library: docstrings of each library that are looked at.
        rng: draws files, and the order.

    Raises:
        EvomergeError: a library is not installed.
    """
    found: dict[str, dict[str, Example]] = {task: {} for task in LABELS}

    def add(task: str, text: str, label: str) -> None:
        plain = " ".join(text.split())[:LONGEST]
        if len(plain) >= SHORTEST and re.search("[a-z]{3}", plain):
            found[task].setdefault(plain.lower(), Example(plain, label))

    for library in LIBRARIES:
        for number, (kind, docstring) in enumerate(docstrings(library, rng)):
            if number == per_library:
                break
            first = NAMES.sub("it", docstring.strip().split("\n\n")[0])
            add("kind", first, kind)
            add("library", first, library)
            for label, body in _sections(docstring):
                add("section", NAMES.sub("it", body), label)
    return {task: _drawn(list(own.values()), rng) for task, own in found.items()}


class Labelled(Protocol):
    """What has a label."""

    @property
    def label(self) -> str:
        """Which."""


Item = TypeVar("Item", bound=Labelled)


def parted(
    found: Mapping[str, Sequence[Item]],
    text: Callable[[Item], str],
    labels: Mapping[str, Sequence[str]],
    most: Mapping[str, int],
    shares: Sequence[float],
    rng: np.random.Generator,
) -> dict[str, dict[str, list[Item]]]:
    """By task and part its examples; all of a text are in one part for all tasks, and labels as even as they can be.

    Args:
        found: by task, in order.
        text: what an example was made from.
        labels: of each task.
        most: examples of each part at most, by its name.
        shares: of the parts, in that order.
        rng: draws them.
    """
    parts = list(most)
    made: dict[str, dict[str, list[Item]]] = {}
    drawn: dict[str, str] = {}
    for task, own in found.items():
        for example, part in zip(own, rng.choice(parts, len(own), p=shares), strict=True):
            drawn.setdefault(text(example).lower(), str(part))
        made[task] = {}
        for part in parts:
            mine = [example for example in own if drawn[text(example).lower()] == part]
            made[task][part] = balanced(mine, labels[task], -(-most[part] // len(labels[task])))
    return made


def balanced(own: Sequence[Item], labels: Sequence[str], most: int) -> list[Item]:
    """So many of each label at most, in order."""
    counts = dict.fromkeys(labels, 0)
    kept = []
    for example in own:
        if counts[example.label] < most:
            counts[example.label] += 1
            kept.append(example)
    return kept


def _drawn(own: list[Example], rng: np.random.Generator) -> list[Example]:
    return [own[i] for i in rng.permutation(len(own))]


def docstrings(library: str, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Docstrings of a library's public classes and functions, with which of the two, file by file."""
    for source in sources(library, rng):
        yield from _documented(source)


def sources(library: str, rng: np.random.Generator) -> Iterator[str]:
    """What a library's files hold, without its tests, in an order that is drawn.

    Raises:
        EvomergeError: it is not installed.
    """
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise EvomergeError(f"the package {library} is not installed", "evomerge's dependencies", "install it")
    root = Path(next(iter(spec.submodule_search_locations)))
    files = sorted(path for path in root.rglob("*.py") if "test" not in str(path.relative_to(root)).lower())
    for place in rng.permutation(len(files)):
        try:
            source = files[place].read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
        if len(source) <= _LARGEST_FILE:
            yield source


def _documented(source: str) -> Iterator[tuple[str, str]]:
    """``class`` or ``function`` and the docstring, of what a source documents in public."""
    heads = list(_HEAD.finditer(source))
    starts = [head.start() for head in heads]
    for match in _DOCSTRING.finditer(source):
        place = bisect.bisect_right(starts, match.start()) - 1
        if place >= 0 and not heads[place][2].startswith("_"):
            yield "class" if heads[place][1] == "class" else "function", inspect.cleandoc(match[1])


def _sections(docstring: str) -> Iterator[tuple[str, str]]:
    """The first paragraphs of a docstring's sections with their labels."""
    pattern = _UNDERLINED if _UNDERLINED.search(docstring) else _COLON
    heads = list(pattern.finditer(docstring))
    for head, after in zip(heads, [*heads[1:], None], strict=False):
        label = _SECTION_OF.get(head[1].lower())
        body = docstring[head.end() : after.start() if after is not None else None].strip()
        if label is not None and body:
            yield label, body.split("\n\n")[0]
