"""A pool's description and declarations of methods, for tests of search spaces without models."""

from __future__ import annotations

from dataclasses import replace

from evomerge.recipes.method_spec import MethodSpec, ParameterSpec, method_table
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import LAYER_COMPONENTS, ModelRef, SliceId

_WEIGHT = ParameterSpec("weight", 1.0, 0.0, 1.0, per_input=True, searched=True)
_DENSITY = ParameterSpec("density", 1.0, 0.1, 1.0, per_input=True, minimum=0.0, maximum=1.0, searched=True)
_LAMBDA = ParameterSpec("lambda", 1.0, 0.0, 2.0)


def _normalize(default: bool) -> ParameterSpec:
    return ParameterSpec("normalize", default, kind="boolean")


METHODS = method_table(
    [
        MethodSpec("linear", (_WEIGHT, _normalize(True)), idempotent="normalize"),
        MethodSpec(
            "slerp", (ParameterSpec("t", 0.5, minimum=0.0, maximum=1.0, searched=True),), "none", 2, 2, "", True
        ),
        MethodSpec("task_arithmetic", (_WEIGHT, _LAMBDA, _normalize(False)), "required", idempotent=True),
        MethodSpec("ties", (_WEIGHT, _DENSITY, _LAMBDA, _normalize(True)), "required", idempotent=True),
        MethodSpec("nearswap", (ParameterSpec("t", 0.001, 0.0, 0.01, minimum=0.0, searched=True),), "required", 1, 1),
        MethodSpec(
            "karcher",
            (_WEIGHT, ParameterSpec("iterations", 10, 1, 20, kind="integer", minimum=1)),
            "optional",
            min_inputs=2,
        ),
        MethodSpec(
            "della",
            (
                replace(_WEIGHT, default=0.5),
                _DENSITY,
                ParameterSpec("rank", 4, 1, 8, kind="integer", minimum=1, maximum=64, searched=True),
                ParameterSpec("fusion", "sum", kind="categorical", choices=("sum", "mean", "vote")),
                ParameterSpec("rescale", True, kind="boolean", searched=True),
            ),
            "required",
        ),
        MethodSpec("dare_ties", (_WEIGHT, _DENSITY, _LAMBDA, _normalize(False)), "required", idempotent=True),
    ]
)


def pool(layers: int = 6, head: bool = False) -> PoolInfo:
    """A base and two specialists, embeddings tied unless `head`."""
    inner = [SliceId(component, layer) for layer in range(layers) for component in LAYER_COMPONENTS]
    outer = [SliceId("final_norm"), *([SliceId("head")] if head else [])]
    refs = {name: ModelRef(f"pool/{name}", None, f"sha256:{name}") for name in ("base", "math", "lang")}
    return PoolInfo(
        tuple(refs.items()), ("math", "lang"), "base", (SliceId("embed"), *inner, *outer), layers, "bfloat16"
    )


def with_sources(info: PoolInfo, *sources: str, base: str | None = "base") -> PoolInfo:
    """The same pool with other roles."""
    refs = tuple((name, ModelRef(f"pool/{name}")) for name in (*([base] if base else []), *sources))
    return replace(info, refs=refs, sources=sources, base=base)
