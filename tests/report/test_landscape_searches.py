"""Searches on a landscape, side by side: `scripts/compare_searches.py --landscape`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from landscape.landscapes import landscape_file

from evomerge.genomes.genome import Genome
from evomerge.landscape.file import read_landscape
from evomerge.report.history import read_history
from scripts.compare_searches import main
from scripts.landscape_searches import parse_searches, true_best_so_far


def test_searches_are_run_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = landscape_file(tmp_path), tmp_path / "runs"
    words = ["--landscape", str(file), "--seeds", "2", "--budgets", "5,20", "--runs", str(folder)]
    assert main([*words, "random", "small=strategy=cma_es strategy.sigma0=0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| random", "| small"]
    assert lines[0] == "| score after | 5 | p | 20 | p |"
    landscape, cells = read_landscape(file), lines[3].split(" | ")
    curves = [true_best_so_far(folder / f"small-{seed}", landscape) for seed in range(2)]
    assert cells[3].startswith(f"{np.mean([curve[19] for curve in curves]):.4f} ± ")
    assert float(cells[4].removesuffix(" |")) in (0.5, 1.0), "of two seeds"
    history = read_history(folder / "small-1")
    assert len(history.trials) == 20
    scores = [trial.objectives["score"] for trial in history.trials]
    for place in range(20):  # the one that the search would return, by what it saw
        best = history.trials[int(np.argmax(scores[: place + 1]))]
        expected = landscape.objectives_of(landscape.predict([Genome(tuple(best.genome))])[0])["score"]
        assert curves[1][place] == pytest.approx(expected)
    assert history.trials[0].metrics != read_history(folder / "small-0").trials[0].metrics, "items of its own"
    assert main([*words, "random", "small=strategy=cma_es strategy.sigma0=0.1"]) == 0
    assert capsys.readouterr().out.splitlines() == lines, "runs that are there are kept"


def test_what_cannot_be_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_searches(["cma_es", "a=strategy=ga 'strategy.spread=auto'"]) == {
        "cma_es": ["strategy=cma_es"],
        "a": ["strategy=ga", "strategy.spread=auto"],
    }
    for arguments, said in [
        (["random", "random"], "each label once"),
        (["a=cma_es"], "LABEL='KEY=VALUE KEY=VALUE'"),
        (["--budgets", "0,5", "random"], "numbers from 1"),
        (["random"], "cannot be read"),
    ]:
        assert main(["--landscape", str(tmp_path / "no.npz"), *arguments]) == 2
        assert said in capsys.readouterr().err
