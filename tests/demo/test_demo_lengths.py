from __future__ import annotations

import re

import numpy as np

from evomerge.demo.items import Question
from evomerge.demo.languages import VOCABULARY
from evomerge.demo.lengths import GENERATED, MOST_TOKENS, NAMES, _learner, _questions, _steps
from evomerge.demo.train import WIDTH


def test_the_long_answer_sorts_name_by_name() -> None:
    question = Question("sort", ("five", "two", "nine", "one"))
    assert " ".join(_steps(question)) == "five : two five : two five nine :"


def test_texts_fit_and_end_in_the_right_answer() -> None:
    rng = np.random.default_rng(0)
    (pattern,) = (step["regex_pattern"] for step in GENERATED["filter_list"][0]["filter"] if "regex_pattern" in step)
    longest = 0
    for long in (True, False):
        draw = _learner(frozenset(), long=long)
        for _ in range(100):
            own = draw(rng)
            words = [VOCABULARY[i] for i in own.ids]
            asked = words[3 : words.index("is")]
            answer = [word for word, learnt in zip(words, own.learnt, strict=True) if learnt]
            assert len(own.ids) - 1 <= WIDTH
            assert answer[-2:] == [".", "<eos>"]
            assert answer.count(":") == (len(asked) - 1 if long else 0)
            found = re.search(pattern, " ".join(answer[:-2]))
            assert found is not None
            assert tuple(found[1].split()) == Question("sort", tuple(asked)).result
            longest = max(longest, len(answer) - 1)
    assert longest == MOST_TOKENS


def test_no_text_is_an_item() -> None:
    items = _questions(3000, np.random.default_rng(1))
    assert len(set(items)) == 3000
    assert {len(question.names) for question in items} == set(range(NAMES[0], NAMES[1] + 1))
    draw, withheld = _learner(frozenset(items), long=False), {" ".join(question.in_e) for question in items}
    rng = np.random.default_rng(2)
    for _ in range(100):
        own = draw(rng)
        asked = " ".join(VOCABULARY[i] for i, learnt in zip(own.ids, own.learnt, strict=True) if not learnt)
        assert asked.removeprefix("<bos> ") not in withheld
