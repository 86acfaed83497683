"""A pool whose models share embeddings and final norm: searched without genes for them, from beginning to resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from evomerge.cli.main import main
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import read_ledger

SHARED = ("model.embed_tokens.weight", "model.norm.weight")


@pytest.fixture(scope="module")
def shared(quick_search: list[str], quick_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a search over the demo's models, all with the embeddings and the final norm of the base."""
    folder = tmp_path_factory.mktemp("shared") / "pool"
    shutil.copytree(quick_pool, folder)
    base = load_file(folder / "base" / "model.safetensors")
    for name in ("math", "lang"):
        file = folder / name / "model.safetensors"
        save_file(load_file(file) | {tensor: base[tensor] for tensor in SHARED}, file, {"format": "pt"})
    words = [word for word in quick_search if not word.startswith("pool.root")]
    return [*words, f"pool.root='{folder}'", "search.baselines=false"]


def events(run: Path) -> list[dict[str, Any]]:
    return list(read_ledger(RunFolder.open(run)))


def genes(run: Path) -> list[str]:
    return next(event["genes"] for event in events(run) if event["event"] == "phase")


def test_validate_names_them_in_one_line(shared: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", *shared]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "equal in all models" in line]
    (line,) = lines
    assert "embed, final_norm: no genes, 4 fewer" in line


def test_a_run_has_no_genes_for_them_and_keeps_which_they_are(shared: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["search", *shared, f"run_dir='{run}'"]) == 0
    assert len(genes(run)) == 12
    assert json.loads((run / "pool.json").read_text())["constant"] == ["embed", "final_norm"]
    assert main(["merge", str(run), str(tmp_path / "merged")]) == 0
    merged, base = (load_file(f / "model.safetensors") for f in (tmp_path / "merged", _models(shared) / "base"))
    for tensor in SHARED:
        assert merged[tensor].equal(base[tensor].to(merged[tensor].dtype))
    assert main(["resume", str(run), "search.evaluations=16", "-q"]) == 0
    assert main(["export", str(run), "--format", "mergekit"]) == 0


def test_a_run_of_before_keeps_its_genes(shared: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed it goes on with them, forked as well; what a search begins with from there is read without them."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr("evomerge.models.opening.equal_slices", lambda *_: ())
        assert main(["search", *shared, f"run_dir='{run}'"]) == 0
        assert main(["search", *shared, "search.evaluations=20", f"run_dir='{whole}'"]) == 0
    pool = json.loads((run / "pool.json").read_text())
    del pool["constant"]  # what that version wrote
    (run / "pool.json").write_text(json.dumps(pool))
    assert len(genes(run)) == 16

    assert main(["resume", str(run), "search.evaluations=20", "-q"]) == 0
    assert (run / "best" / "recipe.yaml").read_bytes() == (whole / "best" / "recipe.yaml").read_bytes()

    assert main(["search", f"from_run='{run}'", "search.evaluations=22", f"run_dir='{tmp_path / 'fork'}'"]) == 0
    assert len(genes(tmp_path / "fork")) == 16
    started = next(event for event in events(tmp_path / "fork") if event["event"] == "started")
    assert started["from_run"]["evaluations"] >= 20

    warm = tmp_path / "warm"
    assert main(["search", *shared, f"search.warm_start=['{run}']", f"run_dir='{warm}'"]) == 0
    assert len(genes(warm)) == 12
    told = [event for event in events(run) if event["event"] == "told" and event["split"] == "search"]
    best = max(told, key=lambda event: next(iter(event["objectives"].values())))["candidate"]
    values = next(event["genome"] for event in events(run) if event["event"] == "asked" and event["candidate"] == best)
    first = next(event["genome"] for event in events(warm) if event["event"] == "asked" and event["genome"])
    assert first == [value for name, value in zip(genes(run), values, strict=True) if name in genes(warm)]


def test_a_fork_with_other_models_has_genes_for_what_differs_now(
    shared: list[str], quick_pool: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert main(["search", *shared, f"run_dir='{run}'"]) == 0
    other = [f"from_run='{run}'", f"pool.root='{quick_pool}'", f"run_dir='{tmp_path / 'fork'}'"]
    assert main(["search", *other]) == 0
    assert len(genes(tmp_path / "fork")) == 16


def _models(words: list[str]) -> Path:
    return Path(next(word for word in words if word.startswith("pool.root")).partition("=")[2].strip("'"))
