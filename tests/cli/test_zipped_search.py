"""Two models side by side: their shares of hidden units are searched, and the winner is written narrow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from evomerge.cli.main import main
from evomerge.export.zipped_model import ZIP_FILE
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import canonical_events


@pytest.mark.slow
def test_shares_are_searched_and_written(
    quick_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    models = [str(quick_pool / name) for name in ("math", "lang")]
    assert main(["align", *models, "side", "--ratio", "0", "--starts", "1"]) == 0
    tasks = [f"{key}.include_path='{quick_pool}/tasks'" for key in ("fitness", "held_out")]
    words = ["experiment=demo", "pool=custom", "pool.models={zip: side}", "pool.base=null", *tasks, "fitness.limit=4"]
    words += ["held_out.limit=4", "search_space=zipped", "search_space.width=1.5", "search.evaluations=4"]
    assert main(["search", *words, "run_dir=run", "display=quiet"]) == 0
    killed = tmp_path / "killed"
    shutil.copytree("run", killed)
    lines = RunFolder(killed).ledger.read_bytes().splitlines(keepends=True)
    RunFolder(killed).ledger.write_bytes(b"".join(lines[: len(lines) // 2]))
    assert main(["resume", str(killed), "--quiet"]) == 0
    assert canonical_events(RunFolder(killed)) == canonical_events(RunFolder(Path("run")))
    capsys.readouterr()
    assert main(["align", *models, "narrow", "--ratio", "run", "--starts", "1"]) == 0
    shares = json.loads((tmp_path / "narrow" / ZIP_FILE).read_text())["ratio"]
    assert sum(shares) / len(shares) == pytest.approx(0.5)
    assert main(["align", *models, "other", "--ratio", "side/config.json"]) == 2
    assert "config.json" in capsys.readouterr().err
