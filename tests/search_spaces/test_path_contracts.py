"""Every path space does what every search space must."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import pytest
from contracts.search_space_contract import SearchSpaceContract, SpaceCase
from contracts.space_samples import METHODS, pool

from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.recipes.method_spec import MethodSpec, method_table
from evomerge.recipes.pool_info import PoolInfo
from search_spaces.data_flow import DataFlowSpace
from search_spaces.hybrid import JointSpace
from search_spaces.parameter import ParameterSpace
from search_spaces.permutation import PermutationSpace

WITH_PASSTHROUGH = {**METHODS, **method_table([MethodSpec("passthrough", max_inputs=1)])}


def uneven() -> PoolInfo:
    """The second source is two layers shorter."""
    return replace(pool(4, head=True), depths=(("lang", 2),))


def sized() -> PoolInfo:
    """Layers of 12, 1000 outside."""
    info = pool(4, head=True)
    sizes = {"embed": 500, "head": 499, "final_norm": 1, "attn": 4, "mlp": 7, "norm": 1}
    return replace(info, sizes=tuple(sizes[s.component] for s in info.slices))


def hybrid(info: PoolInfo, methods: Mapping[str, MethodSpec], **config: Any) -> DataFlowSpace:
    """Data flow after the parameter space: its winner is the input model."""
    first = ParameterSpace(info, methods, method="linear")
    return DataFlowSpace(info, methods, winner=first.decode(first.spec.initial), **config)


def two_slots(spec: GenomeSpec) -> Iterator[Genome]:
    """Paths of at most two slots between the ends: every hop is in one of them."""
    takes = [i for i, gene in enumerate(spec) if gene.kind == "boolean" or gene.low == -1.0]
    for pair in ((), *combinations(takes, 1), *combinations(takes, 2)):
        values = list(spec.initial.values)
        for i in takes:
            values[i] = (i in pair) if spec.genes[i].kind == "boolean" else 1.0 if i in pair else -1.0
        yield spec.genome(values)


Case = tuple[Callable[..., Any], PoolInfo, dict[str, Any], int]
CASES: dict[str, Case] = {
    "paper": (DataFlowSpace, pool(3), {"repeats": 2, "scales": "hop", "relaxed": True}, 40),
    "slots": (DataFlowSpace, pool(4, head=True), {"repeats": 2, "negative_scales": True, "head": "lang"}, 40),
    "no scales": (DataFlowSpace, uneven(), {"scales": "none", "input_model": "lang", "models": ["base", "lang"]}, 40),
    "nothing fixed": (DataFlowSpace, uneven(), {"fixed": 0, "max_layers": 5, "min_layers": 2}, 20),
    "limits": (DataFlowSpace, sized(), {"repeats": 2, "max_uses": 1, "max_parameters": 1000 + 12 * 9}, 5),
    "blocks": (DataFlowSpace, pool(5), {"block": 2, "scales": "hop"}, 40),
    "hybrid": (hybrid, pool(4), {"scale_range": {"low": -2.0, "resolution": 0.25}}, 40),
    "permutation": (PermutationSpace, pool(4), {}, 40),
    "permutation in groups": (PermutationSpace, pool(5), {"group": 2, "repeats": 2, "keep": False, "fixed": 0}, 40),
    "joint": (JointSpace, pool(4, head=True), {"method": "ties", "repeats": 2}, 30),
    "joint shared": (JointSpace, pool(3), {"repeats": 2, "shared": True, "scales": "hop", "method": "slerp"}, 40),
    "joint of anchors": (JointSpace, pool(5), {"interpolation": "linear", "scales": "none"}, 40),
}


class TestPathSpaces(SearchSpaceContract):
    @pytest.fixture(params=CASES, ids=str)
    def case(self, request: pytest.FixtureRequest) -> SpaceCase:
        space, info, config, feasible = CASES[request.param]
        build = partial(space, info, WITH_PASSTHROUGH, **config)
        more = two_slots if config.get("scales") == "hop" else SpaceCase.witnesses
        return SpaceCase(build, info, WITH_PASSTHROUGH, True, feasible, more)
