"""Run folders of strangers: nothing outside is read or written through them, nothing hangs, nothing grows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from test_terminal import HOSTILE

from evomerge.cli.main import main
from evomerge.errors import EvomergeError
from evomerge.run.checkpoint import read_checkpoints
from evomerge.run.folder import RunFolder
from evomerge.run.items import read_items
from evomerge.run.ledger_file import LedgerError
from evomerge.session.resume import open_run
from evomerge.utils.files import read_bounded

Stranger = Callable[..., RunFolder]


@pytest.mark.parametrize("name", ["ledger.lock", "ledger.jsonl", "config.yaml", "items", "best/recipe.yaml", "best"])
@pytest.mark.parametrize("verb", ["resume", "report", "status"])
def test_a_link_in_a_run_is_refused_and_its_target_left_alone(
    name: str, verb: str, stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stranger()
    mine = tmp_path / "mine"
    place = run.path / name
    if place.is_dir():
        mine.mkdir()
        place.rmdir()
    else:
        mine.write_bytes(place.read_bytes() if place.exists() else b"my secret")
        place.unlink(missing_ok=True)
    before = mine.read_bytes() if mine.is_file() else None
    place.symlink_to(mine)
    assert main([verb, str(run.path)]) == 2
    assert f"{name} is a symbolic link" in capsys.readouterr().err
    assert (mine.read_bytes() if mine.is_file() else None) == before
    assert not (mine.is_dir() and any(mine.iterdir()))


@pytest.mark.parametrize("name", ["config.yaml", "ledger.jsonl"])
def test_a_pipe_in_a_run_does_not_hang(name: str, stranger: Stranger, capsys: pytest.CaptureFixture[str]) -> None:
    run = stranger()
    (run.path / name).unlink()
    os.mkfifo(run.path / name)
    assert main(["resume", str(run.path)]) == 2
    assert name in capsys.readouterr().err


def test_a_huge_file_in_a_run_is_not_read(stranger: Stranger) -> None:
    run = stranger()
    for path in (run.config, run.pool, run.items_file(0, "search")):
        with path.open("ab") as file:
            file.truncate(2**40)  # takes no room on the disk
    with pytest.raises(EvomergeError, match=r"config\.yaml cannot be read: it has 1,099,511,627,776 bytes"):
        open_run(run.path, [])
    with pytest.raises(LedgerError, match=r"pool\.json cannot be read: it has"):
        run.read_pool()
    with pytest.raises(LedgerError, match=r"search-0\.safetensors cannot be read: it has"):
        read_items(run, 0)


def test_items_lie_where_the_run_says_and_nowhere_else(stranger: Stranger, tmp_path: Path) -> None:
    run = stranger()
    (tmp_path / "mine").write_bytes(b"secret")
    run.items_file(3, "search").symlink_to(tmp_path / "mine")
    with pytest.raises(LedgerError, match="it is a symbolic link"):
        read_items(run, 3)


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, more than 4"):
        read_bounded(path, 4)
    (tmp_path / "link").symlink_to(path)
    assert read_bounded(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match="symbolic link"):
        read_bounded(tmp_path / "link", 5, follow=False)
    for special in (Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="regular file"):
            read_bounded(special, 5)


def test_deep_and_aliased_configurations_are_refused(stranger: Stranger) -> None:
    laughs = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    for number, text in enumerate(
        (laughs, f"search_space: {'[' * 5000}{']' * 5000}", f"search_space: {'{a: ' * 5000}")
    ):
        run = stranger(text, name=f"run{number}")
        with pytest.raises(EvomergeError, match=r"malformed: .*(alias|nested)"):
            open_run(run.path, [])


def test_a_deep_pool_is_refused(stranger: Stranger) -> None:
    run = stranger()
    for text in ("[" * 100_000, json.dumps({"evomerge_pool": 1, "models": {}})):
        run.pool.write_text(text)
        with pytest.raises(LedgerError, match="malformed"):
            run.read_pool()


def test_names_of_a_stranger_s_run_are_shown_as_text(stranger: Stranger, capsys: pytest.CaptureFixture[str]) -> None:
    run = stranger(f"evaluator: {{_target_: {json.dumps(HOSTILE)}}}")
    assert main(["resume", str(run.path)]) == 2
    error = capsys.readouterr().err
    assert r"\x1b]0;title" in error
    assert "\x1b" not in error


def test_a_checkpoint_s_files_are_its_own_and_of_bounded_size(stranger: Stranger, tmp_path: Path) -> None:
    run = stranger()
    files = {"manifest.json": tmp_path / "manifest.json"}
    for name, reason in (("manifest.json", "symbolic link"), ("state.json", "bytes")):
        folder = run.checkpoint / "000000001"
        folder.mkdir(parents=True, exist_ok=True)
        ledger = run.ledger.read_bytes()
        entry = {"bytes": 2**40, "sha256": ""}
        digest = hashlib.sha256(ledger).hexdigest()
        manifest = {
            "evomerge_checkpoint": 1,
            "ledger": {"lines": 1, "bytes": len(ledger), "sha256": digest},
            "files": {"state.json": entry, "arrays.safetensors": entry},
        }
        files["manifest.json"].write_text(json.dumps(manifest))
        for inner in folder.iterdir():
            inner.unlink()
        if name == "manifest.json":
            (folder / name).symlink_to(files[name])
        else:
            (folder / "manifest.json").write_text(json.dumps(manifest))
            with (folder / name).open("wb") as file:
                file.truncate(2**40)
        (found,) = read_checkpoints(run)
        assert isinstance(found, EvomergeError)
        assert reason in str(found)
