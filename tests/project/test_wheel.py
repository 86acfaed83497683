"""The built wheel, installed in an empty environment, from an empty folder."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def evomerge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of a fresh environment that has evomerge from its wheel, and the dependencies from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "build", "--quiet", "--wheel", "--out-dir", folder / "dist", ROOT], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = (folder / "dist").glob("*.whl")
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", python, "--no-deps", wheel], check=True)
    # A path file adds the folder of the dependencies without reading its own path files: this checkout stays out.
    (installed,) = (folder / "venv").glob("lib/python*/site-packages")
    (installed / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv" / "bin" / "evomerge"


def run(command: list[object], folder: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_comes_from_the_wheel(evomerge: Path, tmp_path: Path) -> None:
    code = "import evomerge, search_spaces, fitness; print(evomerge.__file__, search_spaces.__file__, fitness.__file__)"
    files = run([evomerge.parent / "python", "-c", code], tmp_path).split()
    assert len(files) == 3
    assert all(Path(file).is_relative_to(evomerge.parent.parent) for file in files)
    assert all(Path(file).with_name("py.typed").is_file() for file in files)  # type checkers look into the packages


def test_help_lists_the_verbs(evomerge: Path, tmp_path: Path) -> None:
    text = run([evomerge, "--help"], tmp_path)
    for verb in ("search", "validate", "demo", "export", "merge", "evaluate"):
        assert verb in text


def test_a_tiny_search(evomerge: Path, tmp_path: Path) -> None:
    text = run([evomerge, "demo", "--quick", "run_dir=run"], tmp_path)
    assert "evolved" in text
    assert "evomerge_recipe: 1" in run([evomerge, "export", "run"], tmp_path)
    assert "merge_method: task_arithmetic" in run([evomerge, "export", "run", "--format", "mergekit"], tmp_path)
    run([evomerge, "report", "run"], tmp_path)
    assert 'id="plotly"' in (tmp_path / "run" / "report.html").read_text()
    run([evomerge, "merge", "run", "model"], tmp_path)
    assert (tmp_path / "model" / "model.safetensors").is_file()
