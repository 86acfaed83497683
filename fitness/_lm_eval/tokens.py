"""What a fitness asks of a tokenizer, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evomerge.errors import FitnessError
from fitness._lm_eval.arguments import ModelArguments
from fitness._lm_eval.building import require_templates
from fitness._lm_eval.chat import check_tokens, warn_of_unread
from fitness._lm_eval.loading import TaskSet
from fitness._lm_eval.settings import BuildSettings


def check_tokenizer(load: Callable[[], Any], tasks: TaskSet, settings: BuildSettings, arguments: ModelArguments) -> Any:
    """The tokenizer, checked; ``None`` where nothing depends on it.

    Args:
        load: gives the tokenizer, ``None`` where there is none.
        tasks: loaded.
        settings, arguments: those of the fitness.

    Raises:
        FitnessError: it has no such template or token, or there is none.
    """
    templated = [own for loaded in tasks.terms if (own := settings.of(loaded.term)).apply_chat_template]
    if not templated and arguments.prefix_token_id is None and arguments.think_end_token is None:
        return None
    tokenizer = load()
    if tokenizer is None:
        raise FitnessError("the model has no tokenizer", "lm-eval tasks need one", "add its files to the folder")
    check_tokens(tokenizer, arguments.prefix_token_id, arguments.think_end_token)
    require_templates(tasks, tokenizer, settings)
    said = set[tuple[bool | str, str]]()
    for own in templated:
        new = {n: v for n, v in own.chat_template_args.items() if (own.apply_chat_template, n) not in said}
        if new:
            warn_of_unread(tokenizer, own.apply_chat_template, new)
        said |= {(own.apply_chat_template, name) for name in new}
    return tokenizer
