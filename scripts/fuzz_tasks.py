"""Loads tasks whose YAML, data and folder were changed, and tells what was not refused with one line.

    python scripts/fuzz_tasks.py                  # every case once
    python scripts/fuzz_tasks.py --cases 500      # so many, chosen by --seed

A case is a small task of lm-eval in which one key has another value (a wrong type, empty, huge, NaN, a template or
pattern that never ends), or one file is something else (a pipe, a link, junk, a byte order mark). What a stranger's
configuration may run is looked at, then the task is loaded, its documents are read and its texts written: each must
work or raise an `EvomergeError` of one line within `LIMIT` seconds, and print nothing. Anything else is a crash;
crashes are printed and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import random
import shutil
import sys
import tempfile
import unittest.mock
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import datasets
import yaml
from lm_eval.tasks import TaskManager

from evomerge.config.task_code import task_code
from evomerge.errors import EvomergeError
from fitness._lm_eval import loading
from fitness.lm_eval_tasks import LmEvalFitness
from scripts.fuzz_models import VALUES as ANY
from scripts.time_limit import TooLong, within

LIMIT = 60
TIMEOUT = 0.5  # seconds of a task's templates, of which there are few here
LONGEST = 8000  # characters of a message

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}" + "{% endfor %}" * 3
TEMPLATES = {
    "an endless loop": LOOP,
    "a pattern that backtracks": "{{ q | regex_replace('(a+)+$', '') }}",
    "a way to Python": "{{ ''.__class__.__mro__ }}",
    "an unknown name": "{{ nothing }}",
    "an unfinished tag": "{% for",
    "an inclusion": "{% include '/etc/passwd' %}",
    "much memory": "{{ 'x' * 10**12 }}",
    "a large power": "{{ 9 ** (9 ** 9) }}",
}
VALUES: dict[str, Any] = {name: value for name, value in ANY.items() if name != "10**3000"} | TEMPLATES

_ROWS = [
    {"q": "a" * 60 + "!", "a": "x", "choices": ["x", "y"], "n": 1},
    {"q": "b", "a": "y", "choices": ["x", "y"], "n": 0},
]
_CHOICE = {
    "task": "mine",
    "tag": "ours",
    "dataset_path": "json",
    "dataset_name": None,
    "dataset_kwargs": {"data_files": {"train": "train.jsonl", "test": "rows.jsonl"}},
    "training_split": "train",
    "validation_split": None,
    "test_split": "test",
    "fewshot_split": "train",
    "fewshot_config": {"sampler": "first_n"},
    "process_docs": None,
    "output_type": "multiple_choice",
    "description": "Say which.",
    "doc_to_text": "{{ q }}",
    "doc_to_target": "n",
    "doc_to_choice": "{{ choices }}",
    "target_delimiter": " ",
    "fewshot_delimiter": "\n",
    "num_fewshot": 1,
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "repeats": 1,
    "should_decontaminate": False,
    "doc_to_decontamination_query": "q",
    "metadata": {"version": 1.0},
}
_GENERATE = {
    **_CHOICE,
    "output_type": "generate_until",
    "doc_to_target": "{{ a }}",
    "doc_to_choice": None,
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True}],
    "filter_list": [
        {"name": "first", "filter": [{"function": "regex", "regex_pattern": "(x)"}, {"function": "take_first"}]}
    ],
    "gen_prefix": "so:",
}
KINDS = {"choice": _CHOICE, "generation": _GENERATE}


@dataclass(frozen=True)
class Case:
    """One change of a task's folder.

    Attributes:
        name: what is changed, and into what.
        kind: of `KINDS`, what is changed.
        change: makes it so, in the folder.
    """

    name: str
    kind: str
    change: Callable[[Path], None]


def make_task(folder: Path, kind: str) -> None:
    """A task and its data."""
    folder.mkdir(parents=True)
    for name in ("rows.jsonl", "train.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in _ROWS))
    _write(folder, KINDS[kind])


def _write(folder: Path, content: Any) -> None:
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    files = {name: str(folder / name) for name in ("rows.jsonl", "train.jsonl")}
    for name, path in files.items():
        text = text.replace(f": {name}\n", f": {path}\n")
    (folder / "mine.yaml").write_text(text)


def cases() -> list[Case]:
    """Every case, in an order that does not change."""
    return [*_changed_keys(), *_special_files()]


def _places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a configuration, containers included."""
    if path:
        yield path
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in entries:
        yield from _places(value, (*path, key))


def _changed_keys() -> Iterator[Case]:
    for kind, content in KINDS.items():
        for place in _places(content):
            for name, value in VALUES.items():
                yield Case(f"{kind}: {'.'.join(map(str, place))} = {name}", kind, _changed(kind, place, value))


def _changed(kind: str, place: tuple[Any, ...], value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads(json.dumps(KINDS[kind]))
        at = content
        for key in place[:-1]:
            at = at[key]
        at[place[-1]] = value
        _write(folder, content)

    return change


def _includes_a_pipe(path: Path) -> None:
    os.mkfifo(path.parent / "pipe")
    path.write_text("include: pipe\ntask: mine\n")


SPECIAL: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda path: None,
    "empty": lambda path: path.write_text(""),
    "junk": lambda path: path.write_bytes(bytes(range(256))),
    "no JSON": lambda path: path.write_text("this is {no json\n"),
    "one number": lambda path: path.write_text("7\n"),
    "a list": lambda path: path.write_text("[1, 2]\n"),
    "rows that differ": lambda path: path.write_text('{"q": 1}\n{"q": {"a": []}}\n'),
    "a byte order mark": lambda path: path.write_bytes(
        b"\xef\xbb\xbf" + b'{"q": "a", "a": "x", "choices": ["x"], "n": 0}\n'
    ),
    "UTF-16": lambda path: path.write_text('{"q": "a"}\n', encoding="utf-16"),
    "a pipe": lambda path: os.mkfifo(path),
    "a folder": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "unreadable YAML": lambda path: path.write_text("a: [\n"),
    "an alias": lambda path: path.write_text("a: &x [1]\ntask: *x\n"),
    "an endless inclusion": lambda path: path.write_text(f"include: {path.name}\ntask: mine\n"),
    "included pipe": _includes_a_pipe,
    "no mapping": lambda path: path.write_text("- task\n"),
    "many levels": lambda path: path.write_text("a: " + "[" * 5000),
}


def _special_files() -> Iterator[Case]:
    for file in ("rows.jsonl", "train.jsonl", "mine.yaml", "beside.yaml"):
        for name, make in SPECIAL.items():
            yield Case(f"{file}: {name}", "choice", _replaced(file, make))


def _replaced(file: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        make(folder / file)

    return change


def try_case(case: Case, folder: Path) -> str:
    """What is wrong with how a case ends; empty where nothing is."""
    place = folder / "task"
    shutil.rmtree(place, ignore_errors=True)
    make_task(place, case.kind)
    case.change(place)
    for source, include in ((str(place / "mine.yaml"), None), ("mine", str(place))):
        shown = io.StringIO()
        try:
            with (
                within(LIMIT),
                warnings.catch_warnings(),
                contextlib.redirect_stdout(shown),
                contextlib.redirect_stderr(shown),
            ):
                warnings.simplefilter("ignore")
                _load(source, include)
        except EvomergeError as error:
            lines = str(error).splitlines()
            if len(lines) != 1 or len(lines[0]) > LONGEST:
                return f"{len(lines)} lines of {len(str(error))} characters: {str(error)[:300]!r}"
        except (TooLong, Exception) as error:
            return f"{type(error).__name__}: {str(error)[:300]}"
        if shown.getvalue().strip():
            return f"it printed {shown.getvalue()[:300]!r}"
    return ""


def _load(source: str, include: str | None) -> None:
    """What `validate` does with a task, and what a report does."""
    if task_code([source], [include] if include else []) is not None:
        return
    fitness = LmEvalFitness([source], include_path=include, task_timeout=TIMEOUT)
    fitness.check()
    fitness.cautions()
    fitness.shares()
    fitness.work()
    fitness.documents()
    fitness.texts(2)


@contextlib.contextmanager
def without_built_in_tasks() -> Iterator[None]:
    """Let lm-eval know no tasks but those of a case: reading its 14,000 takes longer than everything else."""
    only = functools.partial(TaskManager, include_defaults=False)
    with unittest.mock.patch.object(
        loading, "TaskManager", lambda include_path=None, **_: only(include_path=include_path)
    ):
        yield


def main(arguments: list[str] | None = None) -> int:
    """Try cases and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cases", type=int, help="so many; default: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    every = cases()
    if options.cases is not None:
        every = random.Random(options.seed).sample(every, min(options.cases, len(every)))
    crashes = 0
    with tempfile.TemporaryDirectory() as folder, without_built_in_tasks():
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"  # every case has data of its own
        for case in every:
            problem = try_case(case, Path(folder))
            if problem:
                crashes += 1
                print(f"{case.name}: {problem}", flush=True)
    print(f"{len(every):,} cases, {crashes} crashes")
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
