"""What tasks are told of generation, and how many of something they ask for, checked when they are loaded."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import FitnessError
from fitness.lm_eval_tasks import LmEvalFitness


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "items.jsonl").write_text("".join(json.dumps({"q": f"w{i}", "a": "w9"}) + "\n" for i in range(3)))
    return {
        "task": "write",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "items.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "q",
        "doc_to_target": "a",
        "metric_list": [{"metric": "exact_match"}],
    }


GOOD = [
    {"until": []},
    {"until": "\n"},
    {"until": ["a", "b"]},
    {"max_gen_toks": None},
    {"max_gen_toks": 8},
    {"top_k": 3},
    {"num_beams": 2, "top_p": 1, "min_p": None, "repetition_penalty": 1.1, "top_k": 0},
]
BAD = [
    ("until", 3, "a text that ends a response, or a list of them; [] for none"),
    ("until", None, "a text that ends a response"),
    ("until", ["a", 3], "a text that ends a response"),
    ("until", {"a": "b"}, "a text that ends a response"),
    ("max_gen_toks", -3, "how many tokens a response has at most: a whole number, 1 or more"),
    ("max_new_tokens", 0, "a whole number, 1 or more"),
    ("max_tokens", True, "a whole number, 1 or more"),
    ("max_gen_toks", 1.5, "a whole number, 1 or more"),
    ("temperature", -1, "a number, 0 or more"),
    ("do_sample", 1, "true or false"),
    ("num_beams", 0, "a whole number, 1 or more"),
    ("num_beams", "two", "a whole number, 1 or more"),
    ("top_k", 1.5, "a whole number, 0 or more"),
    ("top_p", 2, "a number from 0 to 1"),
    ("repetition_penalty", 0, "a number above 0"),
]


@pytest.mark.parametrize("given", GOOD, ids=str)
def test_what_lm_eval_takes_is_taken(given: dict[str, Any], task: dict[str, Any]) -> None:
    fitness = LmEvalFitness([{"task": task}], gen_kwargs=given)
    fitness.check()
    assert fitness.work()["written"] == 3 * (given.get("max_gen_toks") or 256)


@pytest.mark.parametrize(("key", "value", "says"), BAD, ids=str)
def test_odd_kinds_are_named_with_who_says_them(key: str, value: Any, says: str, task: dict[str, Any]) -> None:
    own, term = {"task": {**task, "generation_kwargs": {key: value}}}, {"task": task, "gen_kwargs": {key: value}}
    for given, where in (
        (LmEvalFitness([{"task": task}], gen_kwargs={key: value}), f"gen_kwargs.{key} is {value!r}"),
        (LmEvalFitness([term]), f"{key} in the gen_kwargs of task 'write' is {value!r}"),
        (LmEvalFitness([own]), f"task 'write': generation_kwargs.{key} of its YAML is {value!r}"),
    ):
        with pytest.raises(FitnessError) as caught:
            given.check()
        assert str(caught.value).startswith(where)
        assert says in str(caught.value)
    LmEvalFitness([{**own, "gen_kwargs": {key: dict(GOOD_OF)[key]}}]).check()  # which goes before


GOOD_OF = [("until", "x"), ("max_gen_toks", 4), ("max_new_tokens", 4), ("max_tokens", 4), ("temperature", 0.5)]
GOOD_OF += [("do_sample", False), ("num_beams", 1), ("top_k", 5), ("top_p", 0.5), ("repetition_penalty", 2)]


def test_arguments_that_nothing_uses_are_named(task: dict[str, Any]) -> None:
    read = {**task, "task": "read", "output_type": "loglikelihood", "metric_list": [{"metric": "acc"}]}
    told = {"temperature": -1, "top_k": 3}
    assert LmEvalFitness([{"task": read}], gen_kwargs=told).cautions() == [
        "not used, since nothing is generated: gen_kwargs.temperature, gen_kwargs.top_k"
    ]
    own = [{"task": read, "gen_kwargs": {"until": "x"}}, {"task": task}]
    assert LmEvalFitness(own, gen_kwargs={"top_k": 3}).cautions() == [
        "not used, since nothing is generated: until in the gen_kwargs of task 'read'"
    ]
    assert LmEvalFitness([{"task": task}], gen_kwargs={"top_k": 3}).cautions() == []


@pytest.mark.parametrize(
    ("key", "value", "least"),
    [("num_fewshot", -2, 0), ("num_fewshot", "two", 0), ("repeats", 0, 1), ("repeats", True, 1)],
)
def test_counts_of_a_task_are_counts(key: str, value: Any, least: int, task: dict[str, Any]) -> None:
    with pytest.raises(FitnessError) as caught:
        LmEvalFitness([{"task": {**task, key: value}}]).check()
    if "cannot be loaded" not in str(caught.value):  # lm-eval refuses some itself
        assert str(caught.value) == f"task 'write' has {key} {value!r}; a whole number, {least} or more"


def test_a_choice_without_choices_says_so(task: dict[str, Any]) -> None:
    chosen = {**task, "output_type": "multiple_choice", "metric_list": [{"metric": "acc"}]}
    with pytest.raises(FitnessError, match=r"^task 'write' has output_type multiple_choice and no doc_to_choice; "):
        LmEvalFitness([{"task": chosen}]).check()
    LmEvalFitness([{"task": {**chosen, "doc_to_choice": ["w1", "w9"]}}]).check()


def test_an_error_without_words_says_where_it_was_raised() -> None:
    from fitness._lm_eval.task_errors import reason

    def silent() -> None:
        raise TypeError

    with pytest.raises(TypeError) as caught:
        silent()
    assert reason(caught.value).startswith("TypeError, raised in silent (test_generation_arguments.py:")
    assert reason(ValueError("two\nlines")) == "ValueError: two lines"


MISTYPED = [
    ("temperatur", "did you mean 'temperature'?"),
    ("max_gen_tokens", "did you mean 'max_gen_toks'?"),
    ("repetition_penalti", "did you mean 'repetition_penalty'?"),
    ("num_beam", "did you mean 'num_beams'?"),
    ("presence_penalti", "did you mean 'presence_penalty'?"),
]


@pytest.mark.parametrize(("name", "meant"), MISTYPED, ids=str)
def test_a_mistyped_name_is_named_before_a_model_is_loaded(name: str, meant: str, task: dict[str, Any]) -> None:
    with pytest.raises(FitnessError, match=rf"^there is no gen_kwargs\.{name}; {meant.replace('?', '[?]')}"):
        LmEvalFitness([{"task": task}], gen_kwargs={name: 2}).check()
    own = task | {"generation_kwargs": {name: 2}}
    with pytest.raises(FitnessError, match=rf"there is no task 'write': generation_kwargs\.{name} of its YAML; did"):
        LmEvalFitness([{"task": own}]).check()


def test_a_name_that_only_a_models_own_code_knows_is_left_to_it(task: dict[str, Any]) -> None:
    LmEvalFitness([{"task": task}], gen_kwargs={"diffusion_steps": 3}).check()


def test_names_that_only_one_engine_has(task: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's are read from its source, where it is installed."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "sampling_params.py").write_text(
        "class SamplingParams(Base):\n    temperature: float = 1.0\n    top_p: float = 1.0\n    _own: int = 3\n"
        "    presence_penalty: float = 0.0\n    brand_new: int = 1\n"
    )
    spec = importlib.util.spec_from_file_location(
        "vllm", tmp_path / "vllm" / "__init__.py", submodule_search_locations=[str(tmp_path / "vllm")]
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "vllm" else None)
    both = LmEvalFitness([{"task": task, "gen_kwargs": {"until": ["x"]}}], gen_kwargs={"max_gen_toks": 3, "top_p": 0.5})
    both.check_engine("vllm")
    both.check_engine("transformers")
    LmEvalFitness([{"task": task}], gen_kwargs={"brand_new": 2}).check_engine("vllm")
    penalty = LmEvalFitness([{"task": task, "gen_kwargs": {"presence_penalty": 1}}])
    penalty.check_engine("vllm")
    with pytest.raises(FitnessError, match=r"presence_penalty in the gen_kwargs of task .* is 1 .*is transformers"):
        penalty.check_engine("transformers")
    for name in ("num_beams", "_own"):
        with pytest.raises(FitnessError, match=rf"^gen_kwargs\.{name} is 2 and evaluator.engine is vllm; what vLLM's"):
            LmEvalFitness([{"task": task}], gen_kwargs={name: 2}).check_engine("vllm")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)  # a cluster's workers know better
    LmEvalFitness([{"task": task}], gen_kwargs={"num_beams": 2}).check_engine("vllm")
