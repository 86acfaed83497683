"""``evomerge report``: a run, or several side by side, as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evomerge.cli.verbs import verb_parser
from evomerge.errors import ConfigError


def run(arguments: Sequence[str]) -> int:
    """Write the report and say where it is."""
    parser = verb_parser(
        "report",
        epilog="Several runs are compared: their curves together, their held-out scores, what differs in their "
        "configurations. The file needs nothing else and fetches nothing.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run folder")
    parser.add_argument(
        "-o", "--output", type=Path, help="file to write (default: report.html in the first run folder)"
    )
    parser.add_argument(
        "--paths", action="store_true", help="show absolute paths whole; only their last names are shown otherwise"
    )
    options = parser.parse_args(list(arguments))

    from evomerge.comparison.folder import is_protocol

    if len(options.runs) == 1 and is_protocol(options.runs[0]):
        from evomerge.cli.protocol import write_and_show
        from evomerge.comparison.running import read_plan

        if options.output is not None:
            raise ConfigError("--output was given with the run of a protocol", "its tables lie in its folder")
        write_and_show(read_plan(Path(options.runs[0]), trust=True), Path(options.runs[0]))
        return 0
    from evomerge.report.html.report import write_report

    file = write_report(options.runs, options.output, paths=options.paths)
    print(f"wrote {file}")
    return 0
