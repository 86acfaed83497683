"""A run as Optuna's tools see it: compared with the ledger, number by number."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState

from evomerge.candidate import Candidate, Evaluation
from evomerge.cli.main import main
from evomerge.genomes.genome import Genome
from evomerge.report.optuna_storage import FollowingStorage, journal_of
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger, read_ledger
from evomerge.run.ledger_file import LedgerError

GENES = ["embed/math/weight", "layers.0/math/weight"]
POINTS = ((0.1, 0.9), (0.4, 0.5), (0.8, 0.2), (0.3, 0.3))


def begin(folder: RunFolder) -> Ledger:
    ledger = Ledger(folder)
    ledger.append("started", evaluations=8, objectives={"maths": "maximize", "loss": "minimize"})
    ledger.log_asked(Candidate(0, None, name="math"))
    ledger.log_told(Evaluation(0, "ok", objectives={"maths": 0.25, "loss": 2.0}))
    ledger.append("phase", phase="search", number=1, phases=1, evaluations=8, genes=GENES)
    return ledger


def tell(ledger: Ledger, candidate: int, values: tuple[float, float]) -> None:
    ledger.log_asked(Candidate(candidate, None, Genome(values), parents=(0,) if candidate == 2 else ()))
    scores = {"maths": values[0], "loss": 1 - values[1]}
    seconds = {"merge": 0.1, "model": 2.0, "other": 0.01}
    ledger.log_told(Evaluation(candidate, "ok", objectives=scores, metrics={"t/acc": values[0]}, seconds=seconds))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two objectives; four candidates scored, one failed, one in flight."""
    folder = RunFolder.create(tmp_path / "run")
    with begin(folder) as ledger:
        for candidate, values in enumerate(POINTS, 1):
            tell(ledger, candidate, values)
        ledger.log_asked(Candidate(5, None, Genome((0.6, 0.6))))
        ledger.log_told(Evaluation(5, "failed", error="the merge is NaN"))
        ledger.log_asked(Candidate(6, None, Genome((0.7, 0.7))))
    return folder.path


def check(study: optuna.Study, run: Path) -> None:
    told = {e["candidate"]: e for e in read_ledger(run) if e["event"] == "told" and e["candidate"] > 0}
    assert study.directions == [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
    assert study.metric_names == ["maths", "loss"]
    assert study.user_attrs["baselines"] == {"math": {"maths": 0.25, "loss": 2.0}}
    trials = {trial.user_attrs["candidate"]: trial for trial in study.trials}
    assert list(trials) == [1, 2, 3, 4, 5, 6]
    for candidate, values in enumerate(POINTS, 1):
        trial = trials[candidate]
        assert trial.state is TrialState.COMPLETE
        assert trial.values == list(told[candidate]["objectives"].values())
        assert trial.params == dict(zip(GENES, values, strict=True))
        assert trial.user_attrs["seconds"] == told[candidate]["seconds"]
    assert trials[2].user_attrs["parents"] == [0]
    assert trials[5].state is TrialState.FAIL
    assert trials[5].user_attrs["error"] == "the merge is NaN"
    assert trials[6].state is TrialState.RUNNING
    assert {trial.user_attrs["candidate"] for trial in study.best_trials} == {1, 2, 3}  # candidate 2 beats candidate 4


def test_the_file_is_one_that_optuna_reads(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    assert main(["export", str(run), "--format", "optuna", "-o", str(file)]) == 0
    storage = JournalStorage(JournalFileBackend(str(file)))
    check(optuna.load_study(study_name="run", storage=storage), run)


def test_the_file_can_be_gone_on_with(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    file.write_text(journal_of(run))
    study = optuna.load_study(study_name="run", storage=JournalStorage(JournalFileBackend(str(file))))
    study.optimize(lambda trial: (trial.suggest_float(GENES[0], 0, 1), 0.5), n_trials=2)
    again = optuna.load_study(study_name="run", storage=JournalStorage(JournalFileBackend(str(file))))
    assert len(again.trials) == 8


def test_memory_follows_the_ledger(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    with begin(folder) as ledger:
        tell(ledger, 1, POINTS[0])
        ledger.log_asked(Candidate(2, None, Genome(POINTS[1])))
        storage = FollowingStorage(folder.path)
        study = optuna.load_study(study_name="run", storage=storage)
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.RUNNING]
        assert not storage.look()
        ledger.log_told(Evaluation(2, "ok", objectives={"maths": 0.4, "loss": 0.5}))
        tell(ledger, 3, POINTS[2])
        assert storage.look()
        assert [trial.values for trial in study.trials] == [[0.1, 1 - 0.9], [0.4, 0.5], [0.8, 0.8]]
    study.enqueue_trial({GENES[0]: 0.5})
    assert len(study.trials) == 4
    assert sum(event["event"] == "told" for event in read_ledger(folder)) == 4  # the ledger is not its to change


def test_not_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LedgerError, match="does not exist"):
        FollowingStorage(tmp_path / "nowhere")
    assert main(["export", str(tmp_path / "nowhere"), "--format", "optuna"]) == 2
    assert capsys.readouterr().err.startswith(f"evomerge: error: run folder {tmp_path / 'nowhere'} does not exist")
