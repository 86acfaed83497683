"""What Hydra and OmegaConf say of a configuration that cannot be composed, in a user's words."""

from __future__ import annotations

import re
from collections.abc import Collection

from evomerge.errors import ConfigError, nearest

_KEY = r"[~+]*[\w$@/.:-]*[\w$]"
_TAKES = {
    "Integer": "a whole number",
    "int": "a whole number",
    "Float": "a number",
    "float": "a number",
    "Boolean": "true or false",
    "bool": "true or false",
    "String": "a text",
    "string": "a text",
}
"""What a key takes, by OmegaConf's names of it."""


def plainly(reason: str) -> str:
    """What OmegaConf says of a value, without its own classes."""
    wrong = re.match(r"Value (.*) (?:of type '[^']*' could not be converted to|is not a valid) (\w+)", reason)
    if wrong:
        return f"{wrong[1]} is given, and it takes {_TAKES.get(wrong[2], wrong[2])}"
    if reason.startswith("Cannot convert 'dict' to"):
        return "a mapping is given, and it takes a text; where a name has a dot, write {NAME: value}"
    if "is not a ListConfig, list or tuple" in reason:
        return "a single value is given, and it takes a list, as in [value]"
    unset = re.match(r"Interpolation key '(.*)' not found", reason)
    if unset:
        return f"${{{unset[1]}}} names no key that there is; see `evomerge search --cfg job`"
    if reason.startswith("Incompatible key type"):
        return "a name of it is null or a date; names are words: put it in quotes"
    if "Recursive interpolation" in reason:
        return "it refers to itself by ${...}; give it a value"
    if "not Optional" in reason:
        return "null is given, and it takes a value"
    if reason.startswith("Cannot assign"):
        return "a single value is given, and it takes a mapping or a list, as in {name: value} or [value]"
    if reason.startswith("Invalid type assigned"):
        return "a mapping is what it takes, as in {key: value}"
    if reason.startswith("Cannot merge") and "reference_type=Dict" in reason:
        return "a list is given, and it takes a mapping, as in {name: value}"
    if reason.startswith("Cannot merge"):
        return "a list is given where a mapping stands, or a mapping where a list does"
    return reason


def of_a_file(text: str, known: Collection[str]) -> tuple[str, ...] | None:
    """What is said of a file of the user's that does not fit into a configuration; ``None`` where it is not that.

    Args:
        text: the error's, in one line.
        known: keys of a configuration.
    """
    stranger = re.match(r"Key '([^']+)' not in 'Config'", text)
    if stranger and stranger[1] == "experiment":
        return (
            "the experiment's keys do not stand at the top of the configuration",
            "a file of `key: value` lines whose first line is `# @package _global_`",
            "add that line",
        )
    if stranger:
        return f"a file sets the key {stranger[1]!r}, which there is not", nearest(stranger[1], known)
    kinds = re.match(
        r"In '([^']+)': \w+ raised while composing config: (Merge error: (\w+) is not .*|Cannot merge .*)", text
    )
    if kinds and kinds[3]:
        value = re.search(r"value: (.*?) full_key", text)
        shown = f"{value[1]}" if value else kinds[3]
        sections = ", ".join(sorted(known))
        return (
            f"{kinds[1]}.yaml has {shown} where a mapping stands",
            "`key: value` lines below it",
            f"top keys: {sections}",
        )
    if kinds:
        return f"{kinds[1]}.yaml has a list where a mapping stands, or a mapping where a list does", "the other of them"
    twice = re.match(r"Multiple values for (\S+)\. To override a value use 'override (\S+): (\S+)'", text)
    if twice:
        group = twice[2].lstrip("/")
        return (
            f"{group} is chosen twice",
            "one choice of a group",
            f"write `- override /{group}: {twice[3]}` in `defaults`",
        )
    folder = re.match(r"Additional config directory '(.*)' not found", text)
    if folder:
        return (
            f"--config-dir: there is no folder {folder[1]}",
            "a folder arranged as evomerge's conf: experiment/mine.yaml",
        )
    return None


def unreadable(typed: str, reason: str) -> tuple[str, str, str]:
    """What is said of an override that Hydra's grammar does not take; its grammar has marks that paths have too.

    Args:
        typed: the override.
        reason: the grammar's.
    """
    key, assigned, value = typed.partition("=")
    if re.search("LexerNoViable|Error parsing override", reason):  # of the parser's own
        reason = "it is not KEY=VALUE"
    if assigned and re.search(r"""\{(?:[^{}]*,)?\s*['"]""", value):
        do = r"names inside of {} stand without quotes; [, ] and other marks have a \ before them: {layers.\[0-3\]*: 0}"
    elif re.match(r"\{[^'\"]*[^\x00-\x7f]", value):
        do = "names inside of {} are of ASCII letters, digits and marks; write others in a file of --config-dir"
    elif assigned and (reason.endswith("expecting EQUAL") or not re.fullmatch(_KEY, key, re.ASCII)):
        do = "keys have letters a-z, digits, _ and single dots; write others as KEY={NAME: VALUE}, or in a file"
    elif assigned and value and not re.search(r"""['"{}\[\]]""", value):
        do = f"""a value with = , : or other marks needs quotes of its own: {key}='"{value}"'"""
    else:
        do = "write key=value, quoted as a whole; a text with = , : or other marks needs quotes of its own"
    return f"cannot read the override {typed!r}", reason, do


def not_set(error: Exception) -> ConfigError:
    """Of a key that takes the value of one that is not set, the latter's name."""
    missing = str(error).partition("Missing mandatory value: ")[2].split()
    return left_open(missing[0] if missing else "a key")


def left_open(key: str) -> ConfigError:
    """Of a key that a group's file leaves to its users (``???``)."""
    return ConfigError(f"{key} is not set", "it has no default", f"set it with {key}=...")
