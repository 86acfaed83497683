"""Priors that are left open: ``strategy.prior: auto``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from omegaconf import DictConfig

from evomerge.config.schema import Config
from evomerge.errors import EvomergeError
from evomerge.protocols import SearchSpace
from evomerge.recipes.differences import Differences
from evomerge.session.builders import PhaseNode, phase_node, without_prior
from evomerge.session.prior import AUTO, DIFFERENCES, first_deviation, weightings, with_prior

UNREAD = "differences, for which the search reads the models once"


def open_priors(config: Config, phases: Sequence[PhaseNode]) -> dict[str, list[int]]:
    """Keys of strategies whose prior is ``auto``, with the numbers of the phases that have them."""
    found: dict[str, list[int]] = {}
    for number, phase in enumerate(phases):
        node, key = phase_node(config, phase.name, "strategy")
        if without_prior(node, key)[1] == AUTO:
            found.setdefault(key, []).append(number)
    return found


def settle_priors(
    config: Config,
    phases: Sequence[PhaseNode],
    spaces: Sequence[SearchSpace],
    raced: bool,
    measure: Callable[[], Differences | None] | None,
) -> tuple[list[str], str]:
    """Replace ``auto`` by ``differences`` in a race, where the genes of all phases of a strategy weight task vectors.

    Candidates of a race are told apart by few items, so that it matters where they begin (docs/strategies.md). The
    configuration itself is changed: the run keeps what was chosen.

    Args:
        config: of the experiment.
        phases, spaces: of it, without such priors.
        raced: whether there is a race.
        measure: reads the pool's differences; ``None`` where there is no pool. Where it gives ``None``, they are to be
            read when the search begins.

    Returns:
        The keys that were left open, and in words what is still to be read.
    """
    keys, unread = open_priors(config, phases), ""
    for numbers in keys.values():
        node, _ = phase_node(config, phases[numbers[0]].name, "strategy")
        assert isinstance(node, DictConfig)
        node["prior"] = None
        if not raced or measure is None:
            continue
        try:
            for number in numbers:
                weightings(spaces[number])  # before the models are read
            known = measure()
            if known is None:
                unread = UNREAD
                continue
            for number in numbers:
                with_prior(spaces[number], lambda found=known: found, first_deviation(node))  # type: ignore[misc]
        except EvomergeError:  # of these genes, or of these models, it says nothing
            continue
        node["prior"] = DIFFERENCES
    return [f"{key}.prior" for key in keys], unread
