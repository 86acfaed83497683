"""Composing configurations with Hydra, and saying in one line what is wrong with one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from evomerge.config.added_keys import all_keys, check_added
from evomerge.config.argument_mappings import ARGUMENTS, beside_a_text, entries_of_arguments
from evomerge.config.composing_words import not_set, of_a_file, plainly, unreadable
from evomerge.config.construct import TARGET, instead_of, locate
from evomerge.config.key_types import check_types, register
from evomerge.config.schema import Config
from evomerge.config.taking_away import another_value, taking_away
from evomerge.config.trust import is_ours
from evomerge.errors import ConfigError, EvomergeError, nearest
from evomerge.utils.installation import conf_dir

# Mappings whose keys the user chooses: new keys are added and others kept, without Hydra's ``+``.
_OPEN = (
    *("pool.models", "search_space.parameters", "strategy.asynchronous", "strategy.prior"),
    *("search_space.recipes", "protocol.methods", "protocol.searches"),
    *(f"{node}.gen_kwargs" for node in ("fitness", "cheap", "validation", "held_out")),
    *(f"{node}.chat_template_args" for node in ("fitness", "cheap", "validation", "held_out")),
    *ARGUMENTS,
)
_NO_HELD_OUT = ("~held_out", "~fitness@held_out", "fitness@held_out=null")
"""Ways to say that nothing is held out. Hydra would leave the keys that an experiment sets."""
COMPOSING = (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError)
"""What composing a configuration raises, for `explain`."""
_KEYS = frozenset(field.name for field in fields(Config))
_GROUPS = ("pool", "search_space", "strategy", "fitness", "evaluator", "calibration")


def compose_config(overrides: Sequence[str]) -> Config:
    """The configuration that `evomerge search` would run with these overrides."""
    register()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = compose("config", opened(overrides))
    except COMPOSING as error:
        raise explain(error, overrides) from error
    except RecursionError as error:
        raise not_composed(error) from error
    check_composed(config, overrides)
    return cast(Config, config)


def not_composed(error: Exception) -> ConfigError:
    """What is said of an error of Hydra's that is none of `COMPOSING`."""
    if isinstance(error, RecursionError):
        return ConfigError(
            "files of the configuration name each other, or themselves, in their defaults", "files that end somewhere"
        )
    reason = " ".join(str(error).split())[:300]
    return ConfigError(
        f"Hydra cannot begin: {type(error).__name__}{f': {reason}' if reason else ''}",
        "values of hydra.* as its documentation has them",
    )


def check_composed(config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse what composing has let through: a part taken away, ``{}`` that took nothing away, values of another type.

    Raises:
        ConfigError: names the key.
    """
    for name in sorted(_KEYS):
        if name not in config or _is_rest(name, config, overrides):
            do = f"choose another: {name}=OPTION" if name in _GROUPS else f"leave ~{name} out, and change what is in it"
            raise ConfigError(f"~{name} was given", f"a configuration has {name}", do)
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if value.replace(" ", "") == "{}" and OmegaConf.is_dict(node := OmegaConf.select(config, key)) and node:
            raise ConfigError(f"{key}={{}} changes nothing: mappings are merged", *taking_away(key, config))
    _check_arguments(overrides)
    check_added(config)
    try:
        OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        reason, place = str(error).splitlines()[0], re.search(r"full_key: (\S+)", str(error))
        if place and plainly(reason) != reason:  # others are for who reads the value
            raise ConfigError(f"{place[1]}: {plainly(reason)}") from error
    check_types(config)


def _check_arguments(overrides: Sequence[str]) -> None:
    """Refuse single entries of arguments that are a text elsewhere: Hydra puts them in the text's place."""
    single = entries_of_arguments(overrides)
    if not single:
        return
    named = [word for word in overrides if not word.startswith("-") and ("=" in word or word.startswith("~"))]
    others = opened([word for word in named if word not in single])
    try:
        if GlobalHydra.instance().is_initialized():  # of the command, which knows the user's own folder
            config = compose("config", others)
        else:
            with initialize_config_dir(str(conf_dir()), version_base="1.3"):
                config = compose("config", others)
    except COMPOSING:  # what is wrong there is said by who composes all of them
        return
    for override in single:
        key = override.lstrip("+").partition("=")[0]
        for place in ARGUMENTS:
            if key.startswith(f"{place}.") and isinstance(text := OmegaConf.select(config, place), str):
                raise beside_a_text(key, place, text)


def _is_rest(name: str, config: DictConfig, overrides: Sequence[str]) -> bool:
    """Whether a node is what an experiment sets of a group whose option was taken away."""
    taken = name in _GROUPS and any(word.partition("=")[0] == f"~{name}" for word in overrides)
    return taken and isinstance(node := config[name], DictConfig) and TARGET not in node


def opened(overrides: Sequence[str]) -> list[str]:
    """The overrides with Hydra's "add or change" prefix where they set keys of an open mapping.

    Raises:
        ConfigError: one that has no key.
    """

    def is_open(override: str) -> bool:
        key, assigned, value = override.partition("=")
        inside = key in _OPEN or key.startswith(tuple(f"{name}." for name in _OPEN))
        known = key.partition(".")[0] in _KEYS  # others stay as they are, for Hydra to refuse
        return bool(assigned) and (inside or (known and value.startswith("{")))

    keyless = [override for override in overrides if not override.lstrip("+~").partition("=")[0].strip()]
    if keyless:
        raise ConfigError(f"the override {keyless[0]!r} has no key", "KEY=VALUE, or ~KEY", "search.seed=1, say")
    given = ["held_out=null" if override in _NO_HELD_OUT else override for override in overrides]
    return [f"++{override}" if is_open(override) else override for override in given]


def explain(error: Exception, overrides: Sequence[str]) -> EvomergeError:
    """One line for an error of Hydra or OmegaConf: what was given, what is allowed."""
    if isinstance(error, EvomergeError):
        return error
    if isinstance(error, yaml.YAMLError):
        return ConfigError(f"a file of the configuration is no YAML: {' '.join(str(error).split())[:300]}")
    chain = [error, *_causes(error)]
    text = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file or "").rpartition("/")
        return ConfigError(f"{group}={option}: there is no such option", nearest(option, error.options))
    if isinstance(error, OverrideParseException):
        return ConfigError(*unreadable(_typed(str(error.override), overrides), error.message.splitlines()[0]))
    if text.startswith("Config group override must be"):
        return ConfigError(*_no_option(overrides))
    several = re.match(r"Ambiguous value for argument '(.*?)' 1\. ", text)
    if several:
        return ConfigError(
            f"{_typed(several[1], overrides)}: it has several values",
            "one; several are a sweep, which `evomerge search -m` makes",
            "a list stands in [ ], and a text with commas in quotes of its own",
        )
    lost = re.search(r"Could not load '(\w+)/([^']+)'\.", text)
    if lost:
        return ConfigError(
            f"{lost[1]}: there is no option {lost[2]!r}", f"one name: {lost[1]}=OPTION", "see `evomerge search --help`"
        )
    if text.startswith("Error merging override"):
        typed = _typed(text.removeprefix("Error merging override ").strip(), overrides)
        reason = plainly(" ".join(str(chain[1]).split())[:200]) if len(chain) > 1 else ""
        if "does not support deletion" in reason:
            key = typed.removeprefix("~").partition("=")[0]
            mapping = key in _OPEN
            return ConfigError(
                f"{typed}: {key} is always there",
                *(taking_away(key) if mapping else (another_value(key),)),
            )
        if typed.startswith("pool.models.") and typed.endswith("=null"):
            return ConfigError(f"{typed}: null is no folder and no hub id", *taking_away("pool.models"))
        if re.search(
            r"Key 'None'|KeyValidationError|null\s*:|^Key .* is incompatible with \(str\)", f"{reason} {typed}"
        ):
            key = typed.lstrip("+").partition("=")[0]
            reason = f"names are words: null, true and numbers are none; one of them as a name: {key}.NAME=..."
        return ConfigError(f"cannot apply the override {typed!r}", reason or "a value of the key's type")
    other = re.search(r"Could not delete from config\. The value of '([^']+)' is (.*) and not (.*)\.$", text)
    if other:
        return ConfigError(
            f"~{other[1]}={other[3]}: {other[1]} is {other[2]!r}", "a key is taken away without a value", f"~{other[1]}"
        )
    at = re.search(r"Override (\S+) looks like a config group override, but config group '([^']+)'", text)
    if at:
        return ConfigError(
            f"cannot apply the override {_typed(at[1], overrides)!r}",
            f"what stands before an @ is a group, and {at[2]} is none",
            "names with other marks stand in braces: pool.models={NAME: FOLDER}",
        )
    gone = re.search(r"Could not delete from config\. '([^']+)' does not exist", text)
    if gone:
        return ConfigError(f"~{gone[1]}: {gone[1]} is not set", *_set_beside(gone[1], overrides))
    missing_group = re.search(r"Could not override '([^']+)'\. No match in the defaults list", text)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if missing_group or unknown:
        key = str((missing_group or unknown)[1])  # type: ignore[index]  # one of the two matched
        below = re.fullmatch(rf"({'|'.join(sorted(_GROUPS))})@(protocol|experiment)\.\w+", key)
        if below:
            given = f"a file of the group {below[2]} sets {below[1]}, and all of its keys are put below {below[2]}"
            return ConfigError(given, "a first line `# @package _global_`", "put that line at the top of the file")
        return ConfigError(f"there is no key {key!r}", *_instead(key, overrides))
    said = of_a_file(text, _KEYS)
    if said is None and len(chain) > 1:
        said = of_a_file(" ".join(str(chain[1]).split()), _KEYS)
    if said is not None:
        return ConfigError(*said)
    for cause in chain:
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            if "is not in struct" in str(cause) and isinstance(cause.parent_node, DictConfig):
                prefix = cause.full_key.rpartition(".")[0]
                return ConfigError(
                    f"there is no key {cause.full_key!r}", *_of_node(cause.parent_node, prefix, cause.full_key)
                )
            if isinstance(cause, InterpolationToMissingValueError):
                return not_set(cause)
            return ConfigError(f"{cause.full_key}: {plainly(str(cause).splitlines()[0])}")
    return ConfigError(text[:500])


def _no_option(overrides: Sequence[str]) -> tuple[str, ...]:
    """What is said where something other than the name of an option was given for a group; Hydra does not say which."""
    words = [(word, *word.lstrip("+").partition("=")[::2]) for word in overrides if "." not in word.partition("=")[0]]
    for word, key, value in words:
        if key == "hydra":
            return f"{word}: hydra takes no value of its own", "single keys of Hydra's: hydra.verbose=true, say"
        if value == "null":
            return f"{word}: null is no option", "GROUP=OPTION", "see `evomerge search --help`"
    named = re.compile("(?!(true|false)$)[A-Za-z_]")
    odd = [word for word, key, value in words if key in _GROUPS and not named.match(value)]
    return f"{' '.join(odd) or 'a group'}: it is given no name", "GROUP=OPTION", "see `evomerge search --help`"


def _typed(override: str, overrides: Sequence[str]) -> str:
    """An override as it was typed, without the prefix that it was given for Hydra."""
    bare = override.removeprefix("++")
    return bare if bare in overrides else override


def _causes(error: BaseException) -> list[BaseException]:
    following = error.__cause__ or error.__context__
    return [following, *_causes(following)] if following else []


def _instead(key: str, overrides: Sequence[str]) -> tuple[str, ...]:
    """What to write instead of `key`, from the composition without the overrides that set single keys."""
    config = _groups_alone(key, overrides)
    if config is None:
        return *((nearest(key, _KEYS),) if "." not in key else ()), "see `evomerge search --help`"
    parent = key.rpartition(".")[0]
    node = OmegaConf.select(config, parent) if parent else config
    said = _of_node(node, parent, key) if isinstance(node, DictConfig) else (nearest(key, all_keys(config)),)
    return said if len(said) > 1 else (*said, "see `evomerge search --cfg job`")


def _set_beside(key: str, overrides: Sequence[str]) -> tuple[str, ...]:
    """What could have been meant by a key that is not set: those beside it that are."""
    config, parent = _groups_alone(key, overrides), key.rpartition(".")[0]
    node = OmegaConf.select(config, parent) if config is not None and parent else config
    if not isinstance(node, DictConfig):
        return ()
    values = {f"{parent}.{name}".lstrip("."): node.get(name) for name in map(str, node)}
    if key in values:  # Hydra takes null for nothing
        return ("it is null already",)
    return (nearest(key, [name for name, value in values.items() if value is not None]),)


def _groups_alone(key: str, overrides: Sequence[str]) -> DictConfig | None:
    """The composition without the overrides that set single keys, or `key`; ``None`` where there is none."""
    names = ((o, o.split("=")[0]) for o in overrides)  # group@place.in.the.tree has dots as well
    groups = [o for o, name in names if ("." not in name or "@" in name) and name.lstrip("+~") != key]
    groups = [o for o in groups if not o.startswith("-")]
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return cast(DictConfig, compose("config", groups))
    except COMPOSING:
        return None


def _of_node(node: DictConfig, prefix: str, key: str) -> tuple[str, ...]:
    """What to write instead of `key`, which `node` at `prefix` does not have."""
    known = [f"{prefix}.{name}" if prefix else str(name) for name in map(str, node)]
    path = node.get(TARGET) if TARGET in node else None
    if path is None or not is_ours(path):  # another's class is not imported for a word of advice
        return (nearest(key, known),)
    said = instead_of(locate(str(path), f"{prefix}.{TARGET}"), key.rpartition(".")[2], prefix, known)
    return said if len(said) > 1 else (nearest(key, known),)
