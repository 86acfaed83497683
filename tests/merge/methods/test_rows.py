from __future__ import annotations

import pytest
import torch

from evomerge.merge.methods.rows import blocks, grams, inner, one_vector, vectors


def test_vectors_share_memory() -> None:
    x = torch.arange(24.0).view(2, 3, 4)
    assert vectors(x).shape == (6, 4)
    assert vectors(x)[1].tolist() == [4.0, 5.0, 6.0, 7.0]
    columns = vectors(x, 0)
    assert columns.shape == (12, 2)
    assert columns[1].tolist() == [1.0, 13.0]
    columns[1, 0] = -1
    assert x[0, 0, 1] == -1
    assert vectors(torch.tensor(3.0)).tolist() == [[3.0]]
    assert vectors(torch.ones(3), 0).shape == (1, 3)


@pytest.mark.parametrize(
    ("shape", "rows", "columns"), [((), True, True), ((5,), True, True), ((1, 5), True, False), ((5, 1), False, True)]
)
def test_one_vector(shape: tuple[int, ...], rows: bool, columns: bool) -> None:
    assert one_vector(shape, -1) is rows
    assert vectors(torch.zeros(shape)).shape[0] == 1 or not rows
    if len(shape) != 1:
        assert one_vector(shape, 0) is columns


def test_blocks_cover_the_rows() -> None:
    rows = torch.empty(700, 5000, device="meta")
    parts = list(blocks(rows))
    assert parts[0] == slice(0, 209)
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert parts[-1].stop == 700
    assert list(blocks(torch.empty(2, 3_000_000, device="meta"))) == [slice(0, 1), slice(1, 2)]


@pytest.mark.parametrize("rows", [1, 3])
def test_inner_products(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, rows, 100_003, generator=generator)
    assert torch.allclose(inner(a, b), (a.double() * b.double()).sum(1), rtol=1e-12)
    gram = grams((a, b))
    assert gram.shape == (2, 2, rows)
    assert (gram[0, 1] == gram[1, 0]).all()
    assert gram[0, 1].tolist() == inner(b, a).tolist()
