"""Fifty ratings on the page, by a browser's keys and clicks; the server is killed among them, and nothing is lost."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from PIL import Image

from evomerge.run.inside import LEDGER
from evomerge.run.ratings.folder import RatingFolder
from evomerge.run.ratings.rules import RatingRules

CANDIDATES, IMAGES, KILLED_AFTER = 10, 5, 23
RULES = RatingRules(counts={"images": IMAGES}, prompts={"images": [f"digit {n}" for n in range(IMAGES)]}, shuffle=3)


def picture(shade: int) -> str:
    """A grey image, whose shade tells which one it is."""
    out = io.BytesIO()
    Image.new("L", (8, 8), shade).save(out, "png")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / LEDGER).touch()
    ratings = RatingFolder(folder / "rating")
    ratings.begin({"search": RULES})
    for number in range(CANDIDATES):
        own = [picture(number * IMAGES + image) for image in range(IMAGES)]
        ratings.candidate(f"c{number}").write(RULES.texts({"images": own}), RULES)
    return folder


@contextmanager
def served(run: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server as a user starts it, and the address that it prints."""
    command = [sys.executable, "-m", "evomerge.cli.main", "rate", str(run), "--rater", "anna", "--page"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().split()[0]
    finally:
        process.kill()
        process.wait()


def rate(page: Any, number: int) -> tuple[int, int]:
    """Give a score to what is shown, by a key and by a click in turn: which image it was, and the score."""
    image = page.locator("img")
    image.wait_for()
    assert re.fullmatch(r"digit \d", page.locator(".prompt").inner_text())
    shade = page.evaluate(
        """async () => { const image = document.querySelector("img"); await image.decode();
        const canvas = document.createElement("canvas").getContext("2d"); canvas.drawImage(image, 0, 0);
        return canvas.getImageData(0, 0, 1, 1).data[0]; }"""
    )
    score = 1 + (shade * 7) % 5
    before = page.locator("#left").inner_text()
    if number % 2:
        page.keyboard.press(str(score))
    else:
        page.get_by_role("button", name=str(score), exact=True).click()
    page.wait_for_function("before => document.getElementById('left').textContent !== before", arg=before)
    return shade, score


def saved(run: Path) -> dict[int, int]:
    """By image the score that the files have."""
    ratings = RatingFolder(run / "rating")
    found = {}
    for number in range(CANDIDATES):
        for sheet in ratings.candidate(f"c{number}").sheets(RULES):
            assert (sheet.rater, sheet.problem) == ("anna", "")
            found |= {number * IMAGES + item: int(score) for item, score in sheet.scores.items()}
    return found


@pytest.mark.slow
def test_fifty_ratings_outlive_a_kill_of_the_server(run: Path) -> None:
    given: dict[int, int] = {}
    with chromium() as browser:
        page = browser.new_page()
        problems: list[Any] = []
        page.on("pageerror", lambda error: problems.append(error))
        with served(run) as (process, url):
            page.goto(url)
            for number in range(KILLED_AFTER):
                given |= [rate(page, number)]
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert saved(run) == given
            page.keyboard.press("3")  # nobody is there to save it, and the page says so
            page.get_by_text("evomerge rate has ended; scores are saved").wait_for()
            assert saved(run) == given
        with served(run) as (_, url):
            page.goto(url)
            for number in range(KILLED_AFTER, CANDIDATES * IMAGES):
                given |= [rate(page, number)]
            page.get_by_text("nothing waits for a score").wait_for()
        assert not problems
    assert len(given) == CANDIDATES * IMAGES == 50
    assert saved(run) == given


@pytest.mark.slow
def test_pairs_are_told_apart_by_keys_and_clicks(run: Path) -> None:
    pairs = replace(RULES, by="pair", low=0.0, high=1.0, shuffle=None)
    ratings = RatingFolder(run / "rating")
    ratings.begin({"search": pairs})
    for number in range(CANDIDATES):
        shutil.rmtree(run / "rating" / f"c{number}")
    texts = RULES.texts({"images": [picture(10 * item) for item in range(IMAGES)]})
    ratings.candidate("c0").write([own._replace(other=picture(7)) for own in texts], pairs)
    with chromium() as browser, served(run) as (_, url):
        page = browser.new_page()
        page.goto(url)
        for place, how in enumerate(["1", "2 is better", "0", "neither", "2"]):
            page.get_by_text(f"{IMAGES - place} to compare").wait_for()
            assert page.locator(".pair img").count() == 2
            if len(how) == 1:
                page.keyboard.press(how)
            else:
                page.get_by_role("button", name=how).click()
        page.get_by_text("nothing waits for a score").wait_for()
    (sheet,) = ratings.candidate("c0").sheets(pairs)
    assert sheet.scores == {0: 1.0, 1: 0.0, 2: 0.5, 3: 0.5, 4: 0.0}
