"""Nested MAP: models merged in pairs, two scalings at a time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar

import numpy as np

from evomerge.candidate import Candidate, Evaluation
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.preferences import preference as weights_of
from evomerge.protocols import Proposal
from evomerge.strategies.amortized_pareto import AmortizedPareto
from evomerge.strategies.bases.capabilities import check_range, require
from evomerge.strategies.bases.merge_tree import Array, Node, models_of, range_of, tasks_of
from evomerge.strategies.bases.saving import check_settings, settings_of

LEAST_SAMPLES = 6
"""The coefficients of a quadratic of two scalings."""

_MOST = 1e100  # of a score, as `AmortizedPareto` has it


class NestedPareto:
    """Merges models in pairs, those that score most alike first, each pair by MAP with two scalings.

    Li et al., "MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation"
    (arXiv 2406.07529), the nested variant: n models cost n - 1 pairs of `samples` and `verify` evaluations, where
    `AmortizedPareto` takes (n + 1)(n + 2) samples. First every model is evaluated alone. Then, until one is left, the
    two that are nearest in what they score on their own objectives are merged: `AmortizedPareto` searches their two
    scalings by the objectives of both, a preference picks from what was evaluated, and the merge is a model from there
    on. The last pair's front is verified for as long as the search lasts. As in the paper a preference is the
    weights of a sum; there it picks a point that was predicted, here one that was evaluated.

    A model is its genes: all scaled together, from 0, where it has no part. Which objectives are whose is seen
    from the models alone, unless `tasks` says it: each is that of the model which is best at it.

    `ask` waits: for the models alone, for a pair's samples, and for what its front proposed. Implements
    `protocols.Strategy`.

    Args:
        spec: the genes, continuous ones with 0 within their bounds.
        objectives: one or more; those that are compared between models should have one unit.
        seed: of the samples and of NSGA-III.
        samples: of each pair, at least `LEAST_SAMPLES`.
        verify: points of a pair's front that are evaluated; of the last pair's, again and again.
        preference: weights by objective; ``None`` weighs all alike.
        models: by name the patterns of their genes; ``None`` for the genes ``.../NAME/weight``.
        tasks: by model the names of its objectives; ``None`` finds them.
        link, popsize, generations: as of `AmortizedPareto`.

    Raises:
        ConfigError: genes or objectives that it does not handle, names that there are not, or arguments out of range.
    """

    asynchronous: ClassVar[bool] = False
    multi_objective: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = frozenset({"continuous"})

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        samples: int = 20,
        verify: int = 8,
        preference: Mapping[str, float] | None = None,
        models: Mapping[str, Sequence[str]] | None = None,
        tasks: Mapping[str, Sequence[str]] | None = None,
        link: str = "auto",
        popsize: int = 100,
        generations: int = 25,
    ) -> None:
        require(type(self), "nested MAP", spec, objectives, seed)
        check_range("samples", samples, LEAST_SAMPLES, math.inf)
        check_range("verify", verify, 1, math.inf)
        self._spec, self._objectives, self._seed = spec, tuple(objectives), seed
        self._samples, self._verify = samples, verify
        self._inner_options: dict[str, Any] = {"samples": samples, "verify": verify, "link": link}
        self._inner_options |= {"popsize": popsize, "generations": generations}
        self._models = models_of(spec, models)
        names = [o.name for o in objectives]
        given = dict.fromkeys(names, 1.0) if preference is None else preference
        self._weights = weights_of(given, names, "strategy.preference")
        self._given = tasks_of(tasks, list(self._models), names)
        self._settings = settings_of(
            spec,
            objectives,
            models={name: list(genes) for name, genes in self._models.items()},
            tasks=self._given,
            preference=list(self._weights),
            **self._inner_options,
        )
        self._nodes = [Node.alone(spec, genes) for genes in self._models.values()]
        self._pair: tuple[int, ...] = ()  # of nodes, empty while models are evaluated alone
        self._inner: AmortizedPareto | None = None
        self._found: list[tuple[Genome, list[float]]] = []  # of the pair's scalings, what they scored
        self._flight: deque[tuple[Genome, Genome]] = deque()  # genomes, and the pair's own scalings
        self._left = len(self._nodes)  # of this portion, not asked yet
        self._waiting = self._left  # of this portion, not told yet
        self._verifies = False
        self._inner_options_check()

    def ask(self, n: int | None = None) -> list[Proposal]:
        """Up to `n` proposals of the present portion, all that remain for ``None``; none while it waits."""
        count = self._left if n is None else min(max(n, 0), self._left)
        found = []
        for _ in range(count):
            if self._inner is None:
                number = len(self._nodes) - self._left
                scalings, genome = Genome((float(number),)), self._genome(self._nodes[number].values)
            else:
                scalings = self._inner.ask(1)[0].genome
                genome = self._genome(self._merged(scalings))
            self._flight.append((genome, scalings))
            self._left -= 1
            found.append(Proposal(genome))
        return found

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Keep the scores of a proposal; when a portion is through, go on to the next."""
        place = next((i for i, (genome, _) in enumerate(self._flight) if genome == candidate.genome), None)
        if place is None:
            return
        scalings = self._flight[place][1]
        del self._flight[place]
        self._waiting -= 1
        values = [evaluation.objectives.get(o.name, math.nan) for o in self._objectives]
        ok = evaluation.status == "ok" and bool(np.less(np.abs(values), _MOST).all())
        if self._inner is None:
            self._nodes[int(scalings.values[0])].scores = values if ok else [math.nan] * len(values)
        else:
            self._inner.tell(Candidate(candidate.id, None, scalings), evaluation)
            if ok:
                self._found.append((scalings, values))
        if not self._waiting:
            self._go_on()

    def state_dict(self) -> dict[str, Any]:
        """The models merged so far, the pair's search, and what is in flight."""
        names = self._inner_names() if self._inner is not None else []
        wide, narrow = len(self._spec), max(len(names), 1)
        return {
            "settings": self._settings,
            "seed": self._seed,
            "nodes": [node.state() for node in self._nodes],
            "pair": list(self._pair),
            "inner": self._inner.state_dict() if self._inner is not None else None,
            "found": np.array([s.values for s, _ in self._found], dtype=np.float64).reshape(-1, narrow),
            "scores": np.array([v for _, v in self._found], dtype=np.float64).reshape(-1, len(self._objectives)),
            "flight": np.array([g.values for g, _ in self._flight], dtype=np.float64).reshape(-1, wide),
            "scalings": np.array([s.values for _, s in self._flight], dtype=np.float64).reshape(-1, narrow),
            "counts": [self._left, self._waiting, int(self._verifies)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken."""
        check_settings("nested MAP", self._settings, state["settings"])
        self._seed = int(state["seed"])
        self._nodes = [Node.of(saved) for saved in state["nodes"]]
        self._pair, self._inner = tuple(int(i) for i in state["pair"]), None
        if self._pair:
            self._inner = self._pareto()
            self._inner.load_state_dict(state["inner"])
        scores = np.asarray(state["scores"], dtype=np.float64).tolist()
        self._found = list(zip(map(self._scalings, np.array(state["found"])), scores, strict=True))
        genomes = [self._spec.genome(row.tolist()) for row in np.array(state["flight"])]
        self._flight = deque(zip(genomes, map(self._scalings, np.array(state["scalings"])), strict=True))
        self._left, self._waiting = int(state["counts"][0]), int(state["counts"][1])
        self._verifies = bool(state["counts"][2])

    def _go_on(self) -> None:
        """From models alone to the first pair; from samples to the front; from a front to the next pair."""
        if self._inner is None:
            self._assign()
            self._begin_pair()
        elif not self._verifies or len(self._pair) == len(self._nodes):
            self._verifies, self._left = True, self._verify
        else:
            self._join()
            self._begin_pair()
        self._waiting = self._left

    def _assign(self) -> None:
        """Say which objectives are whose."""
        gains = self._gains([node.scores for node in self._nodes])
        for node, name in zip(self._nodes, self._models, strict=True):
            node.tasks = list(self._given.get(name, ()))
        for k in range(len(self._objectives)) if not self._given else ():
            self._nodes[int(np.argmax(gains[:, k]))].tasks.append(k)

    def _begin_pair(self) -> None:
        """Search the scalings of the two that are nearest, or of the one that is left."""
        own = [self._own(node) for node in self._nodes]
        pairs = list(combinations(range(len(self._nodes)), 2))
        apart = [abs(own[i] - own[j]) if math.isfinite(own[i] - own[j]) else math.inf for i, j in pairs]
        self._pair = pairs[int(np.argmin(apart))] if pairs else (0,)
        self._inner, self._found, self._verifies, self._left = self._pareto(), [], False, self._samples

    def _own(self, node: Node) -> float:
        """What a model scores on its own objectives, on average; on all where none is its own."""
        gains = self._gains([node.scores])[0]
        return float(np.mean(gains[node.tasks] if node.tasks else gains))

    def _join(self) -> None:
        """The pair becomes one model: of what was evaluated, that with the best sum by the preference."""
        tasks = self._tasks()
        scalings, scores = Genome((1.0,) * len(self._pair)), [math.nan] * len(self._objectives)
        if self._found:
            gains = self._gains([values for _, values in self._found])[:, tasks]
            weights = [self._weights[k] for k in tasks]
            total = sum(weights)
            shares = [weight / total if total > 0 else 1 / len(tasks) for weight in weights]
            scalings, scores = self._found[int(np.argmax(gains @ np.array(shares)))]
        joined = Node(self._merged(scalings), [k for i in self._pair for k in self._nodes[i].tasks], scores, True)
        self._nodes = [node for i, node in enumerate(self._nodes) if i not in self._pair] + [joined]

    def _tasks(self) -> list[int]:
        """The objectives of the pair; all where none is theirs."""
        own = sorted({k for i in self._pair for k in self._nodes[i].tasks})
        return own or list(range(len(self._objectives)))

    def _pareto(self) -> AmortizedPareto:
        """The search of the pair's scalings; both at 1, as far as bounds allow, come first."""
        genes = []
        for name, i in zip(self._inner_names(), self._pair, strict=True):
            low, high = range_of(self._spec, self._nodes[i])
            genes.append(Gene(name, low=low, high=high, initial=min(1.0, high)))
        objectives = [self._objectives[k] for k in self._tasks()]
        seed = self._seed + len(self._models) - len(self._nodes)
        return AmortizedPareto(GenomeSpec(tuple(genes)), objectives, seed=seed, **self._inner_options)

    def _inner_names(self) -> list[str]:
        return ["first", "second"][: len(self._pair)]

    def _scalings(self, row: Array) -> Genome:
        return Genome(tuple(float(value) for value in row))

    def _merged(self, scalings: Genome) -> Array:
        """The genes' values of the pair, scaled."""
        parts = [float(c) * self._nodes[i].values for c, i in zip(scalings.values, self._pair, strict=True)]
        return np.asarray(np.sum(parts, axis=0), dtype=np.float64)

    def _genome(self, values: Array) -> Genome:
        """The genome with these values of the models' genes; the others at their start."""
        start = np.array([float(value) for value in self._spec.initial.values])
        free = [i for genes in self._models.values() for i in genes]
        start[free] = values[free]
        return self._spec.genome(start.tolist())

    def _gains(self, scores: Sequence[Sequence[float]]) -> Array:
        """Larger is better; what failed is below everything."""
        rows = [[o.gain(v) for o, v in zip(self._objectives, values, strict=True)] for values in scores]
        return np.nan_to_num(np.array(rows, dtype=np.float64), nan=-np.inf, posinf=_MOST, neginf=-np.inf)

    def _inner_options_check(self) -> None:
        """What the inner search refuses is refused at once."""
        plane = GenomeSpec((Gene("first"), Gene("second")))
        AmortizedPareto(plane, self._objectives, seed=self._seed, **self._inner_options)
