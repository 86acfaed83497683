"""What a task's own templates, functions and data raise: which task, which document, where to look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import FitnessError
from fitness.lm_eval_tasks import LmEvalFitness

YAML = """
output_type: generate_until
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 2}}
"""
DOCUMENTS = [{"q": "w1", "a": "w1", "n": 1}, {"q": "w2", "a": "w2", "n": 10**9}, {"q": "w3", "a": "w3", "n": 2}]


def task(folder: Path, name: str, rest: str, code: str = "") -> LmEvalFitness:
    data = folder / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, DOCUMENTS)))
    (folder / "own_code.py").write_text(code)
    (folder / f"{name}.yaml").write_text(f"task: {name}{YAML.format(data=data)}{rest}")
    return LmEvalFitness([name], include_path=str(folder))


def said(fitness: LmEvalFitness, model: Any) -> str:
    def scored() -> None:
        fitness.check()
        fitness.prepare(model)
        fitness.run(model)

    with pytest.raises(FitnessError) as error:
        scored()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_template(tmp_path: Path, model: Any) -> None:
    text = 'doc_to_text: "{% for i in range(n) %}{% endfor %}{{q}}"\nmetric_list: [{metric: exact_match}]\n'
    line = said(task(tmp_path, "counts", text), model)
    assert line.startswith(
        "task 'counts', document 1 (from 0): its prompt cannot be built: OverflowError: Range too big"
    )
    assert "look at doc_to_text" in line
    assert '{"q": "w2", "a": "w2", "n": 1000000000}' in line


def test_a_function_that_scores(tmp_path: Path, model: Any) -> None:
    text = "doc_to_text: q\nprocess_results: !function own_code.score\nmetric_list: [{metric: acc}]\n"
    code = "def score(doc, results):\n    return {'acc': 1 / (doc['n'] - 2)}\n"
    line = said(task(tmp_path, "divides", text, code), model)
    assert line.startswith("task 'divides', document 2 (from 0): its response cannot be scored: ZeroDivisionError")
    assert "own_code.py:2" in line
    assert '"q": "w3"' in line


def test_a_function_that_reads(tmp_path: Path, model: Any) -> None:
    text = "doc_to_text: q\nprocess_docs: !function own_code.docs\nmetric_list: [{metric: exact_match}]\n"
    code = "def docs(dataset):\n    raise KeyError('answer')\n"
    line = said(task(tmp_path, "reads", text, code), model)
    assert line.startswith("task 'reads' cannot be loaded: KeyError: 'answer'")
    assert "look at own_code.py:2" in line


def test_a_function_that_aggregates(tmp_path: Path, model: Any) -> None:
    text = (
        "doc_to_text: q\nprocess_results: !function own_code.score\n"
        "metric_list: [{metric: acc, aggregation: !function own_code.total, higher_is_better: true}]\n"
    )
    code = "def score(doc, results):\n    return {'acc': 1}\n\n\ndef total(values):\n    return values[10]\n"
    line = said(task(tmp_path, "sums", text, code), model)
    assert line.startswith("task 'sums': its acc cannot be aggregated: IndexError")
    assert "own_code.py:6" in line
