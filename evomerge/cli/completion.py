"""Shell completion: verbs by us, the keys and options of ``search`` and ``validate`` by Hydra."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from evomerge.cli.verbs import VERBS


def run(arguments: Sequence[str]) -> int:
    """Answer ``evomerge -sc install=bash`` and the queries of the installed script."""
    import hydra

    from evomerge.config.key_types import register
    from evomerge.utils.installation import conf_dir

    if any(argument.startswith("query=") for argument in arguments):
        line = os.environ.get("COMP_LINE", "")
        words = line.split()
        if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
            print(" ".join(verb for verb in VERBS if verb.startswith(words[1] if len(words) == 2 else "")))
            return 0
        if words[1] not in ("search", "validate", "demo", "evaluate"):
            return 0
        # Hydra completes what follows the program's name: take the verb out.
        os.environ["COMP_LINE"] = f"{words[0]} {line.split(words[1], 1)[1].lstrip()}"
    register()
    before, sys.argv = sys.argv, ["evomerge", *arguments]
    try:
        hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(lambda _: None)()
    finally:
        sys.argv = before
    return 0
