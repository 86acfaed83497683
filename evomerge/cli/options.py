"""Options that several verbs have."""

from __future__ import annotations

import argparse


def add_trust_option(parser: argparse.ArgumentParser, what: str = "run code that the models bring along") -> None:
    """Let ``--trust`` say that foreign code may be run."""
    parser.add_argument("--trust", action="store_true", help=what)


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
