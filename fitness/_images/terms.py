"""What a user's image tasks say, parsed and checked. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from evomerge.errors import ConfigError, nearest
from fitness._classification.metric_terms import CLASS_METRICS, MetricTerm, parse_metrics, parse_per_class
from fitness._classification.terms import listed_tasks
from fitness._unlabelled.values import finite, require_keys, whole

OBJECTIVE = "score"
"""The objective of tasks that name none."""

Among = Literal["all", "task"]

TEMPLATES = ("a photo of a {}.",)
"""What a class's name is put into, where nothing is said: CLIP's own (arXiv 2103.00020, section 3.1.4)."""

_KEYS = (
    *("task", "images", "head", "image", "label", "labels", "limit", "among", "templates", "names"),
    *("metrics", "per_class", "weight", "objective"),
)
OF_ALL = ("part", "split", "processor", "batch_norm", "batch_size", "cache_size", "cache", "seed")
"""Keys of all tasks of a fitness of images."""
_MOST = 100_000_000


@dataclass(frozen=True)
class ImageTerm:
    """One task.

    Attributes:
        name: its name in metrics: ``digits/accuracy``.
        images: a folder with a folder for each class, or a table: CSV, JSONL or Parquet.
        head: the source whose head scores it; empty for the model's own.
        image, label: columns of a table.
        labels: from classes of the files to the model's, names or numbers; empty where they are called the same.
        limit: so many, drawn evenly over the classes.
        among: whether a prediction is the likeliest of ``all`` the head's classes, or of the ``task``'s.
        templates: that class names are put into, for zero-shot heads.
        names: from classes of the files to what prompts call them.
        metrics: what counts.
        weight: of the task in its objective.
        objective: that it counts in.
        per_class: whether the F1 of each class is told too.
    """

    name: str
    images: str
    head: str = ""
    image: str = "image"
    label: str = "label"
    labels: Mapping[str, str | int] = field(default_factory=dict)
    limit: int | None = None
    among: Among = "all"
    templates: tuple[str, ...] = TEMPLATES
    names: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[MetricTerm, ...] = (MetricTerm("accuracy"),)
    weight: float = 1.0
    objective: str = OBJECTIVE
    per_class: bool = False

    @property
    def is_numeric(self) -> bool:
        """Never: images have classes."""
        return False


@dataclass(frozen=True)
class BatchNormTerm:
    """How batch-norm statistics are computed again after a merge.

    Attributes:
        images: how many, drawn evenly over the tasks' own images of the search.
        folder: other images instead, any that lie in it; empty for none.
        batch_size: of a forward in which they are.
        seed: of the draw and of the order.
    """

    images: int = 256
    folder: str = ""
    batch_size: int = 64
    seed: int = 0


def parse_tasks(given: Any, common: Any, templates: Any, per_class: bool = False) -> tuple[ImageTerm, ...]:
    """The tasks of a configuration.

    Args:
        given: a list of mappings.
        common: metrics of tasks that name none; ``None`` for ``accuracy``.
        templates: of tasks that name none; ``None`` for `TEMPLATES`.
        per_class: of tasks that say nothing of it.

    Raises:
        ConfigError: no task, an unknown key or metric, a value of the wrong type or a name twice; names the key.
    """
    of_all = parse_metrics("accuracy" if common is None else common, "metrics", CLASS_METRICS)
    into = _templates(list(TEMPLATES) if templates is None else templates, "templates")
    example = "[{task: digits, images: data/digits}]"
    return listed_tasks(given, lambda own, key: _task(own, key, of_all, into, per_class), example)


class Common(NamedTuple):
    """What every task of images says.

    Attributes:
        name, images, weight, objective, limit: as of `ImageTerm`.
    """

    name: str
    images: str
    weight: float
    objective: str
    limit: int | None


def parse_common(given: Any, key: str, known: Sequence[str], of_all: Sequence[str], example: str) -> Common:
    """What a task has in common with those of other fitnesses of images.

    Args:
        given: of the configuration.
        key: where it stands.
        known: every key that it may have.
        of_all: keys that hold for all tasks.
        example: of a task with its name and images.

    Raises:
        ConfigError: no mapping, an unknown key, or a value of the wrong type; names the key.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key} is {str(given)[:80]!r}", "a mapping with task and images")
    require_keys(given, known, key, of_all)
    for needed in ("task", "images"):
        if not isinstance(given.get(needed), str) or not given[needed]:
            allowed = f"a name and a folder or a table: {example}"
            raise ConfigError(f"{key}.{needed} is {given.get(needed)!r}", allowed)
    name = given["task"]
    if "/" in name or not name.strip():
        raise ConfigError(f"{key}.task is {name!r}", "a name without /")
    weight = finite(given.get("weight", 1.0), f"{key}.weight")
    if weight <= 0:
        raise ConfigError(f"{key}.weight is {weight:g}", "a number above 0", "leave the task out instead")
    objective = given.get("objective") or OBJECTIVE
    if not isinstance(objective, str) or not objective.isidentifier():
        raise ConfigError(f"{key}.objective is {objective!r}", "a name of letters, digits and _")
    limit = whole(given.get("limit"), f"{key}.limit", 1, _MOST) if given.get("limit") is not None else None
    return Common(name, given["images"], weight, objective, limit)


def _task(
    given: Any, key: str, common: tuple[MetricTerm, ...], templates: tuple[str, ...], per_class: bool
) -> ImageTerm:
    example = "{task: digits, images: data/digits}"
    name, images, weight, objective, limit = parse_common(given, key, _KEYS, (*OF_ALL, "clip"), example)
    among: Any = given.get("among") or "all"
    if among not in get_args(Among):
        raise ConfigError(f"{key}.among is {among!r}", nearest(str(among), get_args(Among)))
    own = given.get("templates")
    return ImageTerm(
        name,
        images,
        _text(given["head"], f"{key}.head") if given.get("head") else "",
        _text(given.get("image", "image"), f"{key}.image"),
        _text(given.get("label", "label"), f"{key}.label"),
        _labels(given.get("labels"), f"{key}.labels"),
        limit,
        among,
        templates if own is None else _templates(own, f"{key}.templates"),
        {str(k): _text(v, f"{key}.names.{k}") for k, v in _mapping(given.get("names"), f"{key}.names").items()},
        common if given.get("metrics") is None else parse_metrics(given["metrics"], f"{key}.metrics", CLASS_METRICS),
        weight,
        objective,
        per_class if given.get("per_class") is None else parse_per_class(given["per_class"], f"{key}.per_class"),
    )


def parse_batch_norm(value: Any) -> BatchNormTerm | None:
    """What ``batch_norm`` says; ``None`` where statistics stay as they are merged.

    Raises:
        ConfigError: an unknown key, or a value out of its range, naming it.
    """
    if value is None or value is False:
        return None
    if value is True:
        return BatchNormTerm()
    if not isinstance(value, Mapping):
        raise ConfigError(f"batch_norm is {value!r}", "true, false, or a mapping with images, folder, batch_size, seed")
    require_keys(value, ("images", "folder", "batch_size", "seed"), "batch_norm")
    given = {**vars(BatchNormTerm()), **value}
    folder = given["folder"] or ""
    if not isinstance(folder, str):
        raise ConfigError(f"batch_norm.folder is {folder!r}", "the path of a folder of images")
    return BatchNormTerm(
        whole(given["images"], "batch_norm.images", 2, _MOST),
        folder,
        whole(given["batch_size"], "batch_norm.batch_size", 2, _MOST),
        whole(given["seed"], "batch_norm.seed", 0, 2**63 - 1),
    )


def _templates(value: Any, key: str) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, Sequence) or not found or not all(isinstance(text, str) for text in found):
        raise ConfigError(f"{key} is {value!r}", "texts such as 'a photo of a {}.'")
    for text in found:
        if text.count("{}") != 1:
            raise ConfigError(f"{key} has {text!r}", "one place {} for the name of a class")
    return tuple(found)


def _labels(value: Any, key: str) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    for name, own in _mapping(value, key).items():
        if isinstance(own, bool) or not isinstance(own, str | int):
            raise ConfigError(f"{key}.{name} is {own!r}", "the name or the number of a class of the model")
        found[str(name)] = own
    return found


def _mapping(value: Any, key: str) -> Mapping[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} is {value!r}", "a mapping of classes")
    return value


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key} is {value!r}", "a text")
    return value
