"""What a user's texts and metrics say, parsed and checked. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from evomerge.errors import ConfigError, nearest
from fitness._unlabelled.reward_term import RewardTerm, parse_reward
from fitness._unlabelled.values import finite, require_keys, whole

OBJECTIVE = "score"
"""The objective of metrics that name none."""

Needs = Literal["", "expert", "base"]
Positions = Literal["all", "last"]
Transform = Literal["none", "log"]


@dataclass(frozen=True)
class Kind:
    """What a metric is like.

    Attributes:
        rises: whether larger values are better.
        reference: whose outputs it compares with.
        next_token: whether it needs the token that comes next.
        writes: whether the candidate writes, and a classifier reads it.
    """

    rises: bool
    reference: Needs = ""
    next_token: bool = False
    writes: bool = False


METRICS: Mapping[str, Kind] = {
    "perplexity": Kind(False, next_token=True),
    "entropy": Kind(False),
    "soft_cross_entropy": Kind(False, "expert"),
    "hidden_distance": Kind(False, "expert"),
    "agreement": Kind(True, "expert"),
    "kl_to_base": Kind(False, "base"),
    "forgetting": Kind(False, "base", next_token=True),
    "reward": Kind(True, writes=True),
}

EXPERT_MERGING: Mapping[str, float] = {"soft_cross_entropy": 1.0, "hidden_distance": 0.1}
"""What texts with an expert count by default: the alignment loss of Expert Merging (arXiv 2509.25712)."""

_TEXT_KEYS = (
    "file", "key", "task", "limit", "expert", "positions", "write", "reward", "metrics", "weight", "objective"
)  # fmt: skip
_WRITE_KEYS = ("by", "tokens", "texts", "temperature", "seed")
_METRIC_KEYS = ("weight", "transform", "objective")
_MOST_TOKENS = 4096
_MOST_TEXTS = 100_000


@dataclass(frozen=True)
class MetricTerm:
    """One metric of a text in an objective.

    Attributes:
        name: one of `METRICS`.
        weight: its factor in the sum.
        log: whether the logarithm counts; of a perplexity only.
        objective: the name of the objective that it counts in.
    """

    name: str
    weight: float = 1.0
    log: bool = False
    objective: str = OBJECTIVE

    @property
    def kind(self) -> Kind:
        """What it is like."""
        return METRICS[self.name]

    @property
    def factor(self) -> float:
        """Weight and sign, so that larger is better."""
        return self.weight if self.kind.rises else -self.weight


@dataclass(frozen=True)
class WriteTerm:
    """Texts that a model of the pool writes.

    Attributes:
        by: the model's name; empty for the pool's base.
        tokens: at most, of each text.
        texts: how many, where they begin with nothing; 0 where prompts are gone on with.
        temperature: of sampling; 0 for the likeliest token.
        seed: of sampling.
    """

    by: str
    tokens: int = 64
    texts: int = 0
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class TextTerm:
    """The texts of one domain.

    Attributes:
        name: its name in metrics: ``maths/perplexity``.
        file, key: a file of texts, a line each, or JSONL and the key of the text.
        task: an lm-eval task whose prompts are the texts.
        limit: the first so many.
        expert: the model of the pool that knows the domain; empty for none.
        positions: which predictions count: ``all``, or that after the ``last`` token.
        write: what is written to begin with, or after the texts.
        metrics: what counts.
        weight: of the domain in its objectives.
        reward: a classifier of what candidates write after the texts.
    """

    name: str
    file: str
    key: str
    task: str | dict[str, Any]
    limit: int | None
    expert: str
    positions: Positions
    write: WriteTerm | None
    metrics: tuple[MetricTerm, ...]
    weight: float
    reward: RewardTerm | None = None

    @property
    def needs(self) -> frozenset[Needs]:
        """Whose outputs its metrics compare with."""
        return frozenset(metric.kind.reference for metric in self.metrics) - {""}

    def has(self, *names: str) -> bool:
        """Whether one of these metrics is asked for."""
        return any(metric.name in names for metric in self.metrics)


def parse_texts(texts: Any, metrics: Any) -> tuple[TextTerm, ...]:
    """The domains that a user's mapping describes.

    Args:
        texts: by name a mapping; a text alone is the path of a file.
        metrics: of domains that name none.

    Raises:
        ConfigError: no text, an unknown key or metric, or a value of the wrong type, naming the key.
    """
    if not isinstance(texts, Mapping) or not texts:
        allowed = "a name for each domain, with a file, a task, or a model that writes"
        raise ConfigError(
            "texts is empty" if not texts else f"texts is {texts!r}", allowed, "texts={wiki: {file: wiki.txt}}"
        )
    if metrics is not None:
        _metrics(metrics, "metrics", OBJECTIVE)
    return tuple(_text(str(name), value, metrics) for name, value in texts.items())


def _text(name: str, value: Any, common: Any) -> TextTerm:
    key = f"texts.{name}"
    if not re.fullmatch(r"[\w.-]{1,100}", name):
        raise ConfigError(f"texts has the name {name!r}", "letters, digits, '.', '-' and '_'")
    given: dict[str, Any] = {"file": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key} is {value!r}", "a file, or a mapping with file, task or write")
    require_keys(given, _TEXT_KEYS, key)
    file, task = given.get("file") or "", given.get("task") or ""
    write = _write(given["write"], f"{key}.write", bool(file or task)) if given.get("write") is not None else None
    if file and task:
        raise ConfigError(f"{key}.file and {key}.task are both set", "one of them")
    if not (file or task or write):
        raise ConfigError(f"{key} has no texts", "file, task, or write with texts: how many", f"{key}.file=texts.jsonl")
    if not isinstance(file, str):
        raise ConfigError(f"{key}.file is {file!r}", "the path of a file")
    if not isinstance(task, str | Mapping):
        raise ConfigError(f"{key}.task is {task!r}", "the name or the YAML of an lm-eval task, or its content")
    if given.get("key") is not None and not (file.endswith((".jsonl", ".json")) and isinstance(given["key"], str)):
        raise ConfigError(f"{key}.key is {given['key']!r}", "the key of the text in a JSONL file: *.jsonl")
    positions: Any = given.get("positions") or "all"
    if positions not in get_args(Positions):
        raise ConfigError(f"{key}.positions is {positions!r}", nearest(str(positions), get_args(Positions)))
    if positions == "last" and write is not None:
        raise ConfigError(f"{key}.positions is 'last' and {key}.write is set", "of written texts every token counts")
    reward = parse_reward(given["reward"], f"{key}.reward") if given.get("reward") is not None else None
    if reward is not None and write is not None:
        raise ConfigError(
            f"{key}.reward and {key}.write are both set", "one of them: for a reward the candidate writes"
        )
    expert = _name(given.get("expert"), f"{key}.expert")
    weight = finite(given.get("weight", 1.0), f"{key}.weight")
    if weight <= 0:
        raise ConfigError(f"{key}.weight is {weight}", "a number above 0", "leave the texts out instead")
    objective = _objective(given.get("objective"), f"{key}.objective")
    chosen = given.get("metrics") if given.get("metrics") is not None else common
    if chosen is None:
        plain = {"reward": 1.0} if reward is not None else {"perplexity": {"transform": "log"}}
        chosen = dict(EXPERT_MERGING) if expert else plain
    metrics = _metrics(chosen, f"{key}.metrics", objective)
    for metric in metrics:
        if metric.kind.reference == "expert" and not expert:
            allowed = f"the model of the pool that knows the domain, which {metric.name} compares with"
            raise ConfigError(f"{key}.expert is not set", allowed, f"set {key}.expert=NAME")
        if metric.kind.writes and reward is None:
            allowed = "the folder of the classifier that says what is good"
            raise ConfigError(f"{key}.reward is not set", allowed, f"set {key}.reward=FOLDER")
        if metric.kind.next_token and positions == "last":
            raise ConfigError(
                f"{key}.positions is 'last' and {metric.name} is asked for", "no token comes after the last"
            )
    if reward is not None and not any(metric.kind.writes for metric in metrics):
        raise ConfigError(f"{key}.reward is set, and {key}.metrics has none", "a metric reward, with a weight")
    limit = whole(given.get("limit"), f"{key}.limit", 1, _MOST_TEXTS) if given.get("limit") is not None else None
    if limit is not None and not (file or task):
        raise ConfigError(
            f"{key}.limit is {limit} without a file or task", f"{key}.write.texts says how many are written"
        )
    task = dict(task) if isinstance(task, Mapping) else task
    return TextTerm(
        name, file, given.get("key") or "text", task, limit, expert, positions, write, metrics, weight, reward
    )


def _write(value: Any, key: str, prompted: bool) -> WriteTerm:
    given = {"by": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key} is {value!r}", f"a model's name, or a mapping with {', '.join(_WRITE_KEYS)}")
    require_keys(given, _WRITE_KEYS, key)
    texts = given.get("texts")
    if prompted and texts is not None:
        raise ConfigError(
            f"{key}.texts is {texts!r}", "each text of the file or task is gone on with once", "set limit instead"
        )
    temperature = finite(given.get("temperature", 1.0), f"{key}.temperature")
    if temperature < 0:
        raise ConfigError(f"{key}.temperature is {temperature}", "0, for the likeliest token, or more")
    if not prompted and temperature == 0:
        raise ConfigError(f"{key}.temperature is 0", "above 0: texts that begin with nothing would all be the same")
    return WriteTerm(
        _name(given.get("by"), f"{key}.by"),
        whole(given.get("tokens", 64), f"{key}.tokens", 1, _MOST_TOKENS),
        0 if prompted else whole(texts if texts is not None else 100, f"{key}.texts", 1, _MOST_TEXTS),
        temperature,
        whole(given.get("seed", 0), f"{key}.seed", 0, 2**63 - 1),
    )


def _metrics(value: Any, key: str, objective: str) -> tuple[MetricTerm, ...]:
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Sequence):
        value = dict.fromkeys((str(name) for name in value), 1.0)
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(f"{key} is {value!r}", "metric names with weights, such as {perplexity: 1.0}")
    return tuple(_metric(str(name), inner, f"{key}.{name}", objective) for name, inner in value.items())


def _metric(name: str, value: Any, key: str, objective: str) -> MetricTerm:
    if name not in METRICS:
        raise ConfigError(f"{key.rpartition('.')[0]} has {name!r}", nearest(name, METRICS))
    if not isinstance(value, Mapping):
        return MetricTerm(name, finite(value, key), objective=objective)
    require_keys(value, _METRIC_KEYS, key)
    transform = value.get("transform") or "none"
    if transform not in get_args(Transform):
        raise ConfigError(f"{key}.transform is {transform!r}", nearest(str(transform), get_args(Transform)))
    if transform == "log" and name != "perplexity":
        raise ConfigError(f"{key}.transform is 'log'", "of a perplexity only: the others are means already")
    own = _objective(value.get("objective"), f"{key}.objective") if value.get("objective") else objective
    return MetricTerm(name, finite(value.get("weight", 1.0), f"{key}.weight"), transform == "log", own)


def _objective(value: Any, key: str) -> str:
    if value is None:
        return OBJECTIVE
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z][\w-]{0,63}", value):
        do = "metrics with the same name make one objective"
        raise ConfigError(f"{key} is {value!r}", "a name of letters, digits, - and _", do)
    return value


def _name(value: Any, key: str) -> str:
    if value is not None and not (isinstance(value, str) and value):
        raise ConfigError(f"{key} is {value!r}", "the name of a model of the pool")
    return value or ""
