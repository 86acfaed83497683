"""``evomerge search``: a Hydra application."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.config.schema import Config


def run(arguments: Sequence[str]) -> int:
    """Search with the configuration that the arguments compose, or with that of the run that they begin from."""
    if any("from_run=" in argument for argument in arguments):
        from evomerge.session.forking import forked_config, source_of

        source = source_of(arguments)
        if source is not None:
            search(forked_config(source, quietened(arguments)))
            return 0
    from evomerge.cli.composed import hydra_app

    return hydra_app("search", quietened(arguments), search)


def quietened(arguments: Sequence[str]) -> list[str]:
    """The arguments with ``--quiet`` as the key that it stands for."""
    return ["display=quiet" if argument in ("-q", "--quiet") else argument for argument in arguments]


def search(config: Config) -> None:
    """Run the search, and print the result."""
    from evomerge.cli.console import print_result
    from evomerge.cli.path import print_path
    from evomerge.session import watched

    folder = watched.search(config)
    print_result(folder.path, config)
    print_path(folder.path)
