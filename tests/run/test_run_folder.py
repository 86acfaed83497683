from __future__ import annotations

import json
from pathlib import Path

import pytest

from evomerge.errors import OutputError
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import ModelRef, SliceId
from evomerge.run.folder import NOT_MERGEKITS, RunFolder
from evomerge.run.ledger import Ledger
from evomerge.run.ledger_file import LedgerError

INFO = PoolInfo(
    (
        ("math", ModelRef("models/math", None, "sha256:1", ModelRef("org/lora", "def456"))),
        ("base", ModelRef("org/base", "abc123")),
    ),
    ("math",),
    "base",
    (SliceId("embed"), SliceId("attn", 0), SliceId("mlp", 0)),
    1,
    "bfloat16",
)


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "runs" / "demo")
    folder.best_recipe.write_text("x")
    assert folder.items_file(12, "held_out") == tmp_path / "runs/demo/items/held_out-12.safetensors"
    assert folder.items.is_dir()


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    assert RunFolder.create(str(tmp_path)).path == tmp_path


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    Ledger(folder).close()
    with pytest.raises(OutputError, match="run holds a run; a folder that does not exist yet, or is empty; choose"):
        RunFolder.create(folder.path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="other is not an empty folder"):
        RunFolder.create(tmp_path / "other")
    with pytest.raises(OutputError, match=r"letter.txt is not an empty folder"):
        RunFolder.create(tmp_path / "other" / "letter.txt")
    with pytest.raises(OutputError, match=r"cannot be made: .*letter.txt is no folder"):
        RunFolder.create(tmp_path / "other" / "letter.txt" / "run")


def test_open_wants_a_ledger_and_names_the_runs_nearby(tmp_path: Path) -> None:
    for name in ("demo", "long"):
        Ledger(RunFolder.create(tmp_path / name)).close()
    assert RunFolder.open(tmp_path / "demo") == RunFolder(tmp_path / "demo")
    with pytest.raises(LedgerError, match=r"demp does not exist; .*did you mean 'demo'\? \(one of: demo, long\)"):
        RunFolder.open(tmp_path / "demp")
    with pytest.raises(LedgerError, match=r"has no ledger\.jsonl"):
        RunFolder.open(tmp_path)


def test_the_pool_comes_back(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    folder.write_pool(INFO)
    assert folder.read_pool() == INFO
    assert json.loads(folder.pool.read_text())["models"]["base"]["revision"] == "abc123"


@pytest.mark.parametrize(
    "change",
    [
        {"evomerge_pool": 2},
        {"base": "bse"},
        {"sources": 3},
        {"dtype": "int8"},
        {"slices": ["layers.x.attn"]},
        {"models": {"math": {"location": "m", "code": "x"}}},
        {"models": []},
    ],
)
def test_a_malformed_pool_is_one_error(tmp_path: Path, change: dict[str, object]) -> None:
    folder = RunFolder.create(tmp_path)
    folder.write_pool(INFO)
    folder.pool.write_text(json.dumps(json.loads(folder.pool.read_text()) | change))
    with pytest.raises(LedgerError, match=r"pool\.json is malformed"):
        folder.read_pool()
    folder.pool.write_text("[" * 100_000)
    with pytest.raises(LedgerError, match=r"pool\.json is malformed"):
        folder.read_pool()


@pytest.mark.parametrize("name", ["x" * 300, "no\0where"])
def test_a_folder_whose_name_cannot_be_one_does_not_exist(name: str, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="does not exist"):
        RunFolder.open(tmp_path / name)


def test_what_mergekit_cannot_express(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    assert folder.fits_mergekit()  # nothing is known
    folder.best_mergekit.write_text("merge_method: linear\n")
    assert folder.fits_mergekit()
    folder.best_mergekit.write_text(f"{NOT_MERGEKITS}: its method 'pcb' is none of linear\n")
    assert not folder.fits_mergekit()
