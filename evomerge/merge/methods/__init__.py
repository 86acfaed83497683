"""Merge methods: pure functions on tensors, each registered with its declaration."""

from evomerge.merge.methods import dare, linear, slerp, ties
from evomerge.merge.methods.registry import (
    BASE,
    METHODS,
    Context,
    Method,
    call_values,
    merge_method,
    mix_method,
    specs,
)

__all__ = [
    "BASE",
    "METHODS",
    "Context",
    "Method",
    "call_values",
    "dare",
    "linear",
    "merge_method",
    "mix_method",
    "slerp",
    "specs",
    "ties",
]
