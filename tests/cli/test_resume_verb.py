import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from evomerge.cli.main import main
from evomerge.errors import EvomergeError
from evomerge.recipes.slices import ModelRef
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import canonical_events, read_ledger
from evomerge.run.record import Record
from evomerge.session.resume import Resumed

DIGITS = ["experiment=m2n2_digits", "search.evaluations=1500"]


def search(*overrides: str) -> subprocess.Popen:
    arguments = [sys.executable, "-m", "evomerge", "search", *DIGITS, *overrides]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(ledger: Path, lines: int) -> None:
    end = time.monotonic() + 240
    while not ledger.exists() or ledger.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < end
        time.sleep(0.01)


def last_event(run: Path) -> dict:
    return list(read_ledger(RunFolder(run)))[-1]


@pytest.mark.slow
def test_a_signal_ends_a_search_and_resume_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for number, (sent, status) in enumerate([(signal.SIGINT, 130), (signal.SIGTERM, 143)]):
        if number == 0:
            process = search(f"run_dir='{run}'")
        else:
            arguments = [sys.executable, "-m", "evomerge", "resume", str(run)]
            process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        wait_for(run / "ledger.jsonl", 60 + 200 * number)
        os.kill(process.pid, sent)
        _, errors = process.communicate(timeout=240)
        assert process.returncode == status, errors
        taken = max(int(entry.name) for entry in (run / "checkpoint").iterdir())
        assert taken == len(list(read_ledger(RunFolder(run)))) - 1  # everything before the ``interrupted`` event
        assert b"resume" in errors
        event = last_event(run)
        assert (event["event"], event["reason"]) == ("interrupted", sent.name)
    assert main(["resume", str(run)]) == 0
    assert main(["search", *DIGITS, f"run_dir='{tmp_path / 'whole'}'"]) == 0
    assert canonical_events(RunFolder(run)) == canonical_events(RunFolder(tmp_path / "whole"))


def test_several_threads_that_score_arrays_change_nothing(tmp_path: Path) -> None:
    runs = []
    for workers in (1, 2):
        runs.append(tmp_path / str(workers))
        few = ["experiment=m2n2_digits", "search.evaluations=400", "search.in_flight=3", "display=quiet"]
        assert main(["search", *few, f"evaluator.workers={workers}", f"run_dir='{runs[-1]}'"]) == 0
    one, two = (canonical_events(RunFolder(run)) for run in runs)
    assert one == two


def test_a_cut_ledger_of_real_models_ends_the_same(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    ledger = run / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[len(lines) // 2][:50])
    shutil.rmtree(run / "best")
    (run / "best").mkdir()
    assert main(["resume", str(run)]) == 0
    assert canonical_events(RunFolder(run)) == canonical_events(RunFolder(finished_run))
    for file in ("best/recipe.yaml", "config.yaml"):
        assert (run / file).read_bytes() == (finished_run / file).read_bytes()


def test_a_finished_run_is_left_alone_or_extended(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    before = (run / "ledger.jsonl").read_bytes()
    assert main(["resume", str(run)]) == 0
    assert "is finished" in " ".join(capsys.readouterr().out.split())  # lines end where the terminal does
    assert (run / "ledger.jsonl").read_bytes() == before
    assert main(["resume", str(run), "search.evaluations=14"]) == 0
    assert (run / "ledger.jsonl").read_bytes().startswith(before)
    assert last_event(run)["evaluations"] == 14
    assert main(["resume", str(run)]) == 0  # the new budget is the run's
    assert "is finished" in " ".join(capsys.readouterr().out.split())  # lines end where the terminal does


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("strategy.popsize=6", "strategy.popsize cannot change"),
        ("search.seed=1", "search.seed cannot change"),
        ("search.ordered=false", "search.ordered cannot change"),
        ("search.evaluations=3", "12 candidates were asked already"),
        ("search.evaluations=many", "search.evaluations is 'many'; it should be a whole number"),
        ("evaluator=lokal", "evaluator=lokal: there is no such option"),
        ("evaluator.devise=cpu", "evaluator has no key 'devise'"),
        ("~evaluator.timeout", "entries of evaluator.engine_args alone are taken away"),
        ("~evaluator.engine_args.max_len", "there is no key 'evaluator.engine_args.max_len'"),
        ("fast", "cannot read the override 'fast'"),
        ("evaluator.engine=vllm", "evaluator.engine is vllm and was transformers when the run began"),
    ],
)
def test_what_cannot_change_is_refused(
    override: str, reason: str, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished_run / "ledger.jsonl").read_bytes()
    assert main(["resume", str(finished_run), "search.evaluations=13", override]) == 2
    assert reason in capsys.readouterr().err
    assert (finished_run / "ledger.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("_target_: evomerge.strategies", "_target_: os.path", "not evomerge's is not run unasked"),
        ("trust_remote_code: false", "trust_remote_code: true", "models bring along is not run unasked"),
        ("imports: []", "imports: [antigravity]", "are not imported unasked"),
        ("seed: 0", "seed: ${oc.env:HOME}", "plain values"),
        ("seed: 0", "seed: !!python/object/apply:os.getpid []", "malformed"),
        ("seed: 0", "seed: 7", "does not repeat itself"),
    ],
)
def test_a_stranger_s_configuration_runs_nothing(
    old: str, new: str, reason: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    text = (run / "config.yaml").read_text()
    assert old in text
    (run / "config.yaml").write_text(text.replace(old, new, 1))
    assert main(["resume", str(run), "search.evaluations=13"]) == 2
    assert reason in capsys.readouterr().err


def test_other_weights_or_scores_are_refused(finished_run: Path) -> None:
    folder = RunFolder(finished_run)
    again = Resumed(folder, Record(folder), 12)
    info = folder.read_pool()
    again.check_pool(info)
    name, ref = info.refs[0]
    moved = replace(info, refs=((name, replace(ref, location="/elsewhere")), *info.refs[1:]))
    again.check_pool(moved)
    assert again.changes == [f"model {name} is at /elsewhere"]
    other = replace(info, refs=((name, ModelRef(ref.location, fingerprint="sha256:other")), *info.refs[1:]))
    with pytest.raises(EvomergeError, match=f"model {name} .* has sha256:other, the run began with"):
        again.check_pool(other)
    with pytest.raises(EvomergeError, match="the fitness has fingerprint sha256:other"):
        again.check("sha256:other", None)


def test_slices_are_kept_in_the_run_folder_when_asked(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    budget = next(event for event in read_ledger(RunFolder(run)) if event["event"] == "started")["evaluations"]
    keep = ["evaluator.shared_cache=run", "evaluator.shared_cache_keeps=all"]
    assert main(["resume", str(run), f"search.evaluations={budget + 2}", *keep]) == 0
    assert list((run / "slices").rglob("*.safetensors"))
