"""What a user asks of lm-eval: the task terms of an objective, parsed and checked. Imports nothing heavy."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from evomerge.errors import ConfigError, nearest
from fitness._lm_eval.arguments import check_template_arguments

Transform = Literal["none", "log"]

OBJECTIVE = "score"
"""The objective of tasks that name none."""

RESPONSE_LENGTH = "response_length"
"""The objective of how long generated responses are."""

PROMPT_KEYS = ("apply_chat_template", "system_instruction", "fewshot_as_multiturn")
_TERM_KEYS = (
    *("task", "metrics", "weight", "objective", "num_fewshot", "limit", "gen_kwargs"),
    *PROMPT_KEYS,
    "chat_template_args",
    "switch",
)
_METRIC_KEYS = ("weight", "transform")


@dataclass(frozen=True)
class MetricTerm:
    """One metric of a task in the objective.

    Attributes:
        name: lm-eval's metric name, with or without its filter: ``acc``, ``exact_match,strict-match``.
        weight: its factor in the sum.
        transform: ``log`` takes the natural logarithm (of a perplexity: minus the mean log-likelihood).
    """

    name: str
    weight: float = 1.0
    transform: Transform = "none"


@dataclass(frozen=True)
class TaskTerm:
    """One task, group or tag in the objective.

    Attributes:
        source: a registered name, a path to a YAML, or a whole task configuration.
        label: how messages call it.
        metrics: empty for the first metric that the task reports.
        weight: its share of the objective.
        objective: the name of the objective that it counts in.
        num_fewshot, limit, gen_kwargs: override the fitness-wide ones for this task.
        apply_chat_template, system_instruction, fewshot_as_multiturn: likewise, unless None.
        chat_template_args: added to the fitness-wide ones.
        switch: of a model with a switch, the source whose own part is on; ``None`` for models without.
    """

    source: str | dict[str, Any]
    label: str
    metrics: tuple[MetricTerm, ...] = ()
    weight: float = 1.0
    objective: str = OBJECTIVE
    num_fewshot: int | None = None
    limit: int | float | None = None
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    apply_chat_template: bool | str | None = None
    system_instruction: str | None = None
    fewshot_as_multiturn: bool | None = None
    chat_template_args: Mapping[str, Any] = field(default_factory=dict)
    switch: str | None = None

    @property
    def prompts(self) -> dict[str, Any]:
        """What the term says of how prompts are made, by `PROMPT_KEYS`; without those that it leaves to the fitness."""
        return {key: value for key in PROMPT_KEYS if (value := getattr(self, key)) is not None}


def parse_terms(tasks: Sequence[Any]) -> tuple[TaskTerm, ...]:
    """The terms that a user's list of tasks describes.

    Raises:
        ConfigError: an empty list, an unknown key, or a value of the wrong type, naming the key.
    """
    if not tasks:
        raise ConfigError("tasks is empty", "at least one lm-eval task", "for example tasks=[gsm8k]")
    return tuple(_term(plain(value), f"tasks[{index}]") for index, value in enumerate(tasks))


def plain(value: Any) -> Any:
    """`value` with mappings as dicts and sequences as lists, all the way down; configurations bring their own types."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(inner) for inner in value]
    return value


def check_limit(limit: Any, key: str) -> None:
    """Raise `ConfigError` unless `limit` is None, a count of at least 1, or a share between 0 and 1."""
    if limit is None:
        return
    count = isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1
    share = isinstance(limit, float) and (0 < limit < 1 or (limit >= 1 and limit.is_integer()))
    if not (count or share):
        raise ConfigError(f"{key} is {limit!r}", "a number of documents, or a share of them between 0 and 1")


def check_timeout(seconds: Any, key: str) -> None:
    """Raise `ConfigError` unless `seconds` is None or a finite number above 0."""
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if seconds is not None and not (number and 0 < seconds < math.inf):
        raise ConfigError(f"{key} is {seconds!r}", "seconds above 0, or null for no limit")


def check_fewshot(num_fewshot: Any, key: str) -> None:
    """Raise `ConfigError` unless `num_fewshot` is None or a count."""
    if num_fewshot is not None and (
        not isinstance(num_fewshot, int) or isinstance(num_fewshot, bool) or num_fewshot < 0
    ):
        raise ConfigError(f"{key} is {num_fewshot!r}", "a number of examples, 0 or more")


def check_template(value: Any, key: str) -> None:
    """Raise `ConfigError` unless `value` is true, false, or the name of a chat template."""
    if not isinstance(value, bool) and not (isinstance(value, str) and value):
        raise ConfigError(f"{key} is {value!r}", "true, false, or the name of one of the tokenizer's chat templates")


def check_flag(value: Any, key: str) -> None:
    """Raise `ConfigError` unless `value` is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{key} is {value!r}", "true or false")


def check_instruction(value: Any, key: str) -> None:
    """Raise `ConfigError` unless `value` is None or a text."""
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{key} is {value!r}", "a text, which comes before every prompt; '' for none")


def _term(value: Any, key: str) -> TaskTerm:
    if isinstance(value, str):
        return TaskTerm(value, value)
    if not isinstance(value, dict):
        raise ConfigError(f"{key} is {value!r}", "a task name, a path to a task YAML, or a mapping with the key 'task'")
    if "enable_thinking" in value:
        raise ConfigError(
            f"{key} has no key 'enable_thinking'",
            "it is one of all tasks",
            "of a task write chat_template_args: {enable_thinking: ...}",
        )
    _require_keys(value, _TERM_KEYS, key)
    source = value.get("task")
    if not source or not isinstance(source, str | dict):
        raise ConfigError(f"{key}.task is {source!r}", "a task name, a path to a task YAML, or a task configuration")
    if isinstance(source, dict) and not isinstance(source.get("task", source.get("group")), str):
        raise ConfigError(f"{key}.task has no name", "a task configuration has the key 'task' with the task's name")
    label = source if isinstance(source, str) else str(source.get("task", source.get("group")))
    weight = _number(value.get("weight", 1.0), f"{key}.weight")
    if weight <= 0:
        raise ConfigError(f"{key}.weight is {weight}", "a number above 0", "leave the task out instead")
    check_fewshot(value.get("num_fewshot"), f"{key}.num_fewshot")
    check_limit(value.get("limit"), f"{key}.limit")
    gen_kwargs = value.get("gen_kwargs") or {}
    if not isinstance(gen_kwargs, dict):
        raise ConfigError(f"{key}.gen_kwargs is {gen_kwargs!r}", "a mapping such as {max_gen_toks: 64}")
    for name, check in (("apply_chat_template", check_template), ("fewshot_as_multiturn", check_flag)):
        if value.get(name) is not None:
            check(value[name], f"{key}.{name}")
    check_instruction(value.get("system_instruction"), f"{key}.system_instruction")
    template_arguments = value.get("chat_template_args") or {}
    check_template_arguments(template_arguments, f"{key}.chat_template_args")
    return TaskTerm(
        source,
        label,
        _metrics(value.get("metrics"), f"{key}.metrics"),
        weight,
        _objective(value.get("objective"), f"{key}.objective"),
        value.get("num_fewshot"),
        value.get("limit"),
        gen_kwargs,
        **{name: value.get(name) for name in PROMPT_KEYS},
        chat_template_args=template_arguments,
        switch=_switch(value.get("switch"), f"{key}.switch"),
    )


def _switch(value: Any, key: str) -> str | None:
    if value is not None and not (isinstance(value, str) and value):
        raise ConfigError(f"{key} is {value!r}", "the name of a source model whose own part is on")
    return value


def _objective(value: Any, key: str) -> str:
    if value is None:
        return OBJECTIVE
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z][\w-]{0,63}", value) or value == RESPONSE_LENGTH:
        raise ConfigError(
            f"{key} is {value!r}",
            f"a name of letters, digits, - and _, other than {RESPONSE_LENGTH}",
            "tasks with the same name make one objective",
        )
    return value


def _metrics(value: Any, key: str) -> tuple[MetricTerm, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (MetricTerm(value),)
    if isinstance(value, list):
        value = dict.fromkeys(value, 1.0)
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{key} is {value!r}", "metric names with weights, such as {acc: 1.0}")
    return tuple(_metric(str(name), inner, f"{key}.{name}") for name, inner in value.items())


def _metric(name: str, value: Any, key: str) -> MetricTerm:
    if not isinstance(value, dict):
        return MetricTerm(name, _number(value, key))
    _require_keys(value, _METRIC_KEYS, key)
    transform = value.get("transform") or "none"
    if transform not in get_args(Transform):
        raise ConfigError(f"{key}.transform is {transform!r}", nearest(str(transform), get_args(Transform)))
    return MetricTerm(name, _number(value.get("weight", 1.0), f"{key}.weight"), cast(Transform, transform))


def _require_keys(value: Mapping[str, Any], known: Sequence[str], key: str) -> None:
    for name in value:
        if name not in known:
            raise ConfigError(f"{key} has no key {name!r}", nearest(str(name), known))


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{key} is {value!r}", "a finite number")
    return float(value)
