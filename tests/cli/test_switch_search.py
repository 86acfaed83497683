"""A search over models with a switch, each task with its own; what it finds, written as one task's model and as all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import evomerge
from evomerge.cli.main import main
from evomerge.run.ledger import read_ledger

PARTS = {"demo_e_maths": "math", "demo_j_language": "lang"}
SCORED = ["fitness.limit=4", "fitness.batch_size=6", "fitness.forwards=exact"]


@pytest.fixture(scope="module")
def search(quick_pool: Path) -> list[str]:
    few = ["strategy.popsize=3", "search_space.layer_group=all", "search_space.components=all", "held_out.limit=2"]
    return ["experiment=demo_switch", f"pool.root='{quick_pool}'", *SCORED, *few]


@pytest.fixture(scope="module")
def run(search: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("switch") / "run"
    assert main(["search", *search, "search.evaluations=6", f"run_dir='{folder}'"]) == 0
    return folder


def told(folder: Path) -> list[dict[str, Any]]:
    """What there was to learn, without what it took."""
    events = [event for event in read_ledger(folder) if event["event"] == "told" and event["split"] == "search"]
    return [{key: event[key] for key in ("candidate", "status", "objectives", "metrics")} for event in events]


def equal(one: Path, other: Path) -> bool:
    tensors, others = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return tensors.keys() == others.keys() and all(tensor.equal(others[name]) for name, tensor in tensors.items())


def test_each_task_is_scored_with_its_own_switch_and_folders_give_the_same_models(
    run: Path, search: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]
    assert found in [event["metrics"] for event in told(run) if event["candidate"] >= 0]
    assert main(["merge", str(run), str(tmp_path / "all"), "--all-tasks"]) == 0
    said = capsys.readouterr().out
    assert "the shared model, " in said
    assert "  lang: " in said
    assert "2 models would be" in said
    for task, source in PARTS.items():
        out, again = tmp_path / source, tmp_path / f"{source} again"
        assert main(["merge", str(run), str(out), "--task", source]) == 0
        assert main(["merge", str(tmp_path / "all"), str(again), "--task", source]) == 0
        assert equal(out, again)
        capsys.readouterr()
        asked = f"fitness.tasks=[{{task: {task}, metrics: {{acc: 1.0, perplexity: 1.0}}}}]"
        assert main(["evaluate", str(out), "--json", *search[:2], *SCORED, asked]) == 0
        own = json.loads(capsys.readouterr().out)["metrics"]
        assert own
        assert own == {key: value for key, value in found.items() if key.startswith(f"{task}/")}
    assert not equal(tmp_path / "math", tmp_path / "lang")
    loaded = evomerge.load_task(tmp_path / "all", "lang").state_dict()
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "lang").state_dict()
    assert all(tensor.equal(loaded[name]) for name, tensor in expected.items())
    recipe = evomerge.load_recipe(run)
    assert recipe.tasks == ("math", "lang")
    assert recipe.task("math").tasks == ("math",)


@pytest.mark.slow
def test_it_goes_on_exactly(run: Path, search: list[str], tmp_path: Path) -> None:
    begun = tmp_path / "run"
    assert main(["search", *search, "search.evaluations=3", f"run_dir='{begun}'"]) == 0
    assert main(["resume", str(begun), "search.evaluations=6"]) == 0
    assert [event for event in told(begun) if event["candidate"] >= 0] == [
        event for event in told(run) if event["candidate"] >= 0
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["fitness.tasks=[{task: demo_e_maths, switch: maths}]"], r"fitness.tasks\[0\].switch is 'maths'.*math"),
        (["fitness.tasks=[demo_e_maths]"], r"fitness.tasks\[0\] \(demo_e_maths\) has no switch.*math, lang"),
        (["held_out.tasks=[demo_e_maths_held_out]"], r"held_out.tasks\[0\] \(demo_e_maths_held_out\) has no switch"),
        (
            ["experiment=demo", "fitness.tasks=[{task: demo_e_maths, switch: math}]"],
            r"fitness.tasks\[0\].switch is 'math', and the models have no switch",
        ),
        (["search_space.switch=tal_switch"], r"search_space.switch is 'tal_switch'.*tall_switch"),
        (["search_space.switch_parameters={rank: 0.1}"], r"switch_parameters has 'rank', unknown to tall_switch"),
        (["search_space.method=emr_switch"], r"search_space.method has 'emr_switch', which is a switch"),
        (["fitness.tasks=[{task: demo_e_maths, switch: 3}]"], r"tasks\[0\].switch is 3"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_are_found_before_a_model_is_loaded(
    search: list[str], overrides: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    experiment, *rest = search
    given = [experiment, *overrides] if not overrides[0].startswith("experiment") else overrides
    assert main(["validate", *given, *rest, f"run_dir='{tmp_path / 'run'}'"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert re.search(message, error), error


def test_mistakes_of_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    plain = tmp_path / "plain.yaml"
    shared = evomerge.load_recipe(run).intermediates[0][1]
    evomerge.Recipe.of(shared).to_yaml(plain)
    assert main(["merge", str(plain), str(tmp_path / "all"), "--all-tasks", "--switch", "twin_switch"]) == 0
    capsys.readouterr()
    for arguments, message in (
        ([str(run), out, "--task", "maths"], "has no task 'maths'; did you mean 'math'? (one of: lang, math)"),
        ([str(plain), out, "--task", "math"], "the recipe has no switch"),
        ([str(plain), out, "--switch", "twin_switch"], "add --task NAME or --all-tasks"),
        ([str(run), out, "--task", "math", "--switch", "emr_switch"], "has a switch"),
        ([str(run), out, "--all-tasks", "--format", "lora"], "--all-tasks writes models, and --format lora was given"),
        ([str(run), out, "--all-tasks", "--task", "math"], "not allowed with"),
        ([str(tmp_path / "all"), out], "is a shared model with the parts of tasks"),
        ([str(tmp_path / "all"), out, "--task", "mat"], "has no task 'mat'"),
        ([str(tmp_path / "all"), out, "--task", "math", "--dtype", "float16"], "leave --dtype out"),
        ([str(tmp_path / "all"), out, "--task", "math", "--format", "lora"], "give it the run or recipe"),
    ):
        assert main(["merge", *arguments]) == 2, arguments
        error = " ".join(capsys.readouterr().err.split())
        assert message in error, error
        assert not Path(out).exists()


def test_the_folder_of_all_tasks_says_what_it_is_when_it_is_scored(
    run: Path, search: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "all"
    assert main(["merge", str(run), str(folder), "--all-tasks"]) == 0
    how = [*search[:2], *SCORED, "fitness.tasks=[demo_e_maths]"]
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--task", "math", *how]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"{folder} holds a shared model and a part for each task (math, lang), and --task math was given" in said
    assert f"`evomerge merge {folder} OUT --task math` writes it" in said
    assert main(["evaluate", str(folder), "--json", *how]) == 0
    found = capsys.readouterr()
    assert "scored is the shared model; " in " ".join(found.err.split())
    assert "demo_e_maths/acc" in "".join(json.loads(found.out)["metrics"]) or json.loads(found.out)["metrics"]


def test_mergekit_refuses_it_with_the_reason(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--format", "mergekit"]) == 2
    assert "tall_switch" in capsys.readouterr().err


def test_the_report_shows_the_shared_model_and_the_switches(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(run), "-o", str(out)]) == 0
    assert "Shown is the shared model; tall_switch makes that of each task: math (selectivity 0." in out.read_text()
    assert main(["status", str(run)]) == 0
