"""``evomerge dashboard``: optuna-dashboard in a real browser."""

from __future__ import annotations

import importlib.util
import math
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium

from evomerge.candidate import Candidate, Evaluation
from evomerge.cli.dashboard import make_server
from evomerge.cli.main import main
from evomerge.genomes.genome import Genome
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger

GENES = [f"layers.{layer}/{model}/weight" for layer in range(3) for model in ("math", "lang")]
WAIT = 300_000  # milliseconds, where the machine is busy


def write_run(path: Path, objectives: tuple[str, ...], count: int = 60) -> dict[int, tuple[float, ...]]:
    """A run that nears its optimum, with failures; returns the scores by candidate."""
    rng = np.random.default_rng(0)
    scores = {}
    with Ledger(RunFolder.create(path), sync="interval") as ledger:
        ledger.append("started", evaluations=count, objectives=dict.fromkeys(objectives, "maximize"))
        ledger.append("phase", phase="search", number=1, phases=1, evaluations=count, genes=GENES)
        for candidate in range(count):
            values = rng.uniform(size=len(GENES)) * (1 - candidate / count) + 0.5 * candidate / count
            ledger.log_asked(Candidate(candidate, None, Genome(tuple(values.tolist()))))
            if candidate % 10 == 9:
                ledger.log_told(Evaluation(candidate, "failed", error="the merge is NaN"))
                continue
            own = (1 - float(np.mean((values - 0.5) ** 2)), math.sin(9 * float(values[0])))[: len(objectives)]
            scores[candidate] = own
            ledger.log_told(Evaluation(candidate, "ok", objectives=dict(zip(objectives, own, strict=True))))
        ledger.append("stopped", reason="budget")
    return scores


@contextmanager
def served(run: Path) -> Iterator[str]:
    server = make_server(run, "localhost", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}/dashboard/studies/0"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def drawn(browser: Any, address: str, plots: tuple[str, ...], shot: str) -> dict[str, list[Any]]:
    """The traces of plots by their ids, as plotly has them; nothing may leave the page."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    outside: list[str] = []
    errors: list[str] = []
    own = (address.split("/dashboard")[0], "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(own) else outside.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address, wait_until="commit", timeout=WAIT)
    found: dict[str, list[Any]] = {}
    for plot in plots:
        there = "id => (document.getElementById(id)?.data || []).some(trace => trace.x && trace.x.length)"
        page.wait_for_function(there, arg=plot, timeout=WAIT)
        take = "id => document.getElementById(id).data.map(t => ({x: [...t.x || []], y: [...t.y || []], name: t.name}))"
        found[plot] = page.evaluate(take, plot)
    folder = os.environ.get("EVOMERGE_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(10_000)
        page.screenshot(path=Path(folder) / shot)
    page.close()
    assert outside == []
    assert errors == []
    return found


@pytest.mark.slow
def test_the_curve_and_the_pareto_front(browser: Any, tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    scores = write_run(tmp_path / "run", ("maths", "language"))
    points = set(scores.values())
    front = {own for own in points if not any(o != own and o[0] >= own[0] and o[1] >= own[1] for o in points)}
    assert 1 < len(front) < 20
    with served(tmp_path / "run") as address:
        traces = drawn(browser, address, ("plot-history", "graph-pareto-front"), "dashboard.png")
    history = {trace["name"]: trace["y"] for trace in traces["plot-history"]}
    assert history["maths of run"] == pytest.approx([own[0] for own in scores.values()])
    best = history["Best Value of run"]
    assert best == sorted(best)
    assert best[-1] == pytest.approx(max(own[0] for own in points))
    plotted = [set(zip(trace["x"], trace["y"], strict=True)) for trace in traces["graph-pareto-front"]]
    assert set().union(*plotted) - {(None, None)} == points  # those that failed have no place
    assert front in plotted


def test_taken_ports_and_missing_packages_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", ("score",), 3)
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["dashboard", str(tmp_path / "run"), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"evomerge: error: localhost:{port} cannot be listened on: Address already in use")
    assert len(error.splitlines()) == 1
    assert main(["dashboard", str(tmp_path / "run"), "--port", "70000"]) == 2
    assert "localhost:70000 cannot be listened on" in capsys.readouterr().err
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "optuna_dashboard" else real(name)
    )
    assert main(["dashboard", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == (
        "evomerge: error: optuna-dashboard is not installed; `evomerge dashboard` needs it; "
        "install it with: pip install 'evomerge[dashboard]'\n"
    )
