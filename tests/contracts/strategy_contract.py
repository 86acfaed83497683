"""What every strategy must do. A strategy's tests subclass this and supply the fixture `make`."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from contracts.other_process import elsewhere

from evomerge.candidate import Candidate, Evaluation
from evomerge.genome import Gene, Genome, GenomeSpec
from evomerge.lineage_genome import LineageGenome, LineageSpec
from evomerge.protocols import Objective, Proposal, Strategy
from evomerge.strategies.random_search import RandomSearch

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


class StrategyContract:
    """Supply the fixture `make`: a picklable ``make(spec, objectives, *, seed)`` (a class, or a partial of one)."""

    spec = CONTINUOUS

    @pytest.fixture
    def make(self) -> Make:
        raise NotImplementedError("supply a fixture `make`")

    @pytest.fixture
    def player(self, make: Make) -> Player:
        return Player(make(self.spec, MAXIMISE, seed=3), self.spec)

    def test_the_seed_decides(self, make: Make) -> None:
        first = play(make, 1, 60, self.spec)
        assert first == play(make, 1, 60, self.spec)
        assert first != play(make, 2, 60, self.spec)
        assert len(set(first)) > 10

    def test_another_process_proposes_the_same(self, make: Make) -> None:
        assert elsewhere(play, make, 5, 50, self.spec) == play(make, 5, 50, self.spec)

    @pytest.mark.parametrize(("rounds", "asked", "told"), [(0, 0, 0), (0, 3, 1), (2, 0, 0), (3, 3, 3), (4, 3, 2)])
    def test_saved_and_loaded_it_goes_on_the_same(self, make: Make, rounds: int, asked: int, told: int) -> None:
        player = Player(make(self.spec, MAXIMISE, seed=11), self.spec)
        for _ in range(rounds):
            player.ask()
            player.tell()
        for _ in range(asked):
            player.ask(1)
        player.tell(min(told, len(player.flight)))
        state = pack(player.strategy.state_dict())
        copied = copy.copy(player)
        copied.flight, copied.asked = list(player.flight), list(player.asked)
        copied.strategy = make(self.spec, MAXIMISE, seed=999)
        copied.strategy.load_state_dict(unpack(state))
        assert pack(copied.strategy.state_dict()) == state
        player.tell()
        copied.tell()
        assert copied.run(80, 4) == player.run(80, 4)

    def test_saved_here_and_loaded_in_another_process(self, make: Make, player: Player) -> None:
        player.run(24)
        state = pack(player.strategy.state_dict())
        here = continue_from(make, state, 40, self.spec)
        assert elsewhere(continue_from, make, state, 40, self.spec) == here

    def test_a_saved_state_is_not_changed_by_going_on(self, player: Player) -> None:
        player.run(20)
        state = player.strategy.state_dict()
        before = pack(state)
        player.run(60)
        assert pack(state) == before

    def test_loading_leaves_the_state_alone(self, make: Make, player: Player) -> None:
        player.run(20)
        state = player.strategy.state_dict()
        before = pack(state)
        other = Player(make(self.spec, MAXIMISE, seed=0), self.spec)
        other.strategy.load_state_dict(state)
        other.run(40)
        assert pack(state) == before

    def test_failed_and_nan_evaluations_survive(self, player: Player) -> None:
        kinds = [
            lambda i: Evaluation(i, "failed", error="out of memory"),
            lambda i: Evaluation(i, "infeasible", error="weights sum to zero"),
            lambda i: Evaluation(i, "pruned", error="hopeless"),
            lambda i: outcome(i, float("nan")),
            lambda i: outcome(i, float("inf")),
            lambda i: outcome(i, float("-inf")),
            lambda i: outcome(i, 1e308),
            lambda i: outcome(i, 0.5),
        ]
        rng = np.random.default_rng(0)
        while len(player.asked) < 120:
            player.ask()
            player.tell(make=lambda c: kinds[int(rng.integers(len(kinds)))](c.id))
        for genome in player.asked:
            self.spec.check(genome)

    def test_nothing_but_failures(self, player: Player) -> None:
        for _ in range(12):
            player.ask()
            player.tell(make=lambda c: Evaluation(c.id, "failed", error="it broke"))
        assert len(set(player.asked)) > len(player.asked) // 2

    def test_all_scores_equal(self, player: Player) -> None:
        player.score = lambda spec, genome: 0.25
        player.run(150)
        for genome in player.asked:
            self.spec.check(genome)

    def test_genomes_stay_within_bounds_and_on_their_grids(self, player: Player) -> None:
        for genome in player.run(150):
            self.spec.check(genome)
            if not isinstance(genome, LineageGenome):  # a child is more than its values
                assert self.spec.genome(genome.values) == genome

    def test_inputs_are_not_changed(self, make: Make) -> None:
        spec, objectives = copy.deepcopy(self.spec), copy.deepcopy(MAXIMISE)
        strategy = make(spec, objectives, seed=0)
        for proposal in list(strategy.ask()):
            candidate = Candidate(0, None, proposal.genome)
            evaluation = outcome(0, sphere(spec, proposal.genome))
            before = copy.deepcopy(evaluation)
            strategy.tell(candidate, evaluation)
            assert evaluation.objectives == before.objectives
            assert np.array_equal(evaluation.items["toy/acc"], before.items["toy/acc"])
        assert spec == self.spec
        assert objectives == MAXIMISE

    def test_global_random_state_is_not_touched(self, make: Make) -> None:
        np.random.seed(7)  # noqa: NPY002  # the global state is what is tested
        random.seed(7)
        before = (pack({"state": np.random.get_state()[1]}), random.getstate())  # noqa: NPY002
        play(make, 0, 60, self.spec)
        assert (pack({"state": np.random.get_state()[1]}), random.getstate()) == before  # noqa: NPY002
        np.random.seed(8)  # noqa: NPY002
        assert play(make, 0, 60, self.spec) == play(make, 0, 60, self.spec)

    def test_asks_for_no_more_than_wanted(self, player: Player) -> None:
        assert len(player.ask(0)) == 0
        assert len(player.ask(1)) == 1
        assert len(player.ask(2)) <= 2
        assert player.ask(None) or player.flight

    def test_told_in_any_order(self, make: Make) -> None:
        player = Player(make(self.spec, MAXIMISE, seed=0), self.spec)
        rng = np.random.default_rng(1)
        while len(player.asked) < 80:
            player.ask()
            player.flight = [player.flight[i] for i in rng.permutation(len(player.flight))]
            player.tell()
        for genome in player.asked:
            self.spec.check(genome)

    def test_baselines_and_repeats_are_harmless(self, make: Make) -> None:
        plain, disturbed = (Player(make(self.spec, MAXIMISE, seed=4), self.spec) for _ in range(2))
        disturbed.strategy.tell(Candidate(0, None, None, name="base"), outcome(0, 0.0))
        foreign = Candidate(90, None, self.spec.sample(np.random.default_rng(99)))
        disturbed.strategy.tell(foreign, outcome(90, 0.0))
        for _ in range(5):
            plain.ask(6)
            disturbed.ask(6)
            for candidate in list(disturbed.flight):
                disturbed.tell(1)
                disturbed.strategy.tell(candidate, outcome(candidate.id, -1.0))
            plain.tell()
        assert disturbed.asked == plain.asked

    def test_one_gene(self, make: Make) -> None:
        spec = GenomeSpec((Gene("model/t"),))
        genomes = play(make, 0, 60, spec)
        assert len({genome.values for genome in genomes}) > 30


class LearningContract(StrategyContract):
    """For strategies that learn from scores."""

    @pytest.mark.parametrize("objectives", [MAXIMISE, MINIMISE], ids=["maximise", "minimise"])
    def test_better_than_random_on_a_sphere(self, make: Make, objectives: Sequence[Objective]) -> None:
        spec = GenomeSpec(tuple(Gene(f"g{i}", low=-1.0, high=3.0) for i in range(6)))

        def regret(kind: Make) -> float:
            """Mean of log10 of the best value after 200 evaluations, over 12 seeds."""
            best = []
            for seed in range(12):
                player = Player(kind(spec, objectives, seed=seed), spec, objectives=objectives)
                player.run(200)
                best.append(np.log10(player.best))
            return float(np.mean(best))

        # Seeds are fixed, so this cannot flake; the margin is a factor of two on the geometric mean.
        assert regret(make) < regret(RandomSearch) - np.log10(2)
