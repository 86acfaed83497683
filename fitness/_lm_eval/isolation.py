"""Keeps lm-eval's side effects to itself: on the global generators, on the terminal, and by templates."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import random
from collections.abc import Iterator
from typing import Any

import lm_eval.utils
import numpy as np
import torch
from jinja2 import Template
from jinja2.sandbox import SandboxedEnvironment

from fitness._lm_eval.time_limit import timed

_NOISY = ("lm_eval", "datasets")
_TEMPLATES = 256


class StockGenerators:
    """The global generators of Python, numpy and torch as the stock tool seeds them, but only inside ``with``.

    Tasks may shuffle or sample with the global generators while they are loaded and built. Inside, the
    generators continue from where the last ``with`` left them; outside they are untouched.
    """

    def __init__(self) -> None:
        # lm_eval.evaluator.simple_evaluate: 0 for Python, 1234 for numpy and torch.
        self._inner: tuple[Any, Any, Any] | None = None
        self._outer: list[tuple[Any, Any, Any]] = []

    def __enter__(self) -> None:
        self._outer.append(_states())
        if self._inner is not None:
            _restore(self._inner)
            return
        random.seed(0)
        np.random.seed(1234)  # noqa: NPY002 - what tasks use; restored on exit
        torch.default_generator.manual_seed(1234)

    def __exit__(self, *_: object) -> None:
        self._inner = _states()
        _restore(self._outer.pop())


def _states() -> tuple[Any, Any, Any]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def _restore(states: tuple[Any, Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])


class _TimedTemplate(Template):
    """One whose rendering counts as its task's time."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        """As the stock one."""
        with timed():
            return super().render(*args, **kwargs)


class _Sandbox(SandboxedEnvironment):
    """Shows templates documents and nothing behind them; making them and rendering them counts as their task's time.

    lm-eval makes a template anew for every document: the last ones are remembered.
    """

    template_class = _TimedTemplate

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._remembered = functools.lru_cache(maxsize=_TEMPLATES)(super().from_string)

    def from_string(self, *args: Any, **kwargs: Any) -> Template:
        """As the stock one, which computes what is constant in a template."""
        with timed(0):
            known = not kwargs and len(args) == 1 and isinstance(args[0], str)
            return self._remembered(*args) if known else super().from_string(*args, **kwargs)


def sandbox_templates() -> None:
    """Let the templates of tasks see documents and nothing behind them: they could run any code otherwise.

    What they render stays the same.
    """
    stock = lm_eval.utils.env
    if isinstance(stock, SandboxedEnvironment):
        return
    boxed = _Sandbox(loader=stock.loader, undefined=stock.undefined, keep_trailing_newline=stock.keep_trailing_newline)
    boxed.filters.update(stock.filters)
    lm_eval.utils.env = boxed


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Hold back what lm-eval and datasets log, errors too: they are raised besides."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Hold back progress bars besides (`unlogged`)."""
    # lm-eval prints the types of templates that are none.
    with unlogged(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
