"""Two small language models that answer the same questions at length and in short, on one start.

Asked for a sum in which four counts as zero, `: three two one is`, the long one writes down every step, `three :
one : two .`, and the short one the answer alone, `two .`. What comes after the last colon is the answer. A step of the
long way is two digits added, which is learnt soon; the short one has to add all of them at once, and is right less
often.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.demo.building import build_once, versions
from evomerge.demo.items import Text, Words, text
from evomerge.demo.languages import COLON, E_DIGITS, EOS, IS, STOP
from evomerge.demo.skills import BASE, PARTS, SkillSizes, train_all, write_task

BELOW = 4
"""What counts as zero; digits are below it."""
DIGITS = 5
"""How many are added."""
MOST_TOKENS = 2 * DIGITS
"""Of the longest answer: every step, and the colon or stop after each."""
Question = tuple[int, ...]
"""The digits to be added."""
GENERATED: Mapping[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{text}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": [" ."], "do_sample": False, "max_gen_toks": MOST_TOKENS},
    "filter_list": [
        {
            "name": "last-part",
            "filter": [
                {"function": "regex", "group_select": -1, "regex_pattern": "([a-z ]+)$"},
                {"function": "take_first"},
            ],
        }
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@dataclass(frozen=True)
class LengthSizes:
    """How much is drawn and trained.

    Attributes:
        search, test: items.
        start_steps, long, short: steps of the start, which meets both ways of answering, and of either.
        width, layers: of the models.
    """

    search: int = 120
    test: int = 300
    start_steps: int = 450
    long: int = 120
    short: int = 160
    width: int = 64
    layers: int = 3


QUICK = LengthSizes(10, 16, 3, 3, 3, 16, 2)
"""Models of the right shape that can do next to nothing."""


def make_lengths(
    folder: Path,
    seed: int = 0,
    *,
    quick: bool = False,
    sizes: LengthSizes | None = None,
    each_step: Callable[[str], None] = lambda name: None,
) -> Path:
    """Make the pool in `folder`, unless it already holds this very pool.

    Writes ``base``, ``long``, ``short``, ``tasks`` with the lm-eval tasks ``added_search`` and ``added_test``, which
    generate and count the last part of an answer, and ``manifest.json``.

    Args:
        folder: where the pool goes; an earlier one there is replaced, anything else is left alone.
        seed: decides items, texts and parameters.
        quick: `QUICK`, instead of the whole training.
        sizes: others than `quick` says.
        each_step: called after every step with the name of the model that is trained.

    Returns:
        The absolute path of `folder`.

    Raises:
        OutputError: `folder` holds something else.
    """
    folder, chosen = Path(folder).absolute(), sizes or (QUICK if quick else LengthSizes())
    wanted: dict[str, Any] = {"lengths": 2, "seed": seed, "folder": str(folder), **asdict(chosen)}

    def write(building: Path) -> None:
        items_seed, text_seed, parameter_seed = np.random.SeedSequence(seed).spawn(3)
        questions = draw_questions(chosen.search + chosen.test, np.random.default_rng(items_seed))
        withheld = frozenset(questions)
        kinds = {"long": learner(withheld, long=True), "short": learner(withheld, long=False)}
        (building / "tasks").mkdir()
        for part, own in zip(PARTS, (questions[: chosen.search], questions[chosen.search :]), strict=True):
            rows = [{"text": " ".join(asked(one)), "answer": " ".join(answer(one))} for one in own]
            write_task(building / "tasks", folder / "tasks", f"added_{part}", rows, GENERATED)
        stages = [(BASE, ["long", "short"], chosen.start_steps, 3e-3)]
        stages += [("long", ["long"], chosen.long, 2e-3), ("short", ["short"], chosen.short, 2e-3)]
        shape = SkillSizes(width=chosen.width, layers=chosen.layers)
        train_all(building, stages, kinds, shape, text_seed, int(parameter_seed.generate_state(1)[0]), each_step)

    return build_once(folder, wanted | {"versions": versions("torch", "tokenizers")}, "pool of lengths", write)


def asked(question: Question) -> Words:
    """How it is asked."""
    return (COLON, *(E_DIGITS[digit] for digit in question), IS)


def answer(question: Question) -> Words:
    """The sum."""
    return (E_DIGITS[sum(question) % BELOW],)


def steps(question: Question) -> Words:
    """What the long answer has before the sum, the last colon with it: all the sums before."""
    return tuple(word for count in range(1, len(question)) for word in (*answer(question[:count]), COLON))


def draw_questions(count: int, rng: np.random.Generator) -> list[Question]:
    """So many questions for items, each once: those with two zeros at most, the harder ones to add at once."""
    found: dict[Question, None] = {}
    while len(found) < count:
        question = _question(rng)
        if question.count(0) <= 2:
            found[question] = None
    return list(found)


def _question(rng: np.random.Generator) -> Question:
    """Digits, zeros among them from few to many, so that there is something easy to begin with."""
    kept = rng.random(DIGITS) < rng.random()
    return tuple(int(digit) for digit in kept * rng.integers(1, BELOW, size=DIGITS))


def learner(withheld: frozenset[Question], *, long: bool) -> Callable[[np.random.Generator], Text]:
    """Draws texts that answer in one of the two ways, none of which is an item."""

    def drawn(rng: np.random.Generator) -> Text:
        question = _question(rng)
        while question in withheld:
            question = _question(rng)
        own = (*(steps(question) if long else ()), *answer(question), STOP, EOS)
        return text((asked(question), False), (own, True))

    return drawn
