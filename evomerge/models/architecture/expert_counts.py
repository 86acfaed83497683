"""How often the experts of a mixture are used, as a file says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evomerge.errors import PoolError
from evomerge.models.architecture.mixtures import Mixture
from evomerge.models.checkpoints.headers import read_json

EXPERTS_FILE = "evomerge_experts.json"

Counts = Mapping[int, tuple[float, ...]]
"""By layer the tokens that each expert was sent."""


def read_counts(file: Path, whose: str) -> Counts:
    """The counts in a file that `evomerge experts` wrote.

    Args:
        file: ``evomerge_experts.json``, or the folder that it lies in.
        whose: the key that names it, for messages.

    Raises:
        PoolError: it is not there, or has no counts.
    """
    path = file.expanduser() / EXPERTS_FILE if file.expanduser().is_dir() else file.expanduser()
    do = "give the folder of a variant, or the file: `evomerge experts` writes it, with --router kept"
    if not path.is_file():
        raise PoolError(f"{whose} is {file}, and there is no such file", f"the path of a variant's {EXPERTS_FILE}", do)
    content = read_json(path, "how often experts are used")
    tokens = content.get("tokens") if isinstance(content, Mapping) else None
    try:
        return {int(layer): tuple(float(own) for own in counts) for layer, counts in dict(tokens or {}).items()}
    except (TypeError, ValueError) as error:
        raise PoolError(f"{whose}: {path} has no counts of tokens by layer", EXPERTS_FILE, do) from error


def check_counts(counts: Counts, mixtures: Sequence[Mixture], whose: str) -> None:
    """Raise `PoolError` where counts are not of these mixtures."""
    for own in mixtures:
        if len(counts.get(own.layer, ())) != own.count:
            given = f"{whose} has {len(counts.get(own.layer, ()))} counts for layer {own.layer}"
            raise PoolError(given, f"{own.count}, as many as the layer has experts", "name the file of a variant")
