from __future__ import annotations

import math

import pytest
import torch
from merge.carry_out import carry_out, merged, weights
from merge.mergekits import fine_tunes

from evomerge.errors import PoolError

BASE = [[3.0, 0.0, 1.0], [4.0, 1.0, 0.0]]  # columns of lengths 5, 1, 1
A = [[6.0, 0.0, 1.0], [8.0, -1.0, 0.0]]  # longer by 5, 0, 0; cosines 1, -1, 1: ranks 2 0 1 and 0 2 1
B = [[3.0, 0.0, 0.0], [4.0, 1.5, 1.0]]  # longer by 0, 0.5, 0; cosines 1, 1, 0: ranks 0 2 1 and 0 1 2
UP = math.exp(2 / 3) / (1 + math.exp(2 / 3))  # softmax of the ranks 2/3 and 0
UP_ONE = math.exp(1 / 3) / (1 + math.exp(1 / 3))


def test_columns_count_by_length_and_direction() -> None:
    # Above the mean rank, 1, are A's first length and second angle, and B's second length and third angle.
    a = [(1 + 0.5) / 2, (1 - UP + 1) / 2, (0.5 + 1 - UP_ONE) / 2]
    b = [(1 - UP + 0.5) / 2, (1 + 1 - UP_ONE) / 2, (0.5 + 1) / 2]
    expected = [
        [3 + 3 * a[0], 0, 1 - 1 * b[2]],
        [4 + 4 * a[0], 1 - 2 * a[1] + 0.5 * b[1], 1 * b[2]],
    ]
    for row, wanted in zip(merged("widen", [A, B], BASE), expected, strict=True):
        assert row == pytest.approx(wanted)


def test_what_is_important_counts_as_told() -> None:
    # With nothing above twice the mean rank, scores are softmaxes; those of the first column UP and 1/2.
    first = merged("widen", [A, B], BASE, above_average=2.0, calibration=9.0)[0][0]
    assert first == pytest.approx(3 + 3 * (UP + 0.5) / 2)
    # Above 0 are all but the last of each ranking.
    result = merged("widen", [A, B], BASE, weights(1, 0.5), above_average=0.0, calibration=2.0)
    assert result[1][1] == pytest.approx(1 - 2 * (1 - UP + 2) / 2 + 0.5 * 0.5 * 2)


def test_rows_are_columns_of_the_transposed() -> None:
    base, inputs = fine_tunes()
    rows = carry_out("widen", inputs, base, None, {"along": "rows"})
    columns = carry_out("widen", [x.T.contiguous() for x in inputs], base.T.contiguous())
    torch.testing.assert_close(rows, columns.T)


def test_vectors_count_element_by_element() -> None:
    # Means of sizes are 1 and 2: A's third is above, and B's first.
    base, a, b = [0.0, 0.0, 0.0], [1.0, 0.0, -2.0], [5.0, 0.5, -0.5]
    expected = [
        1 / (1 + math.exp(4)) + 5,
        0.5 * math.exp(0.5) / (1 + math.exp(0.5)),
        -2 - 0.5 / (1 + math.exp(1.5)),
    ]
    assert merged("widen", [a, b], base) == pytest.approx(expected)


def test_one_model_alone() -> None:
    assert merged("widen", [A], BASE, shortcut=False) == [pytest.approx(row) for row in A]
    assert merged("widen", [A, B], BASE, weights(0, 0), calibration=2.0) == BASE


def by_the_authors(inputs: list[torch.Tensor], base: torch.Tensor, ratio: float, score: float) -> torch.Tensor:
    """The rule of the authors' code, with cosines by float64."""
    wide, below = torch.stack(inputs).double(), base.double()
    lengths = (wide.norm(dim=1) - below.norm(dim=0)).abs()
    angles = 1 - torch.cosine_similarity(wide, below[None], dim=1)
    total = 0.0
    for moved in (lengths, angles):
        ranks = moved.argsort(dim=1, stable=True).argsort(dim=1).double() / moved.shape[1]
        important = ranks > ratio * ranks.mean(dim=1, keepdim=True)
        total = total + torch.where(important, score, ranks.softmax(0)) / 2
    return below + ((wide - below) * total.unsqueeze(1)).sum(0)


@pytest.mark.parametrize(("ratio", "score"), [(1.0, 1.0), (1.5, 0.7), (0.3, 1.2)])
def test_same_as_the_authors_code(ratio: float, score: float) -> None:
    """As in yule-BUAA/MergeLLM, for a linear layer; fusion_bench 0.2.33 has no WIDEN. An even number of columns: in the
    authors' float32 the middle one of an odd number may be above the mean."""
    base, inputs = fine_tunes((31, 46), size=0.2)
    result = carry_out("widen", inputs, base, None, {"above_average": ratio, "calibration": score})
    expected = by_the_authors(inputs, base, ratio, score)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(61, 47), (50,)], ids=str)
def test_what_is_not_finite_is_refused(shape: tuple[int, ...]) -> None:
    base, inputs = fine_tunes(shape)
    inputs[1].view(-1)[7] = math.nan
    with pytest.raises(PoolError, match="input 2 has values that are NaN"):
        carry_out("widen", inputs, base)
