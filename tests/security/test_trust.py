"""Configurations of strangers: what they name is not run, imported, connected to or written unless asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.cli.main import main
from evomerge.config.trust import check_trust, is_ours
from evomerge.errors import ConfigError
from evomerge.run.folder import RunFolder

LM_EVAL = "fitness.lm_eval_tasks.LmEvalFitness"
Stranger = Callable[..., RunFolder]


@pytest.mark.parametrize(
    "target",
    [
        "evomerge.strategies.cma_es.CmaEs",
        "search_spaces.parameter.ParameterSpace",
        "fitness.digits_seeds.Specialists",
        "evomerge.evaluation.direct.DirectEvaluator",
    ],
)
def test_parts_of_evomerge_are_ours(target: str) -> None:
    assert is_ours(target)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "evomerge.utils.imports.import_modules",  # imports what its arguments say
        "evomerge.utils.files.write_text_atomic",  # writes where they say
        "evomerge.strategies.bases.saving.deque",  # what a module of ours has imported
        "search_spaces.lineage.Path",
        "search_spaces.lineage.read_recipe_file",  # a function
        "fitness._lm_eval.loading.load_tasks",
        "evomerge.strategiesx.Part",
        "fitness",
        "",
    ],
)
def test_all_else_is_not(target: str) -> None:
    assert not is_ours(target)


@pytest.mark.parametrize(
    ("content", "asked", "not_asked"),
    [
        ({"strategy": {"_target_": "os.system"}}, "strategy._target_=os.system", "strategy._target_=os.systemd"),
        ({"strategy": {"inner": [{"_target_": "a.B"}]}}, "strategy={inner: [{_target_: a.B}]}", "name=a.B"),
        ({"imports": ["own"]}, "imports=[own]", "imports=[owner]"),
        ({"imports": ["x"]}, "imports=[y,x]", "experiment=x"),
        ({"pool": {"trust_remote_code": True}}, "pool.trust_remote_code=true", "pool.dtype=True"),
        ({"evaluator": {"address": "ray://1.2.3.4:10001"}}, "evaluator.address=ray://1.2.3.4:10001", "evaluator=ray"),
        (
            {"trackers": ["wandb", {"name": "mlflow", "tracking_uri": "http://x"}]},
            "trackers=[{tracking_uri: http://x}]",
            "a=1",
        ),
        ({"evaluator": {"shared_cache": "/data/cache"}}, "evaluator.shared_cache=/data/cache", "evaluator=local"),
    ],
)
def test_what_is_refused_unless_it_is_asked_for_by_name(content: Any, asked: str, not_asked: str) -> None:
    check_trust(content, [asked], "it")
    for words in ([], [not_asked]):
        with pytest.raises(ConfigError, match=r"unasked.*--trust"):
            check_trust(content, words, "it")


def test_what_needs_no_asking() -> None:
    check_trust({"imports": [], "pool": {"trust_remote_code": False}}, [], "it")
    check_trust({"trackers": ["wandb", {"name": "mlflow", "experiment": "e", "tracking_uri": None}]}, [], "it")
    check_trust({"evaluator": {"address": "auto", "shared_cache": "memory"}}, [], "it")
    check_trust({"evaluator": {"shared_cache": "run"}}, [], "it")


@pytest.mark.parametrize("folder", ["a" * 300, "a\0b", "~nobody-of-this-name/tasks"])
def test_a_folder_of_tasks_that_no_name_can_be_of_runs_nothing(folder: str) -> None:
    """The fitness says that there is no such folder."""
    check_trust({"fitness": {"_target_": LM_EVAL, "tasks": ["gsm8k"], "include_path": folder}}, (), "the config")


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("process_docs: !function helper.run", "!function helper.run runs Python code"),
        ("process_docs: !<!function> helper.run", "runs Python code"),
        ("? !function helper.run\n: 1", "runs Python code"),
        ("metric_list: [{metric: ./helper.py}]", "the metric './helper.py' may be a script"),
        ("metric_list: [{metric: org/helper}]", "the metric 'org/helper' may be a script"),
        ("metric_list: [{metric: &m [acc], aggregation: mean}, {metric: *m}]", "alias"),
        ("metric_list:\n- metric: acc\n  hf_evaluate: true", "hf_evaluate"),
        ("use_prompt: '/tmp/x.yaml:*'", "use_prompt"),
        ("dataset_path: pandas", "pickles"),
        ("include: beside.txt", "beside.txt: !function helper.run runs"),
        ("{include: [beside.txt]}", "beside.txt: !function helper.run runs"),
        ("'incl\\u0075de': beside.txt", ""),
        ('"incl\\u0075de": beside.txt', "beside.txt: !function helper.run runs"),
        ("a: " + "[" * 70 + "]" * 70, "nested"),
        ("doc_to_text: '{{text}} !function'\nmetric_list: [{metric: acc}]\ntag: [a]", ""),
        ("base: &b {metric: acc}\nother:\n  <<: *b\n  hf_evaluate: false", ""),
        ("not: [yaml", ""),
    ],
)
@pytest.mark.parametrize("by", ["folder", "file"])
def test_tasks_that_run_code_are_refused(task: str, reason: str, by: str, tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(task)
    (tmp_path / "beside.txt").write_text("process_docs: !function helper.run")
    node: dict[str, Any] = {"_target_": LM_EVAL, "tasks": ["gsm8k"], "include_path": str(tmp_path)}
    if by == "file":
        node = {"_target_": LM_EVAL, "tasks": [{"task": str(tmp_path / "task.yaml")}]}
    content = {"fitness": None, "held_out": node}
    if not reason:
        check_trust(content, [], "it")
        return
    with pytest.raises(ConfigError) as caught:
        check_trust(content, [], "it")
    assert reason in str(caught.value)
    check_trust(content, ["held_out.tasks=[mine]"], "it")


@pytest.mark.parametrize(
    "task",
    [
        {"task": "t", "metric_list": [{"metric": "a/b"}]},
        {"task": "t", "x": {"use_prompt": "promptsource:*"}},
        {"group": "g", "task": [{"task": "t", "include": "PATH"}]},
    ],
)
def test_tasks_in_the_configuration_itself_are_looked_at(task: Any, tmp_path: Path) -> None:
    (tmp_path / "evil").write_text("metric: !function a.b")
    task = yaml.safe_load(yaml.safe_dump(task).replace("PATH", str(tmp_path / "evil")))
    with pytest.raises(ConfigError, match="code of a task is not run unasked"):
        check_trust({"fitness": {"_target_": LM_EVAL, "tasks": [{"task": task}]}}, [], "it")


@pytest.mark.parametrize("verb", ["resume", "evaluate"])
@pytest.mark.parametrize(
    "config",
    [
        "imports: [stranger_code]",
        "strategy: {_target_: stranger_code.Part}",
        "fitness: {_target_: stranger_code.part}",
        "search_space: {_target_: search_spaces.parameter.ParameterSpace, method: {_target_: stranger_code.part}}",
        "search_space: {_target_: evomerge.utils.imports.import_modules, names: [stranger_code], key: k, folder: .}",
        "phases: {first: {strategy: {_target_: stranger_code.Part}}}",
    ],
)
def test_a_run_runs_nothing(
    verb: str, config: str, stranger: Stranger, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stranger(config)
    assert main([verb, str(run.path)]) == 2
    assert "unasked" in capsys.readouterr().err
    assert not marker.exists()


def test_an_experiment_s_tasks_run_nothing(
    stranger: Stranger, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text("task: mine\nprocess_docs: !function ../stranger_code.part\n")
    experiment = tmp_path / "conf" / "experiment" / "theirs.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text(
        "# @package _global_\npool: {models: {a: b, c: d}}\n"
        f"fitness: {{tasks: [mine], include_path: {tmp_path}/tasks}}\n"
    )
    words = ["validate", "--config-dir", str(tmp_path / "conf"), "experiment=theirs"]
    assert main(words) == 2
    assert "mine.yaml: !function ../stranger_code.part runs Python code" in capsys.readouterr().err
    assert not marker.exists()
    assert main([*words, "--trust"]) == 2  # it goes on to the pool, which does not exist
    assert "unasked" not in capsys.readouterr().err
