"""The door to diffusers: its classes by name, and where it is not installed, what to do."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from evomerge.errors import ConfigError, PoolError
from evomerge.models.progress_bars import no_progress_bar


def require_diffusers() -> Any:
    """The module ``diffusers``; `ConfigError` where it is not installed."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)  # of what it does without: torchvision, other libraries' kernels
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError(
            "pipelines that draw images need diffusers, which is not installed", "", "pip install 'evomerge[diffusion]'"
        ) from error
    finally:
        logging.disable(disabled)
    return diffusers


def network_class(name: str) -> Any:
    """The class of a network, by its name in a file: of all that diffusers has, only networks.

    Raises:
        PoolError: diffusers has no such network.
    """
    return _class_of(name, "ModelMixin", "network")


def pipeline_class(name: str) -> Any:
    """The class of a pipeline, likewise.

    Raises:
        PoolError: diffusers has no such pipeline.
    """
    return _class_of(name, "DiffusionPipeline", "pipeline")


def _class_of(name: str, base: str, what: str) -> Any:
    diffusers = require_diffusers()
    with quiet():  # it is imported now
        found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, getattr(diffusers, base))):
        raise PoolError(
            f"diffusers has no {what} {name[:80]!r}",
            f"a class of a {what}",
            "upgrade diffusers, or correct _class_name",
        )
    return found


def call_arguments(name: str) -> list[str]:
    """Names of the arguments that a pipeline's call takes."""
    return list(inspect.signature(pipeline_class(name).__call__).parameters)[1:]


@contextmanager
def quiet() -> Iterator[None]:
    """Let diffusers say and show nothing meanwhile, not how far it is either."""
    from diffusers.utils import logging as own

    level, disabled = own.get_verbosity(), logging.root.manager.disable
    own.set_verbosity_error()
    own.disable_progress_bar()
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), no_progress_bar():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        own.set_verbosity(level)
        own.enable_progress_bar()
