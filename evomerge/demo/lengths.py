"""Two small language models that answer the same questions at length and in short, on one start.

Asked `: sort five two nine is`, the long one writes down what it has sorted after each name, `five : two five : two five
nine .`, and the short one the answer alone, `two five nine .`. What comes after the last colon is the answer. Each step of
the long way is easy, so that it is right more often than the short one, of the same training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.demo.building import build_once, versions
from evomerge.demo.items import Question, Text, Words, text
from evomerge.demo.languages import COLON, E_DIGITS, EOS, STOP
from evomerge.demo.skills import BASE, PARTS, SkillSizes, train_all, write_task

NAMES = (4, 5)
"""Names that are to be sorted: the fewest, and the most."""
MOST_TOKENS = sum(range(1, NAMES[1] + 1)) + NAMES[1]
"""Of the longest answer: every step, and the colon or stop after each."""
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

    search: int = 60
    test: int = 250
    start_steps: int = 200
    long: int = 150
    short: int = 40
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

    Writes ``base``, ``long``, ``short``, ``tasks`` with the lm-eval tasks ``sorted_search`` and ``sorted_test``, which
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
        questions = _questions(chosen.search + chosen.test, np.random.default_rng(items_seed))
        withheld = frozenset(questions)
        kinds = {"long": _learner(withheld, long=True), "short": _learner(withheld, long=False)}
        (building / "tasks").mkdir()
        for part, own in zip(PARTS, (questions[: chosen.search], questions[chosen.search :]), strict=True):
            rows = [{"text": " ".join(q.in_e), "answer": " ".join(q.result)} for q in own]
            write_task(building / "tasks", folder / "tasks", f"sorted_{part}", rows, GENERATED)
        stages = [(BASE, ["long", "short"], chosen.start_steps, 3e-3)]
        stages += [("long", ["long"], chosen.long, 1.2e-3), ("short", ["short"], chosen.short, 1.2e-3)]
        shape = SkillSizes(width=chosen.width, layers=chosen.layers)
        train_all(building, stages, kinds, shape, text_seed, int(parameter_seed.generate_state(1)[0]), each_step)

    return build_once(folder, wanted | {"versions": versions("torch", "tokenizers")}, "pool of lengths", write)


def _questions(count: int, rng: np.random.Generator) -> list[Question]:
    """So many questions, each once."""
    found: dict[Question, None] = {}
    while len(found) < count:
        found[_question(rng)] = None
    return list(found)


def _question(rng: np.random.Generator) -> Question:
    """Digits to be sorted."""
    fewest, most = NAMES
    return Question("sort", tuple(E_DIGITS[i] for i in rng.permutation(len(E_DIGITS))[: rng.integers(fewest, most + 1)]))


def _learner(withheld: frozenset[Question], *, long: bool) -> Callable[[np.random.Generator], Text]:
    """Draws texts that answer in one of the two ways, none of which is an item."""

    def drawn(rng: np.random.Generator) -> Text:
        question = _question(rng)
        while question in withheld:
            question = _question(rng)
        return text((question.in_e, False), ((*(_steps(question) if long else ()), *question.result, STOP, EOS), True))

    return drawn


def _steps(question: Question) -> Words:
    """What the long answer has before the last colon, and it: all but the last name of what was read, in order."""
    found: Words = ()
    for count in range(1, len(question.names)):
        found = (*found, *Question(question.verb, question.names[:count]).result, COLON)
    return found
