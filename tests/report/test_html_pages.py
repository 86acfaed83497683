"""Reports opened in a browser: nothing is fetched, nothing goes wrong, everything is drawn and fits the screen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import report_runs
from browser import chromium

from evomerge.report.html.report import write_report
from evomerge.run.folder import RunFolder
from evomerge.run.ledger_file import encode

pytestmark = pytest.mark.slow

RUNS = {
    "parameter space": report_runs.parameter_run,
    "data flow": report_runs.path_run,
    "lineage": report_runs.lineage_run,
    "two objectives": report_runs.two_objectives_run,
    "half failed": report_runs.failed_run,
}
DRAW_ALL = """async () => {
  for (const plot of document.querySelectorAll(".plot")) {
    plot.scrollIntoView();
    for (let turn = 0; turn < 100 && !plot.querySelector("svg"); turn++) await new Promise((r) => setTimeout(r, 20));
  }
  window.scrollTo(0, 0);
}"""
EMPTY = '[...document.querySelectorAll(".plot")].filter((p) => !p.querySelector("svg.main-svg")).map((p) => p.id)'
TOO_WIDE = """[...document.querySelectorAll("main *")].filter(
  (e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".plot, pre, .path-picture")
).map((e) => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


class Opened:
    """A page, with all that it said and asked for."""

    def __init__(self, browser: Any, file: Path) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.page.set_default_timeout(180_000)  # milliseconds; a machine may be busy with other tests
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.url = file.resolve().as_uri()
        self._session = self.page.context.new_cdp_session(self.page)
        self._session.send("Performance.enable", {"timeDomain": "threadTicks"})  # of the processor, not of the clock
        self.page.goto(self.url)

    @property
    def seconds(self) -> float:
        """What the page has kept its main thread busy."""
        metrics = self._session.send("Performance.getMetrics")["metrics"]
        return float(next(entry["value"] for entry in metrics if entry["name"] == "TaskDuration"))

    def check(self) -> None:
        assert self.said == []
        assert {url for url in self.asked if not url.startswith(("data:", "blob:"))} == {self.url}


@pytest.mark.parametrize("name", RUNS)
def test_a_report_in_light_and_dark_on_a_desk_and_on_a_phone(name: str, browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, write_report([RUNS[name](tmp_path / "run")]))
    page = opened.page
    grounds = set()
    for width, scheme in ((1280, "light"), (390, "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.evaluate(DRAW_ALL)
        assert page.evaluate(EMPTY) == []
        until(page, f"document.documentElement.scrollWidth <= {width}")  # figures follow a window in their own time
        assert page.evaluate(TOO_WIDE) == []
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        if name == "parameter space":
            page.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)
    assert len(grounds) == 2
    if name == "parameter space":
        check_switches(page)
    opened.check()
    page.close()


def until(page: Any, truth: str) -> None:
    """Wait until it is true. The page's policy forbids playwright's own way, which evaluates text in the page."""
    for _ in range(3000):
        if page.evaluate(truth):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"it never came true: {truth}")


def check_switches(page: Any) -> None:
    """On a page that is dark because its reader's system is."""
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) != before
    title = "document.querySelector('#search .plot').layout.xaxis.title.text"
    assert page.evaluate(title) == "evaluations"
    page.click("#search .switch button:nth-child(2)")
    until(page, f"{title} === 'seconds of search'")
    accent = "document.querySelector('#search .plot').data[1].line.color"
    assert page.evaluate(accent) == "#1f5fd6"  # the light one: colours are names until a figure is drawn
    page.click("#reproduce .copy >> nth=0")
    until(page, "document.querySelector('#reproduce .copy').textContent === 'Copied'")


def test_names_of_strangers_are_text(browser: Any, tmp_path: Path) -> None:
    evil = '<img src=x onerror="alert(1)"></script><script>alert(2)</script>'
    link = '<a href="https://example.com/?">x</a>'
    run = report_runs.parameter_run(
        tmp_path / "run", 30, names=("base", evil, link), fails=lambda c: evil if c.id == 9 else None
    )
    folder = RunFolder.open(run)
    texts = json.loads((folder.items / "held_out-texts.json").read_text())
    for items in texts["tasks"].values():
        for item in items:
            item["prompt"] = evil
    (folder.items / "held_out-texts.json").write_text(json.dumps(texts))
    opened = Opened(browser, write_report([run]))
    page = opened.page
    page.evaluate(DRAW_ALL)
    assert page.evaluate("document.querySelectorAll('main img, main a[href^=http], svg a').length") == 0
    assert page.evaluate("document.querySelectorAll('script').length") == 3
    assert evil in page.inner_text("#items .example pre")
    opened.check()


def test_runs_side_by_side(browser: Any, tmp_path: Path) -> None:
    runs = [make(tmp_path / make.__name__) for make in (report_runs.parameter_run, report_runs.lineage_run)]
    opened = Opened(browser, write_report(runs, tmp_path / "both.html"))
    opened.page.evaluate(DRAW_ALL)
    assert opened.page.evaluate(EMPTY) == []
    assert opened.page.evaluate("document.querySelector('#search .plot').data.length") == 2
    opened.check()


def test_ten_thousand_evaluations_open_at_once(browser: Any, tmp_path: Path) -> None:
    run = many_evaluations(report_runs.parameter_run(tmp_path / "run", 20), 10_000)
    file = write_report([run])
    assert file.stat().st_size < 15e6
    opened = Opened(browser, file)
    until(opened.page, "document.querySelector('#search .plot svg.main-svg') !== null")
    assert opened.seconds < 5  # one or two are usual
    assert opened.page.evaluate("document.querySelector('#search .plot').data[0].x.length") <= 3000
    opened.check()


def many_evaluations(run: Path, many: int) -> Path:
    """The run with its candidates repeated, as if it had gone on for long."""
    ledger = RunFolder.open(run).ledger
    events = [json.loads(line) for line in ledger.read_text().splitlines()]
    own = [e for e in events if e["event"] in ("asked", "told") and e["split"] == "search" and e["candidate"] >= 4]
    first = next(place for place, event in enumerate(events) if event is own[0])
    kept, candidate = [*events[:first]], 4
    pairs = [
        (next(a for a in own if a["event"] == "asked" and a["candidate"] == e["candidate"]), e)
        for e in own
        if e["event"] == "told"
    ]
    while candidate < many + 4:
        for asked, told in pairs:
            for event in (asked, told):
                drift = {"objectives": {"score": told["objectives"]["score"] * (0.5 + candidate / 2 / many)}}
                kept.append({**event, "candidate": candidate, **(drift if event is told else {})})
            candidate += 1
    lines = []
    for number, event in enumerate(kept):
        content = {key: value for key, value in event.items() if key not in ("seq", "crc32")}
        lines.append(encode({"seq": number, **content}))
    ledger.write_bytes(b"".join(lines))
    return run
