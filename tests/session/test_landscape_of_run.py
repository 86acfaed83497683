"""A landscape of a run: here of searches on another landscape, whose items are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from landscape.landscapes import COUNTS, GENES, landscape_file

from evomerge.api.searching import search
from evomerge.cli.main import main
from evomerge.errors import ConfigError
from evomerge.landscape.file import read_landscape
from evomerge.objectives import MetricShare, Objective
from evomerge.report.history import read_history
from evomerge.report.trial import Trial
from evomerge.run.items import read_items
from evomerge.session.landscape_of_run import _targets, landscape_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    words = [f"fitness.file='{landscape_file(folder)}'", f"run_dir='{folder / 'run'}'", "held_out=null"]
    search("experiment=landscape", "strategy=random", "search.evaluations=60", *words, display="quiet")
    return folder / "run"


def test_it_has_the_run_s_genes_items_and_objectives(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run.parent / "again.npz"
    assert main(["export", "--format", "landscape", str(run), "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "a/acc" in said
    assert "60 evaluations, 4 genes" in said
    landscape = read_landscape(out)
    assert landscape.genes == GENES
    assert landscape.counts == COUNTS
    assert landscape.source["evaluations"] == 60
    assert [(s.metric, s.weight) for s in landscape.shares] == [("a/acc", 0.75), ("b/acc", 0.25)]
    trials = read_history(run).trials
    items = np.array([read_items(run, trial.candidate)["b/acc"] for trial in trials])
    logits = np.log((items.sum(axis=0) + 0.5) / (60 - items.sum(axis=0) + 0.5))
    np.testing.assert_allclose(landscape.items["b/acc"].offsets, logits.mean() - logits)


def test_candidates_without_a_score_are_left_out(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    lines = (copy / "ledger.jsonl").read_text().splitlines(keepends=True)
    told = [number for number, line in enumerate(lines) if json.loads(line)["event"] == "told"]
    (copy / "ledger.jsonl").write_text("".join(lines[: told[34] + 1]))
    assert landscape_of(copy).source["evaluations"] == 35
    (copy / "ledger.jsonl").write_text("".join(lines[: told[28] + 1]))
    with pytest.raises(ConfigError, match="29 scored candidates with genomes; at least 30"):
        landscape_of(copy)


def test_runs_of_raw_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=m2n2_digits", "search.evaluations=3", "held_out=null"]
    search(*words, f"run_dir='{tmp_path / 'digits'}'", display="quiet")
    assert main(["export", "--format", "landscape", str(tmp_path / "digits")]) == 2
    assert "raw weights, of which a ledger keeps hashes" in capsys.readouterr().err


def trial(**objectives: float) -> Trial:
    found = Trial(0, 0, [0.5], (), "", 0.0, status="ok")
    found.objectives, found.metrics = objectives, {"a/acc": 0.5, "b/ppl": float(np.exp(3.0))}
    return found


def test_objectives_are_made_as_the_run_made_them() -> None:
    """Sums and means of what counts; where neither gives the run's objective, it is predicted itself."""
    shares = [MetricShare("a/acc", 1.0), MetricShare("b/ppl", 0.25, "minimize", "", "log")]
    whole = 0.5 - 0.25 * 3.0
    for value, weights in [(whole, [1.0, 0.25]), (whole / 1.25, [0.8, 0.2])]:
        targets, scaled = _targets([trial(score=value)], [Objective("score")], shares)
        assert {name: float(v[0]) for name, v in targets.items()} == {"a/acc": 0.5, "b/ppl": pytest.approx(3.0)}
        assert [(s.weight, s.objective) for s in scaled] == [(pytest.approx(w), "score") for w in weights]
    targets, scaled = _targets([trial(score=0.3)], [Objective("score")], shares)
    assert (list(targets), scaled) == (["score"], ())
    targets, scaled = _targets([trial(size=4.0)], [Objective("size", "minimize")], ())
    assert (targets["size"].tolist(), scaled) == ([4.0], ())


@pytest.mark.parametrize("evaluations", [40, 20])  # 20: going on would not give more
def test_of_a_raced_run_it_says_what_to_do(evaluations: int, run: Path, tmp_path: Path) -> None:
    words = [f"fitness.file='{next(run.parent.glob('*.npz'))}'", f"run_dir='{tmp_path / 'raced'}'", "held_out=null"]
    few = [f"search.evaluations={evaluations}", "search.racing.first=0.1", "search.finalists=0"]
    search("experiment=landscape", "strategy=random", *few, *words, display="quiet")
    with pytest.raises(ConfigError, match=r"raced: \d+ of its candidates.*search\.racing\.first=null"):
        landscape_of(tmp_path / "raced")
