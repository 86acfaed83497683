"""Parameter values that differ by tensor, written the way mergekit reads them: `filter` lists.

mergekit takes the first entry whose `filter` is a substring of the tensor's name; an entry without a
filter matches all. Substrings are treacherous ("layers.1" is in "layers.11"), so filters are made of whole
name parts without numbers, and layers are told apart by `layer_range` and gradients instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from evomerge.mergekit.forms import Number

Value = Number | tuple[Number, ...]
"""One value, or one per layer (mergekit calls such a list a gradient)."""

Entry = tuple[str | None, Value]


def gradient_is_exact(layers: int) -> bool:
    """Whether mergekit's gradient of `layers` values gives layer i exactly value i.

    mergekit places layer i at ``t = i / (layers - 1)`` and reads the list at ``t * (layers - 1)``, which
    rounding takes off i for 24, 36, 40 or 48 layers, say; it then mixes two values, or takes the wrong boolean.
    """
    return all(i / (layers - 1) * (layers - 1) == i for i in range(layers)) if layers > 1 else True


def filter_entries(values: Mapping[str, Value]) -> list[Entry] | None:
    """The shortest list of (filter, value) found that gives every tensor its value, the first match winning.

    Args:
        values: by tensor name, for every tensor the list is read for; ``*`` stands for the layer's number.

    Returns:
        Entries in order; the last has no filter. ``None`` when no list of substrings tells the tensors apart.
    """
    groups: dict[tuple[str, Value], list[str]] = {}
    for name, value in values.items():
        groups.setdefault(_key(value), []).append(name)
    best: list[Entry] | None = None
    # The group that is hardest to describe makes the best fallback: all are tried, the largest first.
    for fallback in sorted(groups, key=lambda key: -len(groups[key])):
        entries = _cover(groups, fallback)
        if entries is not None and (best is None or len(entries) < len(best)):
            best = entries
    return best


def _key(value: Value) -> tuple[str, Value]:
    """Distinguishes True from 1.0, which are equal in Python, and 0.0 from -0.0."""
    return repr(value), value


def _cover(groups: Mapping[tuple[str, Value], Sequence[str]], fallback: tuple[str, Value]) -> list[Entry] | None:
    """Filters for every group but `fallback`, chosen greedily."""
    group_of = {name: key for key, names in groups.items() for name in names}
    undecided = dict(group_of)
    matches = {
        part: [name for name in group_of if part in name]
        for name, key in group_of.items()
        if key != fallback
        for part in _parts(name)
    }
    entries: list[Entry] = []
    while any(key != fallback for key in undecided.values()):
        choice: tuple[tuple[bool, int, int, int, str], str, tuple[str, Value]] | None = None
        for part, names in matches.items():
            open_names = [name for name in names if name in undecided]
            keys = {undecided[name] for name in open_names}
            if len(keys) != 1 or fallback in keys:
                continue
            key = keys.pop()
            # Filters that hold wherever they stand in the list come first: they read better and survive editing.
            ordered = any(group_of[name] != key for name in names)
            rank = (ordered, -len(open_names), part.count("."), len(part), part)
            if choice is None or rank < choice[0]:
                choice = (rank, part, key)
        if choice is None:
            return None
        _, part, key = choice
        entries.append((part, key[1]))
        undecided = {name: group for name, group in undecided.items() if part not in name}
    return [*entries, (None, fallback[1])]


def _parts(name: str) -> Iterable[str]:
    """Every run of consecutive dotted parts of `name` that holds no number."""
    run: list[str] = []
    for part in [*name.split("."), "*"]:
        if part == "*" or part.isdigit():
            for start in range(len(run)):
                for end in range(start + 1, len(run) + 1):
                    yield ".".join(run[start:end])
            run = []
        else:
            run.append(part)
