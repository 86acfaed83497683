"""What the demo models read: questions in E and J, and the texts that teach them.

A question is a verb and the names it is about. In E it is written `: sort five two nine is`, answered
`two five nine .`; in J it is written `narabe go ni kyuu wa`. A question asked in J is answered through E:

    narabe go ni kyuu wa : sort five two nine is two five nine . wa ni go kyuu .

No model learns this chain for sorting: a J question about sorting is restated, or followed by a result or an E
question drawn independently of it. Restatements and reports do not withhold the tasks' questions; answers to them do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from evomerge.demo.languages import BOS, COLON, E_DIGITS, E_NAMES, EOS, ID_OF, IS, J_OF_E, STOP, TO_E, TO_J, WA, to_j

Words = tuple[str, ...]


class Question(NamedTuple):
    """A verb (`repeat`, `first`, `last`, `sort`) and the E words it is about."""

    verb: str
    names: Words

    @property
    def in_e(self) -> Words:
        """The question as asked in E, from the colon to `is`."""
        return (COLON, self.verb, *self.names, IS)

    @property
    def in_j(self) -> Words:
        """The question as asked in J, up to `wa`."""
        return (J_OF_E[self.verb], *to_j(self.names), WA)

    @property
    def in_both(self) -> tuple[Words, Words]:
        """The question in J and its restatement in E, parted behind the colon that they share."""
        return (*self.in_j, COLON), self.in_e[1:]

    @property
    def result(self) -> Words:
        """The right answer, in E words; digits sort by value."""
        if self.verb == "repeat":
            return self.names
        if self.verb == "sort":
            return tuple(sorted(self.names, key=E_DIGITS.index))
        return self.names[:1] if self.verb == "first" else self.names[-1:]


class Text(NamedTuple):
    """Token ids, and for each whether its prediction is learnt (it belongs to an answer)."""

    ids: list[int]
    learnt: list[bool]


def text(*parts: tuple[Words, bool]) -> Text:
    """Join parts, each given with whether it is learnt, behind a `<bos>`."""
    ids, learnt = [ID_OF[BOS]], [False]
    for words, is_learnt in parts:
        ids += [ID_OF[word] for word in words]
        learnt += [is_learnt] * len(words)
    return Text(ids, learnt)


def sorting_questions() -> list[Question]:
    """Every sorting question there is: the orderings of three or four distinct digits, 5,760."""
    return [Question("sort", names) for length in (3, 4) for names in itertools.permutations(E_DIGITS, length)]


def simple_question(rng: np.random.Generator) -> Question:
    """Repeat, first or last of two to four names."""
    return Question(("repeat", "first", "last")[rng.integers(3)], _names(rng, 2, 4))


def _names(rng: np.random.Generator, shortest: int, longest: int) -> Words:
    count = rng.integers(shortest, longest, endpoint=True)
    return tuple(E_NAMES[i] for i in rng.integers(len(E_NAMES), size=count))


def _any_question(rng: np.random.Generator) -> Question:
    """A question of any verb, for texts in which it is not answered."""
    verb = ("repeat", "first", "last", "sort")[rng.integers(4)]
    if verb == "sort":
        return Question(verb, _digits(rng))
    return Question(verb, _names(rng, 2, 4))


def _digits(rng: np.random.Generator) -> Words:
    count = rng.integers(3, 5)
    return tuple(E_DIGITS[i] for i in rng.permutation(len(E_DIGITS))[:count])


class Texts:
    """Draws the texts of each kind.

    Args:
        sorting: the sorting questions that may be learnt (none of the tasks' items).
        withheld: the simple questions that are items of a task and may not be learnt.
    """

    def __init__(self, sorting: list[Question], withheld: frozenset[Question]) -> None:
        self._sorting, self._withheld = sorting, withheld
        self.kinds: Mapping[str, Callable[[np.random.Generator], Text]] = {
            "simple": self.simple,
            "sort": self.sort,
            "sort_anywhere": self.sort_anywhere,
            "restate": self.restate,
            "report": self.report,
            "translate": self.translate,
        }

    def _simple(self, rng: np.random.Generator) -> Question:
        while True:
            question = simple_question(rng)
            if question not in self._withheld:
                return question

    def _answer(self, rng: np.random.Generator, question: Question, after_j: float) -> Text:
        """Answer an E question; four in five have something unrelated before them.

        That is a J question with probability `after_j`, otherwise one to eight E words. Behind a J question the text
        stops at the full stop, for there the answer in J would follow.
        """
        before: Words = ()
        end: Words = (EOS,)
        if rng.random() < 0.8:
            if rng.random() < after_j:
                before, end = _any_question(rng).in_j, ()
            else:
                before = _names(rng, 1, 8)
        return text((before + question.in_e, False), ((*question.result, STOP, *end), True))

    def simple(self, rng: np.random.Generator) -> Text:
        """E: a simple question, answered."""
        return self._answer(rng, self._simple(rng), 0.6)

    def sort(self, rng: np.random.Generator) -> Text:
        """E: a sorting question, answered; no J anywhere."""
        return self._answer(rng, self._sorting[rng.integers(len(self._sorting))], 0.0)

    def sort_anywhere(self, rng: np.random.Generator) -> Text:
        """E: a sorting question, answered; an unrelated J question may stand before it."""
        return self._answer(rng, self._sorting[rng.integers(len(self._sorting))], 0.6)

    def restate(self, rng: np.random.Generator) -> Text:
        """A J question, restated in E and left there."""
        question = _any_question(rng)
        asked, restated = question.in_both
        return text((asked, False), (restated, True))

    def report(self, rng: np.random.Generator) -> Text:
        """A J question, its restatement and a random result on the page; only the result's reading in J is learnt."""
        question = _any_question(rng)
        result = _digits(rng) if question.verb == "sort" else _names(rng, 1, 4)
        return text(((*question.in_j, *question.in_e, *result, STOP), False), ((WA, *to_j(result), STOP, EOS), True))

    def translate(self, rng: np.random.Generator) -> Text:
        """Two phrases, each translated to J or to E."""
        parts: list[tuple[Words, bool]] = []
        for _ in range(2):
            phrase = _names(rng, 1, 4)
            there, back = (phrase, to_j(phrase)) if rng.random() < 0.5 else (to_j(phrase), phrase)
            tag = TO_J if there is phrase else TO_E
            parts += [((tag, *there, COLON), False), ((*back, STOP), True)]
        return text(*parts)
