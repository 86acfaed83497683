"""What a user's segmentation tasks say, parsed and checked. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from evomerge.errors import ConfigError, nearest
from fitness._classification.metric_terms import MetricTerm, weighted_metrics
from fitness._classification.terms import listed_tasks, require_apart
from fitness._images.terms import OBJECTIVE, OF_ALL, parse_common
from fitness._unlabelled.values import whole

METRICS = ("dice", "iou", "accuracy", "loss")

Prompt = Literal["box", "point"]

UNLABELLED = 255
"""What masks of the literature have for pixels of no class."""

_KEYS = (
    *("task", "images", "head", "image", "mask", "labels", "ignore", "background", "prompt", "prompts", "limit"),
    *("metrics", "weight", "objective"),
)
_EXAMPLE = "{task: streets, images: data/streets}"
_LARGEST = 2**16 - 1  # number of a class in a mask


@dataclass(frozen=True)
class SegmentationTerm:
    """One task.

    Attributes:
        name: its name in metrics: ``streets/dice``.
        images: a folder with ``images`` and ``masks`` in it, or a table: CSV, JSONL or Parquet.
        head: the source whose head scores it; empty for the model's own.
        image, mask: columns of a table.
        labels: from numbers in the masks to the model's classes, names or numbers; others are the same there.
        ignore: numbers in the masks whose pixels do not count; ``None`` for `UNLABELLED` where the model has classes.
        background: number in the masks that counts neither in Dice nor in IoU; ``None`` for none.
        prompt: what a model that is asked for one thing at a time is given of it, made of its mask; empty for others.
        prompts: column of a table that has the prompts instead; empty for none.
        limit: so many, drawn.
        metrics: what counts.
        weight: of the task in its objective.
        objective: that it counts in.
    """

    name: str
    images: str
    head: str = ""
    image: str = "image"
    mask: str = "mask"
    labels: Mapping[int, str | int] = field(default_factory=dict)
    ignore: tuple[int, ...] | None = None
    background: int | None = None
    prompt: Prompt | Literal[""] = ""
    prompts: str = ""
    limit: int | None = None
    metrics: tuple[MetricTerm, ...] = (MetricTerm("dice"),)
    weight: float = 1.0
    objective: str = OBJECTIVE

    @property
    def is_numeric(self) -> bool:
        """Never: pixels have classes."""
        return False

    @property
    def ignored(self) -> tuple[int, ...]:
        """Numbers in the masks whose pixels do not count."""
        if self.ignore is not None:
            return self.ignore
        return () if self.prompt or UNLABELLED in self.labels else (UNLABELLED,)

    @property
    def ground(self) -> int | None:
        """Number in the masks of the background: of a task with prompts 0, where nothing is said."""
        return 0 if self.prompt and self.background is None else self.background


def parse_tasks(given: Any, common: Any) -> tuple[SegmentationTerm, ...]:
    """The tasks of a configuration.

    Args:
        given: a list of mappings.
        common: metrics of tasks that name none; ``None`` for ``dice``.

    Raises:
        ConfigError: no task, an unknown key or metric, a value of the wrong type or a name twice; names the key.
    """
    of_all = weighted_metrics("dice" if common is None else common, "metrics", METRICS)
    return listed_tasks(given, lambda own, key: _task(own, key, of_all), "[{task: streets, images: data/streets}]")


def _task(given: Any, key: str, common: tuple[MetricTerm, ...]) -> SegmentationTerm:
    name, images, weight, objective, limit = parse_common(given, key, _KEYS, (*OF_ALL, "sam"), _EXAMPLE)
    texts = {column: given.get(column) or default for column, default in _TEXTS.items()}
    for column, value in texts.items():
        if not isinstance(value, str):
            raise ConfigError(f"{key}.{column} is {value!r}", "a text")
    prompt: Any = given.get("prompt") or ""
    if prompt and prompt not in get_args(Prompt):
        raise ConfigError(f"{key}.prompt is {prompt!r}", nearest(str(prompt), get_args(Prompt)))
    if texts["prompts"] and not prompt:
        raise ConfigError(f"{key}.prompts is given without a prompt", "what they are: box or point")
    labels = _labels(given.get("labels"), f"{key}.labels")
    if labels and prompt:
        raise ConfigError(f"{key} has labels and prompt", "labels for models with classes, prompt for others")
    metrics = given.get("metrics")
    require_apart({own: texts[own] for own in ("image", "mask", "prompts")}, key)
    return SegmentationTerm(
        name,
        images,
        texts["head"],
        texts["image"],
        texts["mask"],
        labels,
        _ignore(given.get("ignore"), f"{key}.ignore"),
        _number(given["background"], f"{key}.background") if given.get("background") is not None else None,
        prompt,
        texts["prompts"],
        limit,
        common if metrics is None else weighted_metrics(metrics, f"{key}.metrics", METRICS),
        weight,
        objective,
    )


_TEXTS = {"head": "", "image": "image", "mask": "mask", "prompts": ""}


def _labels(given: Any, key: str) -> dict[int, str | int]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key} is {given!r}", "a mapping from numbers in the masks to classes of the model")
    found: dict[int, str | int] = {}
    for number, own in given.items():
        if isinstance(own, bool) or not isinstance(own, str | int):
            raise ConfigError(f"{key}.{number} is {own!r}", "the name or the number of a class of the model")
        found[_number(int(number) if str(number).isdecimal() else number, f"a key of {key}")] = own
    return found


def _ignore(given: Any, key: str) -> tuple[int, ...] | None:
    if given is None:
        return None
    many = [given] if isinstance(given, int) else given
    if not isinstance(many, Sequence) or isinstance(many, str):
        raise ConfigError(f"{key} is {given!r}", "a number in the masks, or a list of such; [] for none")
    return tuple(_number(own, key) for own in many)


def _number(value: Any, key: str) -> int:
    return whole(value, key, 0, _LARGEST)
