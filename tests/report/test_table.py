from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from evomerge.candidate import Candidate, Evaluation
from evomerge.report.formatting import p_text
from evomerge.report.summary import summarize
from evomerge.report.table import distinct, render, verdict
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger

MakeRun = Callable[..., Path]
Models = dict[str, dict[str, np.ndarray]]


def text(path: Path, width: int = 80, encoding: str = "utf-8") -> str:
    """What is printed to a file, a log or a pipe."""
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding) as file:
        Console(file=file, width=width).print(render(summarize(path)))
        file.flush()
        return raw.getvalue().decode(encoding)


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_the_whole_table_at_80_columns(make_run: MakeRun, demo_models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [[metric, 1.0, "maximize", "score", ""] for metric in demo_models["math"]]
    path = make_run(demo_models, shares={"search": shares, "held_out": shares})
    monkeypatch.chdir(path.parent)
    assert lines(text(Path("demo"))) == [
        "demo: acc on the held-out items",
        "",
        "                    english_",
        " model               sorting  j_language  j_sorting   mean    gain        p",
        " ──────────────────────────────────────────────────────────────────────────",
        "   math                0.990       0.630      0.150  0.590  -0.123   5.3e-9",
        "   language            0.200       0.950      0.150  0.433  -0.280  2.0e-35",
        "   start (base)        0.750       0.790      0.300  0.613  -0.100  1.7e-18",
        "   uniform average     0.770       0.850      0.520  0.713    best",
        " > evolved             0.960       0.840      0.660  0.820  +0.107  1.6e-17",
        "",
        "each task against the baseline that is best on it",
        "",
        " task (metric)          evolved  best baseline    score    gain       p",
        " ──────────────────────────────────────────────────────────────────────",
        " english_sorting (acc)    0.960  math             0.990  -0.030   0.031",
        " j_language (acc)         0.840  language         0.950  -0.110  4.8e-7",
        " j_sorting (acc)          0.660  uniform average  0.520  +0.140  7.5e-9",
        "",
        "The evolved merge beats the best of the baselines (uniform average) by +0.107 on",
        "the mean of 3 tasks (paired McNemar p = 1.6e-17, 600 items, 95% interval +0.083",
        "to +0.132).",
        "",
        "gain, p: against the best baseline; + is better whatever the metric; p is",
        "two-sided, per task not corrected for the number of tasks.",
        "Items: 600 (200 a task), held-out split. dtype: float32. Candidates searched: 2",
        "(1 failed, 1 ok).",
        "Best recipe: demo/best/recipe.yaml",
    ]


def test_no_line_is_cut_in_narrow_or_wide_places(make_run: MakeRun, demo_models: Models) -> None:
    path = make_run(demo_models)
    narrow = text(path, width=60)
    assert max(map(len, lines(narrow))) <= 60
    for shown in (narrow, text(path, width=200)):
        assert "…" not in shown
        assert str(path / "best" / "recipe.yaml") in shown.replace("\n", "")


def test_an_ascii_terminal_gets_ascii(make_run: MakeRun, demo_models: Models) -> None:
    assert "> evolved" in text(make_run(demo_models), encoding="ascii")


def test_names_are_text_and_not_markup(make_run: MakeRun, demo_models: Models) -> None:
    models = {
        "[red]math[/red]": demo_models["math"],
        "[/oops]": demo_models["start"],
        "evolved": demo_models["evolved"],
    }
    shown = text(make_run(models))
    assert "   [red]math[/red] " in shown
    assert "(lower" not in shown
    assert "   [/oops] " in shown


def test_many_tasks_move_to_the_second_table(make_run: MakeRun) -> None:
    tasks = [f"task{i}" for i in range(7)]
    rng = np.random.default_rng(0)
    models = {
        name: {f"{t}/acc": (rng.random(50) < p) * 1.0 for t in tasks} for name, p in (("math", 0.5), ("evolved", 0.8))
    }
    first, second = text(make_run(models)).split("each task against", 1)
    assert "task0" not in first
    assert all(f" {task} (acc) " in second for task in tasks)


def test_one_task_needs_no_second_table(make_run: MakeRun, demo_models: Models) -> None:
    models = {name: {"t/acc": items["j_sorting/acc"]} for name, items in demo_models.items()}
    shown = text(make_run(models))
    assert "each task" not in shown
    assert "mean" not in shown
    assert "by +0.140 on t/acc (paired McNemar p = 7.5e-9, 200 items" in shown.replace("\n", " ")


def nested(right: int, wrong: int) -> dict[str, np.ndarray]:
    return {"t/acc": np.repeat([1.0, 0.0], [right, wrong])}


def test_verdict_says_when_there_is_no_difference(make_run: MakeRun) -> None:
    summary = summarize(make_run({"math": nested(50, 50), "evolved": nested(53, 47)}))
    assert verdict(summary).startswith(
        "No significant difference between the evolved merge and the best of the baselines (math): "
        "+0.030 on t/acc (paired McNemar p = 0.25, 100 items, 95% interval -0.001 to +0.071)"
    )


def test_verdict_says_when_the_merge_is_worse(make_run: MakeRun) -> None:
    path = make_run({"math": nested(50, 50), "evolved": nested(30, 70)})
    assert verdict(summarize(path)).startswith(
        "The evolved merge is worse than the best of the baselines (math): -0.200"
    )
    assert "> math " in text(path)  # the winner is marked, whoever it is


def test_search_items_come_with_a_warning(make_run: MakeRun, demo_models: Models) -> None:
    shown = " ".join(lines(text(make_run(demo_models, held_out=False))))
    assert "demo: acc on the search items" in shown
    assert "its score is optimistic" in shown
    assert "optimistic" not in " ".join(lines(text(make_run(demo_models, name="other"))))


def test_lower_is_better_is_said(make_run: MakeRun) -> None:
    bits = np.linspace(2.0, 3.0, 40)
    models = {
        "math": {"prose/bits_per_byte": bits, "sums/acc": np.zeros(40)},
        "evolved": {"prose/bits_per_byte": bits * 0.9, "sums/acc": np.ones(40)},
    }
    shown = " ".join(" ".join(lines(text(make_run(models)))).split())
    assert "prose (bits_per_byte, lower is" in shown
    assert "mean: metrics where lower is better count negatively." in shown
    assert "paired sign-flip permutation p = 1.0e-4, 80 items" in shown


def test_a_run_without_a_winner_or_an_end_says_so(make_run: MakeRun, demo_models: Models, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "short")
    folder.pool.write_bytes((make_run(demo_models) / "pool.json").read_bytes())
    with Ledger(folder) as ledger:
        ledger.append("started")
        for index, name in enumerate(("math", "start")):
            ledger.log_asked(Candidate(index, None, name=name))
        ledger.log_told(Evaluation(0, "ok", metrics={"t/acc": 0.5}, items={"t/acc": np.array([0.0, 1.0])}))
        ledger.log_told(Evaluation(1, "failed", error="out of memory"))
        ledger.log_told(Evaluation(2, "failed", error="NaN"))
    shown = text(folder.path)
    assert "No candidate of the search could be scored" in shown
    assert "Candidates searched: 1 (1 failed)." in shown
    assert "The run has not ended" in shown
    assert "Best recipe" not in shown
    assert any(line.startswith("   start (base)") and "failed" in line for line in lines(shown))


@pytest.mark.parametrize(
    ("p_value", "shown"),
    [
        (1.0, "1"),
        (0.996, "1"),
        (0.5, "0.5"),
        (0.0434, "0.043"),
        (0.001, "0.001"),
        (0.00099, "9.9e-4"),
        (1.234e-9, "1.2e-9"),
        (1e-100, "1.0e-100"),
        (0.0, "< 1e-300"),
    ],
)
def test_p_values_have_two_digits(p_value: float, shown: str) -> None:
    assert p_text(p_value) == shown


def test_headings_leave_out_what_all_tasks_share() -> None:
    shared = ["demo_e_maths_held_out", "demo_j_language_held_out", "demo_j_maths_held_out"]
    assert distinct(shared) == ["e_maths", "j_language", "j_maths"]
    assert distinct(["gsm8k", "mgsm_ja"]) == ["gsm8k", "mgsm_ja"]
    assert distinct(["mgsm_de", "mgsm_ja", "mgsm"]) == ["mgsm_de", "mgsm_ja", "mgsm"]
    assert distinct(["one_task"]) == ["one_task"]


def test_a_run_that_does_not_say_what_its_metrics_count(make_run: MakeRun, demo_models: Models) -> None:
    assert "does not say what its metrics count: weights are equal here" in " ".join(
        text(make_run(demo_models)).split()
    )
