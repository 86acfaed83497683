"""Every strategy on every search space, and the table in the docs that says so."""

from __future__ import annotations

import pytest

from scripts import strategy_table
from scripts.strategy_table import BEGIN, END, PAGE, outcomes, renewed, table


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strategy_table, "PORTIONS", (6, 3))  # too few for `gp` to model, which takes long
        return outcomes()


def test_every_pair_runs_or_is_refused_with_a_reason(found: dict[str, dict[str, str]]) -> None:
    for name, row in found.items():
        for space, reason in row.items():
            assert reason == "" or len(reason.split(";")) > 1, f"{name} on {space}: {reason!r}"
    assert set(found["random"].values()) == {""}
    assert found["cma_es"]["parameter"] == found["ga"]["mixed"] == found["de"]["data_flow"] == ""
    assert "categorical" in found["cma_me"]["mixed"]
    assert "lineage" in found["ga"]["lineage"]
    assert found["m2n2"]["lineage"] == ""


def test_the_page_is_current(found: dict[str, dict[str, str]]) -> None:
    page = PAGE.read_text()
    assert page.count(BEGIN) == page.count(END) == 1
    assert renewed(page, table(found)) == page, "run python scripts/strategy_table.py"
