"""Folders that environment variables put where none can be: the variable is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.cli.main import main
from evomerge.cli.misplaced import misplaced
from evomerge.errors import ConfigError, FitnessError


def caused(path: str) -> FitnessError:
    error = FitnessError("task 'sums' cannot be loaded")
    error.__cause__ = RuntimeError("it failed")
    error.__cause__.__context__ = NotADirectoryError(20, "Not a directory", path)
    return error


@pytest.mark.parametrize(
    ("variables", "path", "named"),
    [
        ({"HF_HOME": "/dev/null"}, "/dev/null/datasets", "HF_HOME"),
        ({"HF_HOME": "/dev/null", "HF_DATASETS_CACHE": "/dev/null/d"}, "/dev/null/d/json", "HF_DATASETS_CACHE"),
        ({"XDG_CACHE_HOME": "/dev/null/"}, "/dev/null/huggingface", "XDG_CACHE_HOME"),
        ({"TORCHINDUCTOR_CACHE_DIR": "/dev/null/x"}, "/dev/null/x", "TORCHINDUCTOR_CACHE_DIR"),
        ({"HF_HOME": "/dev/null"}, "/elsewhere/datasets", None),
        ({"HF_HOME": "/dev/nul"}, "/dev/null/datasets", None),
        ({"TMPDIR": "HERE"}, "HERE/recipe.yaml", None),  # the folder is there: what lacks is the user's
        ({"TMPDIR": ""}, "/x", None),
        ({}, "/dev/null/datasets", None),
    ],
)
def test_the_variable_is_named(variables: dict[str, str], path: str, named: str | None, tmp_path: Path) -> None:
    environment = {name: value.replace("HERE", str(tmp_path)) for name, value in variables.items()}
    found = misplaced(caused(path.replace("HERE", str(tmp_path))), environment)
    if named is None:
        assert found is None
        return
    assert isinstance(found, ConfigError)
    assert str(found) == (
        f"the environment variable {named} is {environment[named]!r}, where {path!r} cannot be made: Not a directory; "
        f"a folder that can be written; set {named} to one, or leave it unset"
    )


def test_the_command_says_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import evomerge.cli.status as status

    def failing(_: object) -> int:
        raise caused("/dev/null/datasets")

    monkeypatch.setenv("HF_HOME", "/dev/null")
    monkeypatch.setattr(status, "run", failing)
    assert main(["status", "x"]) == 2
    assert capsys.readouterr().err.startswith("evomerge: error: the environment variable HF_HOME is '/dev/null', where")
