"""What goes wrong during a search, made to go wrong: the search goes on, or ends with a line and can be resumed."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import own_fitness
import pytest

from evomerge.cli.main import main
from evomerge.recipes.yaml_reader import load_recipe
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import canonical_events, read_ledger

pytestmark = pytest.mark.slow

BASELINES, EVALUATIONS = 3, 14
Run = Callable[..., int]


@pytest.fixture
def search(tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A search over two tiny models with the fitness of `own_fitness`; returns its exit status."""
    folders = {name: str(tiny_model(name, seed=seed)) for seed, name in enumerate(("a", "b"))}
    monkeypatch.chdir(Path(__file__).parent)

    def run(folder: Path, fault: str = "", at: int = BASELINES + 7, path: Any = "", *overrides: str) -> int:
        own_fitness.Norm.runs = 0
        own = tmp_path / "conf" / "fitness" / "own.yaml"
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(f"_target_: own_fitness.Norm\nfault: '{fault}'\nat: {at}\npath: '{path}'\n")
        return main(
            [
                "search",
                "--trust",
                "--config-dir",
                str(tmp_path / "conf"),
                f"pool.models={{a: '{folders['a']}', b: '{folders['b']}'}}",
                "search_space=linear",
                "strategy=random",
                "fitness=own",
                "imports=[own_fitness]",
                f"search.evaluations={EVALUATIONS}",
                f"run_dir='{folder}'",
                "evaluator.device=cpu",
                *overrides,
            ]
        )

    return run


def resume(folder: Path) -> int:
    return main(["resume", str(folder), "--trust"])


def told(folder: Path) -> dict[int, dict[str, Any]]:
    return {event["candidate"]: event for event in read_ledger(RunFolder(folder)) if event["event"] == "told"}


def content(folder: Path) -> list[dict[str, Any]]:
    return canonical_events(RunFolder(folder))


_WHOLE: list[list[dict[str, Any]]] = []


@pytest.fixture
def whole(search: Run, tmp_path: Path) -> list[dict[str, Any]]:
    """The content of the search's ledger when nothing goes wrong: that of the first test that asks serves all."""
    if not _WHOLE:
        assert search(tmp_path / "whole") == 0
        _WHOLE.append(content(tmp_path / "whole"))
    return _WHOLE[0]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("mistake", r"KeyError: 'no such column\nin two lines' (own_fitness.py:"),
        ("nan", "objective 'norm' is nan"),
        ("long", "it took longer than evaluator.timeout=6 s"),
    ],
)
def test_a_candidate_that_goes_wrong_is_recorded_and_the_search_goes_on(
    fault: str, error: str, search: Run, tmp_path: Path
) -> None:
    limit = ["evaluator.timeout=6"] if fault == "long" else []
    assert search(tmp_path / "run", fault, BASELINES + 7, "", *limit) == 0
    events = told(tmp_path / "run")
    assert [number for number, event in events.items() if event["status"] != "ok"] == [BASELINES + 6]
    assert events[BASELINES + 6]["error"].startswith(error)
    assert sum(event["split"] == "search" for event in events.values()) == BASELINES + EVALUATIONS


def test_a_candidate_that_finds_no_memory_is_tried_again_without_what_is_kept(
    search: Run, whole: Any, tmp_path: Path
) -> None:
    assert search(tmp_path / "run", "memory") == 0
    assert own_fitness.Norm.runs == BASELINES + EVALUATIONS + 1
    assert content(tmp_path / "run") == whole


@pytest.mark.parametrize(("fault", "what"), [("truncate", "bytes instead of"), ("touch", "it was written to")])
def test_a_source_that_changes_ends_the_search_until_it_is_as_it_was(
    fault: str, what: str, search: Run, whole: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "b" / "model.safetensors"
    copy = shutil.copy2(file, tmp_path / "copy")
    assert search(tmp_path / "run", fault, BASELINES + 7, file) == 2
    error = capsys.readouterr().err
    assert f"model 'b': {file} has changed since it was opened" in error
    assert what in error
    assert "Traceback" not in error
    shutil.copyfile(copy, file)
    assert resume(tmp_path / "run") == 0
    assert content(tmp_path / "run") == whole


def test_a_cache_that_is_removed_changes_nothing(search: Run, whole: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert search(tmp_path / "run", "remove", BASELINES + 4, cache, f"evaluator.shared_cache='{cache}'") == 0
    assert not cache.exists()
    assert content(tmp_path / "run") == whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip(f"file systems cannot be mounted here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("at", [1, BASELINES + 1, BASELINES + 6])
def test_a_full_disk_ends_the_search_until_there_is_room(
    at: int, search: Run, whole: Any, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, ballast = small_disk / "run", small_disk / "ballast"
    status = search(run, "fill", at, ballast)
    error = capsys.readouterr().err
    assert status == 2, error
    assert "cannot be written: No space left on device" in error
    assert "Traceback" not in error
    assert not list(run.rglob("*.tmp"))
    ballast.unlink()
    assert resume(run) == 0
    assert content(run) == whole
    improved = [event for event in whole if event["event"] == "improved"]
    assert load_recipe((run / "best" / "recipe.yaml").read_text()).hash == improved[-1]["recipe_hash"]
