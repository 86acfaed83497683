"""``evomerge resume``: go on with a run that ended early, or with a larger budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evomerge.cli.verbs import verb_parser


def run(arguments: Sequence[str]) -> int:
    """Go through the run's ledger again and continue where it ends."""
    from evomerge.session.resume import MAY_CHANGE

    parser = verb_parser("resume", epilog=f"Keys that may change: {', '.join(MAY_CHANGE)}.")
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what shall change: search.evaluations=500")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument("--trust", action="store_true", help="run code of one's own that the configuration names")
    options = parser.parse_intermixed_args(list(arguments))

    from evomerge.comparison.folder import is_protocol

    if is_protocol(options.run):
        return _protocol(Path(options.run), options.overrides, trust=options.trust, quiet=options.quiet)
    from evomerge.cli.console import print_result
    from evomerge.cli.path import print_path
    from evomerge.report.plain_console import console
    from evomerge.session import watched
    from evomerge.session.ending import how_to_go_on

    display = "quiet" if options.quiet else None
    config = watched.resume(options.run, options.overrides, trust=options.trust, display=display)
    if config is None:
        console.print(how_to_go_on(options.run), soft_wrap=True, markup=False)
        return 0
    print_result(Path(options.run), config)
    print_path(Path(options.run))
    return 0


def _protocol(folder: Path, overrides: Sequence[str], *, trust: bool, quiet: bool) -> int:
    """Go on with the run of a protocol, and write its table."""
    from evomerge.cli.protocol import write_and_show
    from evomerge.comparison.running import go_on, read_plan
    from evomerge.report.plain_console import console

    words = [*overrides, *(["display=quiet"] if quiet else [])]
    say = (lambda text: None) if quiet else (lambda text: console.print(text, soft_wrap=True, markup=False))
    go_on(folder, words, trust=trust, say=say)
    write_and_show(read_plan(folder, words, trust=trust), folder)
    return 0
