"""Mutations of files: of their bytes, and of the values that they hold."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

TOKENS = [
    *(
        b"{}",
        b"[]",
        b"[[[[",
        b"{a: ",
        b": ",
        b"- ",
        b"&a ",
        b"*a",
        b"!!python/object/apply:os.system",
        b"!function a.b",
    ),
    *(b"<<: ", b"|\n", b"%YAML 9\n", b"---\n", b"null", b"true", b"NaN", b"Infinity", b"-0", b"1e999", b"0x1F", b"1_0"),
    *(
        b"9" * 5000,
        b"\x00",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\\ud800",
        b"\xe2\x80\xae",
        b"\x1b[2J",
        b"'",
        b'"',
        b"\n",
        b"\t",
    ),
    *(b"${oc.env:HOME}", b"../../etc/passwd", b"<script>alert(1)</script>", b'"__array__":"0"', b'"__float__":"x"'),
]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, 5e-324),
    *(float("inf"), float("-inf"), float("nan"), "NaN", "Infinity", "", "a", "a" * 10_000, "\x00", "\ud800", "\x1b[2J"),
    *("../../etc/passwd", "/etc/passwd", "${oc.env:HOME}", "{{ 7 * 7 }}", "<script>alert(1)</script>", "[/red]"),
    *(
        [],
        {},
        [[]],
        [{}],
        {"": ""},
        {"a": {"b": [1]}},
        [None] * 100,
        "layers.0-999999.attn",
        "math",
        "1e5",
        "2026-01-01",
    ),
]
Path = tuple[Any, ...]


def mutate_bytes(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """One to eight changes: bits, bytes, pieces cut, doubled, moved, or taken from another file or a list of tokens."""
    content = bytearray(data)
    for _ in range(1 + min(7, int(rng.expovariate(1)))):
        at = rng.randrange(len(content) + 1)
        end = min(len(content), at + 1 + int(rng.expovariate(0.1)))
        kind = rng.randrange(8)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(content):
            content[at] = rng.choice((0, 1, 9, 10, 32, 34, 45, 58, 91, 123, 127, 128, 255, rng.randrange(256)))
        elif kind == 2:
            del content[at:end]
        elif kind == 3:
            content[at:at] = content[at:end] * rng.choice((1, 2, 50))
        elif kind == 4:
            del content[at:]
        elif kind == 5:
            other = rng.choice(others)
            begin = rng.randrange(len(other) + 1)
            content[at:end] = other[begin : begin + 1 + int(rng.expovariate(0.02))]
        else:
            content[at : at if kind == 6 else end] = rng.choice(TOKENS)
    return bytes(content)


def mutate_value(value: Any, rng: random.Random) -> Any:
    """A copy of JSON values with one to four changes: entries replaced, removed, added, renamed, swapped or nested."""
    root = {"": copy.deepcopy(value)}
    for _ in range(1 + min(3, int(rng.expovariate(1)))):
        where, key = rng.choice(list(_places(root)))
        kind = rng.randrange(8)
        if kind <= 2:
            where[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 3 and where is not root:
            del where[key]
        elif kind == 4 and isinstance(where[key], dict):
            where[key][_key(where[key], rng)] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 4 and isinstance(where[key], list):
            where[key].insert(rng.randrange(len(where[key]) + 1), copy.deepcopy(rng.choice([*where[key], *VALUES])))
        elif kind == 5 and isinstance(where, dict) and where is not root:
            where[_key(where, rng)] = where.pop(key)
        elif kind == 6:
            other, place = rng.choice(list(_places(root)))
            where[key] = copy.deepcopy(other[place])
        else:
            for _ in range(rng.choice((1, 2, 30, 300))):
                where[key] = [where[key]] if rng.random() < 0.5 else {"a": where[key]}
    return root[""]


def _key(mapping: dict[Any, Any], rng: random.Random) -> Any:
    return rng.choice([*mapping, "", "a", "__proto__", "_target_", "\x1b[2J", "0", "9" * 30])


def _places(value: Any) -> Any:
    """Every container with each of its keys, however deep."""
    todo = [value]
    while todo:
        current = todo.pop()
        keys = list(current) if isinstance(current, dict) else range(len(current))
        for key in keys:
            yield current, key
            if isinstance(current[key], dict | list):
                todo.append(current[key])


def mutated(
    seed: bytes,
    seeds: Sequence[bytes],
    rng: random.Random,
    load: Callable[[bytes], Any],
    dump: Callable[[Any], bytes],
) -> bytes:
    """A file made from a valid one: half of them by bytes, half by values; some by both."""
    kind = rng.random()
    if kind < 0.45:
        return mutate_bytes(seed, seeds, rng)
    try:
        data = dump(mutate_value(load(seed), rng))
    except (ValueError, TypeError, OverflowError, RecursionError, LookupError):  # it cannot be written down
        return mutate_bytes(seed, seeds, rng)
    return data if kind < 0.95 else mutate_bytes(data, seeds, rng)
