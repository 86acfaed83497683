"""The tokenizer of a pool: loaded when the pool is opened, so that what is wrong with it is said before a search."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from evomerge.errors import EvomergeWarning, PoolError, reason_of
from evomerge.models.checkpoints.side_files import INPUTS, matching
from evomerge.models.tokenizer_files import check_fields, check_files, has_tokenizer

_LARGEST_FILE = 2**30
_SECONDS = 5.0  # for a template that takes a millisecond


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The transformers tokenizer in a model's folder, ``None`` where it holds none.

    Raises:
        PoolError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    if not has_tokenizer(folder):
        return None
    for file in matching(folder, INPUTS):
        if file.is_file() and file.stat().st_size > _LARGEST_FILE:
            raise PoolError(f"{file} has {file.stat().st_size:,} bytes", f"at most {_LARGEST_FILE:,} for a tokenizer")
    check_files(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizer classes raise whatever their backends raise
        raise PoolError(
            f"the tokenizer in {folder} cannot be loaded ({reason_of(error)})",
            "files that AutoTokenizer.from_pretrained loads",
            "download them again, or set pool.trust_remote_code if it brings its own code",
        ) from error
    check_fields(tokenizer, folder)
    return tokenizer


def check_tokenizer(name: str, folder: Path, rows: int | None, trust_remote_code: bool = False) -> None:
    """Load the tokenizer that a pool's results take, and try its chat template on a message.

    Warns where the template fails, or where the tokenizer has ids that the embeddings have no row for.

    Args:
        name: the model that gives it.
        folder: that model's.
        rows: of the embeddings, where that is known.
        trust_remote_code: let a tokenizer that brings its own code run it.

    Raises:
        PoolError: it cannot be loaded.
    """
    try:
        tokenizer = load_tokenizer(folder, trust_remote_code)
        if tokenizer is None:
            return
        largest = max(tokenizer.get_vocab().values(), default=-1)
        has_template = bool(getattr(tokenizer, "chat_template", None))
    except PoolError:
        raise
    except Exception as error:  # one that was loaded from files that fit its class and nothing else
        raise PoolError(
            f"the tokenizer in {folder} cannot be used ({reason_of(error)})", "", "download its files again"
        ) from error
    if rows is not None and largest >= rows:
        warnings.warn(
            f"the tokenizer of model {name!r} has ids up to {largest}, its embeddings {rows} rows: a text with such "
            f"a token cannot be scored",
            EvomergeWarning,
            stacklevel=2,
        )
    if has_template:
        problem = _template_problem(tokenizer)
        if problem:
            warnings.warn(
                f"the chat template of model {name!r} fails on a message of a user ({problem}): "
                f"fitness.apply_chat_template cannot be used with it",
                EvomergeWarning,
                stacklevel=2,
            )


def _template_problem(tokenizer: Any) -> str:
    """Why the chat template cannot write a message; empty where it can."""
    try:
        with _deadline(_SECONDS):
            tokenizer.apply_chat_template(
                [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
            )
    except Exception as error:  # templates raise what they like
        return reason_of(error)
    return ""


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in Python code that runs longer: a template is compiled to such, loops and all."""
    end = time.monotonic() + seconds

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError(f"it takes longer than {seconds:g} s")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
