"""The lm-eval tasks of the demo pool: three skills, each with search items and held-out items."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from evomerge.demo.items import Question, simple_question, sorting_questions
from evomerge.demo.languages import STOP, WA, to_j

E_MATHS, J_LANGUAGE, J_MATHS = "demo_e_maths", "demo_j_language", "demo_j_maths"

SKILLS = (E_MATHS, J_LANGUAGE, J_MATHS)
"""The search tasks."""

HELD_OUT_SKILLS = tuple(f"{skill}_held_out" for skill in SKILLS)
"""The held-out tasks, in the order of `SKILLS`."""


@dataclass(frozen=True)
class Items:
    """The questions of each task, and the sorting questions left for training. No question is in two places."""

    of_task: Mapping[str, Sequence[Question]]
    sorting_to_learn: Sequence[Question]


def draw_items(search: int, held_out: int, rng: np.random.Generator) -> Items:
    """Draw `search` and `held_out` questions for every skill."""
    sorting = sorting_questions()
    order = [sorting[i] for i in rng.permutation(len(sorting))]
    simple: dict[Question, None] = {}  # a set that keeps the order
    while len(simple) < search + held_out:
        simple[simple_question(rng)] = None
    pools = {E_MATHS: order[: search + held_out], J_LANGUAGE: list(simple)}
    pools[J_MATHS] = order[search + held_out : 2 * (search + held_out)]
    of_task: dict[str, Sequence[Question]] = {skill: pools[skill][:search] for skill in SKILLS}
    of_task |= {f"{skill}_held_out": pools[skill][search:] for skill in SKILLS}
    return Items(of_task, order[2 * (search + held_out) :])


def as_row(task: str, question: Question) -> dict[str, str]:
    """The item as a row: `text`, and the `answer` that is right only when every word of it is.

    A J question is answered through E: its restatement, the result in E, and the result in J. No answer begins another
    item's text, so no two items share their tokens up to the last one.
    """
    if task.startswith(E_MATHS):
        prompt, answer = question.in_e, (*question.result, STOP)
    else:
        prompt, restated = question.in_both
        answer = (*restated, *question.result, STOP, WA, *to_j(question.result), STOP)
    return {"text": " ".join(prompt), "answer": " ".join(answer)}


def write_tasks(folder: Path, final: Path, items: Items) -> None:
    """Write every task's YAML and JSONL to `folder`; the YAML refers to the items at `final`, where they will lie.

    lm-eval resolves relative data files against the current directory, so the path is absolute.
    """
    folder.mkdir(parents=True)
    for task, questions in items.of_task.items():
        rows = "".join(json.dumps(as_row(task, question)) + "\n" for question in questions)
        (folder / f"{task}.jsonl").write_text(rows, encoding="utf-8")
        config = {
            "task": task,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(final.absolute() / f"{task}.jsonl")}},
            "test_split": "test",
            "output_type": "loglikelihood",
            "doc_to_text": "{{text}}",
            "doc_to_target": " {{answer}}",  # lm-eval puts no delimiter before a loglikelihood target
            "metric_list": [
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            ],
            "metadata": {"version": 1.0},
        }
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
