"""What a task's own templates, functions and data raise: which task, which document, where to look."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import FitnessError
from evomerge.models.loaded import ModelOutline
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


@pytest.mark.parametrize(
    ("kind", "target", "shows"),
    [
        ("loglikelihood", "17", "17 of type int"),
        ("loglikelihood", "n", "1 of type int"),
        ("loglikelihood", "[w1, w2]", '["w1", "w2"] of type list'),
        ("loglikelihood", "nothing", "null of type NoneType"),
        ("loglikelihood_rolling", "n", "1 of type int"),
    ],
)
def test_requests_that_are_no_text(kind: str, target: str, shows: str, tmp_path: Path, model: Any) -> None:
    fitness = task(tmp_path, "odd", "doc_to_text: q\nmetric_list: [{metric: acc}]\n")
    yaml = tmp_path / "odd.yaml"
    text = yaml.read_text().replace("generate_until", kind).replace('"{{a}}"', target)
    yaml.write_text(text.replace("metric: acc", "metric: word_perplexity") if "rolling" in kind else text)
    rows = [{**each, "nothing": None} for each in DOCUMENTS]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    outline = ModelOutline(model.module.config, model.tokenizer, model.dtype, 2, True)
    for look in (lambda: fitness.memory(outline), lambda: fitness.prepare(model)):  # `validate`, and scoring
        with pytest.raises(FitnessError) as error:
            look()
        assert str(error.value).startswith(
            f"task 'odd', document 0 (from 0): its prompt cannot be built: doc_to_target gives {shows}; a text; "
            "look at doc_to_target of the task and at the document"
        )


def test_a_tokenizer_that_raises(tmp_path: Path, model: Any) -> None:
    class Broken(type(model.tokenizer)):  # type: ignore[misc]
        def encode(self, text: str, *args: Any, **kwargs: Any) -> list[int]:
            if text == "w2":
                raise ValueError("no such word")
            return list(super().encode(text, *args, **kwargs))

    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.__class__ = Broken
    for kind in ("generate_until", "loglikelihood", "loglikelihood_rolling"):
        task(tmp_path, "broken", "doc_to_text: q\nmetric_list: [{metric: exact_match}]\n")
        yaml = tmp_path / "broken.yaml"
        yaml.write_text(yaml.read_text().replace("generate_until", kind).replace('"{{a}}"', "q"))
        fitness = LmEvalFitness(["broken"], include_path=str(tmp_path))
        with pytest.raises(FitnessError) as error:
            fitness.prepare(replace(model, tokenizer=tokenizer))
        assert str(error.value).startswith(
            "task 'broken', document 1 (from 0): its tokens cannot be made: ValueError: no such word; look at"
        )
