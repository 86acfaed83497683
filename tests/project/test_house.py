"""What holds for the whole tree: declared dependencies, one vocabulary."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("evomerge", "search_spaces", "fitness")
DISTRIBUTIONS = {
    "PIL": "pillow",
    "hydra": "hydra-core",
    "huggingface_hub": "huggingface-hub",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "mlflow": "mlflow-skinny",
    "optuna_dashboard": "optuna-dashboard",
    "triton": "torch",
}
"""By module, where the names differ; Triton comes with CUDA builds of torch and is used where it is found."""

OLD_WORDS = (
    *("Course", "Flight", "Seat", "Seats", "guilty", "_hungry_since", "Shell", "Shells", "held_as", "Tally", "Keeper"),
    *("Saver", "forgetful", "Warmth", "Hops"),
)
"""Names that told a practitioner nothing, and have others now."""


def files() -> list[Path]:
    return [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def imported(file: Path) -> Iterator[str]:
    """Modules that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def undeclared(sources: list[Path], *, without: tuple[str, ...] = (), own: tuple[str, ...] = PACKAGES) -> set[str]:
    """Modules imported by these files, ours aside, that neither a dependency nor another extra declares."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: entries for name, entries in project["optional-dependencies"].items() if name not in without}
    listed = [*project["dependencies"], *(entry for entries in extras.values() for entry in entries)]
    declared = {re.split(r"[\[<>=!~ ;]", entry)[0].lower() for entry in listed}
    used = {module.partition(".")[0] for file in sources for module in imported(file)}
    foreign = used - set(sys.stdlib_module_names) - set(own)
    return {module for module in foreign if DISTRIBUTIONS.get(module, module).lower() not in declared}


def test_what_is_imported_is_declared() -> None:
    assert not undeclared(files(), without=("dev", "docs"))  # whoever installs evomerge has neither of these


def test_what_scripts_import_is_declared() -> None:
    folders = (ROOT / "tests", ROOT / "tests" / "durability")  # scripts use what the tests use
    tests = {entry.stem for folder in folders for entry in folder.iterdir()} | {"sd_mecha_side"}
    elsewhere = ("fusion_bench_side.py", "sd_mecha_side.py")  # in environments of their own
    scripts = [file for file in (ROOT / "scripts").glob("*.py") if file.name not in elsewhere]
    assert not undeclared(sorted(scripts), own=(*PACKAGES, "scripts", *tests))


def names(tree: ast.AST) -> Iterator[str]:
    """Everything that a file gives a name to, or names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias):
            yield from (node.asname or node.name).split(".")
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            yield node.arg


def test_names_are_those_of_the_field() -> None:
    found = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in [*files(), *sorted((ROOT / "scripts").glob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]
        for name in names(ast.parse(file.read_text(encoding="utf-8")))
        if name in OLD_WORDS
    }
    assert not found
