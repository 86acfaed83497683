"""Parameters as mergekit files give them: a value, a value per layer, or either by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import RecipeError, nearest
from evomerge.mergekit.forms import PARAMETERS
from evomerge.recipes.method_spec import ParameterSpec, Scalar
from evomerge.utils import safe_yaml

_TRUE, _FALSE = ("true", "yes", "on", "y", "t", "1"), ("false", "no", "off", "n", "f", "0")


@dataclass(frozen=True)
class Setting:
    """What a file says about one parameter.

    Attributes:
        entries: pairs of a filter (``None``: every tensor) and a value, or the list of a gradient.
        where: the key, for messages.
    """

    entries: tuple[tuple[str | None, Scalar | tuple[Scalar, ...]], ...]
    where: str

    def at(self, tensor: str, t: float, spec: ParameterSpec) -> Scalar | None:
        """The value for a tensor; ``None`` where nothing here applies to it, so that a wider scope decides.

        Args:
            tensor: its name.
            t: how far through its slice the layer lies: 0 is the first, 1 the last.
            spec: the parameter's declaration.

        Raises:
            RecipeError: the value is not of the parameter's kind.
        """
        for part, value in self.entries:
            if part is None or part in tensor:
                if isinstance(value, tuple):
                    return self._gradient(value, t, spec) if value else None
                return self._typed(value, spec)
        return None

    def _gradient(self, given: Sequence[Scalar], t: float, spec: ParameterSpec) -> Scalar:
        """The list read at `t`: numbers are interpolated, other values are steps."""
        values = [self._typed(value, spec) for value in given]
        place = t * (len(values) - 1)
        low = int(place)
        if spec.kind not in ("continuous", "integer"):
            return values[low]
        share = place - low
        # mergekit's order of operations, so that the same file gives the same bits.
        mixed = (1 - share) * float(values[low]) + share * float(values[min(len(values) - 1, low + 1)])
        return self._typed(mixed, spec)

    def _typed(self, value: Scalar, spec: ParameterSpec) -> Scalar:
        """A value as the parameter wants it: mergekit takes truth values for numbers and text that reads as either."""
        word = value.strip().lower() if isinstance(value, str) else None
        if spec.kind == "boolean":
            if isinstance(value, bool) or value in (0, 1):
                return bool(value)
            if word in _TRUE or word in _FALSE:
                return word in _TRUE
            raise RecipeError(f"{self.where} is {value!r}", "true or false")
        if spec.kind in ("categorical", "numbers"):  # mergekit has none; the recipe checks them
            return value if isinstance(value, str) else str(value)
        try:
            number = float(value)
        except ValueError:
            raise RecipeError(f"{self.where} is {value!r}", "a number") from None
        if spec.kind == "integer":
            if not number.is_integer():
                raise RecipeError(f"{self.where} is {value!r}", "a whole number")
            return int(number)
        return number


Settings = Mapping[str, Setting]


def read_settings(content: Any, where: str) -> dict[str, Setting]:
    """The `parameters` of a model, slice, module or file.

    Raises:
        RecipeError: a name that no method has, or a value that is none.
    """
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RecipeError(f"{where} is {safe_yaml.shown(content)}", "a mapping of parameter names to values")
    found = {}
    for name, value in content.items():
        if name not in PARAMETERS:
            _check_own(str(name), where)
        found[name] = _setting(value, f"{where}.{name}")
    return found


def _check_own(name: str, where: str) -> None:
    """Refuse what is no parameter of mergekit's, and of none of evomerge's methods."""
    from evomerge.merge.methods import specs  # imports torch, which most files need not wait for

    known = PARAMETERS | {parameter.name for spec in specs().values() for parameter in spec.parameters}
    if name not in known:
        raise RecipeError(f"unknown parameter {where}.{name}", nearest(name, known))


def _setting(content: Any, where: str) -> Setting:
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, list) and any(isinstance(item, dict) for item in content):
        return Setting(tuple(_conditional(item, f"{where}[{i}]") for i, item in enumerate(content)), where)
    return Setting(((None, _value(content, where)),), where)


def _conditional(content: Any, where: str) -> tuple[str | None, Scalar | tuple[Scalar, ...]]:
    fields = safe_yaml.mapping(content, where, ("value",), ("filter",))
    part = safe_yaml.optional(fields, "filter", where, safe_yaml.text)
    return None if part == "*" else part, _value(fields["value"], f"{where}.value")


def _value(content: Any, where: str) -> Scalar | tuple[Scalar, ...]:
    if isinstance(content, list):
        return tuple(_scalar(item, f"{where}[{i}]") for i, item in enumerate(content))
    return _scalar(content, where)


def _scalar(content: Any, where: str) -> Scalar:
    return content if isinstance(content, (bool, str)) else safe_yaml.number(content, where)
