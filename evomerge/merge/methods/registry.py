"""The table of merge methods, and the decorator that adds one."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch

from evomerge.errors import ConfigError
from evomerge.merge.methods.derived import Derived, Find, Join
from evomerge.merge.mixes.masks import drop_, drop_each_
from evomerge.merge.mixes.mix import Mix, Scopes, Statistics
from evomerge.models.statistics import Statistic
from evomerge.recipes.method_spec import MethodSpec, ParameterSpec, Scalar

Function = Callable[..., torch.Tensor]
MixFunction = Callable[["Values", Statistics], Mix | None]
Values = Mapping[str, Any]
BASE = -1
"""What `Method.unchanged` returns when the result is the base itself."""


@dataclass(frozen=True)
class Context:
    """Where in its tensor a block lies, and the keys of its random masks.

    Attributes:
        offset: index of the block's first element in the whole tensor.
        keys: one mask key per input (`masks.mask_key`).
        scopes: ranks of magnitudes in the layer or the model that the tensor is of; ``None`` where that is not known,
            and the tensor counts as all of it.
        statistics: of methods that read statistics of data, one per input: of the block where the method is
            elementwise, else of the tensor; ``None`` for a tensor without. Of several kinds all of the first, then
            all of the second. Empty for other methods.
    """

    offset: int = 0
    keys: tuple[int, ...] = ()
    scopes: Scopes | None = None
    statistics: tuple[Statistic | None, ...] = ()

    def statistic(self, index: int) -> Statistic | None:
        """That of one input; of the second kind, after as many as there are inputs."""
        return self.statistics[index] if self.statistics else None

    def drop_(self, index: int, density: float, task: torch.Tensor) -> None:
        """Set elements of the block `task` of input `index` to zero in place; each stays with probability `density`."""
        drop_(task, self.keys[index], density, self.offset)

    def drop_each_(self, index: int, bounds: torch.Tensor, task: torch.Tensor, start: int = 0) -> None:
        """Set elements of the block `task` of input `index` to zero in place, each with a probability of its own.

        Args:
            index: of the input.
            bounds: probabilities as `masks.kept_up_to` gives them, int32 and of the shape of `task`.
            task: flat, written to.
            start: index of the first element of `task` in the block.
        """
        drop_each_(task, self.keys[index], bounds, self.offset + start)


@dataclass(frozen=True)
class Method:
    """A merge method: its declaration and the pure functions that carry it out: `mix`, `function`, both, or `derived`.

    Where there is a `function` beside `derived`, both give the same bits: it is called where nothing is kept.

    Attributes:
        spec: the declaration.
        mix: ``mix(values, statistics) -> Mix | None``, asked first: the `Mix` that the method is on a tensor, run
            at the speed of memory; ``None`` where only `function` will do. `values` are the parameters by name,
            a tuple with one value per input for per-input ones (``lambda`` arrives as ``lambda_``).
        function: ``function(inputs, base, *, context, **values) -> Tensor`` with `inputs` and `base` float32, on any
            device and of one shape, not to be written to; `base` is ``None`` for methods that have none.
        elementwise: whether `function` may be given flat blocks of a tensor instead of the whole.
        check: ``check(values)``, raising `InfeasibleError` for values that no tensor can be merged with.
        unchanged: ``unchanged(values) -> int | None``: which input (or `BASE`) the result equals exactly.
        random: whether elements are dropped at random, by `Term.density`, `Context.drop_` or `Context.drop_each_`.
        derived: what is made of the sources once, where that and the base are mixed instead of the sources.
    """

    spec: MethodSpec
    mix: MixFunction | None = None
    function: Function | None = None
    elementwise: bool = False
    check: Callable[[Values], None] | None = None
    unchanged: Callable[[Values], int | None] | None = None
    random: bool = False
    derived: Derived | None = None


_METHODS: dict[str, Method] = {}
METHODS: Mapping[str, Method] = MappingProxyType(_METHODS)
"""Every merge method by name."""


def specs() -> dict[str, MethodSpec]:
    """The declarations of every method, by name."""
    return {name: method.spec for name, method in METHODS.items()}


def merge_method(
    name: str,
    *parameters: ParameterSpec,
    summary: str,
    base: Literal["none", "optional", "required"] = "none",
    min_inputs: int = 1,
    max_inputs: int | None = None,
    mix: MixFunction | None = None,
    elementwise: bool = False,
    check: Callable[[Values], None] | None = None,
    unchanged: Callable[[Values], int | None] | None = None,
    random: bool = False,
    idempotent: bool | str = False,
    family: str = "own",
    derived: Derived | None = None,
    statistics: str | tuple[str, ...] | None = None,
) -> Callable[[Function], Function]:
    """Register the decorated function as a merge method; see `Method` and `MethodSpec` for what it is called with.

    Raises:
        ConfigError: there is a method of that name already.
    """
    spec = MethodSpec(name, parameters, base, min_inputs, max_inputs, summary, idempotent, family, statistics)

    def register(function: Function) -> Function:
        _add(Method(spec, mix, function, elementwise, check, unchanged, random, derived))
        return function

    return register


def mix_method(
    name: str,
    *parameters: ParameterSpec,
    summary: str,
    base: Literal["none", "optional", "required"] = "none",
    min_inputs: int = 1,
    max_inputs: int | None = None,
    check: Callable[[Values], None] | None = None,
    unchanged: Callable[[Values], int | None] | None = None,
    random: bool = False,
    idempotent: bool | str = False,
    family: str = "own",
) -> Callable[[MixFunction], MixFunction]:
    """Register the decorated function as the `mix` of a method that needs no other function.

    Raises:
        ConfigError: there is a method of that name already.
    """
    spec = MethodSpec(name, parameters, base, min_inputs, max_inputs, summary, idempotent, family)

    def register(mix: MixFunction) -> MixFunction:
        _add(Method(spec, mix, None, False, check, unchanged, random))
        return mix

    return register


def derived_method(
    name: str,
    *parameters: ParameterSpec,
    summary: str,
    factors: Callable[[Values], tuple[float, ...]],
    given: Callable[[Values], Mapping[str, Hashable]] = lambda values: {},
    whole_alone: bool = False,
    copies: int = 8,
    changing: bool = False,
    cubic: bool = True,
    min_inputs: int = 1,
    max_inputs: int | None = None,
    check: Callable[[Values], None] | None = None,
    unchanged: Callable[[Values], int | None] | None = None,
    family: str = "own",
    join: Join | None = None,
    beside: Callable[[Values, Scopes], Mapping[str, Any]] | None = None,
) -> Callable[[Find], Find]:
    """Register the decorated function as what a method makes of the sources; see `Derived` for what it is called with.

    Such a method needs a base, and gives the base where all models are it.

    Raises:
        ConfigError: there is a method of that name already.
    """
    spec = MethodSpec(name, parameters, "required", min_inputs, max_inputs, summary, True, family)

    def register(find: Find) -> Find:
        made = Derived(find, given, factors, whole_alone, copies, join, changing, cubic, beside)
        _add(Method(spec, check=check, unchanged=unchanged, derived=made))
        return find

    return register


def _add(method: Method) -> None:
    if method.spec.name in _METHODS:
        raise ConfigError(f"merge method {method.spec.name!r} is registered twice", "", "give yours another name")
    _METHODS[method.spec.name] = method


def keyword(parameter: str) -> str:
    """A parameter's name as a function argument: ``lambda`` is a reserved word."""
    return f"{parameter}_" if parameter == "lambda" else parameter


def call_values(spec: MethodSpec, each: Sequence[Mapping[str, Scalar]], shared: Mapping[str, Scalar]) -> dict[str, Any]:
    """The arguments of a method's functions from per-input and shared parameters, defaults filled in."""
    values: dict[str, Any] = {}
    for parameter in spec.parameters:
        name, default = parameter.name, parameter.default
        if parameter.per_input:
            values[keyword(name)] = tuple(given.get(name, default) for given in each)
        else:
            values[keyword(name)] = shared.get(name, default)
    return values


def functions_of(method: Method) -> list[Callable[..., Any]]:
    """The functions that carry a method out, the one that documents it first."""
    made = method.derived.find if method.derived is not None else None
    return [function for function in (method.mix, method.function, made) if function is not None]


@functools.cache
def code_of(method: Method) -> str | None:
    """What tells versions of a method of one's own apart: hashes of its modules; ``None`` for evomerge's methods."""
    codes = [_code_of_module(function) for function in functions_of(method)]
    return "+".join(dict.fromkeys(code for code in codes if code)) or None


def _code_of_module(function: Callable[..., Any]) -> str | None:
    module = inspect.getmodule(function)
    if module is None or module.__name__.startswith("evomerge."):
        return None
    try:
        return hashlib.sha256(inspect.getsource(module).encode()).hexdigest()[:16]
    except (OSError, TypeError):  # typed into an interpreter
        return "unknown"
