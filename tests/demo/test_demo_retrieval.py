"""The demo's embedding models: functions out of installed packages, and a search on a pool of the right shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import evomerge
from evomerge.cli.main import main
from evomerge.demo import classifiers, retrieval
from evomerge.demo.retrieval import PACKAGES, Sizes, make_retrieval
from evomerge.demo.signatures import documented
from evomerge.errors import ConfigError, OutputError

SOURCE = '''
class Box:
    def open(self, lid, *, hinge=(1, 2)):
        r"""Open the box by its lid and leave it so.  And more.

        Parameters
        ----------
        """

    def _shut(self):
        """Shut it again and lock it with a key."""

def turn(x: int, /, y) -> int:
    """Turn
    what is given around

    Twice.
    """

def short():
    """Too short."""

def silent():
    return 1
'''


def test_sentences_and_signatures_are_those_of_the_source() -> None:
    assert sorted(documented(SOURCE)) == [
        ("Open the box by its lid and leave it so.", "open(lid, hinge)"),
        ("Turn what is given around", "turn(x, y)"),
    ]
    assert list(documented("def broken(:")) == []


def test_other_folders_are_not_written_over_and_options_go_together(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    with pytest.raises(OutputError, match="holds no pool of embedding models of a demo"):
        make_retrieval(tmp_path / "own", quick=True)
    with pytest.raises(ConfigError, match="--retrieval and --adapters"):
        main(["demo", "--retrieval", "--adapters", "3", "--pool-only", "--debug"])
    with pytest.raises(ConfigError, match="--classifiers and --retrieval"):
        main(["demo", "--retrieval", "--classifiers", "--debug"])


@pytest.mark.slow
def test_the_pool_is_searched_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {**classifiers.MODEL, "hidden_size": 16, "num_hidden_layers": 1}
    monkeypatch.setattr(retrieval, "MODEL", small)
    monkeypatch.setattr(retrieval, "BATCH", 8)
    pool = make_retrieval(tmp_path / "pool", threads=1, sizes=Sizes(30, 9, 12, 300, 1, 2))
    for task in PACKAGES:
        qrels = [
            (pool / "data" / task / "qrels" / f"{part}.tsv").read_text().split() for part in ("search", "held_out")
        ]
        queries = [{word for word in own if word.startswith("q") and word != "query-id"} for own in qrels]
        assert queries[0]
        assert not queries[0] & queries[1]
        corpus = (pool / "data" / task / "corpus.jsonl").read_text().splitlines()
        assert len({json.loads(line)["text"] for line in corpus}) == len(corpus)
    before = (pool / "manifest.json").stat().st_mtime_ns
    make_retrieval(pool, threads=1, sizes=Sizes(30, 9, 12, 300, 1, 2))
    assert (pool / "manifest.json").stat().st_mtime_ns == before
    run, out = tmp_path / "run", tmp_path / "out"
    few = ["search.evaluations=6", "strategy.popsize=3", "display=quiet"]
    assert main(["search", "experiment=demo_retrieval", f"pool.root='{pool}'", *few, f"run_dir='{run}'"]) == 0
    summary = evomerge.open_run(run).summary
    assert set(summary.against) >= {"uniform average", *PACKAGES}
    assert main(["merge", str(run), str(out)]) == 0
    modules = json.loads((out / "modules.json").read_text())
    assert [entry["path"] for entry in modules] == ["", "1_Pooling", "2_Normalize"]
    for more in ([], ["--held-out"]):  # the export has the run's scores
        capsys.readouterr()
        assert main(["evaluate", str(run), "--json", *more]) == 0
        wanted = json.loads(capsys.readouterr().out)["metrics"]
        own = ["experiment=demo_retrieval", f"pool.root='{pool}'"]
        assert main(["evaluate", str(out), *own, "--json", *more]) == 0
        assert json.loads(capsys.readouterr().out)["metrics"] == wanted
