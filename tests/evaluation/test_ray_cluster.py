"""Where Ray's files lie on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("ray")

from evomerge.errors import ConfigError
from evomerge.evaluation import ray_cluster


def test_a_long_folder_for_temporary_files_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(ray_cluster.tempfile, "gettempdir", lambda: "/tmp")
    assert ray_cluster._short_folder() is None
    monkeypatch.setattr(ray_cluster.tempfile, "gettempdir", lambda: f"/tmp/{'x' * 80}")
    short = ray_cluster._short_folder()
    assert short is not None
    assert len(f"{short}/{ray_cluster._SOCKET}") <= 107


def test_where_there_is_no_short_folder_the_error_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{'x' * 80}")
    monkeypatch.setattr(ray_cluster.os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match="set RAY_TMPDIR"):
        ray_cluster._short_folder()
