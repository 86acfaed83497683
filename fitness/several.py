"""Several fitnesses as one: the objectives of all, for Pareto fronts of accuracy and drift, say."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from evomerge.candidate import Part
from evomerge.config.construct import arguments_of
from evomerge.config.placing import placed
from evomerge.errors import ConfigError, FitnessError, nearest
from evomerge.objectives import MetricShare, Objective
from evomerge.protocols import Estimator, Fitness, Scores
from fitness._several.batch_norms import Statistics, mixed_text, require_pixels
from fitness._several.joining import joined, sums

if TYPE_CHECKING:
    import torch

    from evomerge.models.loaded import LoadedModel, ModelOutline
    from evomerge.recipes.pool_info import PoolInfo
    from evomerge.run.ratings.rules import RatingRules
    from evomerge.utils.memory import MemoryPart

SCORE = "score"
"""The objective that a fitness has where nobody names one."""

_OF_ALL = ("items", "shares", "documents", "build_estimator", "switches", "run_switched")
"""What several can do only where each can."""

_OF_ANY = ("references", "refer", "apart", "batch_norms")
"""What several can do where one of them can."""

_OF_ONE = ("write_samples",)
"""What several can do only where a single one can: it writes to one place."""


class SeveralFitness:
    """Scores a model by several fitnesses, each on its own items, with the objectives of all.

    An objective ``score`` is called as its part is; others keep their names, which must differ. To make one number of
    several objectives see `search.scalarise` and `search.weights`. Metrics and items keep the names that they have in
    their parts: no task may be in two.

    In a race a part of the items is a part of each fitness's. Where a fitness cannot do something that a search asks
    for now and then (count its items, name its documents, estimate, use heads), several cannot.

    Args:
        parts: the fitnesses, by name.

    Raises:
        ConfigError: no part, one that is no fitness, two objectives with one name.
    """

    def __init__(self, parts: dict[str, Fitness]) -> None:
        if not isinstance(parts, Mapping) or not parts:
            do = "choose them with +fitness@fitness.parts.NAME=lm_eval, say"
            raise ConfigError(f"parts is {parts!r}", "a fitness for each name", do)
        self._parts: dict[str, Any] = dict(parts)
        self._names: dict[str, dict[str, str]] = {}
        taken: dict[str, str] = {}
        for name, part in self._parts.items():
            if not re.fullmatch(r"[A-Za-z][\w-]{0,63}", name):
                raise ConfigError(f"parts has the name {name!r}", "a name of letters, digits, - and _")
            if not all(hasattr(part, method) for method in ("objectives", "prepare", "run", "fingerprint")):
                raise ConfigError(f"parts.{name} is {part!r}", "a fitness, which scores models")
            self._names[name] = {o.name: name if o.name == SCORE else o.name for o in part.objectives}
            for own in self._names[name].values():
                if own in taken:
                    what = f"parts.{taken[own]} and parts.{name} both have the objective {own!r}"
                    raise ConfigError(what, "each a name of its own", "rename one with the key objective of its items")
                taken[own] = name
        drawn = {name: bool(getattr(part, "scores_pipelines", False)) for name, part in self._parts.items()}
        self.scores_pipelines = all(drawn.values())
        if any(drawn.values()) and not self.scores_pipelines:
            one, other = (next(name for name, own in drawn.items() if own is draws) for draws in (True, False))
            what = f"parts.{one} scores pipelines that draw images, parts.{other} other models"
            raise ConfigError(what, "parts of one kind", "choose text_to_image for all, or for none")
        self.keep_responses = any(getattr(part, "keep_responses", False) for part in self._parts.values())
        require_pixels(self._parts)
        self._statistics: Statistics | None = None
        self._steps: list[str] = []
        self._due: list[str] = []
        for methods, enough in ((_OF_ALL, all), (_OF_ANY, any)):
            for method in methods:
                if enough(hasattr(part, method) for part in self._parts.values()):
                    setattr(self, method, getattr(self, f"_{method}"))
        for method in _OF_ONE:
            able = [part for part in self._parts.values() if hasattr(part, method)]
            if len(able) == 1:
                setattr(self, method, getattr(able[0], method))
        headed = all(getattr(part, "switch_key", "switch") == "head" for part in self._parts.values())
        self.switch_key = "head" if headed else "switch"
        by_people = [name for name, _ in self._each("rating")]
        if by_people:
            self.rating = self._rating
        if len(by_people) > 1:
            given = f"parts {' and '.join(by_people)} are both scored by people"
            raise ConfigError(given, "one part that is", "give it the prompts of both, by name")

    @property
    def parts(self) -> Mapping[str, Fitness]:
        """The fitnesses, by name."""
        return self._parts

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Those of all parts, in order."""
        return tuple(
            Objective(self._names[name][own.name], own.direction)
            for name, part in self._parts.items()
            for own in part.objectives
        )

    def check(self) -> None:
        """Let every part check its items.

        Raises:
            FitnessError: what a part finds; a task that two parts have.
        """
        whose: dict[str, str] = {}
        for name, part in self._parts.items():
            with _in_part(name, part):
                part.check()
            for task in part.items() if hasattr(part, "items") else ():
                if task in whose:
                    what = f"parts.{whose[task]} and parts.{name} both have items of {task!r}"
                    raise FitnessError(what, "names of its own in each part", "rename the texts, or the task")
                whose[task] = name

    def check_files(self) -> None:
        """Let every part look for its files."""
        for name, part in self._each("check_files"):
            with _in_part(name, part):
                part.check_files()

    def check_tokenizer(self, load: Callable[[], Any]) -> None:
        """Let every part look at the tokenizer."""
        for name, part in self._each("check_tokenizer"):
            with _in_part(name, part):
                part.check_tokenizer(load)

    def check_model(self, config: Any, folder: str) -> None:
        """Let every part look at the model's configuration."""
        for name, part in self._each("check_model"):
            with _in_part(name, part):
                part.check_model(config, folder)

    def check_labels(self, labels: Callable[[str], Mapping[Any, Any]]) -> None:
        """Let every part look at the labels of heads."""
        for name, part in self._each("check_labels"):
            with _in_part(name, part):
                part.check_labels(labels)

    def check_encoder(self, folder: str, config: Any) -> None:
        """Let every part look at what sentence-transformers' files say."""
        for name, part in self._each("check_encoder"):
            with _in_part(name, part):
                part.check_encoder(folder, config)

    def _references(self, pool: PoolInfo) -> tuple[str, ...]:
        """The models that parts compare with, one part after the other."""
        self._steps, names = [], []
        for name, part in self._each("references"):
            with _in_part(name, part):
                own = part.references(pool)
            names += own
            self._steps += [name] * len(own)
        return tuple(names)

    def cautions(self) -> list[str]:
        """Those of all parts."""
        return [line for _, part in self._each("cautions") for line in part.cautions()]

    def memory(self, model: ModelOutline) -> list[MemoryPart]:
        """Of forwards the largest part's, for they come one after the other; of what stays, all."""
        found: dict[str, MemoryPart] = {}
        for name, part in self._each("memory"):
            with _in_part(name, part):
                parts = part.memory(model)
            for each in parts:
                own = replace(each, key=f"parts.{name}.{each.key}" if each.key else "")
                before = found.get(each.name)
                if before is not None and each.during == "always":
                    own = replace(own, nbytes=own.nbytes + before.nbytes)
                if before is None or own.nbytes > before.nbytes:
                    found[each.name] = own
        return list(found.values())

    def work(self) -> dict[str, int]:
        """What a candidate asks of a model in all parts that count it."""
        found: dict[str, int] = {}
        for _, part in self._each("work"):
            for name, count in part.work().items():
                found[name] = found.get(name, 0) + count
        return found

    def fixed_share(self) -> float:
        """The share of a candidate's texts that are read whatever items it is scored on, of all parts together."""
        texts = {name: part.work()["texts"] for name, part in self._each("work")}
        fixed = sum(part.fixed_share() * texts.get(name, 0) for name, part in self._each("fixed_share"))
        return float(fixed / max(1, sum(texts.values())))

    def prepare(self, model: LoadedModel) -> None:
        """Let every part prepare its items."""
        self._due, self._statistics = list(self._steps), None
        for name, part in self._parts.items():
            with _in_part(name, part):
                part.prepare(model)

    def _refer(self, model: LoadedModel, name: str) -> None:
        """Let the part whose turn it is see a model of the pool."""
        if not self._due:
            raise FitnessError(f"model {name!r} is not the one to refer to", "none is due")
        self._parts[self._due[0]].refer(model, name)
        self._due.pop(0)

    def run(self, model: LoadedModel, part: Part | None = None) -> Scores:
        """Score a model by every part.

        Args:
            part: places of items by task, some of every one.

        Raises:
            FitnessError: what a part finds; items of a task that no part has.
        """
        return self._scored(lambda each, given: each.run(model, *given), part)

    def _run_switched(self, switch: Callable[[str], LoadedModel], part: Part | None = None) -> Scores:
        """`run`, with the model that ``switch(source)`` gives for the tasks of each head or switch."""
        return self._scored(lambda each, given: each.run_switched(switch, *given), part)

    def _switches(self) -> list[tuple[str, str | None]]:
        """Of each task of all parts the source whose head or switch is on."""
        return [own for part in self._parts.values() for own in part.switches()]

    def _scored(self, score: Callable[[Any, tuple[Part, ...]], Scores], part: Part | None) -> Scores:
        found: list[tuple[str, Scores]] = []
        tasks = {name: set(each.items()) for name, each in self._parts.items()} if part is not None else {}
        for task in part or ():
            if not any(task in own for own in tasks.values()):
                raise FitnessError(f"the part has items of {task!r}", nearest(task, set().union(*tasks.values())))
        for name, each in self._parts.items():
            own = {task: places for task, places in (part or {}).items() if task in tasks[name]}
            found.append((name, score(each, () if part is None else (own,))))
        seconds, tokens = sums(s.seconds for _, s in found), sums(s.tokens for _, s in found)
        return Scores(
            {self._names[name][own]: value for name, scores in found for own, value in scores.objectives.items()},
            joined(scores.metrics for _, scores in found),
            joined(scores.items for _, scores in found),
            seconds,
            joined(scores.responses for _, scores in found),
            tokens,
        )

    def _apart(self, model: LoadedModel) -> Mapping[str, float]:
        """How far the parts that score in another way than their stock tool are from it; those of the first such."""
        for name, part in self._each("apart"):
            names = {f"objective/{own}": f"objective/{ours}" for own, ours in self._names[name].items()}
            return {names.get(key, key): value for key, value in part.apart(model).items()}
        return {}

    def _batch_norms(self, model: LoadedModel) -> Mapping[str, torch.Tensor]:
        """Statistics of the model's batch norms on the images of all parts that have some, mixed."""
        self._statistics = self._statistics or Statistics([part for _, part in self._each("batch_norms")])
        return self._statistics.of(model)

    def texts(self, most: int) -> dict[str, Any]:
        """What models read of the first items of every task."""
        return joined(part.texts(most) for _, part in self._each("texts"))

    def fingerprint(self) -> str:
        """``sha256:`` over the fingerprints of all parts and their names."""
        text = " ".join(f"{name}={part.fingerprint()}" for name, part in self._parts.items())
        text += mixed_text([part for _, part in self._each("batch_norms")])
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def _rating(self) -> RatingRules:
        """What the part that people score asks of them."""
        name, part = next(self._each("rating"))
        rules: RatingRules = part.rating()
        return replace(rules, objective=self._names[name][rules.objective])

    def _items(self) -> dict[str, int]:
        return joined(part.items() for part in self._parts.values())

    def _shares(self) -> list[MetricShare]:
        found = []
        for name, part in self._parts.items():
            only = part.objectives[0].name
            found += [replace(s, objective=self._names[name][s.objective or only]) for s in part.shares()]
        return found

    def _documents(self) -> list[tuple[str, str]]:
        return [document for part in self._parts.values() for document in part.documents()]

    def _build_estimator(self) -> Estimator:
        from fitness._several.estimator import PartEstimator, SeveralEstimators

        found = []
        for name, part in self._parts.items():
            with _in_part(name, part):
                own = part.build_estimator()
            found.append(PartEstimator(own, frozenset(part.items()), self._names[name]))
        return SeveralEstimators(found)

    def _each(self, having: str) -> Iterator[tuple[str, Any]]:
        """The parts that have a method, by name."""
        return ((name, part) for name, part in self._parts.items() if hasattr(part, having))


@contextmanager
def _in_part(name: str, part: object) -> Iterator[None]:
    """Name keys in full in errors that are raised inside."""
    with placed(f"parts.{name}", arguments_of(part)):
        yield
