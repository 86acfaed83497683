from __future__ import annotations

import numpy as np
import pytest

from evomerge.demo.items import Question, Text, Texts, sorting_questions
from evomerge.demo.languages import VOCABULARY


def words(text: Text, learnt: bool | None = None) -> str:
    chosen = zip(text.ids, text.learnt, strict=True)
    return " ".join(VOCABULARY[number] for number, flag in chosen if learnt is None or flag == learnt)


def test_a_question_in_both_languages():
    question = Question("sort", ("five", "two", "nine"))
    assert " ".join(question.in_e) == ": sort five two nine is"
    assert " ".join(question.in_j) == "narabe go ni kyuu wa"
    assert question.result == ("two", "five", "nine")


@pytest.mark.parametrize(
    ("verb", "result"), [("repeat", ("dog", "two", "cat")), ("first", ("dog",)), ("last", ("cat",))]
)
def test_simple_verbs(verb, result):
    assert Question(verb, ("dog", "two", "cat")).result == result


def test_all_orderings_of_three_or_four_digits():
    questions = sorting_questions()
    assert len(questions) == len(set(questions)) == 720 + 5040


def test_texts_learn_answers_only_and_fit_the_positions():
    texts = Texts(sorting_questions(), frozenset())
    rng = np.random.default_rng(0)
    for kind, draw in texts.kinds.items():
        for _ in range(300):
            text = draw(rng)
            assert len(text.ids) == len(text.learnt) <= 32, kind
            assert any(text.learnt), kind
            assert not text.learnt[0], kind


def test_restatements_stop_before_the_answer_and_reports_learn_j_only():
    texts = Texts(sorting_questions(), frozenset())
    rng = np.random.default_rng(1)
    for _ in range(50):
        assert words(texts.restate(rng), learnt=True).split()[-1] == "is"
        assert words(texts.report(rng), learnt=True).split()[0] == "wa"


def test_texts_answer_questions_rightly():
    texts = Texts([Question("sort", ("nine", "one", "four"))], frozenset())
    rng = np.random.default_rng(2)
    assert {words(texts.sort(rng), learnt=True) for _ in range(30)} == {"one four nine . <eos>"}
    assert {words(texts.sort_anywhere(rng), learnt=True) for _ in range(30)} == {
        "one four nine . <eos>",
        "one four nine .",
    }


def test_withheld_questions_are_never_learnt():
    rng = np.random.default_rng(3)
    drawn = [words(Texts([], frozenset()).simple(rng)) for _ in range(400)]
    short = [text for text in drawn if text.startswith("<bos> : first")]
    assert short, "the generator should draw such questions"
    names = tuple(short[0].split(" is ")[0].split()[3:])
    withheld = Texts([], frozenset({Question("first", names)}))
    rng = np.random.default_rng(3)
    redrawn = [words(withheld.simple(rng)) for _ in range(400)]
    assert short[0] not in redrawn
