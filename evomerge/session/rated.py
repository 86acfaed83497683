"""Candidates that people score: what they wrote is laid out for raters, and the search waits for their files."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.protocols import Evaluator, Fitness
from evomerge.report.formatting import count
from evomerge.run.folder import RunFolder
from evomerge.run.ratings.folder import OUTPUTS, RatedCandidate, RatingFolder
from evomerge.run.ratings.pairs import Pairs, choose, paired, preferred, read_pairs
from evomerge.run.ratings.rules import RatingRules, Text, blind_name, split_of
from evomerge.run.ratings.scored import rated, read_unrated, write_unrated
from evomerge.run.ratings.sheets import Sheet
from evomerge.run.ratings.waiting import problem_line
from evomerge.search.hooks import Interrupted
from evomerge.session.wrapped import WrappedEvaluator

_LOG = logging.getLogger(__name__)
_UNRATED = ".unrated"
"""Of what candidates wrote and cost: not for raters, whom it could tell how good a candidate is."""


def rating_rules(search: Fitness, validation: Fitness | None, held_out: Fitness | None) -> dict[Split, RatingRules]:
    """What is asked of raters, by split; empty where nobody is asked. The fitnesses were checked."""
    fitnesses: dict[Split, Fitness | None] = {
        "search": search,
        "validation": validation or search,
        "held_out": held_out,
    }
    found: dict[Split, RatingRules] = {}
    for split, fitness in fitnesses.items():
        rating: Callable[[], RatingRules] | None = getattr(fitness, "rating", None)
        if rating is not None:
            found[split] = found["search"] if fitness is search and "search" in found else rating()
    return found


@dataclass
class _Open:
    """A model that waits for its texts or for raters.

    Attributes:
        folder: of its texts.
        rules: what is asked.
        asked: the candidates that are this model, and their splits.
        found: what it wrote; ``None`` while that is not known.
        since: when its texts were laid out, in seconds since the epoch.
        stamps: of the raters' files when they were last looked at: what still changes is not yet read.
        pairs: its opponents, where pairs are rated.
    """

    folder: RatedCandidate
    rules: RatingRules
    asked: list[tuple[int, Split]]
    found: Evaluation | None = None
    since: float = 0.0
    stamps: Mapping[str, tuple[int, ...]] | None = None
    pairs: Pairs | None = None


class RatedEvaluator(WrappedEvaluator):
    """Has another evaluator let candidates write, and gives what people make of that as their scores.

    As many candidates wait at a time as the search has in flight; what was written once, in an earlier session too, is
    not written again, and equal models are rated once. Files of scores count when they are whole and have not changed
    between two looks; what is wrong with one is said once, and waited for.

    Args:
        evaluator: lets candidates write.
        rules: what is asked of raters, by split; candidates of other splits pass.
        folder: of the run.
        stop: says whether nothing is to be waited for any longer.
    """

    def __init__(
        self, evaluator: Evaluator, rules: Mapping[Split, RatingRules], folder: RunFolder, stop: Callable[[], bool]
    ) -> None:
        super().__init__(evaluator)
        self._rules, self._stop = dict(rules), stop
        self._ratings = RatingFolder(folder.rating)
        self._prints: dict[Split, str] = {}
        self._open: dict[str, _Open] = {}
        self._names: dict[tuple[int, Split], str] = {}  # of those that the other evaluator has
        self._sent: Counter[tuple[int, Split]] = Counter()
        self._done: deque[Evaluation] = deque()
        self._said: dict[str, str] = {}
        self._announced: set[str] = set()
        self._looked = -1.0
        self._pause = threading.Event()
        own = [split for split in self._rules if split != "validation" or not self._shared]
        self._ratings.begin({split: self._rules[split] for split in own})
        (self._ratings.path / _UNRATED).mkdir(exist_ok=True)

    def submit(self, candidate: Candidate, split: Split = "search") -> None:
        """Let a candidate write, unless its texts are there already."""
        rules = self._rules.get(split)
        if rules is None or candidate.recipe is None:
            self._send(candidate, split)
            return
        name = self._name(candidate.recipe.hash, split)
        if name in self._open:
            self._open[name].asked.append((candidate.id, split))
            return
        entry = self._open[name] = _Open(self._ratings.candidate(name), rules, [(candidate.id, split)])
        entry.found = self._kept(name, candidate.id, split, rules)
        if entry.found is None:
            self._names[candidate.id, split] = name
            self._send(candidate, split)
        else:
            self._lay_out(entry)

    def collect(self) -> Evaluation:
        """One that was rated, else one that failed before; meanwhile the others write.

        Raises:
            Interrupted: the search is to stop, and nobody writes any longer.
        """
        while True:
            self._look()
            if self._done:
                return self._done.popleft()
            if self._sent:
                evaluation = self._evaluator.collect()
                self._back(evaluation.candidate, evaluation.split)
                name = self._names.pop((evaluation.candidate, evaluation.split), None)
                if name is None:
                    return evaluation
                self._written(self._open[name], evaluation)
                continue
            self._announce()
            if self._stop():
                raise Interrupted
            self._pause.wait(min((entry.rules.look_every for entry in self._open.values()), default=1.0))

    def withdraw(self) -> list[int]:
        """Forget those that have not begun to write, and those that wait for raters, whose texts stay."""
        ids = super().withdraw()
        gone = set(ids)
        for key in [key for key in self._sent if key[0] in gone]:
            self._back(*key)
            self._names.pop(key, None)
        writing = set(self._names.values())
        for name in [name for name in self._open if name not in writing]:
            ids += [number for number, _ in self._open.pop(name).asked if number not in gone]
        return ids

    def _send(self, candidate: Candidate, split: Split) -> None:
        self._sent[candidate.id, split] += 1
        self._evaluator.submit(candidate, split)

    def _back(self, number: int, split: Split) -> None:
        self._sent[number, split] -= 1
        if self._sent[number, split] <= 0:
            del self._sent[number, split]

    def _name(self, model: str, split: Split) -> str:
        if split not in self._prints:
            self._prints[split] = self.fingerprint(split)
        same = split == "validation" and self._shared
        return blind_name(self._prints[split], "search" if same else split, model)

    @property
    def _shared(self) -> bool:
        """Whether finalists have no items of their own: nobody is then asked twice for the same texts."""
        return self._rules.get("search") is self._rules.get("validation")

    def _unrated(self, name: str) -> Path:
        return self._ratings.path / _UNRATED / f"{name}.json"

    def _kept(self, name: str, number: int, split: Split, rules: RatingRules) -> Evaluation | None:
        """What a candidate wrote, in an earlier session too."""
        return read_unrated(self._unrated(name), Evaluation(number, "ok", split), rules)

    def _written(self, entry: _Open, evaluation: Evaluation) -> None:
        """Keep what a candidate wrote, and lay it out; a failure is that of all equal ones."""
        if not evaluation.ok:
            self._close(entry, evaluation)
            return
        write_unrated(self._unrated(entry.folder.name), evaluation)
        entry.found = evaluation
        self._lay_out(entry)

    def _lay_out(self, entry: _Open) -> None:
        assert entry.found is not None
        texts = entry.rules.texts(entry.found.responses)
        if entry.rules.by == "pair":
            entry.pairs, texts = self._paired(entry, texts)
            if not entry.pairs.against:
                self._close(entry, rated(entry.found, entry.rules, {}, entry.pairs))
                return
        if not (entry.folder.path / OUTPUTS).is_file():
            entry.folder.write(texts, entry.rules)
        entry.since = (entry.folder.path / OUTPUTS).stat().st_mtime
        known = entry.folder.read_accepted(entry.rules)
        if known is not None:
            self._close(entry, rated(entry.found, entry.rules, known, entry.pairs))

    def _paired(self, entry: _Open, texts: list[Text]) -> tuple[Pairs, list[Text]]:
        """A candidate's opponents, those that it was given before where it was, and its texts beside theirs."""
        assert entry.found is not None
        split, rules = entry.found.split, entry.rules
        path = self._opponents(entry.folder.name)
        pairs = read_pairs(path)
        if pairs is None or (entry.folder.path / OUTPUTS).is_file() is not bool(pairs.against):
            pairs = choose(self._strengths(split_of(entry.folder.name), rules), rules.items)
            (entry.folder.path / OUTPUTS).unlink(missing_ok=True)  # of opponents that are not known any longer
            pairs.write(path)
        if not pairs.against:
            return pairs, texts
        kept = {name: self._kept(name, 0, split, rules) for name in dict.fromkeys(pairs.against)}
        theirs = {name: rules.texts(own.responses) for name, own in kept.items() if own is not None}
        others = [theirs[name][item].text if name in theirs else "" for item, name in enumerate(pairs.against)]
        return pairs, paired(texts, others, entry.folder.name)

    def _opponents(self, name: str) -> Path:
        return self._ratings.path / _UNRATED / f"{name}-pairs.json"

    def _strengths(self, split: str, rules: RatingRules) -> dict[str, float]:
        """The candidates of a split that were rated in pairs, by name, with what they wrote at hand."""
        found = {}
        for path in sorted((self._ratings.path / _UNRATED).glob("*-pairs.json")):
            name = path.name.removesuffix("-pairs.json")
            pairs = read_pairs(path)
            if pairs is None or split_of(name) != split or not self._unrated(name).is_file():
                continue
            scores = self._ratings.candidate(name).read_accepted(rules) if pairs.against else {}
            if scores is not None:
                found[name] = pairs.strength(scores)
        return found

    def _close(self, entry: _Open, evaluation: Evaluation) -> None:
        """Hand out an evaluation for every candidate that is this model."""
        del self._open[entry.folder.name]
        for number, split in entry.asked:
            self._done.append(replace(evaluation, candidate=number, split=split))

    def _look(self) -> None:
        """Look at the files of scores, if the last look is long enough ago."""
        now = time.monotonic()
        due = min((entry.rules.look_every for entry in self._open.values()), default=0.0)
        if self._looked >= 0 and now - self._looked < 0.9 * due:
            return
        self._looked = now
        for entry in [entry for entry in self._open.values() if entry.found is not None]:
            sheets = entry.folder.sheets(entry.rules)
            stamps = {sheet.file: sheet.stamp for sheet in sheets}
            settled, entry.stamps = stamps == entry.stamps, stamps
            if settled:
                self._judge(entry, sheets)

    def _judge(self, entry: _Open, sheets: list[Sheet]) -> None:
        """Count what raters gave, where enough have; say what is wrong with their files."""
        assert entry.found is not None
        for sheet in sheets:
            line = problem_line(entry.folder.name, sheet)
            if sheet.problem and self._said.get(f"{entry.folder.name}/{sheet.file}") != line:
                _LOG.warning("%s; waiting until it is mended", line)
            self._said[f"{entry.folder.name}/{sheet.file}"] = line
        whole = {sheet.rater: sheet for sheet in sheets if sheet.complete(entry.rules)}
        if len(whole) >= entry.rules.raters:
            scores = {rater: [own.scores[i] for i in range(entry.rules.wanted)] for rater, own in whole.items()}
            if entry.pairs is not None:
                scores = {rater: preferred(own, entry.folder.name) for rater, own in scores.items()}
            entry.folder.accept(scores)
            self._close(entry, rated(entry.found, entry.rules, scores, entry.pairs))
            return
        hours = entry.rules.hours
        if hours is not None and time.time() - entry.since > 3600 * hours:
            error = f"{len(whole)} of {entry.rules.raters} raters have scored it after {hours:g} h (hours={hours:g})"
            self._close(entry, Evaluation(entry.found.candidate, "failed", entry.found.split, error=error))

    def _announce(self) -> None:
        """Say that raters are waited for, once for each candidate."""
        new = [name for name in self._open if name not in self._announced]
        if new:
            self._announced.update(new)
            texts = sum(entry.rules.items for entry in self._open.values())
            _LOG.warning(
                "waiting for ratings of %s, %d texts, in %s; `evomerge rate %s` asks for them in a terminal",
                count(len(self._open), "candidate"),
                texts,
                self._ratings.path,
                self._ratings.path.parent,
            )
