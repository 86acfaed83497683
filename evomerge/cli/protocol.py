"""``evomerge protocol``: a published protocol as an experiment, its numbers beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.cli.options import add_trust_option
from evomerge.cli.verbs import verb_parser
from evomerge.errors import ConfigError, FitnessError

if TYPE_CHECKING:
    from evomerge.comparison.plan import Plan


def run(arguments: Sequence[str]) -> int:
    """Run a protocol, or say what it would take, or which there are."""
    from evomerge.comparison.settings import names, require_name

    parser = verb_parser(
        "protocol",
        epilog=f"Protocols: {', '.join(names())}. The run goes on with `evomerge resume RUN`; `evomerge status RUN` "
        "says how far it is, `evomerge report RUN` writes its table again.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="of the protocol")
    parser.add_argument("--list", action="store_true", help="list the protocols")
    parser.add_argument(
        "--stand-in", action="store_true", help="on tiny models and items of the same shapes, made on the spot"
    )
    parser.add_argument("--pool", metavar="FOLDER", help="where its models lie: the same as pool.root=FOLDER")
    parser.add_argument(
        "--validate", action="store_true", help="load no model: check every part and say what it would take"
    )
    parser.add_argument(
        "--config-dir", type=Path, metavar="FOLDER", help="options of your own, protocols in its folder protocol"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    add_trust_option(parser, "run code of your own that the configuration names")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="configuration overrides, as in a search")
    options = parser.parse_intermixed_args(list(arguments))

    own = options.config_dir
    if own is not None and not own.is_dir():
        raise ConfigError(f"--config-dir {own} is no folder", "a folder with options of your own")
    if options.list:
        return _list(own)
    if options.name is None:
        raise ConfigError("no protocol is named", f"one of {', '.join(names(own))}", "`evomerge protocol NAME`")
    if "=" in options.name:
        raise ConfigError(
            f"the protocol's name is {options.name!r}", f"one of {', '.join(names(own))}, before the overrides"
        )
    for word in options.overrides:
        if word.lstrip("+~").startswith(("protocol=", "hydra")) or ("=" not in word and not word.startswith("~")):
            raise ConfigError(f"cannot take {word!r}", "KEY=VALUE", "the protocol is named without a key")
    option = require_name(options.name, stand_in=options.stand_in, own=own)

    from evomerge.comparison.plan import Plan

    words = list(options.overrides)
    if options.pool is not None:
        words.append(f"pool.root='{options.pool}'")
    if options.quiet:
        words.append("display=quiet")
    plan = Plan.of(option, words, own=own, trust=options.trust)
    if options.pool is not None and not options.stand_in and not Path(options.pool).expanduser().is_dir():
        raise ConfigError(f"--pool {options.pool} is no folder", "the folder in which the protocol's models lie")
    try:
        return _validate(plan) if options.validate else _begin(plan)
    except FitnessError as error:
        if plan.protocol.files and _MISSING in error.given:
            raise FitnessError(error.given, error.allowed, f"`{plan.protocol.files}` writes it") from error
        raise


_MISSING = "which is not there"
"""What is said of a file that a fitness does not find."""


def _begin(plan: Plan) -> int:
    """Run a protocol in a new folder."""
    from evomerge.comparison.running import begin
    from evomerge.report.plain_console import console

    folder = Path(plan.config.run_dir)
    begin(plan, folder, lambda text: console.print(text, soft_wrap=True, markup=False, highlight=False))
    write_and_show(plan, folder)
    return 0


def write_and_show(plan: Plan, folder: Path) -> None:
    """Write the tables of a run whose test has ended, and print the one in Markdown."""
    from evomerge.comparison.tables import MARKDOWN, write_tables
    from evomerge.report.plain_console import console

    files = write_tables(plan, folder)
    if plan.config.display != "quiet":
        print((folder / MARKDOWN).read_text(encoding="utf-8"))
    for file in files:
        console.print(f"wrote {file}", soft_wrap=True, markup=False, highlight=False)


def show_status(folder: Path, *, as_json: bool = False) -> int:
    """Print how far the parts of a protocol are, and how to go on."""
    import json
    import shlex

    from evomerge.comparison.plan import parts_of
    from evomerge.comparison.running import read_plan
    from evomerge.report.plain_console import console
    from evomerge.report.status import read_status
    from evomerge.run.inside import LEDGER

    begun, parts = {}, parts_of(read_plan(folder, trust=True))
    for part in parts:
        if (folder / part / LEDGER).is_file():
            begun[part] = read_status(folder / part)
    if as_json:
        print(json.dumps({part: begun[part].as_dict() if part in begun else None for part in parts}, indent=2))
        return 0
    for part in parts:
        said = "not begun"
        if part in begun:
            status = begun[part]
            of = f" of {status.evaluations}" if status.evaluations is not None else ""
            said = f"{status.state}, {sum(status.counts.values())}{of} candidates"
        console.print(f"{part}: {said}", soft_wrap=True, markup=False, highlight=False)
    if len(begun) < len(parts) or any(status.state != "ended" for status in begun.values()):
        console.print(f"To go on: evomerge resume {shlex.quote(str(folder))}", soft_wrap=True, markup=False)
    return 0


def _list(own: Path | None) -> int:
    """Print every protocol with its title."""
    from evomerge.comparison.plan import Plan
    from evomerge.comparison.settings import has_stand_in, names

    for name in names(own):
        title = Plan.of(name, own=own).protocol.title
        print(f"{name:16} {title}{' (has a stand-in)' if has_stand_in(name, own) else ''}")
    return 0


def _validate(plan: Plan) -> int:
    """Check every part as `evomerge validate` does, and print what each would take."""
    from evomerge.cli.validate import validate
    from evomerge.comparison.named import check_named
    from evomerge.report.plain_console import errors
    from evomerge.session.builders import fitness_from_config

    folder = Path(plan.config.run_dir)
    plan.check(folder)
    if plan.protocol.stand_in is not None:
        from evomerge.demo.stand_ins import require_made

        require_made(plan.protocol.stand_in, plan.config.pool.root)
    first = plan.untuned()
    configs = [plan.grid(folder), *(plan.search(folder, entry) for entry in plan.protocol.searches)]
    configs.append(plan.test(folder, first) if first else None)
    for config in configs:
        if config is not None:
            print(f"{config.name}:", flush=True)
            validate(config, tested_apart=plan.tests_apart)
    test = fitness_from_config(plan.config, "held_out" if plan.tests_apart else "fitness")
    test.check()
    for line in check_named(plan, test):
        errors.print(line, markup=False, highlight=False, soft_wrap=True)
    members = len(plan.protocol.grid_members)
    searched = sum(plan.protocol.budget(entry) for entry in plan.protocol.searches)
    print(f"{members} members of grids and {searched} candidates of searches in all; the test scores every row once")
    return 0
