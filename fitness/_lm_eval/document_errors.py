"""The errors for documents of which a tokenizer or a model makes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import EvomergeError, FitnessError
from fitness._lm_eval.task_errors import document_error, shortened

# Arguments of requests, as lm-eval's types have them: what each is, and the keys of a task's YAML that make it.
_ARGUMENTS: Mapping[str, tuple[tuple[type, str], ...]] = {
    "loglikelihood": ((str, "doc_to_text"), (str, "doc_to_target")),
    "loglikelihood_rolling": ((str, "doc_to_target"),),
    "generate_until": ((str, "doc_to_text"), (dict, "generation_kwargs")),
}


def require_text(instance: Any) -> None:
    """Raise `FitnessError` for a request that asks for something other than text, with the key that made it.

    lm-eval puts a number, a list or nothing at all where a template or column gives one, and trips over it later.
    """
    for value, (kind, key) in zip(instance.args, _ARGUMENTS.get(instance.request_type, ()), strict=False):
        if not isinstance(value, kind):
            what = f"{key} gives {shortened(value)} of type {type(value).__name__}"
            raise FitnessError(
                f"{place_of(instance)} (from 0): its prompt cannot be built: {what}",
                "a text" if kind is str else "a mapping",
                f"look at {key} of the task and at the document, {shortened(instance.doc)}",
            )


@contextmanager
def tokenising(instance: Any) -> Iterator[None]:
    """Make what a tokenizer raises at a request a `FitnessError` that names the task and document."""
    try:
        yield
    except (EvomergeError, MemoryError):
        raise
    except Exception as error:
        found = instance.doc_id, instance.doc
        keys = "doc_to_text and doc_to_target"
        raise document_error(instance.task_name, "its tokens cannot be made", keys, found, error) from error


def not_finite(instance: Any, what: str) -> FitnessError:
    """The error for a document on which a model's scores are NaN or infinite."""
    return FitnessError(
        f"{place_of(instance)}: {what} is not finite",
        "finite numbers",
        "the model's weights are NaN, infinite or out of the range of its dtype",
    )


def no_target(instance: Any) -> FitnessError:
    """The error for a document whose target has no tokens."""
    return FitnessError(
        f"{place_of(instance)} has a target without tokens",
        "a target of at least one token",
        "look at doc_to_target or doc_to_choice for empty fields",
    )


def require_tokens(instance: Any, context: Sequence[int], target: Sequence[int]) -> None:
    """Raise `FitnessError` where no token comes before the target's, as lm-eval asserts, or it has none."""
    if not context:
        raise FitnessError(
            f"{place_of(instance)} has a context without tokens",
            "words, or no text at all, for which the prefix token stands",
            "look at doc_to_text for blanks, which this tokenizer drops",
        )
    if not target:
        raise no_target(instance)


def no_prompt(instance: Any) -> FitnessError:
    """The error for a document whose prompt has no tokens to go on from."""
    return FitnessError(
        f"{place_of(instance)} has a prompt without tokens",
        "a prompt of at least one token",
        "look at doc_to_text for empty fields, or set add_bos_token=true of the fitness",
    )


def place_of(instance: Any) -> str:
    """How messages name the document of an instance."""
    return f"task {instance.task_name!r}, document {instance.doc_id}"


def require_finite(values: NDArray[np.float64], instances: Sequence[Any]) -> None:
    """Raise `FitnessError` for a log-likelihood that is not finite, naming its document."""
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise not_finite(instances[bad[0]], "a log-likelihood")
