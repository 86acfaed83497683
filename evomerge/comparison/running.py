"""Runs a protocol: its parts one after the other, each a run that can be gone on with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from evomerge.comparison.folder import FILE, is_protocol
from evomerge.comparison.found import tested_rows
from evomerge.comparison.named import check_named
from evomerge.comparison.plan import OVERLAP, Plan
from evomerge.comparison.resources import PeakMemory
from evomerge.config.construct import to_builtin
from evomerge.config.schema import Config
from evomerge.demo.stand_ins import make_stand_in
from evomerge.errors import ConfigError, OutputError, RecipeError
from evomerge.run.inside import LEDGER
from evomerge.session import watched
from evomerge.session.builders import check_fitnesses, fitness_from_config, phase_nodes
from evomerge.session.gene_budget import fit_spaces
from evomerge.session.pools import pool_from_config
from evomerge.utils.files import place_problem, read_bounded, write_text_atomic
from evomerge.utils.safe_yaml import parse

_VERSION = 1
_MOST = 2**20  # bytes of the file


def begin(plan: Plan, folder: Path, say: Callable[[str], None] = print) -> None:
    """Check a protocol, make its stand-in's models where it has one, and run its parts in a new folder.

    Args:
        plan: of the protocol.
        folder: that is not there yet, or empty.
        say: told what is done.

    Raises:
        EvomergeError: something cannot be used, or the folder is in use.
        KeyboardInterrupt: it was interrupted; `go_on` goes on with it.
    """
    _require_empty(folder)
    if problem := place_problem(folder):
        raise OutputError(f"{folder} cannot be made: {problem}", "a place you can write")
    plan.check(folder)
    _make_models(plan, say)
    _check_parts(plan, folder, say)
    _require_empty(folder)  # which another process may have begun while models were trained
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"evomerge_protocol": _VERSION, "protocol": plan.option}
    content |= {"overrides": list(plan.overrides), **({"config_dir": str(plan.own.resolve())} if plan.own else {})}
    write_text_atomic(folder / FILE, yaml.safe_dump(content, sort_keys=False))
    _run(plan, folder, (), say)


def go_on(
    folder: Path, overrides: Sequence[str] = (), *, trust: bool = False, say: Callable[[str], None] = print
) -> None:
    """Go on with the run of a protocol: the part that was interrupted, and those that were not begun.

    Args:
        folder: of the run.
        overrides: of the keys that a resumed run may change, for all parts.
        trust: whether code of one's own that the folder names is run.
        say: told what is done.

    Raises:
        EvomergeError: it cannot go on; says why.
        KeyboardInterrupt: it was interrupted again.
    """
    plan = read_plan(folder, overrides, trust=trust)
    _make_models(plan, say)
    _run(plan, folder, overrides, say)


def read_plan(folder: Path, overrides: Sequence[str] = (), *, trust: bool = False) -> Plan:
    """The plan of a run, from its folder.

    Raises:
        ConfigError: the file is not one that a run wrote.
    """
    try:
        content: Any = parse(read_bounded(folder / FILE, _MOST, follow=False).decode())
        given = content["overrides"]
        if content["evomerge_protocol"] != _VERSION or not isinstance(given, list):
            raise ValueError("another version")
        option, words = str(content["protocol"]), [str(word) for word in given]
        own = Path(str(content["config_dir"])) if "config_dir" in content else None
    except (OSError, KeyError, TypeError, ValueError, RecipeError) as error:
        raise ConfigError(f"{folder / FILE} cannot be read: {error}", "the file that the protocol wrote") from error
    if "/" in option or "." in option or any(word.lstrip("+~").startswith("hydra") or "${" in word for word in words):
        raise ConfigError(f"{folder / FILE} has {option} and {words}", "a protocol's name, and plain values")
    words.append(f"run_dir='{folder}'")
    if own is not None and not own.is_dir():
        raise ConfigError(
            f"{folder / FILE}: config_dir {own} is gone", "the folder of options that the protocol was in"
        )
    return Plan.of(option, [*words, *overrides], asked=overrides, own=own, trust=trust)


def _require_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        do = f"`evomerge resume {folder}` goes on with it" if is_protocol(folder) else "choose another one"
        raise OutputError(f"{folder} is not an empty folder", "a folder that does not exist yet", do)


def _make_models(plan: Plan, say: Callable[[str], None]) -> None:
    kind, root = plan.protocol.stand_in, plan.config.pool.root
    if kind is None:
        return
    if root is None:
        raise ConfigError("pool.root is null", "the folder that the stand-in's models go into")
    make_stand_in(kind, Path(root), int(plan.config.search.seed), quick=plan.protocol.quick, say=say)


def _check_parts(plan: Plan, folder: Path, say: Callable[[str], None]) -> None:
    """Open the pool once and make every part's search space: what does not fit is said before anything is run."""
    pool = pool_from_config(plan.config)
    for key in ("fitness", "held_out"):
        if getattr(plan.config, key) is not None:
            fitness = fitness_from_config(plan.config, key)
            check_fitnesses(fitness, None, pool, key=key)
            if key == "held_out" or not plan.tests_apart:
                for line in check_named(plan, fitness):
                    say(line)
    searches = [plan.search(folder, entry) for entry in plan.protocol.searches]
    first = plan.untuned()
    for config in (plan.grid(folder), plan.test(folder, first) if first else None, *searches):
        if config is None:
            continue
        nodes = phase_nodes(config, pool.info)
        fit_spaces(nodes, pool.info)
        for node in nodes[:1]:  # later ones may need the winner of those before
            node.space(None)


def _run(plan: Plan, folder: Path, overrides: Sequence[str], say: Callable[[str], None]) -> None:
    try:
        grid = plan.grid(folder)
        if grid is not None:
            _part(grid, overrides, plan.trust, say)
        for entry in plan.protocol.searches:
            _part(plan.search(folder, entry), overrides, plan.trust, say)
        _note_overlap(plan, folder)
        rows = {row.name: row.recipe for row in tested_rows(plan, folder)}
        _part(plan.test(folder, rows), overrides, plan.trust, say)
    except KeyboardInterrupt as error:
        error.resume = f"evomerge resume {folder}"  # type: ignore[attr-defined]
        raise


def _part(config: Config, overrides: Sequence[str], trust: bool, say: Callable[[str], None]) -> None:
    """Run a part, go on with it, or leave it where it has ended."""
    run = Path(config.run_dir)
    peaks = [PeakMemory(run)] if _is_here(config) else []
    if (run / LEDGER).is_file():
        watched.resume(run, list(overrides), trust=trust, display=config.display, say=say, observers=peaks)
        return
    if run.is_dir():  # killed before there was a ledger: nothing is lost
        shutil.rmtree(run)
    if config.display != "quiet":
        say(f"{run.name}: {config.search.evaluations} candidates")
    watched.search(config, peaks, warned=False)


def _is_here(config: Config) -> bool:
    """Whether candidates are evaluated in this process."""
    target = (to_builtin(config.evaluator) or {}).get("_target_", "")
    return str(target).endswith("LocalEvaluator")


def _note_overlap(plan: Plan, folder: Path) -> None:
    """Note how many items of the test are items of the search, by their content; once."""
    if not plan.tests_apart or (folder / OVERLAP).is_file():
        return
    both = [fitness_from_config(plan.config, key) for key in ("fitness", "held_out")]
    for fitness in both:
        fitness.check()
    asked = [getattr(fitness, "documents", None) for fitness in both]
    if not all(asked):
        return
    searched, tested = ([tuple(document) for document in own()] for own in asked if own is not None)
    known = [{document[place] for document in searched} for place in (0, 1)]
    same = sum(document[0] in known[0] or document[1] in known[1] for document in tested)
    write_text_atomic(folder / OVERLAP, json.dumps({"tested": len(tested), "searched": len(searched), "same": same}))
