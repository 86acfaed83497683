"""Every key of the configuration, from its declaration; ``python scripts/config_reference.py`` renews docs/config.md.

Meanings come from the comments of the files in `conf` and from the docstrings of `evomerge.config.schema`; types and
what a file leaves out come from the signatures of the classes that the files name.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING

from evomerge import conf_dir
from evomerge.config.construct import TARGET, locate
from evomerge.config.schema import Config, PoolConfig, SearchConfig

PAGE = Path(__file__).parents[1] / "docs" / "config.md"
GROUPS = ("pool", "search_space", "strategy", "fitness", "evaluator", "calibration")
FROM_THE_PROGRAM = frozenset({"winner"})
"""Arguments that a search gives, not the user."""

HEAD = """# Configuration

This page is made from the declarations: `python scripts/config_reference.py`.

A configuration is composed by [Hydra](https://hydra.cc/docs/1.3/intro/): one option of every group, then an experiment,
then what the command line says. `GROUP=OPTION` chooses, `KEY=VALUE` changes any key below; a typo is answered with the
nearest keys.

```bash
evomerge search --help                                   # groups, options and keys
evomerge search experiment=demo strategy=tpe --cfg job   # the composed configuration, nothing is run
evomerge search experiment=demo strategy.sigma0=0.1 search.seed=1
evomerge search -m experiment=demo search.seed=1,2       # a run for every value
```

Options of your own are files in a folder that `--config-dir` names, arranged as in `conf`: `my/strategy/careful.yaml`
is `evomerge search --config-dir my strategy=careful`. An experiment is a file that starts with `# @package _global_`,
chooses options in `defaults` with `override`, and sets any keys; `conf/experiment/demo.yaml` is one.

Mappings are merged and everything else is replaced: `fitness.tasks=[...]` is the whole list, while
`pool.models={code: /models/code}` adds a model to those that an experiment names. What takes something away:

```bash
evomerge validate experiment=demo '~pool.models.math'                       # one model of an experiment's pool
evomerge validate experiment=demo '~search_space.parameters.weight'         # one entry of any mapping
evomerge validate experiment=demo held_out=null                             # no held-out items; ~held_out says the same
```

`pool=custom` begins without models, root and base: `experiment=demo pool=custom 'pool.models={a: A, b: B}'` has others.
Keys of the schema, such as `search.seed`, are always there: they take another value, or `null` where the table says so.
Numbers are numbers: `true`, `'3'` and, where a whole number is due, `3.0` are refused. `name` is the name of one
folder; `run_dir` is for a run folder elsewhere.
"""

SHARED = {"search_space": ("parameter", "data_flow"), "strategy": ("map_elites",)}
"""Options whose comments hold for keys of the same name."""

DERIVED = "As [`{parent}`](#{anchor}), and:"


@dataclass(frozen=True)
class Key:
    """One key of a configuration file: its value there and what its comments say."""

    name: str
    value: Any
    meaning: str


@cache
def values_of(path: Path) -> Mapping[str, Any]:
    """What an option's file says, as plain values."""
    values: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return values


@cache
def read_option(path: Path) -> tuple[str, list[Key]]:
    """The description at the head of an option's file, and its keys in order, `defaults` left out."""
    text, values = path.read_text(encoding="utf-8"), values_of(path)
    head: list[str] = []
    above: list[str] = []
    keys: dict[str, list[str]] = {}
    last = ""
    for line in text.splitlines():
        comment = re.match(r"( *)# ?(.*)", line)
        key = re.match(r"([\w@]+):(.*)", line)
        if key:
            last = key[1]
            keys[last] = [*above, *_trailing(key[2])]
            above = []
        elif comment and not comment[1]:
            above.append(comment[2])
        elif comment and len(comment[1]) > 8 and last:
            keys[last].append(comment[2])  # goes on from the line above
        if not keys and comment and not comment[1]:
            head.append(comment[2])
            above = []
    said = [line for line in head if not line.startswith(("@package", " "))]
    description = " ".join(said[: said.index("")] if "" in said else said).strip()  # the first paragraph
    return description, [
        Key(name, values.get(name), " ".join(" ".join(said).split()))
        for name, said in keys.items()
        if name not in ("defaults", TARGET)
    ]


def _trailing(rest: str) -> list[str]:
    """The comment at the end of a line, which begins after two spaces at least."""
    found = re.search(r"\s{2,}#\s?(.*)$", rest)
    return [found[1]] if found else []


def parent_of(path: Path) -> str | None:
    """The option of the same group that an option is made from."""
    for entry in values_of(path).get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            return entry
    return None


def target_of(path: Path) -> str | None:
    """The class that an option builds, its own or its parent's."""
    target, parent = values_of(path).get(TARGET), parent_of(path)
    return str(target) if target else target_of(path.with_stem(parent)) if parent else None


def comment_on(group: str, path: Path, name: str) -> str:
    """What the comments say of a key: the option's own, its parents', or those of the options that share its keys."""
    for option in (path.stem, parent_of(path), *SHARED.get(group, ())):
        for key in read_option(path.with_stem(option))[1] if option else []:
            if key.name == name and key.meaning:
                return key.meaning
    return ""


def type_text(annotation: Any) -> str:
    """An annotation in the words of a configuration."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None) or annotation is None:
        return "null"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(text for part in arguments for text in type_text(part).split(" or ")))
    if origin is typing.Literal:
        return " or ".join(f"`{part}`" for part in arguments)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return "mapping"
    if origin is not None:
        inner = [text for part in arguments if part is not Ellipsis and (text := type_text(part)) != "any"]
        return f"list of {inner[0]}" if inner else "list"
    names = {bool: "true or false", int: "whole number", float: "number", str: "text", dict: "mapping", list: "list"}
    return names.get(annotation, "any" if annotation in (Any, inspect.Parameter.empty) else "node")


def section(docstring: str, heading: str) -> dict[str, str]:
    """What a docstring says of its ``Args:`` or ``Attributes:``, by name."""
    found: dict[str, str] = {}
    part = re.search(rf"^{heading}:\n((?:    .*\n|\n)+)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    names: list[str] = []
    for line in textwrap.dedent(part[1]).splitlines() if part else []:
        start = re.match(r"([\w, ]+): (.*)", line)
        if start:
            names = [name.strip() for name in start[1].split(",")]
            found |= dict.fromkeys(names, start[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return {name: text.replace("``", "`").replace("`None`", "`null`").rstrip(".") for name, text in found.items()}


def _value(value: Any) -> str:
    """A default as one writes it."""
    if value is MISSING or value is inspect.Parameter.empty:
        return "needed"
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("...\n").strip()
    return f"`{text}`"


def _table(rows: list[tuple[str, str, str, str]]) -> Iterator[str]:
    yield "| key | is | default | |"
    yield "| --- | --- | --- | --- |"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def schema_table(schema: type, prefix: str) -> Iterator[str]:
    """The keys of one dataclass of `evomerge.config.schema`."""
    yield from _table(list(_schema_rows(schema, prefix)))


def _composed(key: str, otherwise: Any) -> Any:
    """What `conf/config.yaml` says of a key, which need not be what runs of before had."""
    found: Any = values_of(conf_dir() / "config.yaml")
    for name in key.split("."):
        found = found.get(name, otherwise) if isinstance(found, dict) else otherwise
    return otherwise if found == otherwise or otherwise is MISSING or "${" in str(found) else found


def _schema_rows(schema: type, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    said, hints = section(schema.__doc__ or "", "Attributes"), typing.get_type_hints(schema)
    composed = dict(values_of(conf_dir() / "config.yaml"))
    composed |= {k: v for entry in composed["defaults"] if isinstance(entry, dict) for k, v in entry.items()}
    for field in dataclasses.fields(schema):
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        if dataclasses.is_dataclass(default):
            if not isinstance(default, PoolConfig | SearchConfig):  # which have parts of their own on the page
                yield from _schema_rows(type(default), f"{prefix}{field.name}.")
            continue
        default = _composed(f"{prefix}{field.name}", default)
        chosen = field.name in GROUPS or field.name in ("cheap", "validation", "held_out")
        shown = f"`{composed.get(field.name) or 'null'}`" if chosen or default is MISSING else _value(default)
        kind = "group" if chosen else type_text(hints[field.name])
        yield f"`{prefix}{field.name}`", kind, shown, said.get(field.name, "")


def option_section(group: str, path: Path) -> Iterator[str]:
    """One option of a group: what it is, and its keys."""
    description, keys = read_option(path)
    yield f"### {group}={path.stem}"
    yield ""
    yield description
    yield ""
    target, parent = target_of(path), parent_of(path)
    parameters: Mapping[str, inspect.Parameter] = {}
    hints: Mapping[str, Any] = typing.get_type_hints(PoolConfig) if group == "pool" else {}
    said: Mapping[str, str] = section(PoolConfig.__doc__ or "", "Attributes") if group == "pool" else {}
    if target:
        built: Any = locate(target, f"{group}={path.stem}")
        function = built.__init__ if inspect.isclass(built) else built
        parameters, hints = inspect.signature(function).parameters, typing.get_type_hints(function)
        said = section(built.__doc__ or "", "Args")
    rows = [
        (
            f"`{key.name}`",
            type_text(hints.get(key.name, dict if key.name == "bounds" else Any)),
            _value(key.value),
            comment_on(group, path, key.name) or said.get(key.name, ""),
        )
        for key in keys
    ]
    if parent:
        yield DERIVED.format(parent=f"{group}={parent}", anchor=f"{group}{parent}")
        yield ""
    else:
        rows += [
            (f"`{name}`", type_text(hints.get(name, Any)), _value(parameter.default), said.get(name, ""))
            for name, parameter in parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
            and parameter.default is not parameter.empty
            and name not in FROM_THE_PROGRAM | {key.name for key in keys}
        ]
    if rows:
        yield from _table(rows)


def page() -> str:
    """The whole page."""
    lines = [HEAD, "## Keys", "", *schema_table(Config, ""), "## search", "", *schema_table(SearchConfig, "search.")]
    for group in GROUPS:
        lines += [f"## {group}", ""]
        for path in sorted((conf_dir() / group).glob("*.yaml")):
            lines += option_section(group, path)
    for group in ("experiment", "protocol"):
        lines += [*([""] if lines[-1] else []), f"## {group}", "", f"| `{group}=` | |", "| --- | --- |"]
        for path in sorted((conf_dir() / group).glob("*.yaml")):
            lines.append(f"| `{path.stem}` | {read_option(path)[0]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
