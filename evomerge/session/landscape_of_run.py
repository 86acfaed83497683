"""A landscape of a run: its candidates, their scores and the search space that they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from evomerge.config.schema import Config
from evomerge.config.trust import check_trust
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.landscape.fitting import LEAST, Evaluated, fit_landscape
from evomerge.landscape.landscape import Landscape, objectives_of, task_of
from evomerge.objectives import MetricShare, Objective
from evomerge.report.history import History, read_history
from evomerge.report.trial import Trial
from evomerge.run.folder import RunFolder
from evomerge.run.items import read_items
from evomerge.session.builders import phase_nodes
from evomerge.session.resume import read_config
from evomerge.utils.imports import import_modules

Array = NDArray[np.float64]

_ALLOWED = "a run of one phase whose genes have names and values"


def landscape_of(run: str | Path, *, seed: int = 0, trust: bool = False) -> Landscape:
    """Fit a landscape to what a run has evaluated so far; the run may still be going on.

    Candidates that have no score, and those that were scored on some of their items only, are left out.

    Args:
        run: the run folder.
        seed: of the fit.
        trust: build a search space that is not evomerge's, as the run's configuration says.

    Raises:
        ConfigError: a run of raw weights, of lineages or of several phases, or too few evaluations.
        LedgerError: the folder is not a run's.
    """
    folder = RunFolder.open(run)
    history = read_history(folder)
    if len(history.phases) != 1:
        raise ConfigError(f"run {run} has {len(history.phases)} phases", _ALLOWED, "take a run of one of them")
    if not isinstance(history.phases[0].get("genes"), list):
        raise ConfigError(f"genomes of run {run} are raw weights, of which a ledger keeps hashes", _ALLOWED)
    genes = _genes(folder, history, trust)
    scored = [trial for trial in history.trials if trial.status == "ok" and isinstance(trial.genome, list)]
    items = _items(folder, scored)
    kept = [i for i, own in enumerate(items) if all(np.isfinite(values).all() for values in own.values())]
    if len(kept) < LEAST and any(trial.race for trial in history.trials):  # going on would not give more
        raise ConfigError(
            f"run {run} raced: {len(kept)} of its candidates were scored on all items",
            f"at least {LEAST} that were",
            "search with search.racing.first=null",
        )
    scored, items = [scored[i] for i in kept], [items[i] for i in kept]
    genomes = [_genome(genes, trial) for trial in scored]
    targets, shares = _targets(scored, history.objectives, history.shares("search"))
    found = Evaluated(genes, genomes, history.objectives, shares, targets, _means(targets, items))
    return fit_landscape(found, seed=seed, source={"run": folder.path.resolve().name})


def _genes(folder: RunFolder, history: History, trust: bool) -> tuple[Gene, ...]:
    """The genes of the run's search space, which is made again from its configuration and its pool's description."""
    config = read_config(folder)
    if trust:
        import_modules(config.imports, "imports")
    else:
        check_trust(OmegaConf.to_container(config, resolve=True), (), "the run's configuration")
    info = folder.read_pool() if folder.pool.is_file() else None
    phase = phase_nodes(cast(Config, config), info)[0]
    space = phase.space_of(phase.node)
    names = tuple(gene.name for gene in space.spec)
    if type(space.spec) is not GenomeSpec:
        raise ConfigError(f"genomes of run {folder.path} are merges of merges", _ALLOWED)
    if list(names) != history.genes[0]:
        raise ConfigError(
            f"run {folder.path} has {len(history.genes[0])} genes, its search space here has {len(names)}",
            "the same genes",
            "export it with the version of evomerge that it was made with",
        )
    return space.spec.genes


def _genome(genes: Sequence[Gene], trial: Trial) -> Genome:
    genome = Genome(tuple(trial.genome))
    try:
        GenomeSpec(tuple(genes)).check(genome)
    except ConfigError as error:
        raise ConfigError(f"candidate {trial.candidate}: {error}", "the ledger that the search wrote") from None
    return genome


def _items(folder: RunFolder, scored: Sequence[Trial]) -> list[dict[str, Array]]:
    """Per-item scores of every candidate; of one whose file is not there, none."""
    return [
        read_items(folder, trial.candidate, digest=trial.digest) if trial.digest is not None else {} for trial in scored
    ]


def _targets(
    scored: Sequence[Trial], objectives: Sequence[Objective], shares: Sequence[MetricShare]
) -> tuple[dict[str, Array], Sequence[MetricShare]]:
    """What is predicted, and what it counts.

    What counts of the metrics of which objectives are made, as the run says; or the objectives themselves, where that
    does not give what the run's candidates have. Only the ratios of the shares' weights are declared: here they are
    scaled so that their sum is the objective.
    """
    own = {o.name: np.array([trial.objectives.get(o.name, np.nan) for trial in scored]) for o in objectives}
    transforms = {(share.metric, share.transform) for share in shares}
    known = {
        share.metric: np.array([share.counted(trial.metrics.get(share.metric, np.nan)) for trial in scored])
        for share in shares
    }
    if len(transforms) > len(known) or not all(np.isfinite(values).all() for values in known.values()):
        return own, ()
    scaled: list[MetricShare] = []
    for objective in objectives:
        parts = [share for share in shares if share.objective in ("", objective.name)]
        total = sum(share.weight for share in parts)
        for factor in (1.0, 1.0 / total) if parts else ():
            tried = [replace(share, weight=share.weight * factor) for share in parts]
            made = [
                objectives_of({n: float(v[i]) for n, v in known.items()}, [objective], tried)[objective.name]
                for i in range(len(scored))
            ]
            if np.allclose(made, own[objective.name], rtol=1e-6, atol=1e-9):
                scaled += [replace(share, objective=objective.name) for share in tried]
                break
        else:
            return own, ()
    return known, scaled


def _means(targets: Mapping[str, Array], items: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The items of the targets that are their mean."""
    found: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for name, values in targets.items():
        own = [each[name] for each in items if name in each]
        if len(own) != len(values) or len({len(each) for each in own}) != 1 or not len(own[0]):
            continue
        stacked = np.stack(own)
        same = np.allclose(stacked.mean(axis=1), values, rtol=1e-6, atol=1e-9)
        if same and counts.setdefault(task_of(name), stacked.shape[1]) == stacked.shape[1]:
            found[name] = stacked
    return found
