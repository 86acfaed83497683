"""A Ray cluster of several nodes on one machine: nodes that go and come, and a head that goes."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from durability.killed_runs import Plan, content, session
from durability.ray_runs import Node, start

from evomerge.run.folder import RunFolder
from evomerge.run.ledger import read_ledger

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "EVOMERGE_RAY_NODES" not in os.environ,
        reason="three Ray nodes, each of which has to start within Ray's own limit: set EVOMERGE_RAY_NODES=1",
    ),
]
EVALUATIONS = 1500


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ray-"))  # Ray's sockets need a short path
    yield made
    shutil.rmtree(made, ignore_errors=True)


def told(run: Path) -> list[int]:
    if not RunFolder(run).ledger.exists():
        return []
    events = read_ledger(RunFolder(run), on_torn=lambda torn: None)
    return [event["candidate"] for event in events if event["event"] == "told" and event["split"] == "search"]


def wait_for(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 240
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_nodes_go_and_come_and_the_head_goes(folder: Path, tmp_path: Path) -> None:
    """The command line is that of one node: only the address says where. A module of the user's own is sent along."""
    own = tmp_path / "own" / "sent_along.py"
    own.parent.mkdir()
    own.write_text("VALUE = 1\n")
    run, more = tmp_path / "run", ("--workers", 2, "--evaluations", EVALUATIONS, "--seconds", 0.2, "--module", own)
    head = Node(folder, cpus=1)
    try:
        second = Node(folder, cpus=1, head=head.address)
        process = start(run, head.address, "--gone", 5, *more)
        wait_for(lambda: len(told(run)) >= 20 or process.poll() is not None)
        second.kill()
        killed_at = len(told(run))
        third = Node(folder, cpus=1, head=head.address)
        wait_for(lambda: bool(third.actors()) or process.poll() is not None)
        joined_at = len(told(run))
        assert joined_at >= killed_at
        wait_for(lambda: len(told(run)) >= joined_at + 60 or process.poll() is not None)
        assert process.poll() is None
        head.kill_head()
        _, errors = process.communicate(timeout=240)
    finally:
        head.close()
    assert process.returncode == 3, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("evomerge: error")]
    port = head.address.rpartition(":")[2]  # the host is named as the cluster names it
    assert re.search(rf"the head of the Ray cluster at \S+:{port} does not answer any more", line)
    assert "resume" in line
    assert joined_at + 60 <= len(told(run)) < 5 + EVALUATIONS
    plan = Plan("cma_es", evaluations=EVALUATIONS, seconds=0.0)
    session(run, plan)
    session(tmp_path / "whole", plan)
    assert content(run) == content(tmp_path / "whole")
    assert told(run) == told(tmp_path / "whole") == sorted(set(told(run)))
