"""How the comparison with fusion_bench counts; what it counts needs an environment of its own."""

from __future__ import annotations

import pytest
import torch

from evomerge.errors import EvomergeError
from evomerge.merge.methods import specs
from scripts.parity_fusion_bench import CASES, difference, dropped_alike, within_90_degrees

METHODS = specs()

BASE = {"a": torch.tensor([1.0, 1.0, 1.0, 1.0]), "b": torch.zeros(2)}
THEIRS = {"a": torch.tensor([1.0, 3.0, 1.0, 0.0]).double(), "b": torch.tensor([0.0, 0.5]).double()}


def test_differences_are_in_units_of_the_largest_change() -> None:
    ours = {"a": torch.tensor([1.0, 3.5, 1.0, 0.0]), "b": torch.tensor([0.1, 0.5])}
    assert difference(ours, THEIRS, BASE) == (pytest.approx(0.25), "a")  # 0.5 of 2, and 0.1 of 0.5
    # One element of six may differ by what rounding decides.
    assert difference(ours, THEIRS, BASE, rounds=0.17) == (pytest.approx(0.2), "b")
    with pytest.raises(EvomergeError, match="no tensor b"):
        difference({"a": ours["a"]}, THEIRS, BASE)


def test_tensors_at_obtuse_angles_are_left_out() -> None:
    one = {"a": BASE["a"] + torch.tensor([1.0, 0.0, 0.0, 0.0]), "b": torch.tensor([1.0, 1.0])}
    other = {"a": BASE["a"] + torch.tensor([-1.0, 5.0, 0.0, 0.0]), "b": torch.tensor([1.0, 0.0])}
    assert within_90_degrees([one, other], BASE) == {"b"}


@pytest.mark.parametrize(("kept", "alike"), [(0.3, True), (0.5, False)])
def test_random_drops_keep_the_share_that_was_asked_for(kept: float, alike: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"a": torch.zeros(100_000)}
    source = {"a": torch.rand(100_000, generator=generator) + 1.0}
    drops = [
        {"a": (source["a"] * (torch.rand(100_000, generator=generator) < share) / 0.3).double()}
        for share in (kept, 0.3)
    ]
    assert (dropped_alike(*drops, base, source)[0] < 1e-6) is alike


def test_cases_are_of_methods_and_parameters_that_there_are() -> None:
    for case in CASES.values():
        names = {parameter.name: parameter.per_input for parameter in METHODS[case.method].parameters}
        assert all(names[name] for name in case.each)
        assert not any(names[name] for name in case.shared)
