from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import FitnessError
from evomerge.report.outcome import headlines, read_run
from evomerge.report.statistics import mcnemar
from evomerge.report.summary import summarize
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger
from evomerge.run.ledger_file import LedgerError

MakeRun = Callable[..., Path]
Models = dict[str, dict[str, np.ndarray]]


def test_rows_and_tests_of_a_run(make_run: MakeRun, demo_models: Models) -> None:
    summary = summarize(make_run(demo_models))
    assert [(row.name, row.kind, row.candidate) for row in summary.rows] == [
        ("math", "source", 0),
        ("language", "source", 1),
        ("start", "base", 2),
        ("uniform average", "baseline", 3),
        ("evolved", "evolved", 11),
    ]
    assert (summary.split, summary.dtype, summary.best_baseline) == ("held_out", "float32", "uniform average")
    assert (summary.counts, summary.stopped) == ({"failed": 1, "ok": 1}, "budget")
    evolved = summary.evolved
    assert evolved is not None
    assert evolved.scores == {"english_sorting": 0.96, "j_language": 0.84, "j_sorting": 0.66}
    assert evolved.mean == pytest.approx(0.82)
    assert evolved.gain == pytest.approx((192 + 168 + 132 - 154 - 170 - 104) / 600)
    # Right answers are nested runs of items, so that every difference is one-sided: 38 + 28 won, 2 lost.
    assert evolved.comparison is not None
    assert (evolved.comparison.wins, evolved.comparison.losses, evolved.comparison.items) == (66, 2, 600)
    assert (evolved.comparison.test, evolved.comparison.p_value) == ("McNemar", mcnemar(66, 2))
    assert summary.rows[3].gain == 0.0
    assert summary.rows[3].comparison is None
    assert summary.rows[0].gain == pytest.approx((198 + 126 + 30 - 428) / 600)
    assert set(summary.against) == {"math", "language", "start", "uniform average"}
    assert (summary.against["math"].wins, summary.against["math"].losses) == (42 + 102, 6)


def test_each_task_has_its_own_best_baseline(make_run: MakeRun, demo_models: Models) -> None:
    summary = summarize(make_run(demo_models))
    assert [(t.task, t.metric, t.best_baseline, t.items) for t in summary.tasks] == [
        ("english_sorting", "english_sorting/acc", "math", 200),
        ("j_language", "j_language/acc", "language", 200),
        ("j_sorting", "j_sorting/acc", "uniform average", 200),
    ]
    cross = summary.tasks[2]
    assert (cross.evolved, cross.baseline_score) == (0.66, 0.52)
    assert cross.gain == pytest.approx(0.14)
    assert cross.comparison is not None
    assert cross.comparison.p_value == mcnemar(28, 0)
    assert summary.tasks[0].gain == pytest.approx(-0.03)


def test_without_held_out_items_the_search_items_are_reported(make_run: MakeRun, demo_models: Models) -> None:
    summary = summarize(make_run(demo_models, held_out=False))
    assert summary.split == "search"
    assert summary.evolved is not None
    assert summary.evolved.mean == pytest.approx(0.82)


def test_lower_is_better(make_run: MakeRun) -> None:
    rng = np.random.default_rng(0)
    text = rng.uniform(2.0, 3.0, size=50)
    models = {
        "math": {"prose/bits_per_byte": text},
        "language": {"prose/bits_per_byte": text - 0.2},
        "evolved": {"prose/bits_per_byte": text - 0.5 + rng.normal(size=50) * 0.01},
    }
    summary = summarize(make_run(models))
    evolved = summary.evolved
    assert evolved is not None
    assert evolved.mean == pytest.approx(text.mean() - 0.5, abs=0.01)
    assert summary.best_baseline == summary.tasks[0].best_baseline == "language"
    assert evolved.gain == pytest.approx(0.3, abs=0.01)
    assert summary.tasks[0].gain == pytest.approx(evolved.gain)
    assert evolved.comparison is not None
    assert evolved.comparison.wins == 50
    assert (summary.lower_is_better, summary.mixed) == (True, False)


WEIGHTS = (("english_sorting", 4.0), ("j_language", 1.0), ("j_sorting", 1.0))


def declared(*entries: tuple[str, float, str]) -> dict[str, list[list[object]]]:
    """What a fitness declares, the same of both kinds of items, as a ledger keeps it."""
    listed: list[list[object]] = [[metric, weight, way, "score", ""] for metric, weight, way in entries]
    return {"search": listed, "held_out": listed}


def test_a_run_may_say_which_metrics_are_lower_is_better(make_run: MakeRun) -> None:
    models = {
        "math": {"a/regret": np.array([0.5, 0.25]), "b/acc": np.array([1.0, 0.0])},
        "evolved": {"a/regret": np.array([0.25, 0.0]), "b/acc": np.array([1.0, 1.0])},
    }
    summary = summarize(make_run(models, shares=declared(("a/regret", 1, "minimize"), ("b/acc", 1, "maximize"))))
    assert summary.mixed
    assert [task.gain for task in summary.tasks] == [0.25, 0.5]
    assert summary.rows[0].mean == pytest.approx((0.5 - 0.375) / 2)
    assert summary.rows[1].gain == pytest.approx(0.375)


def test_task_weights_enter_mean_and_test(make_run: MakeRun, demo_models: Models) -> None:
    summary = summarize(make_run(demo_models, shares=declared(*((f"{t}/acc", w, "maximize") for t, w in WEIGHTS))))
    assert [task.weight for task in summary.tasks] == pytest.approx([4 / 6, 1 / 6, 1 / 6])
    assert summary.best_baseline == "math"
    evolved = summary.evolved
    assert evolved is not None
    assert evolved.mean == pytest.approx((4 * 0.96 + 0.84 + 0.66) / 6)
    assert evolved.comparison is not None
    assert evolved.comparison.test == "sign-flip permutation"
    assert evolved.comparison.difference == pytest.approx(evolved.gain)


def test_headlines_are_each_task_s_first_metric_with_items() -> None:
    metrics = dict.fromkeys(["group/acc", "a/x/acc,none", "a/x/acc_stderr,none", "b/f1", "b/acc"], 0.5)
    items = {"a/x/acc,none": np.ones(2), "b/acc": np.ones(2), "b/f1": np.ones(2)}
    assert headlines(Evaluation(0, "ok", metrics=metrics, items=items)) == {"a/x": "a/x/acc,none", "b": "b/f1"}
    assert headlines(Evaluation(0, "ok", metrics={"a/acc": 1.0})) == {"a": "a/acc"}


def test_scores_without_items_are_shown_untested(make_run: MakeRun, demo_models: Models, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "plain")
    folder.write_pool(read_run(make_run(demo_models)).pool)
    with Ledger(folder) as ledger:
        ledger.append("started")
        for index, (name, value) in enumerate({"math": 0.5, "best": 0.75}.items()):
            ledger.log_asked(Candidate(index, None, name=name), "held_out")
            ledger.log_told(Evaluation(index, "ok", "held_out", metrics={"t/bleu": value}))
    summary = summarize(folder.path)
    assert [(row.mean, row.gain, row.comparison) for row in summary.rows] == [(0.5, 0.0, None), (0.75, 0.25, None)]
    assert (summary.stopped, summary.recipe, summary.tasks[0].items) == (None, None, 0)


def test_a_baseline_that_failed_is_shown_without_scores(make_run: MakeRun, demo_models: Models) -> None:
    path = make_run(demo_models)
    with Ledger(RunFolder(path)) as ledger:
        ledger.log_told(Evaluation(3, "failed", "held_out", error="out of memory"))
    summary = summarize(path)
    row = summary.rows[3]
    assert (row.status, row.scores, row.mean, row.gain) == ("failed", {}, None, None)
    assert summary.best_baseline == "start"


def test_changed_items_are_noticed(make_run: MakeRun, demo_models: Models) -> None:
    folder = RunFolder(make_run(demo_models))
    folder.items_file(11, "held_out").write_bytes(folder.items_file(0, "held_out").read_bytes())
    with pytest.raises(LedgerError, match=r"held_out-11\.safetensors does not match the hash in the ledger"):
        summarize(folder)


def test_a_run_without_baselines_is_refused(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "bare")
    with Ledger(folder) as ledger:
        ledger.append("started")
    with pytest.raises(FitnessError, match="bare has no baselines on the search items"):
        summarize(folder.path)
    with pytest.raises(LedgerError, match="does not exist"):
        summarize(tmp_path / "nowhere")


def test_the_logarithm_counts_where_the_fitness_takes_it(make_run: MakeRun) -> None:
    models = {
        "math": {"a/perplexity": np.array([4.0, 4.0]), "b/acc": np.array([1.0, 0.0])},
        "evolved": {"a/perplexity": np.array([2.0, 2.0]), "b/acc": np.array([1.0, 1.0])},
    }
    shares = [["a/perplexity", 1.0, "minimize", "score", "log"], ["b/acc", 3.0, "maximize", "score", ""]]
    summary = summarize(make_run(models, shares={"search": shares, "held_out": shares}))
    assert [row.mean for row in summary.rows] == pytest.approx([(1.5 - np.log(4)) / 4, (3 - np.log(2)) / 4])
    assert not summary.guesses


def test_what_a_ledger_says_of_shares_is_checked(make_run: MakeRun, demo_models: Models) -> None:
    """Entries that no fitness wrote are left out, and the run is one that does not say."""
    wrong = [["a/b", "1", "maximize", "", ""], ["a/b", True, "maximize", "", ""], ["a/b", -1, "up", "", ""], 3, ["a"]]
    summary = summarize(make_run(demo_models, shares={"held_out": wrong, "search": "no"}))
    assert summary.guesses
    assert [task.weight for task in summary.tasks] == pytest.approx([1 / 3] * 3)
