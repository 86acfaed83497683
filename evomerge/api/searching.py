"""Searching from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from omegaconf import DictConfig, OmegaConf

from evomerge.api.run import Run
from evomerge.config.compose import compose_config
from evomerge.config.keywords import override_words, written
from evomerge.config.schema import Config
from evomerge.config.trust import FLAG, check_trust
from evomerge.session import watched
from evomerge.session.forking import forked_config, source_of


def search(
    *overrides: str,
    display: Literal["auto", "live", "plain", "quiet"] | None = None,
    trust: bool = False,
    config_dir: str | os.PathLike[str] | None = None,
    **keys: Any,
) -> Run:
    """Search for a merge recipe: `evomerge search` with the same keys, groups and experiments.

    Args:
        overrides: as on the command line: ``"experiment=demo"``, ``"search.evaluations=50"``.
        display: what is shown meanwhile: ``live``, a panel on a terminal; ``plain``, a line now and then; ``quiet``,
            nothing. By default live on a terminal, and lines in a notebook.
        trust: run code of one's own that configuration files name; what is named here is run anyway.
        config_dir: a folder of one's own options and experiments.
        keys: the same as Python values: ``strategy="ga"``, ``search={"evaluations": 50}``, ``pool={"models": ...}``,
            ``held_out={"tasks": [...]}``, ``from_run=run``, ``**{"search_space.layer_group": 2}``.

    Returns:
        The finished run.

    Raises:
        EvomergeError: the configuration, the models or the tasks cannot be used; says what is allowed.
        KeyboardInterrupt: the search was interrupted; `Run.resume` goes on with it.

    >>> run = evomerge.search(
    ...     "experiment=demo", search={"evaluations": 8}, fitness={"limit": 4}, run_dir="runs/first", display="quiet"
    ... )
    >>> run.status.state, run.best.candidate in range(4, 12)
    ('ended', True)
    """
    return Run(watched.search(composed(overrides, keys, display, trust, config_dir)).path)


search.__name__ = (
    "evomerge.search"  # so that Python finds evomerge.search.loop for `import evomerge.search.loop as loop`
)


def composed(
    overrides: Sequence[str],
    keys: Mapping[str, Any],
    display: str | None,
    trust: bool,
    config_dir: str | os.PathLike[str] | None,
) -> Config:
    """The configuration that the arguments of `search` describe.

    Raises:
        ConfigError: they describe none, or code of one's own that `trust` does not allow.
    """
    words = override_words(overrides, keys)
    if config_dir is not None:
        words.append(f"hydra.searchpath=[{written(f'file://{Path(config_dir).resolve()}', 'config_dir')}]")
    if display is not None:
        words.append(f"display={written(display, 'display')}")
    source = source_of(words)
    if source is not None:
        return forked_config(source, [*words, *([FLAG] if trust else [])])
    words = _with_held_out(words)
    config = compose_config(words)
    if not trust:
        check_trust(OmegaConf.to_container(cast(DictConfig, config), resolve=True), words, "the configuration")
    return config


def _with_held_out(words: list[str]) -> list[str]:
    """The words with a choice for `held_out` where only keys below it are given: tasks of lm-eval."""
    below = [word for word in words if word.startswith("held_out.")]
    if not below or any(word.lstrip("+").startswith(("fitness@held_out=", "held_out=")) for word in words):
        return words
    chosen = compose_config([word for word in words if word not in below]).held_out
    return words if chosen is not None else ["fitness@held_out=lm_eval", *words]
