"""The errors for documents of which a tokenizer or a model makes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import FitnessError


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
