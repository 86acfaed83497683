from pathlib import Path

import numpy as np
import pytest
from killed_runs import Plan, content, run_killed, session

from evomerge.run.folder import RunFolder
from evomerge.run.ledger import read_ledger
from evomerge.run.record import Record

pytestmark = pytest.mark.slow

PLANS = {
    "cma_es by generations": (Plan("cma_es"), 4),
    "random, three in flight": (Plan("random", in_flight=3, slots=3), 2),
    "m2n2, four in flight": (Plan("m2n2", in_flight=4, slots=2), 5),
    "m2n2 on lineages": (Plan("m2n2", in_flight=3, slots=3, lineage=True), 2),
    "ga by generations": (Plan("ga", slots=4), 1),
}


@pytest.mark.parametrize("name", PLANS)
def test_killed_again_and_again_a_search_ends_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    plan, slots = PLANS[name]
    session(tmp_path / "whole", plan)
    size = RunFolder(tmp_path / "whole").ledger.stat().st_size
    hits = run_killed(tmp_path / "killed", plan, size, 4, np.random.default_rng(len(name)), slots)
    assert hits >= 2
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


@pytest.mark.parametrize("strategy", ["random", "ga", "m2n2"])
def test_without_order_nothing_is_lost_or_counted_twice(strategy: str, tmp_path: Path) -> None:
    plan = Plan(strategy, slots=3, ordered=False, seconds=0.002)
    session(tmp_path / "whole", plan)
    size = RunFolder(tmp_path / "whole").ledger.stat().st_size
    assert run_killed(tmp_path / "killed", plan, size, 4, np.random.default_rng(1), 5) >= 2
    folder = RunFolder(tmp_path / "killed")
    events = list(read_ledger(folder))
    for kind in ("asked", "told"):
        numbers = [e["candidate"] for e in events if e["event"] == kind and e["split"] == "search"]
        assert sorted(numbers) == list(range(5 + 60))  # three models, the base, their average, and the budget
    before = folder.ledger.read_bytes()
    session(tmp_path / "killed", plan)  # the whole run again: every event is found in the ledger, nothing is added
    assert folder.ledger.read_bytes() == before


def test_a_torn_last_line_is_written_again(tmp_path: Path) -> None:
    plan = Plan("cma_es", evaluations=20)
    session(tmp_path / "whole", plan)
    session(tmp_path / "torn", plan)
    ledger = RunFolder(tmp_path / "torn").ledger
    lines = ledger.read_bytes().splitlines(keepends=True)
    for count, part in ((1, 1), (12, 30), (30, 200), (len(lines) - 1, 5)):
        ledger.write_bytes(b"".join(lines[:count]) + lines[count][:part])
        session(tmp_path / "torn", plan)
        assert content(tmp_path / "torn") == content(tmp_path / "whole")


@pytest.mark.parametrize("plan", [Plan("cma_es"), Plan("ga", in_flight=4, slots=3)], ids=["generations", "four ahead"])
def test_stopped_politely_the_ledger_is_a_beginning(plan: Plan, tmp_path: Path) -> None:
    session(tmp_path / "whole", plan)
    whole = content(tmp_path / "whole")
    for patience in (0, 3, 17, 40):
        left = [patience]

        def stop(left: list[int] = left) -> bool:
            left[0] -= 1
            return left[0] < 0

        path = tmp_path / str(patience)
        with pytest.raises(KeyboardInterrupt):
            session(path, plan, stop)
        begun = content(path)
        assert begun == whole[: len(begun)]
        assert len(begun) < len(whole)
        session(path, plan)
        assert content(path) == whole


def test_a_longer_budget_goes_on_where_the_run_ended(tmp_path: Path) -> None:
    """The last generation of a budget may be cut short: the longer run asks the rest of it."""
    session(tmp_path / "whole", Plan("cma_es", evaluations=61))
    session(tmp_path / "longer", Plan("cma_es", evaluations=31))
    record = Record(RunFolder(tmp_path / "longer"))
    assert record.finished
    session(tmp_path / "longer", Plan("cma_es", evaluations=61))

    def told(name: str) -> list[dict]:
        events = content(tmp_path / name)
        return [e for e in events if e["event"] in ("told", "improved") and e.get("split", "search") == "search"]

    assert told("longer") == told("whole")
    assert content(tmp_path / "longer")[-1]["evaluations"] == 61
