"""What a user says of prompts and scores, parsed and checked. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evomerge.errors import ConfigError, FitnessError, nearest
from evomerge.objectives import MetricShare, Objective
from fitness._documents import Document, content_hash
from fitness._text_files import document_of, read_lines, text_of
from fitness._unlabelled.values import finite

IMAGES = "images"
"""What items are called where nobody names them."""
RATING = "rating"
METRICS = ("clip", "ncs", "kid", "fid", "scorer", RATING)
LOWER = ("kid", "fid")
BY_SET = ("kid", "fid")
"""Metrics of all images together."""


@dataclass(frozen=True)
class ScoreTerm:
    """A score and what it counts.

    Attributes:
        name: one of `METRICS`.
        weight: above 0.
        objective: that it counts in.
        direction: which values are better.
    """

    name: str
    weight: float
    objective: str
    direction: Literal["maximize", "minimize"]

    @property
    def factor(self) -> float:
        """The weight, negative where less is better."""
        return -self.weight if self.direction == "minimize" else self.weight


@dataclass(frozen=True)
class Drawing:
    """One image that is drawn.

    Attributes:
        prompt: what for; empty for pipelines without prompts.
        seed: of its noise.
        reference: a file with the image that it is compared with; empty for none.
    """

    prompt: str
    seed: int
    reference: str = ""


def parse_metrics(given: Any, objectives: Any, scorer: Any) -> tuple[ScoreTerm, ...]:
    """The scores that count.

    Args:
        given: a name, several, or names with weights.
        objectives: by name of a score that of its objective; ``score`` for others.
        scorer: an object that scores images; ``None`` for none.

    Raises:
        ConfigError: names the key.
    """
    if isinstance(given, str):
        given = {given: 1.0}
    elif isinstance(given, Sequence):
        given = dict.fromkeys(map(str, given), 1.0)
    if given is None:
        given = {"scorer": 1.0} if scorer is not None else {"clip": 1.0}
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"metrics is {str(given)[:80]!r}", f"names with weights: {', '.join(METRICS)}")
    named = objectives or {}
    if not isinstance(named, Mapping):
        raise ConfigError(f"objectives is {str(objectives)[:80]!r}", "scores with the names of their objectives")
    for name in named:
        if name not in given:
            raise ConfigError(f"objectives has {str(name)[:80]!r}", nearest(str(name), list(given)))
    found = []
    for name, weight in given.items():
        if name not in METRICS:
            raise ConfigError(f"metrics has {str(name)[:80]!r}", nearest(str(name), METRICS))
        if finite(weight, f"metrics.{name}") <= 0:
            raise ConfigError(f"metrics.{name} is {weight:g}", "a number above 0: of kid and fid less is better")
        objective = named.get(name, "score")
        if not isinstance(objective, str) or not objective.isidentifier():
            raise ConfigError(f"objectives.{name} is {objective!r}", "a name of letters, digits and _")
        lower = name in LOWER or (name == "scorer" and getattr(scorer, "direction", "maximize") == "minimize")
        found.append(ScoreTerm(str(name), float(weight), objective, "minimize" if lower else "maximize"))
    if "scorer" in given and not callable(scorer):
        raise ConfigError(
            "metrics has 'scorer', and scorer is not set",
            "a node with _target_: an object that scores images",
            "scorer={_target_: my_module.Scorer}",
        )
    if scorer is not None and "scorer" not in given:
        do = "add it to metrics, or leave scorer out"
        raise ConfigError("scorer is set, and metrics has no 'scorer'", "metrics with the score that it gives", do)
    if RATING in given and len(given) > 1:
        raise ConfigError(
            "metrics has 'rating' beside others", "people's scores alone", "fitness=several puts others beside them"
        )
    return tuple(found)


def objectives_of(terms: Sequence[ScoreTerm]) -> tuple[Objective, ...]:
    """The objectives: larger is better."""
    return tuple(Objective(name, "maximize") for name in dict.fromkeys(term.objective for term in terms))


def shares_of(terms: Sequence[ScoreTerm], task: str) -> list[MetricShare]:
    """What every score counts in its objective; `task` is what the items are called."""
    return [MetricShare(f"{task}/{term.name}", term.weight, term.direction, term.objective) for term in terms]


def parse_size(given: Any) -> tuple[int, int] | None:
    """Height and width in pixels, or ``None``; `ConfigError` for anything else."""
    if given is None:
        return None
    if (
        not isinstance(given, Sequence)
        or len(given) != 2
        or not all(isinstance(own, int) and 8 <= own <= 8192 and own % 8 == 0 for own in given)
    ):
        raise ConfigError(f"size is {given}", "[height, width] in pixels, multiples of 8 up to 8192; or null")
    return int(given[0]), int(given[1])


def parse_task(given: Any) -> str:
    """What items are called; `ConfigError` for what is no name."""
    if not isinstance(given, str) or not re.fullmatch(r"[\w.-]{1,100}", given):
        raise ConfigError(f"task is {str(given)[:80]!r}", "letters, digits, '.', '-' and '_'")
    return given


def check_compared(
    terms: Sequence[ScoreTerm], prompts: Any, clip: str | None, features: Any, references: str | None
) -> None:
    """`ConfigError` where a score lacks what it compares with, or something is given that none compares with."""
    names = {term.name for term in terms}
    used = {"clip": ("clip", "ncs"), "features": BY_SET, "references": BY_SET}
    for key, value in {"clip": clip, "features": features, "references": references}.items():
        if value is not None and not names & set(used[key]):
            what = f"{key} is set, and metrics has neither {' nor '.join(used[key])}"
            raise ConfigError(what, f"what {key} is compared by", "add one of them to metrics, or leave it out")
    if names & {"clip", "ncs"} and not clip:
        raise ConfigError(
            f"metrics has {next(n for n in ('clip', 'ncs') if n in names)!r}, and clip is not set",
            "a model of images and texts in one space",
            "set clip to its folder or hub id, such as openai/clip-vit-base-patch32",
        )
    if names & {"clip", "ncs"} and prompts is None:
        raise ConfigError("metrics are of prompts, and prompts is not set", "a file or a list of prompts")
    lacking = [key for key, value in (("features", features), ("references", references)) if not value]
    if names & set(BY_SET) and lacking:
        what = next(name for name in BY_SET if name in names)
        given = f"metrics has {what!r}, and {' and '.join(lacking)} {'are' if lacking[1:] else 'is'} not set"
        raise ConfigError(given, "features: a network, or pixels; references: a folder of real images")
    if features is not None and not isinstance(features, str) and not callable(features):
        raise ConfigError(f"features is {str(features)[:80]!r}", "a folder, pixels, or a node with _target_")


def parse_prompts(given: Any) -> str | tuple[str, ...] | None:
    """A file, prompts themselves, or ``None``; `ConfigError` for anything else."""
    if given is None or (isinstance(given, str) and given.strip()):
        return given
    listed = isinstance(given, Sequence) and not isinstance(given, str)
    if listed and given and all(isinstance(own, str) and own.strip() for own in given):
        return tuple(given)
    raise ConfigError(
        f"prompts is {str(given)[:80]!r}",
        "a file (a prompt a line, or JSONL with prompt and image), a list of prompts, or null for pipelines without",
    )


def read_drawings(
    prompts: str | tuple[str, ...] | None, images: int, seed: int, limit: int | None
) -> tuple[list[Drawing], list[Document]]:
    """What is drawn, in order, and what identifies each.

    Args:
        prompts: as `parse_prompts` gives them.
        images: of each prompt; without prompts, of all.
        seed: of the first image; each has the next one.
        limit: the first so many prompts.

    Raises:
        FitnessError: a file that is missing or cannot be read; a line without a prompt.
    """
    rows: list[tuple[str, str, Document | None]]
    if prompts is None:
        rows = [("", "", None)]
    elif isinstance(prompts, tuple):
        rows = [(text, "", None) for text in prompts[:limit]]
    else:
        rows = []
        jsonl = prompts.endswith((".jsonl", ".json"))
        for line in read_lines(prompts, "prompts", limit, '{"prompt": "a red bicycle"}'):
            text = text_of(line, "prompt" if jsonl else "text")
            image = line.row.get("image", "")
            if not isinstance(image, str):
                raise FitnessError(f"{line.where}: its image is {str(image)[:60]!r}", "the path of an image")
            path = Path(image).expanduser() if image else None
            if path is not None and not path.is_absolute():
                path = Path(prompts).expanduser().parent / path
            if path is not None and not path.is_file():
                raise FitnessError(
                    f"{line.where}: there is no image {image}", "a file, as seen from the file of prompts"
                )
            rows.append((text, str(path) if path is not None else "", document_of(line, text)))
    drawings, documents = list[Drawing](), list[Document]()
    for text, image, document in rows:
        for _ in range(images):
            own = seed + len(drawings)
            drawings.append(Drawing(text, own, image))
            content = content_hash([text, image and Path(image).name, own])
            documents.append(Document(f"{document.asked if document else content_hash(text)} {own}", content))
    return drawings, documents
