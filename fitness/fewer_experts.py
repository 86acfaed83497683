"""A mixture of experts scored as the smaller model that it is once equal experts are one."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.candidate import Part
from evomerge.config.construct import arguments_of
from evomerge.config.placing import placed
from evomerge.errors import ConfigError, FitnessError, PoolError, nearest
from evomerge.objectives import MetricShare, Objective
from evomerge.protocols import Fitness, Scores

if TYPE_CHECKING:
    from evomerge.models.architecture.equal_experts import Groups
    from evomerge.models.architecture.expert_counts import Counts
    from evomerge.models.loaded import LoadedModel

EXPERTS = "experts"
"""The objective: how many a layer has."""

_ROUTERS = ("mean", "dominant")
_PASSED_ON = (
    *("check_files", "check_tokenizer", "check_encoder", "documents", "texts", "memory", "work"),
    *("cautions", "write_samples", "references", "refer"),
)
"""What the fitness inside does as it is."""

_NOT_KNOWN = ("rating", "score", "score_genome")
"""Of fitnesses that cannot stand inside: they ask people, or score no model."""


class FewerExpertsFitness:
    """Scores a mixture of which some experts are equal as the smaller one that `evomerge experts --equal` writes of it.

    `evomerge experts --router kept` writes variants of one mixture with more or fewer different experts, and
    ``search_space=choice`` takes every layer from one of them: the number of experts as genes (M-SMoE, arXiv
    2310.01334). Here every candidate is made small first: equal experts become one, with a row of the router of their
    own, and the fitness inside scores that. All layers have as many experts as the one with most; in others some stay
    twice. Beside the objectives of the fitness stands ``experts``, how many that is, to be minimised: a front shows
    what each costs.

    Races are left out: every candidate is scored on all items.

    Args:
        fitness: what scores the smaller model.
        counts: ``evomerge_experts.json`` of a variant, or its folder: how often experts are used.
        router: rows of equal experts: their ``mean`` by use, or that of the most used (``dominant``).

    Raises:
        ConfigError: an argument that is none, or a fitness that cannot score such models.
    """

    def __init__(self, fitness: Fitness, counts: str, router: str = "mean") -> None:
        if not all(hasattr(fitness, method) for method in ("objectives", "prepare", "run", "fingerprint")):
            do = "choose one with +fitness@fitness.fitness=lm_eval, say"
            raise ConfigError(f"fitness is {fitness!r}", "a fitness, which scores models", do)
        if not isinstance(counts, str) or not counts:
            raise ConfigError(f"counts is {counts!r}", "evomerge_experts.json of a variant, or its folder")
        if router not in _ROUTERS:
            raise ConfigError(f"router is {router!r}", nearest(str(router), _ROUTERS))
        for method in _NOT_KNOWN:
            if hasattr(fitness, method):
                raise ConfigError("fitness asks people, or scores no model", "one that scores models")
        if any(objective.name == EXPERTS for objective in fitness.objectives):
            raise ConfigError(f"fitness has an objective {EXPERTS!r}", "another name", "rename it")
        self._inner: Any = fitness
        self._file, self._router = counts, router
        self._counts: Counts | None = None
        for method in _PASSED_ON:
            if hasattr(fitness, method):
                setattr(self, method, self._passed_on(method))

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Those of the fitness inside, and ``experts``."""
        return (*self._inner.objectives, Objective(EXPERTS, "minimize"))

    def check(self) -> None:
        """Read the counts, and let the fitness inside check its items.

        Raises:
            FitnessError: no counts; what the fitness finds.
        """
        self._read()
        with self._inside():
            self._inner.check()

    def check_model(self, config: Any, folder: str) -> None:
        """Check that models are mixtures that are known here, with as many experts as there are counts."""
        from evomerge.models.architecture.expert_counts import check_counts
        from evomerge.models.architecture.layout import skeleton
        from evomerge.models.architecture.mixtures import mixtures_of

        try:
            check_counts(self._read(), mixtures_of(skeleton(config)), "counts")
        except PoolError as error:
            raise FitnessError(error.given, error.allowed, error.do) from error
        if hasattr(self._inner, "check_model"):
            with self._inside():
                self._inner.check_model(config, folder)

    def shares(self) -> list[MetricShare]:
        """What every metric of the fitness inside counts in its objectives."""
        only = self._inner.objectives[0].name
        return [replace(own, objective=own.objective or only) for own in self._inner.shares()]

    def prepare(self, model: LoadedModel) -> None:
        """Let the fitness inside prepare its items."""
        with self._inside():
            self._inner.prepare(self._smaller(model)[0])

    def run(self, model: LoadedModel, part: Part | None = None) -> Scores:
        """Score the smaller model.

        Args:
            part: places of items by task, some of every one.

        Raises:
            FitnessError: what the fitness inside finds.
        """
        smaller, number = self._smaller(model)
        found: Scores = self._inner.run(smaller, *(() if part is None else (part,)))
        return replace(
            found,
            objectives={**found.objectives, EXPERTS: float(number)},
            metrics={**found.metrics, f"{EXPERTS}/number": float(number)},
        )

    def fingerprint(self) -> str:
        """``sha256:`` over the fingerprint of the fitness inside, the counts, and how rows are made."""
        text = f"{self._inner.fingerprint()} {self._router} {sorted(self._read().items())}"
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def _passed_on(self, method: str) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            with self._inside():
                return getattr(self._inner, method)(*given)

        return call

    def _inside(self) -> Any:
        """Name keys in full in errors that are raised inside."""
        return placed("fitness", arguments_of(self._inner))

    def _read(self) -> Counts:
        from evomerge.models.architecture.expert_counts import read_counts

        if self._counts is None:
            try:
                self._counts = read_counts(Path(self._file), "counts")
            except PoolError as error:
                raise FitnessError(error.given, error.allowed, error.do) from error
        return self._counts

    def _smaller(self, model: LoadedModel) -> tuple[LoadedModel, int]:
        """The model with equal experts once, sharing all other weights; and how many experts a layer has."""
        import torch

        from evomerge.models.architecture.equal_experts import equal_experts, numbers_left, router_rows, told_apart
        from evomerge.models.architecture.mixtures import CHOSEN, COUNTS, mixtures_of

        if model.module is None:
            raise FitnessError("the model is held by an engine", "evaluator.engine=transformers")
        mixtures, counts = mixtures_of(model.module), self._read()
        state = model.module.state_dict(keep_vars=True)
        data = {place: tensor.data for place, tensor in state.items()}
        groups: list[Groups] = [equal_experts(data[m.gate_up], data[m.down], counts[m.layer]) for m in mixtures]
        number = numbers_left(groups, int(getattr(model.module.config, CHOSEN, 1)))
        if number == mixtures[0].count:
            return model, number
        module: Any = copy.deepcopy(
            model.module, {id(tensor): tensor for tensor in state.values()} | _buffers(model.module)
        )
        for mixture, own in zip(mixtures, groups, strict=True):
            chosen = told_apart(own, counts[mixture.layer], number)
            first = [group[0] for group in chosen]
            rows = router_rows(data[mixture.router], chosen, counts[mixture.layer], self._router)  # type: ignore[arg-type]
            made = {mixture.router: rows}
            made |= {place: data[place][first] for place in (mixture.gate_up, mixture.down)}
            for place, tensor in made.items():
                parent, _, name = place.rpartition(".")
                setattr(module.get_submodule(parent), name, torch.nn.Parameter(tensor, requires_grad=False))
        for part in module.modules():
            if getattr(part, "num_experts", None) == mixtures[0].count:
                part.num_experts = number
        for key in COUNTS:
            if hasattr(module.config, key):
                setattr(module.config, key, number)
        return replace(model, module=module, states=None), number


def _buffers(module: Any) -> dict[int, Any]:
    """Buffers that no state has, by what `copy.deepcopy` knows them by."""
    return {id(tensor): tensor for tensor in module.buffers()}
