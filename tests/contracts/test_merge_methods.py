"""The contract of merge methods, for every registered one.

A new method is compared with its independent reading, which it adds to `merge.papers` or to a module beside that whose
name starts with ``papers_``. Where it has no ``weight``, `SELECTS` may say what makes the result one of its inputs.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from merge import papers
from merge.carry_out import KEYS, carry_out

from evomerge.errors import EvomergeError
from evomerge.merge.methods import METHODS, Method, call_values
from evomerge.recipes.method_spec import ParameterSpec, Scalar

for _file in sorted(Path(papers.__file__).parent.glob("papers_*.py")):
    importlib.import_module(f"merge.{_file.stem}")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(), (1,), (3, 5), (2, 3, 4), (1, 6), (6, 1), (0,), (3, 0)]
SELECTS: Mapping[str, Mapping[int, dict[str, Scalar]]] = {
    "slerp": {0: {"t": 0.0}, 1: {"t": 1.0}},
    "nearswap": {0: {"t": 1e9}},
    "crossover": {0: {"t": 0.0}, 1: {"t": 1.0}},
    "passthrough": {0: {}},
}
"""By method: the shared parameters that make the result the input of an index."""
WHOLE: Mapping[str, dict[str, Scalar]] = {"localize_and_stitch": {"density": 1.0}}
"""By method: the parameters of each input that keep all of it, where that is not the default."""

ALONE = ("ema", "opcm", "optmerge", "sce", "wudi")
"""Methods without a ``weight`` that gives a model all: one model alone is that model, by their mathematics.

Others make something else of one: all singular values equal (iso_c), small changes left out (ram), a norm (doge).
"""

ORDERED = ("ema", "rcp", "emr_switch", "tall_switch", "twin_switch")
"""Methods of inputs in order; opcm's is by ``place``, which is one for each input here."""

COUNTS: Mapping[str, int] = dict.fromkeys(("emr_switch", "tall_switch", "twin_switch"), 2)
"""How many inputs to test methods with that do something else with more."""


@dataclass(frozen=True)
class Case:
    """A method, with or without a base."""

    method: Method
    based: bool

    def __str__(self) -> str:
        optional = self.based and self.method.spec.base == "optional"
        return f"{self.method.spec.name}{' of task vectors' if optional else ''}"

    @property
    def count(self) -> int:
        """How many inputs to test with."""
        return self.method.spec.max_inputs or COUNTS.get(self.method.spec.name, 3)

    def models(
        self, shape: tuple[int, ...] = (7, 43), seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """A base, where the case has one, and models around it."""
        generator = torch.Generator().manual_seed(seed)
        base = torch.randn(shape, generator=generator)
        inputs = [(base + 0.3 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(self.count)]
        return base.to(dtype) if self.based else None, inputs

    def settings(self, seed: int) -> tuple[list[dict[str, Scalar]], dict[str, Scalar]]:
        """Parameters drawn from the bounds of the declaration: of each input, and the others."""
        rng = np.random.default_rng(seed)

        def drawn(p: ParameterSpec) -> Scalar:
            if p.kind == "boolean":
                return bool(rng.integers(2))
            if p.kind == "categorical":
                return p.choices[int(rng.integers(len(p.choices)))]
            if p.kind == "numbers":
                return " ".join(f"{value:.3f}" for value in rng.uniform(-1, 1, size=2))
            return int(rng.integers(p.low, p.high + 1)) if p.kind == "integer" else float(rng.uniform(p.low, p.high))

        parameters = self.method.spec.parameters
        each = [{p.name: drawn(p) for p in parameters if p.per_input} for _ in range(self.count)]
        return each, {p.name: drawn(p) for p in parameters if not p.per_input}

    def expected(
        self, base: torch.Tensor | None, inputs: list[torch.Tensor], each: Any, shared: Mapping[str, Scalar]
    ) -> papers.Array:
        """The independent reading's result."""
        values = call_values(self.method.spec, each, shared)
        if self.method.random:
            values["keys"] = KEYS[: len(inputs)]
        below = base.double().numpy() if base is not None else None
        return papers.REFERENCES[self.method.spec.name]([x.double().numpy() for x in inputs], below, **values)


CASES = [
    Case(method, based)
    for method in METHODS.values()
    for based in {"none": (False,), "optional": (False, True), "required": (True,)}[method.spec.base]
]


def assert_agrees(result: torch.Tensor, expected: papers.Array) -> None:
    assert tuple(result.shape) == expected.shape
    np.testing.assert_allclose(result.double().numpy(), expected, rtol=1e-5, atol=2e-6)


def test_every_method_has_an_independent_reading() -> None:
    assert papers.REFERENCES.keys() == METHODS.keys()


@pytest.mark.parametrize("case", CASES, ids=str)
class MergeMethodContract:
    """What every merge method promises."""

    def test_weight_one_on_a_single_model_is_that_model(self, case: Case) -> None:
        spec = case.method.spec
        for dtype in DTYPES:
            base, inputs = case.models(dtype=dtype)
            if spec.parameter("weight") is None:
                for index, shared in SELECTS.get(spec.name, {}).items():
                    assert torch.equal(carry_out(case.method, inputs, base, None, shared, dtype=dtype), inputs[index])
                continue
            for chosen in range(len(inputs)):
                whole = WHOLE.get(spec.name, {})
                each: list[dict[str, Scalar]] = [{**whole, "weight": float(i == chosen)} for i in range(len(inputs))]
                assert torch.equal(carry_out(case.method, inputs, base, each, dtype=dtype), inputs[chosen])
            if spec.min_inputs == 1:
                alone = carry_out(case.method, inputs[:1], base, [{**whole, "weight": 1.0}], dtype=dtype)
                assert torch.equal(alone, inputs[0])

    def test_one_model_alone_is_that_model_where_there_is_no_weight(self, case: Case) -> None:
        spec = case.method.spec
        if spec.name not in ALONE:
            pytest.skip("has a weight, or makes something else of one model")
        for dtype in DTYPES:
            base, inputs = case.models(dtype=dtype)
            alone = carry_out(case.method, inputs[:1], base, dtype=dtype)
            if spec.name == "sce":  # its weighted mean is added to the base, where others take the model
                torch.testing.assert_close(alone, inputs[0], rtol=1e-2 if dtype != torch.float32 else 1e-6, atol=1e-6)
            else:
                assert torch.equal(alone, inputs[0])

    @pytest.mark.parametrize("seed", range(8))
    def test_agrees_with_an_independent_reading(self, case: Case, seed: int) -> None:
        base, inputs = case.models(seed=seed)
        each, shared = case.settings(seed)
        result = carry_out(case.method, inputs, base, each, shared)
        assert_agrees(result, case.expected(base, inputs, each, shared))

    def test_defaults_agree_with_an_independent_reading(self, case: Case) -> None:
        base, inputs = case.models(seed=9)
        each: list[dict[str, Scalar]] = [{} for _ in inputs]
        assert_agrees(carry_out(case.method, inputs, base), case.expected(base, inputs, each, {}))

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_any_shape(self, case: Case, shape: tuple[int, ...]) -> None:
        base, inputs = case.models(shape)
        for seed in (0, 1):
            each, shared = case.settings(seed)
            result = carry_out(case.method, inputs, base, each, shared)
            assert_agrees(result, case.expected(base, inputs, each, shared))
            assert torch.isfinite(result).all()

    def test_order_of_inputs_does_not_matter_but_for_series(self, case: Case) -> None:
        base, inputs = case.models()
        for seed in (3, 4):
            each, shared = case.settings(seed)
            order = [*range(1, len(inputs)), 0]
            turned = {**shared, "t": 1 - float(shared["t"])} if "t" in shared and len(inputs) == 2 else shared
            moved, parameters = [inputs[i] for i in order], [each[i] for i in order]
            result = carry_out(case.method, moved, base, parameters, turned, keys=[KEYS[i] for i in order])
            expected = carry_out(case.method, inputs, base, each, shared)
            if case.method.spec.name in ORDERED:
                assert not torch.allclose(result, expected, rtol=1e-3)
            else:
                torch.testing.assert_close(result, expected, rtol=1e-5, atol=2e-6)

    def test_equal_inputs_come_out_as_they_are_where_it_is_declared(self, case: Case) -> None:
        """And only there: a search has no genes for what is equal in all models."""
        spec, needed = case.method.spec, case.method.spec.idempotent
        changed = False
        for seed in range(12):
            base, inputs = case.models(seed=seed)
            same = base if base is not None else inputs[0]
            each, shared = case.settings(seed)
            kept = bool(needed) and (not isinstance(needed, str) or base is not None or shared[needed] is True)
            result = carry_out(case.method, [same] * len(inputs), base, each, shared)
            if kept:
                torch.testing.assert_close(result, same, rtol=1e-6, atol=1e-6, msg=f"{spec.name} {each} {shared}")
            changed = changed or not torch.allclose(result, same, rtol=1e-3)
        assert changed == (needed is False or (isinstance(needed, str) and not case.based))

    def test_an_input_of_weight_zero_is_not_there(self, case: Case) -> None:
        if case.method.spec.parameter("weight") is None or case.count < 3:
            pytest.skip("no weights, or two inputs at most")
        base, inputs = case.models()
        for seed in (3, 4):
            each, shared = case.settings(seed)
            each[-1]["weight"] = 0.0
            result = carry_out(case.method, inputs, base, each, shared)
            expected = carry_out(case.method, inputs[:-1], base, each[:-1], shared)
            torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)

    def test_computes_in_float32_and_rounds_once(self, case: Case) -> None:
        for dtype in DTYPES:
            base, inputs = case.models(dtype=dtype)
            each, shared = case.settings(seed=4)
            below = base.float() if base is not None else None
            wide = carry_out(case.method, [x.float() for x in inputs], below, each, shared)
            result = carry_out(case.method, inputs, base, each, shared, dtype=dtype)
            assert result.dtype == dtype
            assert torch.equal(result, wide.to(dtype))

    def test_same_bits_for_every_block_size(self, case: Case) -> None:
        base, inputs = case.models()
        each, shared = case.settings(seed=5)
        whole = carry_out(case.method, inputs, base, each, shared)
        for block in (1, 7, 64, 300):
            assert torch.equal(carry_out(case.method, inputs, base, each, shared, block=block), whole)

    @pytest.mark.parametrize("shape", [(70_000,), (2, 40_001), (900, 101)], ids=str)
    def test_same_bits_for_every_thread_count(self, case: Case, shape: tuple[int, ...]) -> None:
        base, inputs = case.models(shape)
        each, shared = case.settings(seed=5)
        threads = torch.get_num_threads()
        try:
            results = []
            for count in (1, 3):
                torch.set_num_threads(count)
                results.append(carry_out(case.method, inputs, base, each, shared))
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(*results)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_a_gpu_differs_by_rounding_only(self, case: Case) -> None:
        for shape in ((7, 43), (300, 4001)):
            base, inputs = case.models(shape)
            each, shared = case.settings(seed=5)
            there = base.cuda() if base is not None else None
            result = carry_out(case.method, [x.cuda() for x in inputs], there, each, shared).cpu()
            torch.testing.assert_close(result, carry_out(case.method, inputs, base, each, shared), rtol=1e-5, atol=2e-6)

    def test_arguments_are_not_written_to(self, case: Case) -> None:
        base, inputs = case.models()
        tensors = [*inputs, base] if base is not None else inputs
        copies = [tensor.clone() for tensor in tensors]
        for seed in (5, 6):
            carry_out(case.method, inputs, base, *case.settings(seed))
            assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))

    def test_zero_tensors_give_zero(self, case: Case) -> None:
        zero = torch.zeros(5, 10)
        for seed in range(4):
            result = carry_out(case.method, [zero] * case.count, zero if case.based else None, *case.settings(seed))
            assert torch.equal(result, zero) == (case.method.spec.name != "low_rank_noise")  # adds what it is given

    def test_one_zero_tensor_or_task_vector_is_no_trouble(self, case: Case) -> None:
        base, inputs = case.models()
        unmoved = base if base is not None else torch.zeros_like(inputs[0])
        for seed in range(4):
            each, shared = case.settings(seed)
            given = [unmoved, *inputs[1:]]
            result = carry_out(case.method, given, base, each, shared)
            assert_agrees(result, case.expected(base, given, each, shared))
            assert torch.isfinite(result).all()

    def test_equal_models_give_themselves(self, case: Case) -> None:
        same = case.models()[1][0]
        shared: dict[str, Scalar] = {"normalize": True} if case.method.spec.parameter("normalize") else {}
        result = carry_out(case.method, [same] * case.count, same if case.based else None, None, shared)
        torch.testing.assert_close(result, same)

    def test_opposite_tensors_stay_finite(self, case: Case) -> None:
        base, (same, *_) = case.models()
        for x in (same, torch.ones(1), torch.tensor(2.0)):
            below = torch.zeros_like(x) if base is not None else None
            given = [x * (-1) ** i for i in range(case.count)]
            for seed in range(4):
                each, shared = case.settings(seed)
                result = carry_out(case.method, given, below, each, shared)
                assert_agrees(result, case.expected(below, given, each, shared))
                assert torch.isfinite(result).all()

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("where", ["input", "base"])
    def test_what_is_not_finite_does_not_spread(self, case: Case, where: str, bad: float) -> None:
        if where == "base" and not case.based:
            pytest.skip("no base")
        base, inputs = case.models()
        poisoned = base if where == "base" else inputs[0]
        assert poisoned is not None
        poisoned[2, 5] = bad
        for seed in range(4):
            each, shared = case.settings(seed)
            try:
                result = carry_out(case.method, inputs, base, each, shared)
            except EvomergeError as error:
                assert "NaN" in str(error)  # noqa: PT017 - either outcome will do
                continue
            spoiled = ~torch.isfinite(result)
            spoiled[2, 5] = False
            assert not spoiled.any()

    def test_random_only_where_declared(self, case: Case) -> None:
        base, inputs = case.models()
        each, shared = case.settings(seed=2)
        first = carry_out(case.method, inputs, base, each, shared)
        assert torch.equal(carry_out(case.method, inputs, base, each, shared), first)
        other = carry_out(case.method, inputs, base, each, shared, keys=KEYS[::-1])
        assert torch.equal(first, other) != case.method.random


class TestMergeMethods(MergeMethodContract):
    """The contract, for every registered method."""


def test_mask_keys_start_from_the_documented_hash() -> None:
    digest = hashlib.sha256(b"7\nmodel 0\ntensor").digest()
    assert KEYS[0] == int.from_bytes(digest[:8], "little")
