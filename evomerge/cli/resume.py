"""``evomerge resume``: go on with a run that ended early, or with a larger budget."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.cli.verbs import verb_parser


def run(arguments: Sequence[str]) -> int:
    """Go through the run's ledger again and continue where it ends."""
    from evomerge.session.resume import MAY_CHANGE, open_run

    parser = verb_parser("resume", epilog=f"Keys that may change: {', '.join(MAY_CHANGE)}.")
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what shall change: search.evaluations=500")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument("--trust", action="store_true", help="run code of one's own that the configuration names")
    options = parser.parse_args(list(arguments))

    config, again = open_run(options.run, options.overrides, trust=options.trust)

    from evomerge.cli.console import print_result
    from evomerge.cli.path import print_path
    from evomerge.report.plain_console import console, errors
    from evomerge.session.parts import build_parts
    from evomerge.session.progress import Progress
    from evomerge.session.run import run as run_search

    started = again.record.first("started")
    if again.record.finished and started is not None and config.search.evaluations <= again.budget:
        console.print(f"{options.run} is finished; search.evaluations=N goes on to N evaluations")
        return 0
    parts = build_parts(config)
    if parts.pool is not None:
        again.check_pool(parts.pool.info)
    told = again.record.count("told", "search")
    console.print(f"{told} evaluations are in the ledger")
    display = "quiet" if options.quiet else config.display
    with Progress(str(options.run), config.search.evaluations, parts.evaluator, display, again=True) as progress:
        folder = run_search(config, parts, [progress], again)
    for change in again.changes:
        errors.print(f"changed: {change}")
    print_result(folder.path, config.imports)
    print_path(folder.path)
    return 0
