"""Plain mistakes are answered before anything heavy is imported, and before tasks are loaded."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.run.ledger_file import Lock

HEAVY = ("torch", "transformers", "lm_eval", "datasets", "ray", "numba")

PROBE = """
import json, sys
from evomerge.cli.main import main
said = []
for words in json.load(sys.stdin):
    status = main(words)
    print("\\x1e", file=sys.stderr)
    said.append([status, [name for name in {heavy} if name in sys.modules]])
print(json.dumps(said))
"""


def answers(commands: list[list[str]], folder: Path) -> list[tuple[int, list[str], str]]:
    """Of each command, in one process: exit status, heavy modules imported by then, what it says."""
    found = subprocess.run(
        [sys.executable, "-c", PROBE.format(heavy=HEAVY)],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    said = found.stderr.split("\x1e")
    return [
        (status, heavy, text.strip())
        for (status, heavy), text in zip(json.loads(found.stdout.splitlines()[-1]), said, strict=False)
    ]


@pytest.mark.slow
def test_plain_mistakes_are_answered_before_heavy_imports(
    quick_pool: Path, quick_search: list[str], finished_run: Path, tmp_path: Path
) -> None:
    recipe = (finished_run / "best" / "recipe.yaml").read_text()
    (tmp_path / "key.yaml").write_text(recipe.replace("method:", "metod:", 1))
    (tmp_path / "number.yaml").write_text(re.sub(r"weight: [^}]*", "weight: .nan", recipe, count=1))
    (tmp_path / "gone.yaml").write_text(recipe.replace("/math,", "/moths,"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    shutil.copytree(finished_run, tmp_path / "busy")
    run, place = str(finished_run), [f"run_dir='{tmp_path / 'run'}'"]
    search = ["search", *quick_search, *place]
    cases = [
        ([*search, "fitness.forwards=exakt"], ("fitness.forwards", "exakt", "'exact'")),
        ([*search, "search.evaluations=0"], ("search.evaluations is 0",)),
        ([*search, "search.evaluations=true"], ("search.evaluations is true; it should be a whole number",)),
        ([*search, "search.seed=1.5"], ("search.seed is 1.5",)),
        ([*search, "display=livee"], ("display", "live")),
        ([*search, "strategy.popsize=3.7"], ("strategy.popsize is 3.7; it should be a whole number",)),
        ([*search, "strategy.popsize=true"], ("strategy.popsize is true",)),
        ([*search, "+strategy.popsizes=4"], ("popsizes", "popsize")),
        ([*search, "search_space.mask_seed=x"], ("search_space.mask_seed", "'x'")),
        ([*search, "evaluator.threads=true"], ("evaluator.threads is true",)),
        ([*search, "fitness.batch_tokens=0"], ("fitness.batch_tokens is 0",)),
        ([*search, "held_out.tasks=[]"], ("held_out.tasks is empty",)),
        ([*search, "held_out.limit=-1"], ("held_out.limit is -1",)),
        ([*search, "fitness.include_path=/no/folder"], ("fitness.include_path", "/no/folder")),
        ([*search, "fitness.tasks=[no/task.yaml]"], ("no/task.yaml",)),
        ([*search, "pool.dtype=float31"], ("float31", "float32")),
        ([*search, "pool.base=bas"], ("pool.base", "bas")),
        ([*search, "pool.root=/no/where"], ("pool.root", "/no/where")),
        ([*search, "search.warm_start=[runs/none]"], ("search.warm_start", "runs/none")),
        (["search", "from_run=runs/none"], ("runs/none",)),
        (["validate", *quick_search, "name="], ("name is ''", "run_dir")),
        (["validate", *quick_search, "name=../../x"], ("name is '../../x'", "run_dir")),
        (["demo", "--quick", "--pool-only", "search.evaluations=0"], ("search.evaluations is 0",)),
        (["demo", "--quick", "--pool-only", "fitness.forwards=exakt"], ("fitness.forwards",)),
        (["merge", "key.yaml", "out"], ("metod", "method")),
        (["merge", "number.yaml", "out"], ("nan", "weight")),
        (["merge", "gone.yaml", "out"], ("math", "moths")),
        (["merge", "none.yaml", "out"], ("none.yaml",)),
        (["merge", run, "full"], ("full is not empty",)),
        (["resume", "runs/none"], ("runs/none does not exist",)),
        (["resume", run, "fitness.tasks=[x]"], ("fitness.tasks cannot change",)),
        (["resume", run, "search.evaluations=many"], ("search.evaluations is 'many'",)),
        (["resume", "busy", "search.evaluations=50"], ("busy is being written by",)),
        (["evaluate", "none", *quick_search[:2]], ("none",)),
        (["evaluate", run, "fitness.forwards=exakt"], ("fitness.forwards",)),
        (["evaluate", run, "pool.models={}"], ("pool.models",)),
        (["export", "none"], ("none",)),
        (["report", "none"], ("none",)),
        (["status", "none"], ("none",)),
    ]
    lock = Lock(tmp_path / "busy" / "ledger.lock")
    try:
        found = answers([words for words, _ in cases], tmp_path)
    finally:
        lock.release()
    for (words, says), (status, heavy, text) in zip(cases, found, strict=True):
        assert (status, heavy) == (2, []), (words, status, heavy, text)
        assert text.startswith("evomerge: error: "), text
        assert len(text.splitlines()) == 1, text
        assert all(word in text for word in says), (words, text)
    assert not (tmp_path / "demo_pool").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp/x", "../../x", "a\\b", " ", "x" * 300])
def test_a_run_s_name_is_that_of_one_folder(name: str) -> None:
    from evomerge.errors import ConfigError
    from evomerge.session.settings import check_name

    with pytest.raises(ConfigError, match=r"set run_dir for a run folder elsewhere"):
        check_name(name)


@pytest.mark.parametrize("name", ["mine", "2024", "demo-seed0-2026-01-01_10-00-00", "größer", ".hidden", "a b"])
def test_other_names_are_taken(name: str) -> None:
    from evomerge.session.settings import check_name

    check_name(name)
