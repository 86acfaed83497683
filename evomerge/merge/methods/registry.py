"""The table of merge methods, and the decorator that adds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch

from evomerge.errors import ConfigError
from evomerge.merge.masks import drop_
from evomerge.method import MethodSpec, ParameterSpec, Scalar

Function = Callable[..., torch.Tensor]
Statistics = Callable[..., dict[str, Any]]
Values = Mapping[str, Any]
BASE = -1
"""What `Method.unchanged` returns when the result is the base itself."""


@dataclass(frozen=True)
class Context:
    """Where in its tensor a block lies, and the keys of its random masks.

    Attributes:
        offset: index of the block's first element in the whole tensor.
        keys: one mask key per input (`masks.mask_key`).
    """

    offset: int = 0
    keys: tuple[int, ...] = ()

    def drop_(self, index: int, density: float, task: torch.Tensor) -> None:
        """Set elements of the block `task` of input `index` to zero in place; each stays with probability `density`."""
        drop_(task, self.keys[index], density, self.offset)


@dataclass(frozen=True)
class Method:
    """A merge method: its declaration and the pure functions that carry it out.

    Attributes:
        spec: the declaration.
        function: ``function(inputs, base, *, context, **values) -> Tensor``. `inputs` and `base` are
            float32 and of one shape, not to be written to; `values` are the method's parameters by name,
            a sequence with one value per input for per-input ones (``lambda`` arrives as ``lambda_``), and what
            `statistics` returned.
        elementwise: whether the function may be given flat blocks of a tensor instead of the whole.
        statistics: ``statistics(inputs, base, **values) -> dict``, called once with the whole flat
            tensors, for elementwise functions that need a norm or a threshold of the whole.
        check: ``check(values)``, raising `InfeasibleError` for values that no tensor can be merged with.
        unchanged: ``unchanged(values) -> int | None``: which input (or `BASE`) the result equals exactly.
        random: whether the function uses `Context.drop_`.
    """

    spec: MethodSpec
    function: Function
    elementwise: bool = False
    statistics: Statistics | None = None
    check: Callable[[Values], None] | None = None
    unchanged: Callable[[Values], int | None] | None = None
    random: bool = False


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
    base: Literal["none", "required"] = "none",
    min_inputs: int = 1,
    max_inputs: int | None = None,
    elementwise: bool = False,
    statistics: Statistics | None = None,
    check: Callable[[Values], None] | None = None,
    unchanged: Callable[[Values], int | None] | None = None,
    random: bool = False,
) -> Callable[[Function], Function]:
    """Register the decorated function as a merge method; see `Method` for what it is called with.

    Raises:
        ConfigError: there is a method of that name already.
    """
    spec = MethodSpec(name, parameters, base, min_inputs, max_inputs, summary)

    def register(function: Function) -> Function:
        if name in _METHODS:
            raise ConfigError(f"merge method {name!r} is registered twice", "", "give yours another name")
        _METHODS[name] = Method(spec, function, elementwise, statistics, check, unchanged, random)
        return function

    return register


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
