"""Templates and regular expressions of tasks that never end are ended; those that end give the same as ever."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.config.trust import check_trust
from evomerge.errors import ConfigError, FitnessError
from fitness._lm_eval import time_limit
from fitness.lm_eval_tasks import LmEvalFitness

LIMIT = 0.3
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}" + "{% endfor %}" * 3
BACKTRACK = "{{ q | regex_replace('(a+)+$', '') }}"
A = "a" * 60 + "!"


def write_task(folder: Path, rows: list[dict[str, str]], **config: Any) -> Path:
    """A generative task over these rows."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "generation_kwargs": {"max_gen_toks": 2, "until": ["."]},
        "doc_to_text": "{{ q }}",
        "doc_to_target": "a",
        "metric_list": [{"metric": "exact_match"}],
        **config,
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    return folder / "mine.yaml"


def scored(fitness: LmEvalFitness, model: Any) -> Any:
    fitness.check()
    fitness.prepare(model)
    return fitness.run(model)


def ended(fitness: LmEvalFitness, model: Any, doing: str) -> None:
    """Scoring must end soon, at that stage, in one line that says what to do, and leave no signal behind."""
    says = f"task '.*': .* still run after 0.3 s of {doing}; .*fitness.task_timeout"
    with pytest.raises(FitnessError, match=says) as caught:
        scored(fitness, model)
    assert "\n" not in str(caught.value)
    assert time_limit._clock is None
    assert signal.getsignal(signal.SIGVTALRM) == signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


def fitness_of(path: Path, **kwargs: Any) -> LmEvalFitness:
    return LmEvalFitness([str(path)], **{"task_timeout": LIMIT, "batch_size": 2, **kwargs})


@pytest.mark.parametrize("template", [LOOP, BACKTRACK])
@pytest.mark.parametrize("key", ["doc_to_text", "doc_to_target"])
def test_a_template_that_never_ends_is_ended_on_loading(tmp_path: Path, model: Any, template: str, key: str) -> None:
    path = write_task(tmp_path, [{"q": A, "a": "w1"}], **{key: template})
    ended(fitness_of(path), model, "loading it")


@pytest.mark.parametrize("template", [LOOP, BACKTRACK])
def test_one_that_never_ends_for_a_later_document(tmp_path: Path, model: Any, template: str) -> None:
    rows = [{"q": q, "a": "w1"} for q in ("w1", "w2", A)]
    path = write_task(tmp_path, rows, doc_to_text=f"{{% if q[0] == 'a' %}}{template}{{% endif %}}w3")
    ended(fitness_of(path), model, "building its items")


def test_texts_for_reports_are_limited_too(tmp_path: Path) -> None:
    rows = [{"q": q, "a": "w1"} for q in ("w1", A)]
    fitness = fitness_of(write_task(tmp_path, rows, doc_to_text=f"{{% if q[0] == 'a' %}}{LOOP}{{% endif %}}w3"))
    fitness.check()
    with pytest.raises(FitnessError, match="building its items"):
        fitness.texts(5)


@pytest.mark.parametrize(
    "config",
    [
        {"filter_list": [{"name": "f", "filter": [{"function": "regex", "regex_pattern": "(([^q]|.)+)+$^"}]}]},
        {"metric_list": [{"metric": "exact_match", "regexes_to_ignore": ["(([^q]|.)+)+$^"]}]},
    ],
)
def test_filters_and_metrics_of_a_response(tmp_path: Path, model: Any, config: dict[str, Any]) -> None:
    generation = {"generation_kwargs": {"max_gen_toks": 24, "until": []}}
    path = write_task(tmp_path, [{"q": "w1 w2", "a": "w1 " * 20}], **generation, **config)
    ended(fitness_of(path), model, "scoring a candidate")


def test_a_chat_template_that_never_ends(tmp_path: Path, model: Any) -> None:
    model.tokenizer.chat_template = LOOP
    ended(
        fitness_of(write_task(tmp_path, [{"q": "w1", "a": "w1"}]), apply_chat_template=True),
        model,
        "building its items",
    )


def test_what_many_documents_take_together_is_not_limited(tmp_path: Path, model: Any) -> None:
    rows = [{"q": f"w{i % 40}", "a": "w1"} for i in range(40)]
    slow = "{% for a in range(40) %}{% for b in range(2000) %}{% endfor %}{% endfor %}{{ q }}"
    path = write_task(tmp_path, rows, doc_to_text=slow)
    fitness, free = fitness_of(path, task_timeout=0.2), fitness_of(path, task_timeout=None)
    for each in (fitness, free):
        each.check()
        each.prepare(model)
    assert fitness.fingerprint() == free.fingerprint()
    assert fitness.run(model).objectives == free.run(model).objectives


def test_code_that_was_asked_for_takes_what_it_likes(tmp_path: Path, model: Any) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\n\ndef score(doc, results):\n"
        "    end = time.thread_time() + 0.6\n    while time.thread_time() < end:\n        pass\n"
        "    return {'exact_match': 1.0}\n"
    )
    path = write_task(tmp_path, [{"q": "w1", "a": "w1"}])
    path.write_text(path.read_text() + "process_results: !function slow.score\n")
    fitness = fitness_of(path)
    fitness.check()
    fitness.prepare(model)
    assert fitness.run(model).objectives == {"score": 1.0}


def test_other_threads_have_no_limit_and_leave_signals_alone(tmp_path: Path, model: Any) -> None:
    fitness, problems = fitness_of(write_task(tmp_path, [{"q": "w1", "a": "w1"}])), list[BaseException]()

    def work() -> None:
        try:
            fitness.check()
            fitness.prepare(model)
            fitness.run(model)
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert problems == []


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), True])
def test_seconds_that_are_none(seconds: Any) -> None:
    with pytest.raises(ConfigError, match=r"task_timeout is .*; seconds above 0, or null for no limit"):
        LmEvalFitness(["x"], task_timeout=seconds)


@pytest.mark.parametrize("seconds", [None, 1e9, "300", float("nan")])
def test_a_stranger_cannot_lift_the_limit(seconds: Any) -> None:
    for key in ("fitness", "held_out"):
        content = {key: {"_target_": "fitness.lm_eval_tasks.LmEvalFitness", "tasks": [], "task_timeout": seconds}}
        with pytest.raises(ConfigError, match=rf"{key}.task_timeout.*more than 300 s unasked.*--trust"):
            check_trust(content, ["name=x"], "it")
        check_trust(content, [f"{key}.task_timeout=null"], "it")
    check_trust({"fitness": {"task_timeout": 300}}, [], "it")


def test_data_that_is_no_json_is_said_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_task(tmp_path, [{"q": "w1", "a": "w1"}])
    (tmp_path / "rows.jsonl").write_text("this is {no json\n")
    with pytest.raises(FitnessError, match=r"cannot be loaded: .*JSON parse error") as caught:
        fitness_of(path).check()
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
