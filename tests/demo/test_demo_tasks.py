from __future__ import annotations

import json

import numpy as np
import yaml

from evomerge.demo.items import Question, sorting_questions
from evomerge.demo.tasks import E_MATHS, HELD_OUT_SKILLS, J_LANGUAGE, J_MATHS, SKILLS, as_row, draw_items, write_tasks


def test_rows_of_the_skills():
    question = Question("sort", ("five", "two", "nine"))
    assert as_row(E_MATHS, question) == {"text": ": sort five two nine is", "answer": "two five nine ."}
    assert as_row(f"{J_MATHS}_held_out", question) == {
        "text": "narabe go ni kyuu wa :",
        "answer": "sort five two nine is two five nine . wa ni go kyuu .",
    }
    assert as_row(J_LANGUAGE, Question("last", ("cat", "dog")))["answer"] == "last cat dog is dog . wa inu ."


def test_no_question_is_in_two_tasks_or_left_to_learn():
    items = draw_items(50, 70, np.random.default_rng(0))
    questions = [question for task in (*SKILLS, *HELD_OUT_SKILLS) for question in items.of_task[task]]
    assert len(questions) == len(set(questions)) == 3 * (50 + 70)
    assert set(items.sorting_to_learn) == set(sorting_questions()) - set(questions)


def test_no_two_items_share_all_tokens_but_the_last_with_answers_of_unequal_length():
    items = draw_items(250, 1000, np.random.default_rng(1))
    seen: dict[tuple[str, ...], int] = {}
    for task, questions in items.of_task.items():
        for question in questions:
            row = as_row(task, question)
            tokens, answer = (row["text"] + " " + row["answer"]).split(), row["answer"].split()
            assert seen.setdefault(tuple(tokens[:-1]), len(answer)) == len(answer)


def test_files_refer_to_where_they_will_lie(tmp_path):
    items = draw_items(3, 4, np.random.default_rng(2))
    final = tmp_path / "final" / "tasks"
    write_tasks(tmp_path / "made", final, items)
    for task, count in [(J_MATHS, 3), (f"{J_MATHS}_held_out", 4)]:
        config = yaml.safe_load((tmp_path / "made" / f"{task}.yaml").read_text())
        assert config["task"] == task
        assert config["dataset_kwargs"]["data_files"] == {"test": str(final / f"{task}.jsonl")}
        rows = [json.loads(line) for line in (tmp_path / "made" / f"{task}.jsonl").read_text().splitlines()]
        assert rows == [as_row(task, question) for question in items.of_task[task]]
        assert len(rows) == count
