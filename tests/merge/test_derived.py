"""What methods make of the sources alone: made once, kept within budgets, the same bits with notes and without."""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from contracts.test_merge_methods import CASES, Case
from merge.gpu_recipes import NAMES, everywhere, small_pool, weights
from pretended_gpu import PretendedGpu
from safetensors.torch import load_file, save_file

from evomerge.errors import PoolError
from evomerge.export.writer import write_model
from evomerge.merge.execution.engine import merge_slice
from evomerge.merge.execution.notes import Notes
from evomerge.merge.execution.parallel import merge_slices
from evomerge.merge.execution.sources import Placement, Sources
from evomerge.merge.execution.streaming import stream_slice
from evomerge.merge.methods import METHODS
from evomerge.merge.methods.derived import Derived
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan
from evomerge.merge.resident.model import Resident
from evomerge.models.pool import Pool
from evomerge.recipes.method_spec import Scalar
from evomerge.recipes.slices import Input, SliceRecipe, parameters

Llamas = Callable[..., dict[str, Path]]
DERIVED = [case for case in CASES if case.method.derived is not None]
CPU = torch.device("cpu")


@pytest.fixture
def pool(llamas: Llamas) -> Pool:
    return small_pool(llamas(layers=1))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that were made tensors for, as they are made."""
    shapes: list[tuple[int, ...]] = []
    make = Derived.make

    def counted(self: Derived, values, inputs, base, shape, *pairs):  # type: ignore[no-untyped-def]
        shapes.append(tuple(shape))
        return make(self, values, inputs, base, shape, *pairs)

    monkeypatch.setattr(Derived, "make", counted)
    return shapes


def plan_of(pool: Pool, method: str, each: list[dict[str, Scalar]] | None = None, **shared: Scalar) -> Plan:
    inputs = tuple(Input(n, None, parameters(own)) for n, own in zip(NAMES, each or [{}] * 3, strict=True))
    values = parameters({name.rstrip("_"): value for name, value in shared.items()})
    return make_plan(
        pool.info.recipe(SliceRecipe(s, method, inputs, values, Input("base")) for s in pool.info.slices), pool
    )


def merged(plan: Plan, sources: Sources) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for entry in plan.slices:
        found |= merge_slice(entry, sources.pool, sources=sources)
    return found


def count(pool: Pool) -> int:
    return sum(len(pool.layout.of_slice(s)) for s in pool.info.slices)


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "wudi", "optmerge", "opcm", "doge", "lora_lego"])
def test_other_factors_make_nothing(pool: Pool, made: list[tuple[int, ...]], method: str) -> None:
    sources = Sources(pool, placement=Placement(0, 0, 10**8))
    first = merged(plan_of(pool, method, lambda_=0.7), sources)
    assert len(made) == count(pool)
    kept = sources.notes.used
    assert kept == 4 * sum(tensor.numel() for tensor in first.values())
    second = merged(plan_of(pool, method, lambda_=1.3), sources)
    assert len(made) == count(pool)
    assert sources.notes.used == kept
    fresh = merged(plan_of(pool, method, lambda_=1.3), Sources(pool, placement=Placement(0, 0, 0)))
    assert all(torch.equal(second[name], tensor) for name, tensor in fresh.items())
    name = "model.layers.0.mlp.up_proj.weight"
    base = pool.read("base", name).float()
    torch.testing.assert_close(second[name] - base, (first[name] - base) * (1.3 / 0.7), rtol=1e-3, atol=1e-5)


def test_weights_are_factors_of_tsv_m(pool: Pool, made: list[tuple[int, ...]]) -> None:
    sources, plain = Sources(pool, placement=Placement(0, 0, 10**8)), Sources(pool, placement=Placement(0, 0, 0))
    for turn in range(3):
        each: list[dict[str, Scalar]] = [{"weight": 0.3 + 0.1 * turn * i} for i in range(1, 4)]
        plan = plan_of(pool, "tsv_m", each, lambda_=1.0 + turn)
        found = merged(plan, sources)
        # Equal weights first: one tensor; then one of every model.
        assert len(made) == count(pool) * (1 if turn == 0 else 2)
        assert sources.notes.used == 4 * sum(t.numel() for t in found.values()) * (1 if turn == 0 else 4)
        before = len(made)
        assert all(torch.equal(found[name], tensor) for name, tensor in merged(plan, plain).items())
        del made[before:]


def test_weights_are_factors_of_pcb(pool: Pool, made: list[tuple[int, ...]]) -> None:
    """Of a fixed density; another one is kept when it is asked for again."""
    sources, plain = Sources(pool, placement=Placement(0, 0, 10**8)), Sources(pool, placement=Placement(0, 0, 0))
    one = 4 * sum(math.prod(pool.layout.shapes[n]) for s in pool.info.slices for n in pool.layout.of_slice(s))
    expected = [count(pool), 0, 0, count(pool), count(pool), 0, count(pool), 0]
    kept = [3, 3, 3, 3, 6, 6, 6, 6]
    for turn, density in enumerate((0.1, 0.1, 0.1, 0.3, 0.3, 0.3, 0.2, 0.1)):
        each: list[dict[str, Scalar]] = [{"weight": 0.8 + 0.05 * turn * i} for i in (1, 2, 4)]
        each[0]["weight"] = 0.9
        plan = plan_of(pool, "pcb", each, density=density, lambda_=1.0 + turn)
        del made[:]
        found = merged(plan, sources)
        assert len(made) == expected[turn]
        assert sources.notes.used == kept[turn] * one
        assert all(torch.equal(found[name], tensor) for name, tensor in merged(plan, plain).items())


def test_masks_of_consensus_last_while_weights_compare_as_they_did(pool: Pool, made: list[tuple[int, ...]]) -> None:
    sources, plain = Sources(pool, placement=Placement(0, 0, 10**8)), Sources(pool, placement=Placement(0, 0, 0))
    one = 4 * sum(math.prod(pool.layout.shapes[n]) for s in pool.info.slices for n in pool.layout.of_slice(s))
    turns: list[tuple[tuple[float, ...], float, int, int]] = [
        ((1, 1, 1), 0.3, count(pool), 1),
        ((0.7, 0.7, 0.7), 0.9, 0, 1),  # a factor on all of them changes no mask
        ((0.7, 0.3, 0.5), 0.9, 0, 1),  # others do: by the function, and nothing is kept
        ((0.7, 0.3, 0.6), 0.9, 0, 1),
        ((0.7, 0.3, 0.5), 0.4, count(pool), 2),  # until they are asked for again
        ((0.7, 0.3, 0.5), 0.2, 0, 2),
        ((0.0, 0.5, 0.5), 0.2, 0, 2),  # two of them, each as it is
    ]
    for each, factor, expected, kept in turns:
        plan = plan_of(pool, "consensus", [{"weight": weight} for weight in each], lambda_=factor)
        before = len(made)
        found = merged(plan, sources)
        if each[0]:
            assert len(made) - before == expected
            assert sources.notes.used == kept * one
        assert made[before:] == made[before:][: count(pool)]
        before = len(made)
        function = merged(plan, plain)
        assert len(made) == before  # no room: element by element
        assert all(torch.equal(found[name], tensor) for name, tensor in function.items())


def test_parameters_of_what_is_made_make_it_anew(pool: Pool, made: list[tuple[int, ...]]) -> None:
    one = 4 * sum(math.prod(pool.layout.shapes[n]) for s in pool.info.slices for n in pool.layout.of_slice(s))
    sources = Sources(pool, placement=Placement(0, 0, one * 3 // 2))  # one and a half of what a candidate needs
    for common in (0.2, 0.5, 0.9):
        merged(plan_of(pool, "iso_cts", common=common), sources)
        assert sources.notes.used <= one * 3 // 2
    assert len(made) == 3 * count(pool)
    # The last is there as a whole: earlier ones made room for it.
    merged(plan_of(pool, "iso_cts", common=0.9, lambda_=0.3), sources)
    assert len(made) == 3 * count(pool)
    # Another method takes what is left, and no room of this one.
    merged(plan_of(pool, "iso_c"), sources)
    more = len(made)
    merged(plan_of(pool, "iso_cts", common=0.9, lambda_=0.4), sources)
    assert len(made) == more


def test_where_there_is_no_room_it_is_made_again(pool: Pool, made: list[tuple[int, ...]]) -> None:
    sources = Sources(pool, placement=Placement(0, 0, 1000))
    for turn in range(2):
        merged(plan_of(pool, "iso_c", lambda_=0.5 + turn), sources)
    assert count(pool) < len(made) < 2 * count(pool)  # norms are small enough
    assert 0 < sources.notes.used <= 1000


def test_notes_of_what_is_derived() -> None:
    notes, calls = Notes(100), list[str]()

    def ask(key: str, variant: str, numbers: int) -> float:
        def find() -> tuple[torch.Tensor, ...]:
            calls.append(key + variant)
            return (torch.full((numbers,), float(len(calls))),)

        return float(notes.derived(key, variant, CPU, find)[0][0])

    assert [ask("a", "x", 10), ask("a", "y", 10), ask("a", "x", 10), ask("a", "y", 10)] == [1, 2, 1, 2]
    assert notes.used == 80
    assert ask("b", "x", 10) == ask("b", "x", 10) - 1 == 3  # others keep their place
    ask("a", "x", 10)
    assert ask("a", "z", 10) == 5  # in the place of y, which nobody asked for since
    assert [ask("a", "x", 10), ask("a", "z", 10), notes.used] == [1, 5, 80]
    assert ask("a", "y", 10) == 6
    assert ask("a", "x", 10) == 7  # which had been asked for before z
    assert notes.used == 80
    notes.clear()
    assert (notes.used, notes.budget) == (0, 50)
    assert ask("a", "x", 10) == ask("a", "x", 10) == 8
    assert notes.used == 40


def test_notes_of_what_changes() -> None:
    notes, calls = Notes(1000), list[str]()

    def ask(variant: str, *, without: bool = False) -> bool:
        def find() -> tuple[torch.Tensor, ...]:
            calls.append(variant)
            return (torch.zeros(10),)

        return notes.derived("a", variant, CPU, find, changing=True, cost=40 if without else None) is not None

    assert notes.would_keep("a", "x", 40, changing=True)
    assert [ask("x"), ask("x"), notes.used] == [True, True, 40]
    assert calls == ["x"]
    assert not notes.would_keep("a", "y", 40, changing=True)
    assert not ask("y", without=True)
    assert notes.would_keep("a", "y", 40, changing=True)
    assert not notes.would_keep("a", "y", 4000, changing=True)
    assert [ask("y", without=True), ask("y", without=True), notes.used, calls] == [True, True, 80, ["x", "y"]]
    for number in range(9):  # more than are remembered
        assert not ask(f"{number}", without=True)
    assert not ask("0", without=True)
    assert ask("0", without=True)
    notes.budget = 120
    assert ask("8", without=True)  # in the place of x
    assert [ask("y"), calls] == [True, ["x", "y", "0", "8"]]
    notes.budget = 30
    assert not ask("9", without=True)
    assert not ask("9", without=True)  # there is no room


def test_on_a_device_or_beside_it(llamas: Llamas) -> None:
    pool = small_pool(llamas(layers=1))
    plans = [plan_of(pool, "iso_c", lambda_=factor) for factor in (0.4, 0.9)]
    expected = merged(plans[1], Sources(pool, placement=Placement(0, 0, 0)))
    need = 4 * sum(tensor.numel() for tensor in expected.values())
    for on_device, on_host in ((10**8, 0), (0, 10**8), (need // 2, 10**8), (0, 0)):
        gpu = PretendedGpu()
        with gpu.present():
            resident = Resident(pool, "cuda", placement=Placement(10**8, 0, on_host, on_device), cache=0)
            for plan in plans:
                gpu.reset()
                resident.apply(plan)
            later, notes = gpu.reset(), resident.sources.notes
            assert notes.device_used <= on_device
            assert notes.device_used + notes.used == (need if on_device or on_host else 0)
            if on_device >= need:
                assert sum(later.waits.values()) == 1  # whether all is finite
            found = weights(resident)
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", DERIVED, ids=str)
def test_the_same_bits_by_any_way(case: Case, pool: Pool, tmp_path: Path) -> None:
    plan = everywhere(case, pool, 3)
    expected = merged(plan, Sources(pool, placement=Placement(0, 0, 0)))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        outs = [{n: torch.empty_like(expected[n]) for n in entry.tensors} for entry in plan.slices]
        merge_slices(plan.slices, Sources(pool, placement=Placement(0, 0, 10**8)), outs)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    for out in outs:
        assert all(torch.equal(tensor, expected[name]) for name, tensor in out.items())
    for entry in plan.slices[:4]:
        pieces: dict[str, list[torch.Tensor]] = {}
        for name, _, piece in stream_slice(entry, pool, size=100):
            pieces.setdefault(name, []).append(piece.clone())
        for name, parts in pieces.items():
            assert torch.equal(torch.cat(parts), expected[name].reshape(-1))


def test_their_recipes_are_written_as_models(pool: Pool, tmp_path: Path) -> None:
    for case in DERIVED:
        inputs = tuple(Input(name) for name in NAMES)
        recipe = pool.info.recipe(
            SliceRecipe(s, case.method.spec.name, inputs, (), Input("base")) for s in pool.info.slices
        )
        write_model(recipe, pool, tmp_path / case.method.spec.name)
        written = load_file(tmp_path / case.method.spec.name / "model.safetensors")
        expected = merged(make_plan(recipe, pool), Sources(pool, placement=Placement(0, 0, 0)))
        assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
    names = {
        "iso_c",
        "iso_cts",
        "tsv_m",
        "wudi",
        "optmerge",
        "opcm",
        "doge",
        "lora_lego",
        "lora_factors",
        "pcb",
        "consensus",
    }
    assert {case.method.spec.name for case in DERIVED} == names | {"consensus"}
    assert all(METHODS[case.method.spec.name].spec.idempotent for case in DERIVED)


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_tensors_are_made_side_by_side_where_they_are_kept(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    makers: list[str] = []
    make = Derived.make

    def watched(self: Derived, values, inputs, base, shape, *pairs):  # type: ignore[no-untyped-def]
        makers.append(threading.current_thread().name.split("_")[0])
        return make(self, values, inputs, base, shape, *pairs)

    monkeypatch.setattr(Derived, "make", watched)
    plan = plan_of(pool, "iso_c")
    expected = merged(plan, Sources(pool, placement=Placement(0, 0, 0)))
    makers.clear()
    for room in (10**8, 20_000, 0):
        sources = Sources(pool, placement=Placement(0, 0, room))
        outs = [{n: torch.empty_like(expected[n]) for n in entry.tensors} for entry in plan.slices]
        merge_slices(plan.slices, sources, outs)
        assert all(torch.equal(tensor, expected[name]) for out in outs for name, tensor in out.items())
        assert len(makers) == count(pool)
        ahead = makers.count("derive")
        assert ahead == count(pool) if room == 10**8 else 0 < ahead < count(pool) if room else not ahead
        assert sources.notes.used <= room
        assert torch.get_num_threads() == 3
        makers.clear()


@pytest.mark.usefixtures("three_threads")
def test_what_cannot_be_made_is_named(llamas: Llamas, tmp_path: Path) -> None:
    folders = llamas(layers=1)
    shutil.copytree(folders["b"], tmp_path / "b")
    tensors = load_file(tmp_path / "b" / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.inf
    save_file(tensors, tmp_path / "b" / "model.safetensors", {"format": "pt"})
    pool = small_pool(folders | {"b": tmp_path / "b"})
    plan = plan_of(pool, "tsv_m")
    outs = [{n: torch.empty(pool.layout.shapes[n]) for n in entry.tensors} for entry in plan.slices]
    with pytest.raises(
        PoolError, match=r"tensor 'model.layers.0.mlp.up_proj.weight': model '\w+' has values that are NaN"
    ):
        merge_slices(plan.slices, Sources(pool, placement=Placement(0, 0, 10**8)), outs)
