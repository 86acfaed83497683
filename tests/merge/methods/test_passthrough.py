from __future__ import annotations

from merge.carry_out import merged


def test_scaled() -> None:
    assert merged("passthrough", [[1.0, -2.0]]) == [1.0, -2.0]
    assert merged("passthrough", [[1.0, -2.0]], each=[{"scale": -1.5}]) == [-1.5, 3.0]
    assert merged("passthrough", [[1.0, -2.0]], each=[{"scale": 0.0}]) == [0.0, 0.0]
