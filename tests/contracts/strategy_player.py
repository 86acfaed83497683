"""What drives strategies in tests: specs, scores, a player, and states as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.candidate import Candidate, Evaluation
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.genomes.lineages import LineageGenome, LineageSpec
from evomerge.objectives import Objective
from evomerge.protocols import Proposal, Strategy

Make = Callable[..., Strategy]
Score = Callable[[GenomeSpec, Genome], float]
OPTIMUM = 0.7

# One gene on a grid, one of another range, one that is fixed.
CONTINUOUS = GenomeSpec(
    (
        Gene("embed/a/weight"),
        Gene("layers.0/a/weight", low=-2.0, high=2.0, initial=1.0),
        Gene("layers.1/a/weight", resolution=0.05),
        Gene("layers.2/a/weight", low=0.4, high=0.4),
        Gene("head/a/weight", initial=0.0),
    )
)
# Every kind of gene, one of a single value among them.
MIXED = GenomeSpec(
    (
        Gene("embed/method", "categorical", choices=("linear", "ties", "slerp")),
        Gene("embed/a/weight", low=-2.0, high=2.0, initial=1.0),
        Gene("embed/rank", "integer", low=1, high=6),
        Gene("layers.0/method", "categorical", choices=("ties",)),
        Gene("layers.0/a/weight", resolution=0.05),
        Gene("layers.0/rescale", "boolean", initial=True),
        Gene("layers.1/rank", "integer", low=3, high=3),
        Gene("head/a/weight", initial=0.0),
    )
)
MAXIMISE = (Objective("score", "maximize"),)
MINIMISE = (Objective("score", "minimize"),)


def unit(spec: GenomeSpec, genome: Genome) -> np.ndarray:
    """The genome scaled to 0..1 by the bounds; choices by their number."""
    low, high = spec.bounds
    pairs = zip(spec, genome.values, strict=True)
    values = [gene.choices.index(v) if gene.kind == "categorical" else float(v) for gene, v in pairs]
    return (np.array(values) - low) / np.where(high > low, high - low, 1.0)


def shares(spec: LineageSpec, genome: LineageGenome) -> np.ndarray:
    """How much of every seed is in the first chromosome of a lineage, were it linear and the split its middle."""
    found: dict[str, np.ndarray] = {}
    for each in genome.lineage:
        if not each.parents:
            found[each.digest] = np.eye(len(spec.seeds))[spec.seeds.index(each.values[0])]
            continue
        mix, split = each.values[:2]
        t = split * mix + (1 - split) * (1 - mix)
        found[each.digest] = (1 - t) * found[each.parents[0].digest] + t * found[each.parents[1].digest]
    return found[genome.digest]


def sphere(spec: GenomeSpec, genome: Genome) -> float:
    """Squared distance to the optimum over the genes that are free; of a lineage, over the shares of its seeds."""
    if isinstance(spec, LineageSpec):
        assert isinstance(genome, LineageGenome)
        return float(np.sum((shares(spec, genome) - 1 / len(spec.seeds)) ** 2))
    low, high = spec.bounds
    return float(np.sum((unit(spec, genome) - OPTIMUM)[low < high] ** 2))


def outcome(candidate: int, value: float, objectives: Sequence[Objective] = MAXIMISE, **fields: Any) -> Evaluation:
    """An ok evaluation with this score (lower is better before the direction is applied) and some items."""
    signed = {o.name: -value if o.direction == "maximize" else value for o in objectives}
    items = {"toy/acc": (np.arange(8) / 8 > value).astype(np.float64)}
    return Evaluation(candidate, "ok", objectives=signed, items=items, **fields)


class Player:
    """Drives a strategy as a search does, keeping what was in flight."""

    def __init__(self, strategy: Strategy, spec: GenomeSpec, score: Score = sphere, objectives=MAXIMISE) -> None:
        self.strategy, self.spec, self.score, self.objectives = strategy, spec, score, objectives
        self.asked: list[Genome] = []
        self.best = np.inf
        self.flight: list[Candidate] = []

    def ask(self, n: int | None = None) -> Sequence[Proposal]:
        proposals = self.strategy.ask(n)
        for proposal in proposals:
            self.flight.append(Candidate(len(self.asked), None, proposal.genome, proposal.parents))
            self.asked.append(proposal.genome)
        return proposals

    def tell(self, count: int | None = None, make: Callable[[Candidate], Evaluation] | None = None) -> None:
        for _ in range(len(self.flight) if count is None else count):
            candidate = self.flight.pop(0)
            value = self.score(self.spec, candidate.genome)
            self.best = min(self.best, value)
            self.strategy.tell(candidate, make(candidate) if make else outcome(candidate.id, value, self.objectives))

    def run(self, evaluations: int, n: int | None = None) -> list[Genome]:
        while len(self.asked) < evaluations:
            proposals = self.ask(n)
            assert proposals or self.flight, "nothing proposed and nothing to wait for"
            self.tell()
        return self.asked[:evaluations]


def play(make: Make, seed: int, evaluations: int, spec: GenomeSpec = CONTINUOUS) -> list[Genome]:
    return Player(make(spec, MAXIMISE, seed=seed), spec).run(evaluations)


def continue_from(make: Make, state: str, evaluations: int, spec: GenomeSpec = CONTINUOUS) -> list[Genome]:
    player = Player(make(spec, MAXIMISE, seed=0), spec)
    player.strategy.load_state_dict(unpack(state))
    return player.run(evaluations)


def pack(state: Mapping[str, Any]) -> str:
    """A state as text, the way a checkpoint keeps it: JSON, and arrays by dtype, shape and bytes."""

    def array(value: Any) -> Any:
        assert isinstance(value, np.ndarray), f"{type(value)} is neither JSON nor an array"
        assert value.dtype.kind in "fiub", f"an array of {value.dtype}"
        return {"__array__": [value.dtype.str, value.shape, value.tobytes().hex()]}

    return json.dumps(dict(state), default=array)


def unpack(text: str) -> dict[str, Any]:
    def array(value: dict[str, Any]) -> Any:
        if "__array__" not in value:
            return value
        dtype, shape, content = value["__array__"]
        return np.frombuffer(bytes.fromhex(content), dtype).reshape(shape)

    return json.loads(text, object_hook=array)
