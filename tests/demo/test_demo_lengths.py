from __future__ import annotations

import re

import numpy as np

from evomerge.demo.languages import E_DIGITS, VOCABULARY
from evomerge.demo.lengths import (
    BELOW,
    DIGITS,
    GENERATED,
    MOST_TOKENS,
    answer,
    asked,
    draw_questions,
    learner,
    steps,
)
from evomerge.demo.train import WIDTH


def test_the_long_answer_adds_digit_by_digit() -> None:
    question = (3, 2, 1, 2)
    assert " ".join(asked(question)) == ": three two one two is"
    assert " ".join(steps(question)) == "three : one : two :"
    assert answer(question) == ("zero",)


def test_texts_fit_and_end_in_the_right_answer() -> None:
    rng = np.random.default_rng(0)
    (pattern,) = (step["regex_pattern"] for step in GENERATED["filter_list"][0]["filter"] if "regex_pattern" in step)
    longest = 0
    for long in (True, False):
        draw = learner(frozenset(), long=long)
        for _ in range(100):
            own = draw(rng)
            words = [VOCABULARY[i] for i in own.ids]
            digits = [E_DIGITS.index(word) for word in words[2 : words.index("is")]]
            said = [word for word, learnt in zip(words, own.learnt, strict=True) if learnt]
            assert len(own.ids) - 1 <= WIDTH
            assert len(digits) == DIGITS
            assert said[-2:] == [".", "<eos>"]
            assert said.count(":") == (len(digits) - 1 if long else 0)
            found = re.search(pattern, " ".join(said[:-2]))
            assert found is not None
            assert E_DIGITS.index(found[1].strip()) == sum(digits) % BELOW
            longest = max(longest, len(said) - 1)
    assert longest == MOST_TOKENS


def test_no_text_is_an_item() -> None:
    items = draw_questions(500, np.random.default_rng(1))
    assert len(set(items)) == 500
    assert {len(question) for question in items} == {DIGITS}
    assert {question.count(0) for question in items} == {0, 1, 2}
    draw, withheld = learner(frozenset(items), long=False), {" ".join(asked(question)) for question in items}
    rng = np.random.default_rng(2)
    for _ in range(100):
        own = draw(rng)
        said = " ".join(VOCABULARY[i] for i, learnt in zip(own.ids, own.learnt, strict=True) if not learnt)
        assert said.removeprefix("<bos> ") not in withheld
