"""The merge methods of a space: what each takes from the pool, what is explored of it, which genes they share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import ConfigError, nearest
from evomerge.recipes.method_spec import MethodSpec, ParameterSpec, Scalar
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters
from search_spaces.ranges import BySource, Choice, Explored, Range, parameter_ranges

_COPIED: Mapping[str, float] = {"weight": 1.0, "density": 1.0, "t": 0.0}
"""Values with which a merge is its first input; weights are those of the first, 0 for the others."""


@dataclass(frozen=True)
class MethodChoice:
    """One of the methods that a slice can be merged with.

    Attributes:
        spec: its declaration.
        inputs: the models that enter every slice.
        base: the model that differences are taken from, for methods that do so.
        explored: by parameter, a range, a choice, or the one value it has; or these by the inputs.
    """

    spec: MethodSpec
    inputs: tuple[str, ...]
    base: Input | None
    explored: Mapping[str, Explored | Scalar | BySource]

    @property
    def name(self) -> str:
        """The method's name."""
        return self.spec.name

    @property
    def idempotent(self) -> bool:
        """Whether equal inputs, and a base equal to them, come out as they are, whatever the genes say."""
        needed = self.spec.idempotent
        if isinstance(needed, str):
            return self.base is not None or self.explored[needed] is True
        return needed

    def told(self, source: str) -> Iterator[tuple[ParameterSpec, Explored | Scalar]]:
        """What is explored of the parameters of one input, or of the slice's own for the empty name.

        Those that need not be said (`ParameterSpec.tacit`) are left out.
        """
        for parameter in self.spec.parameters:
            if parameter.per_input == bool(source):
                found = self.explored[parameter.name]
                found = found.values[source] if isinstance(found, BySource) else found
                if not (parameter.tacit and found == parameter.default):
                    yield parameter, found

    def copied(self, slice_: SliceId) -> SliceRecipe:
        """A slice that is equal in all models, by parameters that need no arithmetic where the method has such.

        The method is that of the other slices: a file of mergekit's has only one.
        """
        values: dict[str, dict[str, Scalar]] = {name: {} for name in ("", *self.inputs)}
        for source, own in values.items():
            for parameter, found in self.told(source):
                value = found.initial if isinstance(found, Range | Choice) else found
                if parameter.kind == "continuous" and parameter.name in _COPIED:
                    wanted = _COPIED[parameter.name]
                    value = wanted if parameter.minimum <= wanted <= parameter.maximum else value
                whole = not (source and parameter.name == "weight") or source == self.inputs[0]
                own[parameter.name] = value if whole else 0.0
        inputs = tuple(Input(name, None, parameters(values[name])) for name in self.inputs)
        return SliceRecipe(slice_, self.name, inputs, parameters(values[""]), self.base)


def method_choices(
    pool: PoolInfo,
    methods: Mapping[str, MethodSpec],
    chosen: str | Sequence[str],
    options: Mapping[str, Any],
    *,
    negative_weights: bool,
    normalize: bool | None,
    resolution: float | None,
    key: str,
) -> tuple[MethodChoice, ...]:
    """The methods of a space, in the order they are listed.

    Args:
        pool: what is merged.
        methods: all declarations by name.
        chosen: the name of a method, or a list of them.
        options: as for `parameter_ranges`.
        negative_weights, normalize, resolution: likewise; they concern the methods that have the parameter.
        key: the search space's configuration key, for messages.

    Raises:
        ConfigError: an unknown method, one that does not fit the pool, or options that no method has.
    """
    names = [chosen] if isinstance(chosen, str) else list(chosen)
    for name in names:
        if name not in methods:
            given = f"{key}.method is {name!r}" if isinstance(chosen, str) else f"{key}.method lists {name!r}"
            raise ConfigError(given, nearest(name, methods), "a method of your own needs imports=[ITS_MODULE]")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{key}.method is {names}", "one or more merge methods, each once")
    for name in names:
        if methods[name].family == "switches":
            raise ConfigError(
                f"{key}.method has {name!r}, which is a switch on a merged model",
                "methods that merge the models",
                f"search_space=switch search_space.switch={name}",
            )
    specs = [methods[name] for name in names]
    _check_options(specs, methods, options, negative_weights, normalize, key)
    found = []
    for spec in specs:
        inputs, base = _entering(pool, spec, methods, f"{key}.method")
        negative = negative_weights and spec.parameter("weight") is not None
        explored = parameter_ranges(
            spec,
            options,
            inputs,
            negative_weights=negative,
            normalize=normalize,
            resolution=resolution,
            key=key,
        )
        found.append(MethodChoice(spec, inputs, base, explored))
    return tuple(found)


def gene_prefixes(choices: Sequence[MethodChoice]) -> dict[tuple[str, str], str]:
    """By method and parameter, what stands before the parameter in the names of its genes; equal names, one gene.

    Methods that declare a parameter alike (all but its default) and of which the search explores the same share its
    gene, without a prefix. A parameter of one method only, or explored in its own way, has the method's name as
    its prefix. Should a second set of methods share a parameter of the same name, theirs has all their names. A
    space of one method needs no prefixes.
    """
    prefixes: dict[tuple[str, str], str] = {}
    if len(choices) == 1:
        return {(choices[0].name, p.name): "" for p in choices[0].spec.parameters}
    kinds: dict[str, list[tuple[Any, list[str]]]] = {}
    for choice in choices:
        for parameter in choice.spec.parameters:
            declared = {key: value for key, value in vars(parameter).items() if key != "default"}
            alike = (declared, choice.explored[parameter.name])
            known = kinds.setdefault(parameter.name, [])
            users = next((users for kind, users in known if kind == alike), None)
            if users is None:
                known.append((alike, [choice.name]))
            else:
                users.append(choice.name)
    for name, known in kinds.items():
        shared = False
        for _, users in known:
            prefix = "" if len(users) > 1 and not shared else "+".join(users)
            shared = shared or len(users) > 1
            prefixes |= {(user, name): prefix for user in users}
    return prefixes


def fitting(pool: PoolInfo, methods: Mapping[str, MethodSpec]) -> list[str]:
    """The names of the methods that can merge this pool, in alphabetical order."""

    def fits(spec: MethodSpec) -> bool:
        merges = spec.family != "switches" and _inputs(pool, spec) is not None
        return merges and (spec.base != "required" or pool.base is not None)

    return sorted(name for name, spec in methods.items() if fits(spec))


def _entering(
    pool: PoolInfo, spec: MethodSpec, methods: Mapping[str, MethodSpec], key: str
) -> tuple[tuple[str, ...], Input | None]:
    """The inputs of every slice, and the base."""
    instead = f"methods that fit this pool: {', '.join(fitting(pool, methods)) or 'none'}"
    if spec.base == "required" and pool.base is None:
        raise ConfigError(
            f"{key} has {spec.name!r} and the pool has no base",
            f"{spec.name} merges differences from a base model",
            f"name one with pool.base; {instead}",
        )
    inputs = _inputs(pool, spec)
    if inputs is None:
        few, most, sources = spec.min_inputs, spec.max_inputs, pool.sources
        wanted = f"exactly {few}" if most == few else f"{few} to {most}" if most else f"{few} or more"
        or_base = ", or one and a base" if spec.base != "required" and few == 2 else ""
        raise ConfigError(
            f"{key} has {spec.name!r} and the pool has {len(sources)} source models ({', '.join(sources)})",
            f"{spec.name} takes {wanted} source model{'s' * (most != 1)}{or_base}",
            instead,
        )
    base = Input(pool.base) if pool.base is not None and spec.base != "none" and pool.base not in inputs else None
    return inputs, base


def _inputs(pool: PoolInfo, spec: MethodSpec) -> tuple[str, ...] | None:
    """The sources, or the base and the only source, when the method takes that many."""
    sources, most = pool.sources, spec.max_inputs
    if spec.min_inputs <= len(sources) and (most is None or len(sources) <= most):
        return sources
    if spec.base != "required" and spec.min_inputs == 2 and len(sources) == 1 and pool.base is not None:
        return (pool.base, *sources)
    return None


def _check_options(
    specs: Sequence[MethodSpec],
    methods: Iterable[str],
    options: Mapping[str, Any],
    negative_weights: bool,
    normalize: bool | None,
    key: str,
) -> None:
    """Refuse options that concern none of the methods."""
    listed = {spec.name: [p.name for p in spec.parameters] for spec in specs}
    every = list(dict.fromkeys(name for names in listed.values() for name in names))
    who = f"method {specs[0].name!r}" if len(specs) == 1 else f"the methods {', '.join(listed)}"
    for name, option in options.items():
        if name in listed and name not in every:
            if option is not None and not isinstance(option, Mapping):
                raise ConfigError(f"{key}.parameters.{name} is {option!r}", "options of the method by parameter")
            for parameter in option or {}:
                if parameter not in listed[name]:
                    raise ConfigError(f"{key}.parameters.{name} has {parameter!r}", nearest(parameter, listed[name]))
        elif name not in every and name in methods:
            raise ConfigError(f"{key}.parameters has {name!r}, a method that {key}.method does not list", who)
        elif name not in every:
            allowed = nearest(name, every if len(specs) == 1 else [*every, *listed])
            do = "search_space=parameter sets none" if key == "search_space" else ""
            raise ConfigError(f"{key}.parameters has {name!r}, unknown to {who}", allowed, do)
    for name, value in (("weight", negative_weights or None), ("normalize", normalize)):
        if value is not None and name not in every:
            given = "negative_weights is true" if name == "weight" else f"normalize is {str(value).lower()}"
            verb = "has" if len(specs) == 1 else "have"
            raise ConfigError(f"{key}.{given}", f"{who} {verb} no {name}", f"remove {key}.{given.split()[0]}")
