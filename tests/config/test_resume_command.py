"""The command that goes on with a run can be pasted."""

import shlex
from pathlib import Path

import pytest

from evomerge.cli import main as cli
from evomerge.config.resume_command import resumable, resume_command
from evomerge.errors import ConfigError


def made(folder: Path, config: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    (folder / "ledger.jsonl").touch()
    return folder


@pytest.mark.parametrize(
    ("config", "trust"),
    [
        ("pool: {trust_remote_code: true}", True),
        ("imports: [mine]", True),
        ("fitness: {_target_: mine.Fitness}", True),
        ("search: {seed: 0}", False),
        ("[broken", False),
    ],
)
def test_it_is_quoted_and_trusts_where_it_must(tmp_path: Path, config: str, trust: bool) -> None:
    run = made(tmp_path / "my runs" / "it's", config)
    wanted = ["evomerge", "resume", str(run), *(["--trust"] if trust else [])]
    assert shlex.split(resume_command(run)) == wanted


def test_a_relative_folder_stays_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "runs" / "a", "search: {seed: 0}")
    monkeypatch.chdir(tmp_path)
    assert resume_command("runs/a") == "evomerge resume runs/a"


def test_errors_that_do_not_know_the_run_say_it_of_this_one(tmp_path: Path) -> None:
    run = made(tmp_path / "run", "imports: [mine]")
    with pytest.raises(ConfigError) as error, resumable(run):
        raise ConfigError("broken", "", "`evomerge resume RUN` goes on; evaluator=ray")
    assert str(error.value) == f"broken; `evomerge resume {run} --trust` goes on; evaluator=ray"
    assert error.value.args[2] == error.value.do


def test_an_interrupt_says_how_to_go_on_where_there_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "run", "search: {seed: 0}")

    def interrupted(place: Path) -> str:
        def verb(words: list[str]) -> int:
            with resumable(place):
                raise KeyboardInterrupt

        monkeypatch.setattr(cli, "_run", verb)
        assert cli.main(["search"]) == 130
        return capsys.readouterr().err

    assert interrupted(run) == f"evomerge: interrupted; `evomerge resume {run}` goes on\n"
    assert interrupted(tmp_path / "none") == "evomerge: interrupted\n"
