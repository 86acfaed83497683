"""The script of the digits experiments: every method through its experiment file and strategy class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import reproduce_m2n2_digits as digits


def method(start: str, name: str) -> digits.Method:
    return next(m for m in digits.METHODS if (m.start, m.name) == (start, name))


@pytest.mark.parametrize("entry", digits.METHODS, ids=lambda m: f"{m.start}-{m.name}")
def test_every_method_runs_and_only_gets_better_in_training(entry: digits.Method) -> None:
    curve = digits.play(entry, 1, passes=45, every=10)
    assert curve.passes == [10, 20, 30, 40, 45]
    assert curve.train == sorted(curve.train)
    assert 0.05 < curve.test[-1] < 0.9


def test_a_run_is_its_seed_s() -> None:
    ours = method("scratch", "m2n2")
    first, again, other = (digits.play(ours, seed, passes=60, every=20) for seed in (3, 3, 4))
    assert (first.train, first.test) == (again.train, again.test)
    assert first.train != other.train


def test_runs_that_are_there_are_left_alone(tmp_path: Path) -> None:
    chosen = [method("pretrained", "ga"), method("pretrained", "brute_force")]
    digits.run_all(tmp_path, chosen, 2, 20, lambda: None)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["pretrained-brute_force-0.json", "pretrained-ga-0.json", "pretrained-ga-1.json"]
    stamps = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    digits.run_all(tmp_path, chosen, 2, 20, lambda: None)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps


def test_the_table_has_means_and_standard_errors(tmp_path: Path) -> None:
    for seed, last in enumerate((0.8, 0.9, 0.85)):
        curve = digits.Curve("ga", "scratch", seed, [10, 20], [0.5, 0.6], [0.4, last], 1.0)
        (tmp_path / f"scratch-ga-{seed}.json").write_text(json.dumps(vars(curve)))
    assert "| scratch | GA | 68.4 | 85.0 | 2.9 | 3 |" in digits.table(tmp_path)
    rows = digits.write_csv(tmp_path).read_text().splitlines()
    assert rows[1] == "scratch,ga,10,0.40000,0.00000,0.50000,3"
    assert rows[2].startswith("scratch,ga,20,0.85000,0.02887,0.60000")


def test_speed_is_told_beside_the_arithmetic_s(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(digits.console, "print", said.append)
    digits.speed(blocks=2, passes=30)
    assert [line.split("  ")[0].rpartition(",")[0] for line in said] == ["forwards", "M2N2"] * 2
    assert all(float(line.split(" ms), ")[1].split()[0]) > 0 for line in said)
