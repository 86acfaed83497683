"""A landscape as a fitness, and searches on it without a pool."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from landscape.landscapes import COUNTS, GENES, landscape_file

from evomerge.candidate import Candidate
from evomerge.cli.main import main
from evomerge.errors import ConfigError, FitnessError
from evomerge.evaluation.direct import DirectEvaluator
from evomerge.genomes.genome import Genome
from evomerge.landscape.file import read_landscape
from evomerge.report.history import read_history
from fitness.surrogate import SurrogateFitness

GENOME = Genome((0.7, 0.9, "ties", True))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return landscape_file(tmp_path_factory.mktemp("landscape"))


def test_scores_are_the_landscape_s(file: Path) -> None:
    fitness, expected = SurrogateFitness(file=str(file), seed=2), SurrogateFitness(file=str(file), noise=False)
    fitness.check()
    assert fitness.items() == COUNTS
    assert [(s.metric, s.weight) for s in fitness.shares()] == [("a/acc", 0.75), ("b/acc", 0.25)]
    scores, mean = fitness.score_genome(GENOME), expected.score_genome(GENOME)
    assert scores.items["a/acc"].mean() == scores.metrics["a/acc"]
    for each in (scores, mean):
        assert each.objectives["score"] == pytest.approx(0.75 * each.metrics["a/acc"] + 0.25 * each.metrics["b/acc"])
    told = read_landscape(file).predict([GENOME])[0]
    assert list(mean.metrics.values()) == told.tolist()
    prints = {own.fingerprint() for own in (fitness, expected, SurrogateFitness(file=str(file)))}
    assert len(prints) == 3
    assert fitness.fingerprint() == SurrogateFitness(file=str(file), seed=2).fingerprint()


def test_parts_together_are_the_whole(file: Path) -> None:
    fitness = SurrogateFitness(file=str(file))
    whole = fitness.score_genome(GENOME)
    parts = [fitness.score_genome(GENOME, {"a": range(k, 40, 2), "b": range(k, 20, 2)}) for k in (0, 1)]
    for name, values in whole.items.items():
        together = np.where(np.isnan(parts[0].items[name]), parts[1].items[name], parts[0].items[name])
        assert together.tolist() == values.tolist()
    assert parts[0].objectives["score"] == pytest.approx(
        0.75 * whole.items["a/acc"][::2].mean() + 0.25 * whole.items["b/acc"][::2].mean()
    )
    assert fitness.score_genome(GENOME, {"b": [1]}).metrics == {"b/acc": whole.items["b/acc"][1]}
    with pytest.raises(FitnessError, match="no item of score"):
        fitness.score_genome(GENOME, {})


def test_what_it_hardly_knows_is_said(file: Path) -> None:
    fitness = SurrogateFitness(file=str(file))
    poor = [name for name, fit in read_landscape(file).fit.items() if fit.r2 < 0.2]
    assert all(any(name in line for line in fitness.cautions()) for name in poor)
    with pytest.raises(ConfigError, match="seed is -1"):
        SurrogateFitness(file=str(file), seed=-1)


def test_the_evaluator_hands_it_genomes_and_parts(file: Path) -> None:
    fitness = SurrogateFitness(file=str(file))
    evaluator = DirectEvaluator({"search": fitness})
    evaluator.submit(Candidate(0, None, GENOME))
    evaluator.submit(Candidate(1, None, GENOME, part={"a": [0, 1], "b": [2]}))
    evaluator.submit(Candidate(2, None, Genome((0.7, 0.9))))
    whole, part, other = (evaluator.collect() for _ in range(3))
    assert whole.objectives == fitness.score_genome(GENOME).objectives
    assert [int(np.isfinite(values).sum()) for values in part.items.values()] == [2, 1]
    assert (other.status, other.error[:22]) == ("failed", "a genome of 2 values w")


def test_searches_run_on_it_and_repeat(file: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        words = ["experiment=landscape", f"fitness.file='{file}'", "strategy=catcma", "search.evaluations=60"]
        assert main(["search", *words, f"run_dir='{tmp_path / name}'", "display=quiet"]) == 0
    one, two = (read_history(tmp_path / name) for name in ("one", "two"))
    assert [t.genome for t in one.trials] == [t.genome for t in two.trials]
    assert [t.objectives for t in one.trials] == [t.objectives for t in two.trials]
    assert one.genes == [[gene.name for gene in GENES]]
    (held_out,) = one.held_out.values()
    winner = Genome(tuple(next(t.genome for t in one.trials if t.candidate == one.winner)))
    written = json.loads((tmp_path / "one" / "best" / "genome.json").read_text())
    assert written == {"evomerge_genome": 1, "values": list(winner.values)}
    landscape = read_landscape(file)
    expected = landscape.objectives_of(landscape.predict([winner])[0])
    assert held_out.objectives["score"] == pytest.approx(expected["score"])


def test_a_file_that_is_none_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "experiment=landscape", f"fitness.file='{tmp_path / 'no.npz'}'"]) == 2
    assert "no.npz cannot be read" in capsys.readouterr().err
