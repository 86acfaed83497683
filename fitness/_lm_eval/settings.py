"""How prompts are made: for all tasks of a fitness, and what a task's term says instead. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evomerge.errors import ConfigError
from fitness._lm_eval.terms import (
    TaskTerm,
    check_fewshot,
    check_flag,
    check_instruction,
    check_limit,
    check_template,
)


@dataclass(frozen=True)
class BuildSettings:
    """How prompts are made, for all tasks; terms may override some. Named as in ``lm_eval``."""

    num_fewshot: int | None
    limit: int | float | None
    apply_chat_template: bool | str
    fewshot_as_multiturn: bool
    system_instruction: str | None
    gen_kwargs: Mapping[str, Any]
    fewshot_seed: int
    chat_template_args: Mapping[str, Any] = field(default_factory=dict)

    def check(self, terms: Sequence[TaskTerm]) -> None:
        """Raise `ConfigError` for a value of the wrong type, and for what a chat template is given where none is used.

        Args:
            terms: those of the fitness.
        """
        check_limit(self.limit, "limit")
        check_fewshot(self.num_fewshot, "num_fewshot")
        check_template(self.apply_chat_template, "apply_chat_template")
        check_flag(self.fewshot_as_multiturn, "fewshot_as_multiturn")
        check_instruction(self.system_instruction, "system_instruction")
        if self.chat_template_args and not any(self.of(term).apply_chat_template for term in terms):
            raise ConfigError(
                f"the chat template is given {', '.join(self.chat_template_args)}, and no task applies it",
                "",
                "set apply_chat_template=true",
            )
        for index, term in enumerate(terms):
            self._check_term(term, f"tasks[{index}]")

    def flags(self) -> dict[str, Any]:
        """What the fitness itself says of prompts, by the names of the command; without what the template is given."""
        return {name: value for name, value in vars(self).items() if name != "chat_template_args"}

    def of(self, term: TaskTerm) -> BuildSettings:
        """The settings for the tasks of `term`: what it says of their template, instruction and turns, else these."""
        return replace(self, **term.prompts, chat_template_args={**self.chat_template_args, **term.chat_template_args})

    def _check_term(self, term: TaskTerm, key: str) -> None:
        own = self.of(term)
        given = [*term.chat_template_args, *(["fewshot_as_multiturn"] if term.fewshot_as_multiturn else [])]
        if given and not own.apply_chat_template:
            raise ConfigError(
                f"{key} gives the chat template {', '.join(given)}, and its prompts use none",
                "",
                f"set {key}.apply_chat_template=true",
            )
        if isinstance(own.apply_chat_template, str) and "chat_template" in own.chat_template_args:
            raise ConfigError(
                f"{key}: the chat template is named twice, as {own.apply_chat_template!r} and in chat_template_args",
                "",
                "leave chat_template_args.chat_template out",
            )


def said_of_tasks(terms: Sequence[TaskTerm]) -> dict[str, Any]:
    """What terms say of their prompts, as an entry ``task_prompts`` of results; none where they say nothing."""
    said = {term.label: term.prompts for term in terms if term.prompts}
    return {"task_prompts": said} if said else {}
