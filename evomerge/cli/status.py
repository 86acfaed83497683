"""``evomerge status``: the progress of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from evomerge.cli.verbs import verb_parser


def run(arguments: Sequence[str]) -> int:
    """Print how far a run is; from another terminal while it goes on."""
    parser = verb_parser("status")
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(list(arguments))

    from evomerge.comparison.folder import is_protocol

    if is_protocol(options.run):
        from evomerge.cli.protocol import show_status

        return show_status(Path(options.run), as_json=options.json)
    from evomerge.report.status import read_status

    status = read_status(options.run)
    if options.json:
        print(json.dumps(status.as_dict(), indent=2))
        return 2 if status.state == "damaged" else 0

    from evomerge.cli.path import print_path
    from evomerge.report.plain_console import console
    from evomerge.report.status_view import StatusPanel

    console.print(StatusPanel(status))
    if status.ratings is not None and status.ratings.waiting:
        console.print(f"To rate: evomerge rate {options.run} --rater NAME", soft_wrap=True)
    if status.resume:  # in a line of its own, for the clipboard
        console.print(f"To go on: {status.resume}", soft_wrap=True)
    print_path(options.run)
    return 2 if status.state == "damaged" else 0
