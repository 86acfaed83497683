from __future__ import annotations

import gc
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge.errors import ConfigError
from evomerge.utils.imports import absent, import_modules, settled_collector, without_collector


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_modules_of_the_current_folder(folder: Path) -> None:
    (folder / "evomerge_one.py").write_text("ANSWER = 1")
    (folder / "evomerge_two").mkdir()
    (folder / "evomerge_two" / "__init__.py").touch()
    (folder / "evomerge_two" / "part.py").write_text("ANSWER = 2")
    import_modules(["evomerge_one", "evomerge_two.part"], "imports")
    assert sys.modules["evomerge_one"].ANSWER == 1
    assert sys.modules["evomerge_two.part"].ANSWER == 2


def test_another_folder_may_be_named(folder: Path) -> None:
    (folder / "far").mkdir()
    (folder / "far" / "evomerge_far.py").write_text("ANSWER = 3")
    import_modules(["evomerge_far"], "imports", folder / "far")
    assert sys.modules["evomerge_far"].ANSWER == 3


def test_installed_modules_come_first(folder: Path) -> None:
    (folder / "colorsys.py").write_text("raise RuntimeError")
    sys.modules.pop("colorsys", None)
    import_modules(["colorsys"], "imports")
    assert hasattr(sys.modules["colorsys"], "rgb_to_hsv")


def test_nothing_to_import_changes_nothing(folder: Path) -> None:
    before = list(sys.path)
    import_modules([], "imports")
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evomerge_min", None, r"imports: there is no module 'evomerge_min'; .*did you mean 'evomerge_mine'"),
        ("evomerge_mine.part", "", r"imports: there is no module 'evomerge_mine\.part'"),
        ("evomerge_mine.py", "", r"imports: 'evomerge_mine\.py' is not the name of a module; .*no \.py"),
        ("./evomerge_mine", "", r"'\./evomerge_mine' is not the name of a module"),
        ("", "", r"imports: '' is not the name of a module"),
        (
            "evomerge_mine",
            "import evomerge_missing",
            r"'evomerge_mine' cannot be imported; ModuleNotFoundError: No module",
        ),
        (
            "evomerge_mine",
            "\n1 / 0",
            r"cannot be imported; ZeroDivisionError: division by zero \(evomerge_mine\.py:2\)",
        ),
        ("evomerge_mine", "x = (", r"cannot be imported; SyntaxError: .* \(evomerge_mine\.py:1\)"),
        (
            "evomerge_mine",
            "from evomerge.recipes.method_spec import ParameterSpec\nParameterSpec('t', 'x')",
            r"cannot be imported: parameter 't' declares default 'x'; allowed: a finite number",
        ),
    ],
)
def test_what_goes_wrong_is_one_line(folder: Path, name: str, content: str | None, message: str) -> None:
    (folder / "evomerge_mine.py").write_text(content or "")
    with pytest.raises(ConfigError, match=message) as raised:
        import_modules([name], "imports")
    assert "\n" not in str(raised.value)


def test_a_module_may_be_absent_for_a_while(folder: Path) -> None:
    (folder / "evomerge_optional.py").touch()
    sys.path.append(str(folder))
    with absent("evomerge_optional"), pytest.raises(ImportError):
        importlib.import_module("evomerge_optional")
    assert importlib.import_module("evomerge_optional").__name__ == "evomerge_optional"
    with absent("evomerge_optional"):  # who has it keeps it
        assert importlib.import_module("evomerge_optional") is sys.modules["evomerge_optional"]


def test_cma_es_does_not_import_statistics() -> None:
    code = "import sys, evomerge.strategies.cma_es; print('scipy.stats' in sys.modules); import scipy.stats"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]


def test_the_collector_is_left_as_it_was() -> None:
    def failing() -> None:
        with without_collector():
            assert not gc.isenabled()
            raise KeyError

    def failing_inside_another() -> None:
        with settled_collector():
            inside = gc.get_freeze_count()
            with settled_collector():  # of a search within a search: the outer one's
                pass
            assert gc.get_freeze_count() > inside // 2 > 0  # a few end by themselves
            raise KeyError

    for failure in (failing, failing_inside_another):
        with pytest.raises(KeyError):
            failure()
        assert gc.isenabled()
        assert gc.get_freeze_count() == 0
