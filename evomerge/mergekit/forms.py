"""What mergekit calls the methods and parameters of both programs, and what it asks of their inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from evomerge.recipes.method_spec import MethodSpec

Number = float | int | bool

BaseUse = Literal["ignored", "first", "optional", "required"]
"""What mergekit's `base_model` is to a method: nothing; the first of two inputs; the origin of differences if it is
among the sources, or always."""


@dataclass(frozen=True)
class Form:
    """One method in mergekit's terms.

    Attributes:
        base: what the base model is to it.
        per_input, shared: parameters under the same name and meaning in both programs.
        constants: settings of mergekit's that evomerge has no parameter for, with what evomerge does.
        readings: parameters that evomerge has and mergekit has not, with the value that means what mergekit does.
        required: parameters that mergekit has no default for; all other defaults are evomerge's.
        weighted: whether a source of weight zero is as good as none, so that slices of a layer may differ in sources.
        elects: whether entries that are zero are left out of the normalisation.
    """

    base: BaseUse
    per_input: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    constants: Mapping[str, Number] = field(default_factory=dict)
    readings: Mapping[str, str | float] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    weighted: bool = False
    elects: bool = False


def _tasks(
    *more: str, elects: bool = False, rescale: bool = True, readings: Mapping[str, str | float] | None = None
) -> Form:
    """A method of weighted task vectors."""
    return Form(
        "required",
        ("weight", *more),
        ("lambda", "normalize", *(["rescale"] if rescale else [])),
        {"int8_mask": False},
        readings or {},
        ("weight",),
        weighted=True,
        elects=elects,
    )


_RESCALED: Mapping[str, str | float] = {"rescale_by": "magnitude"}
_TENSOR: Mapping[str, str | float] = {"scope": "tensor"}
_READ: Mapping[str, str | float] = {"reading": "mergekit"}

FORMS: Mapping[str, Form] = {
    "linear": Form("ignored", ("weight",), ("normalize",), required=("weight",), weighted=True),
    "slerp": Form("first", (), ("t",), required=("t",)),
    "nuslerp": Form("optional", ("weight",), ("nuslerp_flatten", "nuslerp_row_wise"), required=("weight",)),
    "multislerp": Form("optional", ("weight",), ("normalize_weights", "eps"), readings=_READ, required=("weight",)),
    "karcher": Form("ignored", (), ("max_iter", "tol"), readings={"weight": 1.0}),
    "passthrough": Form("ignored", ("scale",)),
    "task_arithmetic": _tasks(rescale=False),
    "ties": _tasks("density", elects=True, readings=_TENSOR),
    "dare_linear": _tasks("density", readings=_RESCALED),
    "dare_ties": _tasks("density", elects=True, readings=_RESCALED),
    "breadcrumbs": _tasks("density", "gamma", readings=_TENSOR),
    "breadcrumbs_ties": _tasks("density", "gamma", elects=True, readings=_TENSOR),
    "della": _tasks("density", "epsilon", elects=True, readings=_RESCALED),
    "della_linear": _tasks("density", "epsilon", readings=_RESCALED),
    "model_stock": Form("required", (), ("filter_wise",), readings=_READ),
    "nearswap": Form("required", (), ("t",), required=("t",)),
    "arcee_fusion": Form("required"),
    "ram": Form("required", (), ("epsilon",)),
    "ramplus_tl": Form("required", (), ("r", "alpha", "epsilon")),
    "sce": Form("required", (), ("select_topk",), {"int8_mask": False}, _READ),
}
"""Every method of mergekit's by name."""

PARAMETERS = frozenset(
    name
    for form in FORMS.values()
    for name in (*form.per_input, *form.shared, *form.constants, "rescale", "density", "int8_mask")
)
"""Every parameter that some method of mergekit's has."""
_BASES: Mapping[str, BaseUse] = {"none": "ignored", "optional": "optional", "required": "required"}


def form_of(spec: MethodSpec) -> Form:
    """How a method is written: as mergekit does, and those that it has not likewise, with all of their parameters."""
    if spec.name in FORMS:
        return FORMS[spec.name]
    return Form(_BASES[spec.base], _own(spec, True), _own(spec, False))


def said_besides(spec: MethodSpec, per_input: bool) -> tuple[str, ...]:
    """Parameters of evomerge's that mergekit does not know by name: a file that has them means evomerge's."""
    return tuple(name for name in _own(spec, per_input) if name not in PARAMETERS)


def _own(spec: MethodSpec, per_input: bool) -> tuple[str, ...]:
    return tuple(p.name for p in spec.parameters if p.per_input == per_input)
