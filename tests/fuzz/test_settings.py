"""A sample of what `scripts/fuzz_settings.py` tries: every key of the configuration with values that make no sense."""

from __future__ import annotations

import pytest

from evomerge.demo.pool import make_demo_pool
from scripts.fuzz_settings import VALUES, cases, fault, import_all, keys

pytestmark = pytest.mark.slow


@pytest.mark.nightly
def test_odd_values_end_in_one_line(tmp_path_factory: pytest.TempPathFactory) -> None:
    pool = make_demo_pool(tmp_path_factory.mktemp("demo") / "pool", 0, quick=True, progress=False)
    assert len(keys(pool)) > 30
    import_all(pool)
    found = {word[:100]: wrong for word in cases(pool, 80, seed=1) if (wrong := fault(pool, word))}
    assert not found
    assert len(VALUES) > 20
