"""Searches of several objectives and searches that begin with an earlier one, through the command line."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.cli.main import main
from evomerge.recipes.yaml_reader import load_recipe
from evomerge.report.summary import summarize
from evomerge.run.ledger import read_ledger

TASKS = (
    "fitness.tasks=["
    "{task: demo_e_maths, metrics: {perplexity: {transform: log}}, objective: maths},"
    "{task: demo_j_language, metrics: {perplexity: {transform: log}}, objective: language}]"
)
OBJECTIVES = ("maths", "language")


def events_of(run: Path, *kinds: str, split: str = "search") -> list[dict[str, Any]]:
    """Events of these kinds, of a split where they have one."""
    return [e for e in read_ledger(run) if e["event"] in kinds and e.get("split", split) == split]


def searched(run: Path) -> dict[int, dict[str, float]]:
    """The objectives of the candidates that the strategy proposed."""
    asked = {e["candidate"] for e in events_of(run, "asked", "warm") if e["genome"] is not None}
    told = events_of(run, "told", "warm")
    return {e["candidate"]: e["objectives"] for e in told if e["candidate"] in asked and e["status"] == "ok"}


@pytest.fixture(scope="module")
def two_objectives(quick_search: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of NSGA-II: better at maths against better at language."""
    run = tmp_path_factory.mktemp("objectives") / "run"
    settings = ["strategy=nsga2", "strategy.popsize=4", "search.evaluations=14", "fitness.limit=6", TASKS]
    plain = [setting for setting in quick_search if not setting.startswith(("strategy", "search.evaluations"))]
    assert main(["search", *plain, *settings, f"run_dir='{run}'"]) == 0
    return run


def test_the_front_is_what_nothing_dominates(two_objectives: Path) -> None:
    values = {i: tuple(found[name] for name in OBJECTIVES) for i, found in searched(two_objectives).items()}
    assert len(values) == 14

    def dominated(mine: tuple[float, ...]) -> bool:
        return any(all(a >= b for a, b in zip(other, mine, strict=True)) and other != mine for other in values.values())

    first = {v: i for i, v in reversed(values.items())}  # of equals the earliest
    front = {i for i, v in values.items() if not dominated(v) and first[v] == i}
    content = yaml.safe_load((two_objectives / "best" / "pareto.yaml").read_text())
    assert content["objectives"] == dict.fromkeys(OBJECTIVES, "maximize")
    assert {entry["candidate"] for entry in content["front"]} == front
    assert content["winner"] == max(front, key=lambda i: values[i])
    hashes = {e["candidate"]: e["recipe_hash"] for e in events_of(two_objectives, "asked")}
    for entry in content["front"]:
        assert tuple(entry["objectives"][name] for name in OBJECTIVES) == values[entry["candidate"]]
        recipe = load_recipe((two_objectives / "best" / entry["recipe"]).read_text())
        assert recipe.hash == hashes[entry["candidate"]]
    assert {path.name for path in (two_objectives / "best" / "pareto").iterdir()} == {f"{i}.yaml" for i in front}
    winner = load_recipe((two_objectives / "best" / "recipe.yaml").read_text())
    assert winner.hash == hashes[content["winner"]]


def test_the_hypervolume_is_the_area_above_the_worst_baselines(two_objectives: Path) -> None:
    asked = {e["candidate"] for e in events_of(two_objectives, "asked") if e["genome"] is not None}
    told = events_of(two_objectives, "told")
    baselines = [e["objectives"] for e in told if e["candidate"] not in asked]
    assert len(baselines) == 4
    corner = [min(found[name] for found in baselines) for name in OBJECTIVES]
    content = yaml.safe_load((two_objectives / "best" / "pareto.yaml").read_text())
    points = [tuple(entry["objectives"][name] for name in OBJECTIVES) for entry in content["front"]]
    above = sorted((p for p in points if all(x > c for x, c in zip(p, corner, strict=True))), reverse=True)
    steps = [(corner[0], corner[1]), *((p[0], p[1]) for p in above)]
    heights = [corner[1], *(p[1] for p in above)]
    area = sum((x - corner[0]) * (high - low) for (x, _), (low, high) in zip(steps[1:], pairwise(heights), strict=True))
    assert events_of(two_objectives, "improved")[-1]["hypervolume"] == pytest.approx(area)
    assert area > 0


def test_a_warm_start_evaluates_nothing_again(
    two_objectives: Path, quick_search: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    plain = [setting for setting in quick_search if not setting.startswith(("strategy", "search.evaluations"))]
    settings = ["strategy=m2n2", "strategy.size=6", "search.evaluations=3", "search.seed=1", "fitness.limit=6", TASKS]
    warm = f"search.warm_start=['{two_objectives}']"
    assert main(["search", *plain, *settings, warm, f"run_dir='{run}'"]) == 0
    given = events_of(run, "warm")
    before = searched(two_objectives)
    assert [e["source"] for e in given] == [f"{two_objectives}#{i}" for i in sorted(before)]
    assert [e["objectives"] for e in given] == [before[i] for i in sorted(before)]
    asked = [e for e in events_of(run, "asked") if e["genome"] is not None]
    assert len(asked) == 3
    known = {e["recipe_hash"] for e in events_of(two_objectives, "asked")}
    assert not known & {e["recipe_hash"] for e in asked}
    assert set(asked[0]["parents"]) & {e["candidate"] for e in given}  # a child of these
    front = yaml.safe_load((run / "best" / "pareto.yaml").read_text())["front"]
    earlier = yaml.safe_load((two_objectives / "best" / "pareto.yaml").read_text())["front"]
    for entry in earlier:  # nothing of the earlier front is lost but to what dominates it
        assert any(all(e["objectives"][n] >= entry["objectives"][n] for n in OBJECTIVES) for e in front)


UNTIL, MOST = ["wa", "."], 12


@pytest.fixture
def written_task(quick_pool: Path, tmp_path: Path) -> Path:
    """A folder with a task that asks for generated answers."""
    rows = [json.loads(line) for line in (quick_pool / "tasks" / "demo_j_maths.jsonl").read_text().splitlines()[:5]]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "written.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "written",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "tasks" / "written.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": UNTIL, "max_gen_toks": MOST, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "tasks" / "written.yaml").write_text(yaml.safe_dump(task))
    return tmp_path / "tasks"


def lengths(folder: Path, prompts: list[str]) -> list[float]:
    """Tokens of what plain transformers generates, up to the first of the words that end it."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt in prompts:
        tokens = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**tokens, max_new_tokens=MOST, do_sample=False)[0, tokens["input_ids"].shape[1] :]
        text = tokenizer.decode(out, skip_special_tokens=True)
        for word in UNTIL:
            text = text.split(word)[0]
        found.append(float(len(tokenizer(text, add_special_tokens=False)["input_ids"])))
    return found


def test_the_length_of_responses_is_that_of_the_generations(
    quick_pool: Path, written_task: Path, quick_search: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    plain = [setting for setting in quick_search if not setting.startswith(("strategy", "search.evaluations"))]
    settings = ["strategy=random", "search.evaluations=3", f"fitness.include_path='{written_task}'"]
    tasks = ["fitness.tasks=[{task: written, metrics: {exact_match: 1.0}}]", "fitness.response_length=true"]
    assert main(["search", *plain, *settings, *tasks, "search.best=response_length", f"run_dir='{run}'"]) == 0
    found = searched(run)
    assert len(found) == 3
    for objectives in found.values():
        assert set(objectives) == {"score", "response_length"}
    content = yaml.safe_load((run / "best" / "pareto.yaml").read_text())
    assert content["objectives"] == {"score": "maximize", "response_length": "minimize"}
    winner = content["winner"]
    assert found[winner]["response_length"] == min(each["response_length"] for each in found.values())
    assert main(["merge", str(run), str(tmp_path / "merged")]) == 0
    prompts = [json.loads(line)["text"] for line in (written_task / "written.jsonl").read_text().splitlines()]
    own = lengths(tmp_path / "merged", prompts)
    assert found[winner]["response_length"] == pytest.approx(sum(own) / len(own))
    different = set(own)
    for name in ("base", "math", "lang"):  # and of the models that it is made of
        own = lengths(quick_pool / name, prompts)
        asked = next(e for e in events_of(run, "asked") if e.get("name") == name)
        told = next(e for e in events_of(run, "told") if e["candidate"] == asked["candidate"])
        assert told["objectives"]["response_length"] == pytest.approx(sum(own) / len(own))
        assert told["metrics"]["written/response_length"] == told["objectives"]["response_length"]
        different |= set(own)
    assert len(different) > 1  # and not whatever the most is


def test_reports_weigh_tasks_as_the_search_did(quick_search: list[str], tmp_path: Path) -> None:
    """A weighted mean of an accuracy and, lower being better, a perplexity: on both kinds of items it is the objective.

    Its name would not give the direction away: the fitness declares it.
    """
    run = tmp_path / "run"
    plain = [setting for setting in quick_search if not setting.startswith(("strategy", "search.evaluations"))]
    tasks = (
        "[{task: demo_e_maths%s, weight: 3, metrics: {acc: 1.0}},{task: demo_j_language%s, metrics: {perplexity: 0.5}}]"
    )
    wanted = [f"fitness.tasks={tasks % ('', '')}", f"held_out.tasks={tasks % ('_held_out', '_held_out')}"]
    settings = ["strategy=random", "search.evaluations=3", "fitness.limit=8", "held_out.limit=12"]
    assert main(["search", *plain, *settings, *wanted, f"run_dir='{run}'"]) == 0
    started = events_of(run, "started")[0]
    assert started["shares"]["search"] == [
        ["demo_e_maths/acc", 0.75, "maximize", "score", ""],
        ["demo_j_language/perplexity", 0.125, "minimize", "score", ""],
    ]
    summary = summarize(run)
    assert (summary.split, summary.mixed, summary.guesses) == ("held_out", True, False)
    assert [(task.metric, task.lower_is_better) for task in summary.tasks] == [
        ("demo_e_maths_held_out/acc", False),
        ("demo_j_language_held_out/perplexity", True),
    ]
    told = {e["candidate"]: e["objectives"]["score"] for e in events_of(run, "told", split="held_out")}
    best = max((told[row.candidate], row.name) for row in summary.rows if row.kind != "evolved")
    assert summary.best_baseline == best[1]
    for row in summary.rows:  # the shares sum to 0.875, and the mean is over them
        assert row.mean == pytest.approx(told[row.candidate] / 0.875)
        assert row.gain == pytest.approx((told[row.candidate] - best[0]) / 0.875)
