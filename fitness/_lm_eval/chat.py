"""The chat template of a tokenizer, rendered as lm-eval renders it, and what can be said of it before a prompt is."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

from lm_eval.models.huggingface import HFLM

from evomerge.errors import EvomergeWarning, FitnessError, nearest
from fitness._lm_eval.time_limit import timed

_DEFAULT = "default"  # transformers' name of the template that is taken where none is named


class ChatTemplate:
    """Messages to text, by lm-eval's own code.

    lm-eval (0.4.13) takes a template's name, notes it, and renders with the tokenizer's default. Here the name counts:
    the prompts are those of lm-eval with ``chat_template_args={"chat_template": NAME}``.

    Args:
        tokenizer: of the model.
        choice: true for its default template, else the name of one of its templates.
        arguments: that the template is given.
    """

    def __init__(self, tokenizer: Any, choice: bool | str, arguments: Mapping[str, Any]) -> None:
        self.tokenizer = tokenizer
        named = {"chat_template": choice} if isinstance(choice, str) and choice != _DEFAULT else {}
        self.chat_template_args = {**arguments, **named}

    def __call__(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of `chat_history`, ``{role, content}`` each."""
        with timed():  # it comes with a model
            return str(HFLM.apply_chat_template(cast(Any, self), cast(Any, chat_history), add_generation_prompt))


def require_template(tokenizer: Any, choice: bool | str, key: str) -> None:
    """Raise `FitnessError` unless a tokenizer has the template that `choice`, the value of `key`, asks for."""
    templates = getattr(tokenizer, "chat_template", None)
    if not templates:
        raise FitnessError(
            f"{key} is {_shown(choice)}",
            "a tokenizer with a chat template; this one has none",
            "give the pool a model that has one as pool.tokenizer_from, or leave the key out",
        )
    if not isinstance(templates, Mapping):
        if choice not in (True, _DEFAULT):
            raise FitnessError(f"{key} is {_shown(choice)}", "the tokenizer has one template, without a name: true")
        return
    wanted = _DEFAULT if choice is True else str(choice)
    if wanted not in templates:
        raise FitnessError(
            f"{key} is {_shown(choice)}, and the tokenizer has no template {wanted!r}", nearest(wanted, templates)
        )


def warn_of_unread(tokenizer: Any, choice: bool | str, arguments: Mapping[str, Any]) -> None:
    """Warn of arguments that neither the template nor transformers reads: they change nothing, without a word."""
    templates = tokenizer.chat_template
    wanted = choice if isinstance(choice, str) else _DEFAULT
    text = templates if isinstance(templates, str) else templates.get(wanted, "")
    if "chat_template" in arguments:  # stock code's way to name one, or to bring one
        given = str(arguments["chat_template"])
        text = templates.get(given, given) if isinstance(templates, Mapping) else given
    taken = inspect.signature(tokenizer.apply_chat_template).parameters
    for name in arguments:
        if name not in taken and not re.search(rf"\b{re.escape(name)}\b", text):
            warnings.warn(
                f"the chat template does not read {name!r}: giving it changes no prompt", EvomergeWarning, stacklevel=2
            )


def check_tokens(tokenizer: Any, prefix_token_id: int | None, think_end_token: str | int | None) -> None:
    """Raise `FitnessError` for ids that a tokenizer does not have; warn of an end of thinking that is never seen."""
    for key, token in (("prefix_token_id", prefix_token_id), ("think_end_token", think_end_token)):
        if isinstance(token, int) and token >= len(tokenizer):
            raise FitnessError(f"{key} is {token}", f"an id below {len(tokenizer)}, the tokens of the tokenizer")
    if think_end_token in tokenizer.all_special_tokens:
        warnings.warn(
            f"think_end_token {think_end_token!r} is a special token, which lm-eval takes out of responses before it "
            f"looks for it: set think_end_token={tokenizer.convert_tokens_to_ids(think_end_token)}, its id",
            EvomergeWarning,
            stacklevel=2,
        )


def _shown(choice: bool | str) -> str:
    return "true" if choice is True else repr(choice)
