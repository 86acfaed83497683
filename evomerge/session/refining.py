"""Where a Gaussian process takes over from a search's strategy: ``search.refine``."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.config.schema import Config
from evomerge.errors import ConfigError
from evomerge.genomes.genome import GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import SearchSpace, Strategy
from evomerge.search.racing.settings import AUTO
from evomerge.strategies.bases.refined import KEY, Refined, check_genes, check_refine
from evomerge.strategies.variation.coordinates import Coordinates

SHARE = 0.5
"""Of a search's candidates, at least, that its strategy proposes."""

MOST = 80
"""Candidates of the process: twenty fits, of which the last few move little (docs/strategies.md)."""

KNOWN = 60
"""Candidates that it is fitted to at first, at least."""

OF_A_GENE = 5
"""The same for every free gene: a length for each is to be told from them."""


def check_refining(config: Config) -> None:
    """Check the keys of ``search.refine`` as far as it can be seen without a search space.

    Raises:
        ConfigError: one that is out of range, or that another key stands against.
    """
    asked = config.search.refine
    if asked.after == AUTO or asked.after is None:
        check_refine(1, asked.batch)
        return
    check_refine(asked.after, asked.batch)
    if config.search.penalty:
        raise ConfigError(
            f"{KEY} is {asked.after}, and search.penalty is {config.search.penalty}",
            "a Gaussian process over scores as they are",
            f"set {KEY}=null, or search.penalty=0",
        )


def refined(
    config: Config, strategy: Strategy, spec: GenomeSpec, objectives: Sequence[Objective], seed: int
) -> Strategy:
    """The strategy, followed by a Gaussian process where the configuration says from where on.

    Raises:
        ConfigError: several objectives, or genes that are no numbers.
    """
    after = settled(config)
    if after is None:
        return strategy
    check_refined_objectives(config, objectives)
    return Refined(strategy, spec, objectives[0], seed=seed, after=after, batch=config.search.refine.batch)


def check_refined_objectives(config: Config, objectives: Sequence[Objective]) -> None:
    """Refuse several objectives for the process."""
    after = settled(config)
    if after is not None and len(objectives) > 1:
        names = ", ".join(objective.name for objective in objectives)
        raise ConfigError(
            f"{KEY} is {after}, and there are {len(objectives)} objectives ({names})",
            "one objective, which the process is fitted to",
            f"set {KEY}=null",
        )


def after_how_many(config: Config, spaces: Sequence[SearchSpace]) -> int | None:
    """What ``search.refine.after: auto`` comes to in a race that was chosen; ``None`` where there is no such end."""
    evaluations = config.search.evaluations
    after = max(round(SHARE * evaluations), evaluations - MOST)
    generations = config.search.racing.against == "generation" and config.cheap is None
    if config.search.penalty or len(spaces) != 1 or not generations:
        return None
    space = spaces[0]
    try:
        check_genes(space.spec)
    except ConfigError:
        return None
    coordinates = Coordinates(space.spec)
    active = getattr(space, "active", None)
    if active is not None and not set(coordinates.names) <= set(active(space.spec.initial)):
        return None  # distances in genes that do not act say nothing
    return after if max(KNOWN, OF_A_GENE * len(coordinates.names)) <= after else None


def refined_share(config: Config, after: int | None) -> float:
    """Of the evaluations of a search, those that the process proposes after so many of a phase."""
    phases = len(config.phases) if config.phases else 1
    return 0.0 if after is None else max(0.0, 1 - phases * after / config.search.evaluations)


def settled(config: Config) -> int | None:
    """``search.refine.after`` as a number; ``None`` where the process proposes nothing, or that is open."""
    after = config.search.refine.after
    return None if after is None or after == AUTO else int(after)
