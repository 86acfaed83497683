"""How long what methods make of the sources is said to take, against counted elements and a clock that is given."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.test_estimate import found
from cli.test_gpu_plan import write_headers
from merge.gpu_recipes import NAMES, small_pool

from evomerge.cli.estimate import derived_text, rows
from evomerge.merge.execution.scope_values import ScopeValues
from evomerge.merge.methods import METHODS
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.method_spec import Scalar
from evomerge.recipes.slices import Input, SliceRecipe, parameters
from evomerge.session import timing
from evomerge.session.derived_time import DerivedTime, derived_time, measured

CPU = torch.device("cpu")


def plan_of(pool: Pool, method: str, names: str, **shared: Scalar) -> Plan:
    inputs = tuple(Input(name) for name in names)
    values = parameters({name.rstrip("_"): value for name, value in shared.items()})
    return make_plan(
        pool.info.recipe(SliceRecipe(s, method, inputs, values, Input("base")) for s in pool.info.slices), pool
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A nanosecond a product, or an element where these count; the shapes that were timed."""
    timed: list[tuple[int, ...]] = []

    def seconds(compute: functools.partial[Any], device: torch.device) -> float:
        derived, *_, base = compute.args
        timed.append(tuple(base.shape))
        return 1e-9 * base.shape[0] ** (3 if derived.cubic else 2)

    monkeypatch.setattr(timing, "_seconds", seconds)
    return timed


def test_measuring_stops_where_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int] = []

    def seconds(compute: functools.partial[Any], device: torch.device) -> float:
        side = compute.args[-1].shape[0]
        sides.append(side)
        return 1e-7 * side**3

    monkeypatch.setattr(timing, "_seconds", seconds)
    made = METHODS["iso_c"].derived
    assert made is not None
    assert measured(made, {}, 2, CPU) == pytest.approx(1e-7)
    assert set(sides) == {48, 96, 192}  # which takes 0.7 s
    assert sides[:3] == [48] * 3  # 11 ms; more of them while that is little


@pytest.mark.usefixtures("clock")
def test_every_tensor_is_counted(llamas: Callable[..., dict[str, Path]]) -> None:
    pool = small_pool(llamas(layers=1))
    shapes = [torch.Size(pool.layout.shapes[name]) for names in pool.layout.tensors.values() for name in names]
    products = sum(shape.numel() * min(shape) for shape in shapes if len(shape) == 2)
    expected = 1e-9 * products
    plans = [plan_of(pool, "iso_cts", NAMES, lambda_=factor) for factor in (0.5, 1.0)]
    own = derived_time(plans, pool, None, CPU, 2)
    assert own is not None
    assert (own.methods, own.tensors, own.again, own.threads) == (("iso_cts",), len(shapes), 0, 2)
    assert own.seconds == pytest.approx(expected)
    assert derived_time([plan_of(pool, "task_arithmetic", NAMES)], pool, None, CPU, 2) is None
    own = derived_time([plan_of(pool, "pcb", NAMES)], pool, None, CPU, 2)
    assert own is not None
    assert own.seconds == pytest.approx(1e-9 * sum(shape.numel() for shape in shapes))
    # A parameter of what is made differs: again for every candidate.
    plans = [plan_of(pool, "iso_cts", NAMES, common=common) for common in (0.5, 0.6, 0.7)]
    own = derived_time(plans, pool, None, CPU, 1)
    assert own is not None
    assert (own.tensors, own.seconds) == (0, 0)
    assert own.again == pytest.approx(expected)
    # There is room for a quarter.
    elements = sum(shape.numel() for shape in shapes)
    own = derived_time([plan_of(pool, "iso_c", NAMES)], pool, elements, CPU, 1)
    assert own is not None
    assert own.seconds == pytest.approx(expected)
    assert own.again == pytest.approx(0.75 * expected)


def test_what_passes_over_a_scope_is_measured(
    llamas: Callable[..., dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, passes = small_pool(llamas(layers=1)), list[int]()
    keys = ScopeValues._keys
    monkeypatch.setattr(ScopeValues, "_keys", lambda self, score: passes.append(1) or keys(self, score))
    for scope in ("tensor", "layer", "model"):
        passes.clear()
        own = derived_time([plan_of(pool, "pcb", NAMES, scope=scope)], pool, None, CPU, 1)
        assert own is not None
        assert own.seconds > 0
        # Magnitudes and scores, each by bins and then within some.
        assert len(passes) % 4 == 0
        assert bool(passes) == (scope != "tensor")


def test_three_models_of_7b_from_their_headers(tmp_path: Path, clock: list[tuple[int, ...]]) -> None:
    folders = {name: str(write_headers(tmp_path / name)) for name in ("base", "math", "code")}
    pool = open_pool(folders, base="base", fingerprints=False)
    own = derived_time([plan_of(pool, "iso_c", ("math", "code"))], pool, None, CPU, 16)  # type: ignore[arg-type]
    assert own is not None
    hidden, inner, heads = 4096, 14336, 1024
    products = 32 * (2 * hidden**3 + 2 * heads**2 * hidden + 3 * inner * hidden**2) + 2 * 32000 * hidden**2
    assert own.tensors == 32 * 9 + 3
    assert own.seconds == pytest.approx(1e-9 * products)
    assert max(clock) <= (384, 384)  # and no tensor of the models was made anything of
    assert derived_text(own).startswith("by iso_c: about 30 min 2 s once, for 291 tensors, on 16 threads")


def test_what_is_said() -> None:
    assert derived_text(DerivedTime(("iso_c",), 226, 7200.0, 0.0, 1)) == (
        "by iso_c: about 2 h once, for 226 tensors (small matrices were measured)"
    )
    assert derived_text(DerivedTime(("pcb", "tsv_m"), 10, 80.0, 20.0, 4)) == (
        "by pcb, tsv_m: about 20 s once, for 10 tensors; about 5.0 s again for every candidate, on 4 threads "
        "(small matrices were measured)"
    )


@pytest.mark.usefixtures("clock")
def test_validate_says_it(quick_search: list[str]) -> None:
    words = ["search_space=parameter", "evaluator.device=cpu", "evaluator.threads=3"]
    own = found(quick_search, *words, "search_space.method=iso_c")
    assert own.derived is not None
    assert own.derived.threads == 3
    assert dict(rows(own))["made of sources"] == derived_text(own.derived)
    assert found(quick_search, *words, "search_space.method=ties").derived is None
