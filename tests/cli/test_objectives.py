"""Searches of several objectives and searches that begin with an earlier one, through the command line."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import evomerge
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


def test_a_preference_picks_from_the_front(
    two_objectives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Computed anew: the front's own range is 1 of each objective, and the farthest of the weighed ones counts."""
    content = yaml.safe_load((two_objectives / "best" / "pareto.yaml").read_text())
    points = {e["candidate"]: [e["objectives"][name] for name in OBJECTIVES] for e in content["front"]}
    high = [max(point[k] for point in points.values()) for k in (0, 1)]
    span = [high[k] - min(point[k] for point in points.values()) or 1.0 for k in (0, 1)]
    picked = set()
    for weights in ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)):
        missed = {i: [(high[k] - p[k]) / span[k] for k in (0, 1)] for i, p in points.items()}
        far = {
            i: max(w * m for w, m in zip(weights, each, strict=True)) + 1e-3 * sum(each) for i, each in missed.items()
        }
        expected = min(far, key=lambda i: far[i])
        wanted = ",".join(f"{name}={3 * weight}" for name, weight in zip(OBJECTIVES, weights, strict=True))
        assert main(["export", str(two_objectives), "--preference", wanted]) == 0
        said = capsys.readouterr()
        assert (
            load_recipe(said.out).hash
            == load_recipe((two_objectives / "best/pareto" / f"{expected}.yaml").read_text()).hash
        )
        assert f"candidate {expected}, of {len(points)} on the front, is nearest by " in said.err
        assert f"maths {points[expected][0]:.4f}, language {points[expected][1]:.4f}" in said.err
        assert evomerge.open_run(two_objectives).preferred(maths=weights[0], language=weights[1]).candidate == expected
        picked.add(expected)
    assert len(picked) > 1
    target = [str(two_objectives), "--preference", "language=1"]
    assert main(["merge", *target, str(tmp_path / "model")]) == 0
    assert main(["evaluate", *target, "--json"]) == 0
    out = capsys.readouterr().out
    scores = json.loads(out[out.index("{") :])["objectives"]
    assert scores["language"] == pytest.approx(high[1], abs=1e-4)
    assert (tmp_path / "model" / "config.json").is_file()


def test_what_a_preference_cannot_pick_from_is_said(
    two_objectives: Path, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(two_objectives / "best" / "recipe.yaml")
    for words, message in (
        (
            [str(two_objectives), "--preference", "maths=1,langage=1"],
            "--preference has 'langage'; did you mean 'language'?",
        ),
        ([str(finished_run), "--preference", "score=1"], "has one objective (score)"),
        ([recipe, "--preference", "maths=1"], "recipe.yaml is not a run folder"),
        ([str(two_objectives), "--preference", "maths=1", "--format", "optuna"], "--preference picks a recipe"),
    ):
        assert main(["export", *words]) == 2
        assert message in capsys.readouterr().err
    broken = tmp_path / "run"
    shutil.copytree(two_objectives, broken)
    for text in ("front: 3", "evomerge_pareto: 1\nobjectives: {a: maximize, b: up}\nfront: []", "[]", "a: [", ""):
        (broken / "best" / "pareto.yaml").write_text(text)
        assert main(["export", str(broken), "--preference", "maths=1"]) == 2
        assert "pareto.yaml cannot be read; the file that the search wrote" in capsys.readouterr().err
    (broken / "best" / "pareto.yaml").unlink()
    assert main(["export", str(broken), "--preference", "maths=1"]) == 2
    assert "has no list of its front" in capsys.readouterr().err


@pytest.fixture(scope="module")
def for_each_preference(quick_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HM3 in small: parameters by MOEA/D, then a path for each of two preferences."""
    run = tmp_path_factory.mktemp("hm3") / "run"
    budget = ["search.evaluations=12", "phases.merge.evaluations=6", "phases.merge.strategy.preferences=3"]
    wanted = "phases.path.preferences=[{maths: 1}, {maths: 1, language: 3}]"
    settings = ["fitness.limit=4", "held_out.limit=4", wanted, f"run_dir='{run}'"]
    assert main(["search", "experiment=demo_hm3", f"pool.root='{quick_pool}'", *budget, *settings]) == 0
    return run


def test_a_path_for_each_preference(for_each_preference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = for_each_preference
    phases = events_of(run, "phase")
    assert [event["phase"] for event in phases] == ["merge", "path", "path"]
    assert [event["evaluations"] for event in phases] == [6, 3, 3]
    assert [event.get("preference") for event in phases[1:]] == [
        {"maths": 1.0, "language": 0.0},
        {"maths": 0.25, "language": 0.75},
    ]
    values = searched(run)
    merged = {i: values[i] for i in sorted(values)[:6]}
    asked = {e["candidate"]: e for e in events_of(run, "asked")}
    for event, name in ((phases[1], "maths"), (phases[2], "language")):
        assert event["winner"] in merged
        if event is phases[1]:  # the first weighs maths alone
            assert merged[event["winner"]][name] == max(found[name] for found in merged.values())
    firsts = [min(i for i in asked if i > 3 and asked[i]["seq"] > event["seq"]) for event in phases[1:]]
    for first, event in zip(firsts, phases[1:], strict=True):  # each begins with the path that is the merged model
        assert values[first] == pytest.approx(merged[event["winner"]])
    assert main(["status", str(run)]) == 0
    assert "path for maths=0.25,language=0.75 (3 of 3)" in capsys.readouterr().out
    assert summarize(run).phases == (("merge", 6), ("path for 2 preferences", 6))
    assert main(["report", str(run)]) == 0
    assert "for each of 2 preferences" in (run / "report.html").read_text()


def test_such_a_run_goes_on_as_it_was(
    for_each_preference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut within the last of the phases; and its budget stays."""
    cut = tmp_path / "run"
    shutil.copytree(for_each_preference, cut)
    lines = (cut / "ledger.jsonl").read_text().splitlines(keepends=True)
    last = max(place for place, line in enumerate(lines) if json.loads(line)["event"] == "phase")
    (cut / "ledger.jsonl").write_text("".join(lines[: last + 3]))
    assert main(["resume", str(cut)]) == 0
    assert searched(cut) == searched(for_each_preference)
    assert [e["winner"] for e in events_of(cut, "phase")] == [
        e["winner"] for e in events_of(for_each_preference, "phase")
    ]
    capsys.readouterr()
    assert main(["resume", str(cut), "search.evaluations=20"]) == 2
    assert "a run whose last phase has preferences keeps its budget" in capsys.readouterr().err


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
