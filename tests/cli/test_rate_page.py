"""The page to rate on: what it asks, what it writes, and that it can be ended and begun again."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evomerge.cli.rate_page import address, serve
from evomerge.run.ratings.folder import RatingFolder
from evomerge.run.ratings.rules import RatingRules

PICTURE = "data:image/png;base64,iVBORw0KGgo="
RULES = RatingRules(counts={"images": 3}, prompts={"images": ["a cat", "an owl", "a fox"]}, shuffle=None)


@pytest.fixture
def ratings(tmp_path: Path) -> RatingFolder:
    folder = RatingFolder(tmp_path / "rating")
    folder.begin({"search": RULES})
    for name in ("aaaa", "bbbb"):
        folder.candidate(name).write(RULES.texts({"images": [PICTURE] * 3}), RULES)
    return folder


@pytest.fixture
def begin(ratings: RatingFolder) -> Iterator[Any]:
    servers = []

    def started() -> str:
        server = serve(ratings, "anna")
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return address(server)

    yield started
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=10) as answer:
        return json.loads(answer.read())


def test_every_score_is_saved_and_found_again(ratings: RatingFolder, begin: Any) -> None:
    url = begin()
    first = ask(f"{url}next")
    assert first["left"] == 6
    assert first["texts"] == [{"prompt": "a cat", "text": PICTURE, "other": ""}]
    assert ask(f"{url}score", {"candidate": first["candidate"], "item": first["item"], "score": 4}) == {"problem": ""}
    refused = ask(f"{url}score", {"candidate": first["candidate"], "item": 1, "score": 9})
    assert "a number from 1 to 5" in refused["problem"]
    again = begin()  # another process would find the same files
    for score in (2, 3, 1, 5, 4):
        now = ask(f"{again}next")
        assert (
            ask(f"{again}score", {**{key: now[key] for key in ("candidate", "item")}, "score": score})["problem"] == ""
        )
    assert ask(f"{again}next") == {"left": 0}
    sheets = [ratings.candidate(name).sheets(RULES)[0] for name in ("aaaa", "bbbb")]
    assert [sheet.scores for sheet in sheets] == [{0: 4.0, 1: 2.0, 2: 3.0}, {0: 1.0, 1: 5.0, 2: 4.0}]
    assert PICTURE not in (ratings.path / "aaaa" / "scores-anna.csv").read_text()


def test_nobody_without_the_address_is_answered(begin: Any) -> None:
    url = begin()
    for path in ("", "next", "score"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url.rsplit('/', 2)[0]}/{path}", timeout=10)
    with urllib.request.urlopen(url, timeout=10) as answer:
        page = answer.read().decode()
        policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    nonce = policy.partition("'nonce-")[2].partition("'")[0]
    assert f'<script nonce="{nonce}">' in page
    with pytest.raises(urllib.error.HTTPError, match="400"):
        ask(f"{url}score", {"candidate": "aaaa"})


def test_pairs_are_shown_beside_each_other(tmp_path: Path, begin: Any, ratings: RatingFolder) -> None:
    pairs = replace(RULES, by="pair", low=0.0, high=1.0)
    ratings.begin({"search": pairs})
    for name in ("aaaa", "bbbb"):
        texts = [text._replace(other="data:image/png;base64,AAAA") for text in RULES.texts({"images": [PICTURE] * 3})]
        ratings.candidate(name).write(texts, pairs)
    url = begin()
    first = ask(f"{url}next")
    assert (first["pair"], first["left"]) == (True, 6)
    assert first["texts"] == [{"prompt": "a cat", "text": PICTURE, "other": "data:image/png;base64,AAAA"}]
    assert ask(f"{url}score", {"candidate": "aaaa", "item": 0, "score": 0.5})["problem"] == ""
    assert "1 for the first" in ask(f"{url}score", {"candidate": "aaaa", "item": 1, "score": 2})["problem"]
    (sheet,) = ratings.candidate("aaaa").sheets(pairs)
    assert sheet.scores == {0: 0.5}
    assert (ratings.path / "aaaa" / "scores-anna.csv").read_text().startswith("item,prompt,text,other,score\n")
