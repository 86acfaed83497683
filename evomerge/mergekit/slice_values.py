"""The parameter values with which mergekit does to a slice what its recipe says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.errors import RecipeError
from evomerge.mergekit.forms import Form
from evomerge.recipes.method_spec import ByTensor, MethodSpec, Value, scalars
from evomerge.recipes.slices import SliceId, SliceRecipe

Given = dict[tuple[str | None, str], Value | None]
"""(source location, or ``None`` for a parameter of the slice; parameter) -> value; ``None``: any will do."""


def refuse(where: SliceId, reason: str) -> RecipeError:
    """The error for a slice that mergekit has no way to write."""
    return RecipeError(
        f"mergekit cannot express slice {where}: {reason}",
        "",
        "keep the evomerge recipe: `evomerge merge` reads it",
    )


def copied_model(entry: SliceRecipe) -> str | None:
    """The model that a slice copies unchanged, or ``None`` when it merges."""
    if len(entry.inputs) != 1 or entry.method not in ("linear", "passthrough"):
        return None
    own = dict(entry.inputs[0].parameters)
    if entry.method == "passthrough":
        return entry.inputs[0].model if own.get("scale", 1.0) == 1 else None
    weight, normalize = own.get("weight", 1.0), dict(entry.parameters).get("normalize", True)
    if isinstance(weight, ByTensor) or isinstance(normalize, ByTensor):
        return None
    return entry.inputs[0].model if weight == 1 or (normalize and weight != 0) else None


@dataclass(frozen=True)
class SliceValues:
    """Finds the values of slices in one block.

    Attributes:
        spec, form: the method of the file.
        places: how models are written.
        sources: the locations that the block merges.
        base: the block's base, one of them, or ``None``.
    """

    spec: MethodSpec
    form: Form
    places: Mapping[str, str]
    sources: tuple[str, ...]
    base: str | None

    def of(self, entry: SliceRecipe) -> Given:
        """The values of one slice.

        Raises:
            RecipeError: mergekit cannot do what the slice says.
        """
        copied = copied_model(entry)
        if copied is not None:
            return self._copy(self.places[copied])
        given: dict[str, Value] = {**self.spec.defaults(per_input=False), **dict(entry.parameters)}
        inputs: dict[str, dict[str, Value]] = {
            self.places[source.model]: {**self.spec.defaults(per_input=True), **dict(source.parameters)}
            for source in entry.inputs
        }
        self._check_readings(entry, given, inputs)
        values: Given = {(None, name): self._typed(name, given[name]) for name in self.form.shared}
        if self.form.base == "first":
            # From the base to the other model, whatever their order in the recipe.
            forward = self.places[entry.inputs[0].model] == self.base
            values[None, "t"] = given["t"] if forward else _backward(given["t"])
            return values
        for place in self.sources:
            if place == self.base:
                self._check_base_input(entry, inputs.get(place), given)
                continue
            for name in self.form.per_input:
                # A source that this slice does not use gets weight zero, and then any density.
                unused = 0.0 if name == "weight" else None
                values[place, name] = self._typed(name, inputs[place][name]) if place in inputs else unused
        return values

    def _copy(self, place: str) -> Given:
        """Values with which the method returns `place` unchanged."""
        if self.form.base == "first":
            return {(None, "t"): 0.0 if place == self.base else 1.0}
        values: Given = dict.fromkeys((None, name) for name in self.form.shared)
        if self.form.base == "required" and place != self.base:
            values[None, "lambda"] = 1.0
        for source in self.sources:
            if source != self.base:
                for name in self.form.per_input:
                    kept = 1.0 if source == place else 0.0 if name == "weight" else None
                    # At a density of one Breadcrumbs drops no outliers and DELLA varies nothing.
                    values[source, name] = None if name in ("gamma", "epsilon") else kept
        return values

    def _typed(self, name: str, value: Value) -> Value:
        """A value as mergekit wants to read it: whole numbers, numbers and truth values apart."""
        declared = self.spec.parameter(name)
        assert declared is not None, f"{self.spec.name} declares {name}"
        if isinstance(value, ByTensor):
            return ByTensor(tuple((part, _cast(scalar, declared.kind)) for part, scalar in value.entries))
        return _cast(value, declared.kind)

    def _check_readings(
        self, entry: SliceRecipe, given: Mapping[str, Value], inputs: Mapping[str, Mapping[str, Value]]
    ) -> None:
        """Refuse parameters that mergekit does not have, unless they make no difference or say what it does."""
        for name, theirs in self.form.readings.items():
            declared = self.spec.parameter(name)
            if declared is not None and declared.per_input:
                each = [own[name] for own in inputs.values()]
                agrees = len({repr(value) for value in each}) == 1 and not isinstance(each[0], ByTensor)
                reason = f"mergekit's {self.spec.name} has no {name}: every model counts the same"
            else:
                value = given[name]
                agrees = all(scalar == theirs for scalar in scalars(value)) or self._indifferent(name, given, inputs)
                reason = f"its {name} is {_shown(value)}, mergekit's is {theirs}"
            if not agrees:
                raise refuse(entry.slice, reason)

        if "epsilon" in self.form.per_input:
            for own in inputs.values():
                densities = [d for s in scalars(own["density"]) if 0 < (d := float(s)) < 1]
                spread = max(float(s) for s in scalars(own["epsilon"]))
                if any(d + spread >= 1 or d - spread <= 0 for d in densities):
                    raise refuse(entry.slice, "its density plus or minus epsilon is not within 0 and 1")

    def _indifferent(self, name: str, given: Mapping[str, Value], inputs: Mapping[str, Mapping[str, Value]]) -> bool:
        """Whether nothing depends on a parameter."""
        if name == "rescale_by":
            whole = all(s == 1 for own in inputs.values() for s in scalars(own["density"]))
            return whole or not any(scalars(given["rescale"]))
        return self.spec.name in ("multislerp", "model_stock") and len(inputs) == 1

    def _check_base_input(
        self, entry: SliceRecipe, own: Mapping[str, Value] | None, shared: Mapping[str, Value]
    ) -> None:
        """mergekit drops the base from the inputs: refuse where it would have counted."""
        if own is None:
            return
        if not self.form.weighted:
            raise refuse(entry.slice, "its base is also an input")
        if not self.form.elects and any(scalars(shared["normalize"])) and own.get("weight") != 0:
            raise refuse(entry.slice, "its base is also an input, whose weight enters the normalisation")


def _cast(value: float | int | str | bool, kind: str) -> float | int | bool:
    assert not isinstance(value, str), "mergekit has no parameters that are words"
    if isinstance(value, bool) or kind == "boolean":
        return bool(value)
    return int(value) if kind == "integer" else float(value)


def _backward(t: Value) -> Value:
    if isinstance(t, ByTensor):
        return ByTensor(tuple((part, 1 - float(scalar)) for part, scalar in t.entries))
    return 1 - float(t)


def _shown(value: Value) -> str:
    return " or ".join(dict.fromkeys(str(scalar) for scalar in scalars(value)))
