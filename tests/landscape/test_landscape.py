"""A landscape as a whole: what it predicts, its file, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from landscape.landscapes import COUNTS, GENES, evaluated, landscape, landscape_file
from scipy.stats import spearmanr

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.landscape.file import fingerprint_of, read_landscape, write_landscape
from evomerge.landscape.fitting import Evaluated, fit_landscape
from evomerge.landscape.landscape import Landscape, objectives_of
from evomerge.objectives import MetricShare, Objective

GOOD, BAD = Genome((0.7, 1.0, "ties", True)), Genome((2.0, 0.0, "linear", True))


@pytest.fixture(scope="module")
def fitted() -> Landscape:
    return landscape()


def test_it_knows_the_good_from_the_bad(fitted: Landscape) -> None:
    good, bad = fitted.predict([GOOD, BAD])
    assert (good > bad + 0.3).all()
    fresh = evaluated(200, seed=8)
    told = fitted.predict(fresh.genomes)
    for number, name in enumerate(fitted.targets):
        correlation = spearmanr(told[:, number], fresh.targets[name]).statistic
        assert correlation > 0.5
        assert fitted.fit[name].rank == pytest.approx(correlation, abs=0.2), "the cross-validated one is like it"
        assert 0 < fitted.fit[name].items <= fitted.fit[name].error * 1.1
        assert fitted.fit[name].r2 < 1


def test_shares_of_items_stay_shares(fitted: Landscape) -> None:
    far = replace(fitted, surface=replace(fitted.surface, low=np.array([2.0, -3.0]), high=np.array([2.0, -3.0])))
    assert far.predict([GOOD]).tolist() == [[1.0, 0.0]]
    assert far.score(GOOD, 1)[1]["a/acc"].tolist() == [1.0] * COUNTS["a"]


def test_a_genome_has_the_same_draws_in_every_search(fitted: Landscape) -> None:
    first, items = fitted.score(GOOD, 5)
    fitted.score(BAD, 5)
    again, others = fitted.score(Genome(GOOD.values), 5)[0], fitted.score(GOOD, 6)[1]
    assert first.tolist() == again.tolist()
    assert {name: len(values) for name, values in items.items()} == {f"{t}/acc": n for t, n in COUNTS.items()}
    assert any((items[name] != others[name]).any() for name in items)
    for number, name in enumerate(fitted.targets):
        assert first[number] == items[name].mean()


def test_without_noise_the_score_is_what_is_predicted(fitted: Landscape) -> None:
    score, items = fitted.score(GOOD)
    np.testing.assert_array_equal(score, fitted.predict([GOOD])[0])
    assert items["a/acc"].mean() == pytest.approx(score[0], abs=1e-10)


def test_parts_are_of_the_same_draws(fitted: Landscape) -> None:
    whole = fitted.score(GOOD, 1)[1]
    score, items = fitted.score(GOOD, 1, {"a": [3, 0, 39]})
    assert np.flatnonzero(np.isfinite(items["a/acc"])).tolist() == [0, 3, 39]
    assert items["a/acc"][[0, 3, 39]].tolist() == whole["a/acc"][[0, 3, 39]].tolist()
    assert score[0] == whole["a/acc"][[0, 3, 39]].mean()
    assert np.isnan(items["b/acc"]).all()
    assert np.isnan(score[1])
    for part in ({"a": [40]}, {"a": [-1]}, {"c": [0]}):
        with pytest.raises(ConfigError, match="the landscape has: a 40, b 20"):
            fitted.score(GOOD, 1, part)


def test_objectives_are_sums_of_what_there_is(fitted: Landscape) -> None:
    assert fitted.objectives_of(np.array([0.5, 0.9])) == {"score": pytest.approx(0.6)}
    assert fitted.objectives_of(np.array([np.nan, 0.9])) == {"score": pytest.approx(0.9)}
    shares = [MetricShare("a/ppl", 0.2, "minimize", "both", "log"), MetricShare("a/acc", 1.0, objective="both")]
    objectives = [Objective("both"), Objective("size", "minimize")]
    found = objectives_of({"a/ppl": 3.0, "a/acc": 0.4}, objectives, shares)
    assert found["both"] == pytest.approx(-0.2 * 3 + 0.4)
    assert objectives_of({"a/ppl": 3.0}, objectives[:1], shares)["both"] == pytest.approx(-0.6 * 1.2 / 0.2)
    assert np.isnan(found["size"])
    logs = replace(fitted, shares=tuple(shares), targets=("a/ppl", "a/acc"))
    assert logs.metrics_of(np.array([3.0, np.nan])) == {"a/ppl": pytest.approx(np.exp(3.0))}


def test_the_file_holds_all_of_it(fitted: Landscape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_landscape(fitted, tmp_path / "a.npz")
    read = read_landscape(path)
    assert read.genes == GENES
    assert (read.objectives, read.shares, read.targets) == (fitted.objectives, fitted.shares, fitted.targets)
    assert (read.fit, read.source, read.counts) == (fitted.fit, fitted.source, fitted.counts)
    genomes = evaluated(20, seed=4).genomes
    np.testing.assert_array_equal(read.predict(genomes), fitted.predict(genomes))
    assert all(read.score(g, 3)[0].tolist() == fitted.score(g, 3)[0].tolist() for g in genomes)
    monkeypatch.chdir(tmp_path)
    named = write_landscape(read)
    assert named.read_bytes() == path.read_bytes()
    assert read.fingerprint.startswith("sha256:" + named.stem.removeprefix("landscape-"))
    assert fit_landscape(evaluated()).forest.value.tolist() == fitted.forest.value.tolist(), "the seed decides"


def repacked(path: Path, out: Path, *, sign: bool = True, **changes: Any) -> Path:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files} | changes
    digest = arrays.pop("sha256")
    if sign:
        digest = np.frombuffer(bytes.fromhex(fingerprint_of(arrays)), np.uint8)
    np.savez(out, **arrays, sha256=digest)
    return out


def test_damaged_and_hostile_files_are_refused(tmp_path: Path) -> None:
    path = landscape_file(tmp_path)
    header = json.loads(np.load(path)["header"].tobytes())

    def with_header(**changes: Any) -> dict[str, Any]:
        return {"header": np.frombuffer(json.dumps({**header, **changes}).encode(), np.uint8)}

    out = tmp_path / "bad.npz"
    left = np.load(path)["forest.left"].copy()
    left[0] = 0
    for sign, changes, said in [
        (False, {"forest.threshold": np.load(path)["forest.threshold"] + 1}, "not what its hash says"),
        (True, {"forest.left": left}, "ways that do not end"),
        (True, {"forest.value": np.load(path)["forest.value"].astype(np.float32)}, "is float32"),
        (True, {"items.0.offsets": np.full(40, 1e6)}, "difficulties"),
        (True, {"items.0.offsets": np.full(40, np.nan)}, "not finite"),
        (True, with_header(evomerge_landscape=2), "this version reads 1"),
        (True, with_header(genes=[]), "no landscape"),
        (True, with_header(objectives=[["score", "upwards"]]), "no landscape"),
    ]:
        with pytest.raises(ConfigError, match=said):
            read_landscape(repacked(path, out, sign=sign, **changes))
    np.savez(out, header=np.array([{"a": 1}], dtype=object), sha256=np.zeros(32, np.uint8))
    with pytest.raises(ConfigError, match="no landscape"):
        read_landscape(out)
    out.write_bytes(path.read_bytes()[:1000])
    for place in (out, tmp_path / "nothing.npz", tmp_path):
        with pytest.raises(ConfigError, match="evomerge export --format landscape"):
            read_landscape(place)


def test_few_evaluations_are_refused() -> None:
    with pytest.raises(ConfigError, match="there are 29 scored candidates with genomes; at least 30"):
        fit_landscape(evaluated(29))


def test_a_target_that_is_the_same_for_all_is_told_as_such() -> None:
    found = evaluated(30)
    found.targets["a/acc"][:] = 0.5  # type: ignore[index]
    fit = fit_landscape(found).fit["a/acc"]
    assert (fit.r2, fit.rank, fit.error) == (0.0, 0.0, 0.0)


def test_orders_are_learnt_by_places() -> None:
    """Which of four comes last: by place one split tells, by the numbers of picks it does not."""
    genes = tuple(Gene(f"layers.1/order.{place}", "integer", 0, 3 - place, 0) for place in range(3))
    spec, rng = GenomeSpec(genes), np.random.default_rng(0)
    genomes = [spec.sample(rng) for _ in range(150)]
    last = np.array([float(_last(genome.values) == 3) for genome in genomes])
    found = Evaluated(genes, genomes, [Objective("score")], (), {"score": last})
    assert fit_landscape(found).fit["score"].r2 > 0.95


def _last(picks: tuple[Any, ...]) -> int:
    left = list(range(4))
    for pick in picks:
        left.pop(int(pick))
    return left[0]
