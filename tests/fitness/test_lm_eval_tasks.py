from __future__ import annotations

import logging
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import ConfigError, FitnessError
from fitness._lm_eval import loading as _lm_eval_loading
from fitness.lm_eval_tasks import LmEvalFitness


def run(model: Any, terms: list[Any], **kwargs: Any) -> Any:
    fitness = LmEvalFitness(terms, **kwargs)
    fitness.check()
    fitness.prepare(model)
    return fitness.run(model)


def error(terms: list[Any], **kwargs: Any) -> str:
    with pytest.raises(FitnessError) as caught:
        LmEvalFitness(terms, **kwargs).check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The objective


def test_objective_is_the_weighted_mean_of_weighted_metrics(model: Any, tasks: Any) -> None:
    terms = [
        {"task": "choose", "metrics": {"acc": 2.0, "brier_score": 0.5}, "weight": 3.0},
        {"task": "complete", "metrics": {"perplexity": {"weight": 0.05, "transform": "log"}, "acc": 1}},
        {"task": "read", "metrics": ["bits_per_byte"], "weight": 0.5},
        {"task": "write", "metrics": {"exact_match,word": 1.0}},
    ]
    scores = run(model, terms, include_path=str(tasks.path))
    m = scores.metrics
    expected = (
        3.0 * (2.0 * m["choose/acc"] - 0.5 * m["choose/brier_score"])
        + (0.05 * -scores.items["complete/perplexity"].mean() + m["complete/acc"])
        - 0.5 * m["read/bits_per_byte"]
        + m["write/exact_match,word"]
    ) / 5.5
    assert scores.objectives == {"score": pytest.approx(expected, rel=1e-12)}
    assert math.log(m["complete/perplexity"]) == pytest.approx(scores.items["complete/perplexity"].mean())


def test_tasks_may_make_objectives_of_their_own(model: Any, tasks: Any) -> None:
    terms = [
        {"task": "choose", "metrics": {"acc": 2.0}, "weight": 3.0, "objective": "choices"},
        {"task": "write", "metrics": {"exact_match,word": 1.0}},
        {"task": "complete", "metrics": {"acc": 1.0}, "objective": "choices"},
    ]
    fitness = LmEvalFitness(terms)
    assert [(o.name, o.direction) for o in fitness.objectives] == [("choices", "maximize"), ("score", "maximize")]
    scores = run(model, terms, include_path=str(tasks.path))
    m = scores.metrics
    expected = {"choices": (6.0 * m["choose/acc"] + m["complete/acc"]) / 4.0, "score": m["write/exact_match,word"]}
    assert scores.objectives == pytest.approx(expected, rel=1e-12)


def test_default_metric_is_the_first_reported(model: Any, tasks: Any) -> None:
    scores = run(model, ["choose", "read", "write"], include_path=str(tasks.path))
    m = scores.metrics
    expected = (m["choose/acc"] - m["read/word_perplexity"] + m["write/exact_match,whole"]) / 3
    assert scores.objectives["score"] == pytest.approx(expected, rel=1e-12)


def test_metric_without_filter_takes_the_first_filter(model: Any, tasks: Any) -> None:
    named = run(model, [{"task": "write", "metrics": "exact_match"}], include_path=str(tasks.path))
    assert named.objectives["score"] == named.metrics["write/exact_match,whole"]
    plain = run(model, [{"task": "choose", "metrics": "acc,none"}], include_path=str(tasks.path))
    assert plain.objectives["score"] == plain.metrics["choose/acc"]


def test_items_of_right_answers_average_to_the_metric(model: Any, tasks: Any) -> None:
    scores = run(model, ["choose", "complete", "write"], include_path=str(tasks.path))
    for key in ("choose/acc", "choose/acc_norm", "complete/acc", "write/exact_match,word"):
        assert set(scores.items[key]) <= {0.0, 1.0}
        assert scores.items[key].mean() == pytest.approx(scores.metrics[key], rel=1e-12)
    assert 0 < scores.metrics["choose/acc"] < 1
    assert 0 < scores.metrics["write/exact_match,word"] < 1


def test_perplexity_beyond_floats(model: Any, tasks: Any) -> None:
    with torch.no_grad():
        model.module.lm_head.weight.mul_(1000.0)
    log = {"task": "complete", "metrics": {"perplexity": {"transform": "log"}}}
    scores = run(model, [log], include_path=str(tasks.path))
    assert scores.metrics["complete/perplexity"] == math.inf
    assert scores.objectives["score"] == pytest.approx(-scores.items["complete/perplexity"].mean())
    assert scores.objectives["score"] < -709
    with pytest.raises(FitnessError, match=r"complete/perplexity is inf.*transform: log"):
        run(model, [{"task": "complete", "metrics": "perplexity"}], include_path=str(tasks.path))


def test_a_logarithm_of_nothing_counts_half_an_item_on_some_of_them(model: Any, tasks: Any) -> None:
    fitness = LmEvalFitness(
        [{"task": "choose", "metrics": {"acc": {"transform": "log"}}}], include_path=str(tasks.path)
    )
    fitness.check()
    fitness.prepare(model)
    whole = fitness.run(model)
    right = whole.items["choose/acc"]
    wrong, count = np.flatnonzero(right == 0).tolist(), len(right)
    assert len(wrong) > 1
    assert whole.objectives["score"] == pytest.approx(math.log(right.mean()))
    scores = fitness.run(model, {"choose": wrong[:2]})
    assert scores.metrics["choose/acc"] == 0
    assert scores.objectives["score"] == pytest.approx(math.log(0.5 / count))
    estimator = fitness.build_estimator()
    estimator.fit([])
    assert estimator.estimate(scores.items)["score"].value == pytest.approx(math.log(0.5 / count))
    scorer = fitness._ready().scorers["choose"]
    with pytest.raises(FitnessError, match=r"choose/acc is 0.0; a number above 0 for transform: log"):
        scorer.log_metric("acc", {"acc": dict.fromkeys(range(count), 0.0)}, 0.0)


def test_term_overrides(model: Any, tasks: Any) -> None:
    terms = [{"task": "choose", "limit": 4, "num_fewshot": 2}, {"task": "write", "gen_kwargs": {"max_gen_toks": 1}}]
    scores = run(model, terms, include_path=str(tasks.path), limit=7)
    assert len(scores.items["choose/acc"]) == 4
    assert len(scores.items["write/exact_match,word"]) == 7
    alone = run(model, ["choose"], include_path=str(tasks.path), limit=4, num_fewshot=2)
    np.testing.assert_allclose(scores.items["choose/brier_score"], alone.items["choose/brier_score"], rtol=1e-5)
    # the first token is all there is, so what follows it cannot spoil the whole
    np.testing.assert_array_equal(scores.items["write/exact_match,word"], scores.items["write/exact_match,whole"])


def test_tags_count_as_the_mean_of_their_tasks(model: Any, tasks: Any, tmp_path: Path) -> None:
    for name in ("choose", "complete"):
        text = (tasks.path / f"{name}.yaml").read_text()
        (tmp_path / f"{name}.yaml").write_text(text + "tag: pair\n")
    scores = run(model, [{"task": "pair", "metrics": "acc"}], include_path=str(tmp_path))
    expected = (scores.metrics["choose/acc"] + scores.metrics["complete/acc"]) / 2
    assert scores.objectives["score"] == pytest.approx(expected, rel=1e-12)


# What is wrong with the request


@pytest.fixture
def managers(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each task index that is made holds the built-in tasks; none is read (it takes 14 s)."""
    made: list[bool] = []
    real = _lm_eval_loading.TaskManager

    def manager(include_path: Any = None, include_defaults: bool = True) -> Any:
        made.append(include_defaults)
        return real(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(_lm_eval_loading, "TaskManager", manager)
    return made


def test_index_of_built_in_tasks_is_read_only_when_needed(tasks: Any, managers: list[bool]) -> None:
    terms = ["choose", str(tasks.path / "read.yaml"), {"task": {"task": "own", "dataset_path": "json"}}]
    LmEvalFitness(terms[:2], include_path=str(tasks.path)).check()
    assert managers == [False]
    message = error(["chose", "read"], include_path=str(tasks.path))
    assert managers == [False, False, True]
    assert "'chose' is unknown" in message
    assert "did you mean 'choose'?" in message


def test_group_of_built_in_tasks_needs_their_index(tasks: Any, managers: list[bool], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("group: mine\ntask: [arc_easy]\n")
    error(["mine"], include_path=str(tmp_path))
    assert managers == [False, True]


def test_metric_that_the_task_does_not_report(tasks: Any) -> None:
    message = error([{"task": "complete", "metrics": ["accuracy"]}], include_path=str(tasks.path))
    assert "task 'complete' does not report the metric 'accuracy'" in message
    assert "acc, perplexity" in message
    message = error([{"task": "write", "metrics": "exact_match,strict"}], include_path=str(tasks.path))
    assert "exact_match,whole, exact_match,word" in message


def test_data_files_that_do_not_exist(tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    text = (tasks.path / "read.yaml").read_text()
    absolute = str(tasks.path / "read_test.jsonl")
    (folder / "read.yaml").write_text(text.replace(absolute, "rows.jsonl"))
    message = error(["read"], include_path=str(folder))
    assert (
        f"task 'read' reads 'rows.jsonl', which does not exist; relative paths start from {tmp_path}"
        in message.replace("the current folder, ", "")
    )
    (folder / "rows.jsonl").write_text("")
    assert f"{folder / 'rows.jsonl'} exists" in error(["read"], include_path=str(folder))
    (folder / "read.yaml").write_text(text.replace(absolute, "~/rows.jsonl"))
    assert "does not expand '~'" in error(["read"], include_path=str(folder))
    (folder / "read.yaml").write_text(text.replace(f"\n    test: {absolute}", f" {absolute}"))
    assert "write data_files: {test: ...}" in error(["read"], include_path=str(folder))


def test_rows_that_cannot_be_read(tasks: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "w1"}\nnot json\n')
    text = (tasks.path / "read.yaml").read_text().replace(str(tasks.path / "read_test.jsonl"), str(rows))
    (tmp_path / "read.yaml").write_text(text)
    message = error(["read"], include_path=str(tmp_path))
    assert "task 'read' cannot be loaded" in message
    assert "JSON" in message


def test_yaml_files_that_cannot_be_used(tasks: Any, tmp_path: Path, managers: list[bool]) -> None:
    file = tmp_path / "bad.yaml"
    assert f"task file '{file}' does not exist" in error([str(file)])
    file.write_text("task: bad\nmetric_list: [\n")
    assert f"task file {file} cannot be read: did not find expected node content, line 3" in error([str(file)])
    assert f"unreadable: {file}" in error(["bad"], include_path=str(tmp_path))
    file.write_text("- a list\n")
    assert "Expected YAML dict" in error([str(file)])
    file.write_text("output_type: multiple_choice\n")
    assert f"task file {file} names no task" in error([str(file)])
    file.write_text("task: bad\ninclude: missing.yaml\n")
    assert "missing.yaml" in error([str(file)])
    assert "include_path is 'nowhere', which is not a folder" in error(["choose"], include_path="nowhere")


def test_a_key_twice_is_refused_also_in_what_a_task_includes(tasks: Any, tmp_path: Path) -> None:
    text = (tasks.path / "complete.yaml").read_text()
    twice = text + "metric_list:\n- metric: acc\n  aggregation: mean\n  higher_is_better: true\n"
    (tmp_path / "complete.yaml").write_text(twice)
    first = next(n for n, line in enumerate(text.splitlines(), 1) if line.startswith("metric_list"))
    says = f"gives 'metric_list' in line {first} and again in line {len(text.splitlines()) + 1}"
    assert says in error(["complete"], include_path=str(tmp_path))
    (tmp_path / "common.yaml").write_text("doc_to_text: a\ndoc_to_text: b\n")
    (tmp_path / "complete.yaml").write_text("include: common.yaml\n" + text)
    assert "common.yaml gives 'doc_to_text' in line 1 and again in line 2" in error(
        ["complete"], include_path=str(tmp_path)
    )


@pytest.mark.parametrize("task", ["choose", "complete", "read", "write"])
def test_tokens_beyond_the_embeddings_are_named(tasks: Any, model: Any, task: str) -> None:
    """A tokenizer that was given a token more than the model has rows."""
    fitness = LmEvalFitness([task], include_path=str(tasks.path))
    fitness.check()
    rows = model.module.get_input_embeddings().weight.shape[0]
    words = model.tokenizer.get_vocab()
    model.module.resize_token_embeddings(words["w5"])
    with pytest.raises(
        FitnessError, match=rf"task '{task}', document \d+ has token \d+; below {words['w5']}, the rows"
    ):
        fitness.prepare(model)
    assert rows > words["w5"]


def test_tasks_that_are_not_supported(tasks: Any, tmp_path: Path) -> None:
    text = (tasks.path / "choose.yaml").read_text()
    (tmp_path / "choose.yaml").write_text(text + "unsafe_code: true\n")
    assert "task 'choose' runs code" in error(["choose"], include_path=str(tmp_path))
    assert "'choose' is named twice" in error(["choose", "choose"], include_path=str(tasks.path))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "tasks is empty"),
        ([3], "tasks[0] is 3"),
        ([{"metrics": ["acc"]}], "tasks[0].task is None"),
        ([{"task": "a", "metric": "acc"}], "tasks[0] has no key 'metric'; did you mean 'metrics'?"),
        (["a", {"task": "a", "weight": 0}], "tasks[1].weight is 0.0"),
        ([{"task": "a", "weight": "much"}], "tasks[0].weight is 'much'"),
        ([{"task": "a", "limit": -1}], "tasks[0].limit is -1"),
        ([{"task": "a", "num_fewshot": 1.5}], "tasks[0].num_fewshot is 1.5"),
        ([{"task": "a", "gen_kwargs": "max=3"}], "tasks[0].gen_kwargs is 'max=3'"),
        ([{"task": "a", "metrics": {}}], "tasks[0].metrics is {}"),
        ([{"task": "a", "objective": "a/b"}], "tasks[0].objective is 'a/b'"),
        ([{"task": "a", "objective": "response_length"}], "other than response_length"),
        ([{"task": "a", "metrics": {"acc": True}}], "tasks[0].metrics.acc is True"),
        (
            [{"task": "a", "metrics": {"acc": {"wait": 1}}}],
            "tasks[0].metrics.acc has no key 'wait'; did you mean 'weight'?",
        ),
        ([{"task": "a", "metrics": {"acc": {"transform": "lag"}}}], "did you mean 'log'?"),
        ([{"task": {"output_type": "generate_until"}}], "tasks[0].task has no name"),
    ],
)
def test_terms_that_make_no_sense(tasks: list[Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LmEvalFitness(tasks)
    assert message in str(caught.value)


@pytest.mark.parametrize("argument", [{"batch_size": 0}, {"limit": 0}, {"max_length": -1}])
def test_arguments_out_of_range(argument: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(argument))):
        LmEvalFitness(["a"], **argument)


# What does not fit the model


def test_prompts_that_do_not_fit_the_model(model: Any, tasks: Any, tmp_path: Path) -> None:
    long = [{"task": "write", "gen_kwargs": {"max_gen_toks": 48}}]
    with pytest.raises(FitnessError, match=r"'write' generates up to 48 tokens.*max_gen_toks below 48"):
        run(model, long, include_path=str(tasks.path))
    with pytest.raises(FitnessError, match=r"document \d+ has a target of \d tokens; at most 3"):
        run(model, ["complete"], include_path=str(tasks.path), max_length=3)
    text = (tasks.path / "complete.yaml").read_text()
    (tmp_path / "complete.yaml").write_text(text.replace("doc_to_target: ' {{a}}'", "doc_to_target: ''"))
    with pytest.raises(FitnessError, match="task 'complete', document 0 has a target without tokens"):
        run(model, ["complete"], include_path=str(tmp_path))
    for target, blank in (("", "''"), ("{{a}}", "' '"), ("{{a}}", "'  '")):  # an empty context stands for a token
        changed = text.replace("' {{a}}'", f"'{target}'").replace("'{{q}} :'", blank)
        (tmp_path / "complete.yaml").write_text(changed)
        what = "a context" if target else "a target"
        for forwards in ("exact", "shared"):
            with pytest.raises(FitnessError, match=f"task 'complete', document 0 has {what} without tokens"):
                run(model, ["complete"], include_path=str(tmp_path), forwards=forwards)
    text = (tasks.path / "write.yaml").read_text()
    (tmp_path / "write.yaml").write_text(text.replace("'{{q}} :'", "' '"))
    with pytest.raises(FitnessError, match="task 'write', document 0 has a prompt without tokens"):
        run(model, ["write"], include_path=str(tmp_path))
    model.tokenizer.chat_template = None
    with pytest.raises(FitnessError, match="chat template"):
        run(model, ["write"], include_path=str(tasks.path), apply_chat_template=True)
    model.tokenizer = None
    with pytest.raises(FitnessError, match="no tokenizer"):
        run(model, ["write"], include_path=str(tasks.path))


def test_scores_that_are_not_finite_are_named(model: Any, tasks: Any) -> None:
    with torch.no_grad():
        model.module.model.embed_tokens.weight[4 + 5] = float("nan")  # w5
    fitness = LmEvalFitness(["complete"], include_path=str(tasks.path))
    fitness.prepare(model)
    assert fitness._tasks is not None
    words = [instance.args for instance in fitness._tasks.tasks["complete"].instances]
    # the last word is predicted, never read
    first = next(i for i, (q, a) in enumerate(words) if "w5" in (q + a).split()[:-1])
    with pytest.raises(FitnessError, match=f"task 'complete', document {first}: a log-likelihood is not finite"):
        fitness.run(model)


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 1.0}, {"num_beams": 2}])
def test_generation_that_is_not_finite_is_named(model: Any, tasks: Any, sampling: dict[str, Any]) -> None:
    fitness = LmEvalFitness(["write"], include_path=str(tasks.path), gen_kwargs=sampling, batch_size=4)
    fitness.prepare(model)
    first = fitness.run(model)
    state = torch.get_rng_state()
    np.testing.assert_array_equal(
        fitness.run(model).items["write/exact_match,word"], first.items["write/exact_match,word"]
    )
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        model.module.lm_head.weight[7] = float("nan")
    with pytest.raises(FitnessError, match=r"task 'write', document \d: a next-token score is not finite"):
        fitness.run(model)


# What decides a score


def test_fingerprint_covers_what_decides_a_score(model: Any, load: Any, tasks: Any, tmp_path: Path) -> None:
    def fingerprint(terms: list[Any], model: Any = model, folder: Path = tasks.path, **kwargs: Any) -> str:
        fitness = LmEvalFitness(terms, include_path=str(folder), **kwargs)
        fitness.prepare(model)
        return fitness.fingerprint()

    reference = fingerprint(["choose", "write"])
    copy = tmp_path / "copy"
    shutil.copytree(tasks.path, copy)
    for file in copy.glob("*.yaml"):
        file.write_text(file.read_text().replace(str(tasks.path), str(copy)))
    assert fingerprint(["choose", "write"], folder=copy) == reference
    others = [
        fingerprint(["write", "choose"]),
        fingerprint([{"task": "choose", "weight": 2.0}, "write"]),
        fingerprint([{"task": "choose", "metrics": "acc_norm"}, "write"]),
        fingerprint(["choose", "write"], batch_size=8),
        fingerprint(["choose", "write"], limit=3),
        fingerprint(["choose", "write"], num_fewshot=1),
        fingerprint(["choose", "write"], num_fewshot=1, fewshot_seed=1),
        fingerprint(["choose", "write"], gen_kwargs={"max_gen_toks": 5}),
        fingerprint(["choose", "write"], add_bos_token=True),
        fingerprint(["choose", "write"], max_length=40),
        fingerprint(["choose", "write"], load(torch.bfloat16)),
        fingerprint(["choose", "write"], load(torch.bfloat16), softmax_dtype="model"),
    ]
    rows = copy / "choose_test.jsonl"
    rows.write_text(rows.read_text().replace('"gold": 1', '"gold": 2'))
    others.append(fingerprint(["choose", "write"], folder=copy))
    assert len({reference, *others}) == len(others) + 1


def test_a_part_is_scored_alone(model: Any, tasks: Any) -> None:
    fitness = LmEvalFitness(["choose", "complete", "read"], include_path=str(tasks.path))
    fitness.check()
    assert fitness.items() == {"choose": 24, "complete": 31, "read": 13}
    fitness.prepare(model)
    part = {"read": [12, 0], "choose": [3, 4, 23], "complete": [30]}
    found, whole = fitness.run(model, part), fitness.run(model)
    for key, values in found.items.items():
        places = sorted(part[key.split("/")[0]])
        assert np.flatnonzero(np.isfinite(values)).tolist() == places
        np.testing.assert_allclose(values[places], whole.items[key][places], rtol=1e-5)
    assert found.metrics["choose/acc"] == pytest.approx(whole.items["choose/acc"][[3, 4, 23]].mean())


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"choose": [0]}, "a part has 0 documents of task 'complete'; some of the 31"),
        ({"choose": [24], "complete": [0]}, "a part has 1 documents of task 'choose'; some of the 24"),
        ({"choose": [-1], "complete": [0]}, "some of the 24 documents of 'choose'"),
        ({"choose": [0], "complete": [0], "chose": [0]}, "task 'chose'; .*choose"),
    ],
)
def test_a_part_that_is_none(model: Any, tasks: Any, part: dict[str, list[int]], words: str) -> None:
    fitness = LmEvalFitness(["choose", "complete"], include_path=str(tasks.path))
    fitness.prepare(model)
    with pytest.raises(FitnessError, match=words):
        fitness.run(model, part)


def test_nothing_is_printed(model: Any, tasks: Any, capfd: Any, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        run(model, ["choose", "complete", "read", "write"], include_path=str(tasks.path))
    captured = capfd.readouterr()
    assert captured.out + captured.err + caplog.text == ""


def test_importing_the_module_is_cheap() -> None:
    code = (
        "import sys, fitness.lm_eval_tasks; print({'torch', 'lm_eval', 'transformers', 'datasets'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
