"""What is installed as evomerge: its version, its configuration folder, the packages beside it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from evomerge.errors import EvomergeError

VERSION = "0.1.0"

_PACKAGE = Path(__file__).resolve().parent.parent


def conf_dir() -> Path:
    """The folder of the packaged Hydra configuration: inside the wheel, or beside a checkout."""
    for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise EvomergeError(
        f"evomerge's configuration folder is missing beside {_PACKAGE}",
        "",
        "reinstall evomerge, or run from its checkout",
    )


def check_siblings() -> None:
    """`search_spaces` and `fitness` are plain names: say so when another package shadows them."""
    home = _PACKAGE.parent
    for name in ("search_spaces", "fitness"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent.parent if spec and spec.origin else None
        if found is None:
            raise EvomergeError(f"the package {name!r} is missing beside evomerge in {home}", "", "reinstall evomerge")
        if found != home:
            raise EvomergeError(
                f"the package {name!r} comes from {found}, which shadows evomerge's own in {home}",
                "evomerge needs its own",
                f"rename or uninstall the other {name!r}, or start from another folder",
            )
