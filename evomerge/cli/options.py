"""Options that several verbs have."""

from __future__ import annotations

import argparse


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Let ``--import MODULE`` name modules with merge methods of one's own; see `imports.import_modules`."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module of your own with merge methods, installed or a file of this folder; may be repeated",
    )
