"""Options that several verbs have."""

from __future__ import annotations

import argparse


def add_trust_option(parser: argparse.ArgumentParser, what: str = "run code that the models bring along") -> None:
    """Let ``--trust`` say that foreign code may be run."""
    parser.add_argument("--trust", action="store_true", help=what)


def add_preference_option(parser: argparse.ArgumentParser) -> None:
    """Let ``--preference`` pick from the front of a run with several objectives; see `chosen`."""
    parser.add_argument(
        "--preference",
        metavar="NAME=WEIGHT,...",
        help="of a run with several objectives: the recipe of its front that suits these weights best, as in "
        "maths=0.7,chat=0.3, in the place of the winner's",
    )


def chosen(target: str, preference: str | None) -> str:
    """The recipe file that a preference picks from a run's front, which standard error is told of; else `target`."""
    if preference is None:
        return target
    from evomerge.report.plain_console import errors
    from evomerge.session.preferred_recipe import preferred_recipe

    found = preferred_recipe(target, preference)
    errors.print(found.sentence(), markup=False, highlight=False, soft_wrap=True)
    return str(found.file)


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
