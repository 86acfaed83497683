from __future__ import annotations

import json
from typing import Any

from fitness.lm_eval_tasks import LmEvalFitness


def rows(tasks: Any, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tasks.path / f"{name}_test.jsonl").read_text().splitlines()]


def test_texts_are_those_of_the_first_items_in_their_order(tasks: Any) -> None:
    terms = ["choose", {"task": "complete", "limit": 4}, "write"]
    fitness = LmEvalFitness(terms, include_path=str(tasks.path), limit=7)
    texts = fitness.texts(5)
    assert {name: len(items) for name, items in texts.items()} == {"choose": 5, "complete": 4, "write": 5}
    first = rows(tasks, "choose")[0]
    assert texts["choose"][0] == {"prompt": f"q : {first['q']} a :", "target": first["c"][first["gold"]]}
    for row, text in zip(rows(tasks, "complete"), texts["complete"], strict=False):
        assert text == {"prompt": f"{row['q']} :", "target": f" {row['a']}"}
