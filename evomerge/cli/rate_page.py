"""A page on this machine alone where a person scores what candidates wrote or drew, one after the other."""

from __future__ import annotations

import json
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from evomerge.run.ratings.folder import RatingFolder, form
from evomerge.run.ratings.rules import RatingRules, Text
from evomerge.run.ratings.waiting import left_for
from evomerge.utils.files import write_text_atomic

_MOST = 4096  # bytes of an answer
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'nonce-{}'; connect-src 'self'"


class RatingPage:
    """What the page asks for, and where its answers go; threads may ask at the same time.

    Args:
        ratings: of a run.
        rater: whose scores they are.
    """

    def __init__(self, ratings: RatingFolder, rater: str) -> None:
        self._ratings, self._rater, self._lock = ratings, rater, threading.Lock()

    def next(self) -> dict[str, Any]:
        """The next texts to score, with how many scores are left; nothing but that where none is."""
        with self._lock:
            left, found = 0, None
            for candidate, rules, sheet in left_for(self._ratings, self._rater):
                if sheet is not None and (sheet.problem or not sheet.file.endswith(".csv")):
                    continue
                given = dict(sheet.scores) if sheet is not None else {}
                left += rules.wanted - len(given)
                if found is None:
                    found = self._asked(candidate.name, candidate.texts(), rules, given)
            return {"left": left, **(found or {})}

    @staticmethod
    def _asked(name: str, texts: list[Text], rules: RatingRules, given: dict[int, float]) -> dict[str, Any] | None:
        whole = rules.by == "candidate"
        missing = [text for text in texts if whole or text.item not in given]
        if not missing:
            return None
        shown = texts if whole else missing[:1]
        return {
            "candidate": name,
            "item": 0 if whole else shown[0].item,
            "pair": rules.by == "pair",
            "low": rules.low,
            "high": rules.high,
            "better": "higher" if rules.direction == "maximize" else "lower",
            "texts": [{"prompt": own.prompt, "text": own.text, "other": own.other} for own in shown],
        }

    def score(self, candidate: str, item: int, score: float) -> str:
        """Write a score down at once; says why it is none, empty where it is one."""
        with self._lock:
            for own, rules, sheet in left_for(self._ratings, self._rater):
                if own.name != candidate:
                    continue
                refusal = rules.refusal(score)
                if refusal:
                    return refusal
                if not 0 <= item < (1 if rules.by == "candidate" else rules.items):
                    return "there is no such item"
                given = dict(sheet.scores) if sheet is not None else {}
                given[item] = score
                file = sheet.file if sheet is not None else f"scores-{self._rater}.csv"
                write_text_atomic(own.path / file, form(own.texts(), given, rules))
                return ""
            return "it is scored already"


def serve(ratings: RatingFolder, rater: str, port: int = 0) -> ThreadingHTTPServer:
    """A server of the page on the loopback interface; `serve_forever` lets it answer.

    Its address has a secret, so that no other user of the machine, and no other page, can answer: see `address`.

    Args:
        ratings: of a run.
        rater: whose scores they are.
        port: 0 for any that is free.
    """
    page, secret = RatingPage(ratings, rater), secrets.token_urlsafe(16)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == f"/{secret}/":
                nonce = secrets.token_urlsafe(16)
                text = files("evomerge.cli").joinpath("rate_page.html").read_text(encoding="utf-8")
                self._answer(text.replace("{{ nonce }}", nonce), "text/html", _POLICY.format(nonce))
            elif self.path == f"/{secret}/next":
                self._answer(json.dumps(page.next()), "application/json")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def do_POST(self) -> None:
            if self.path != f"/{secret}/score":
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            try:
                length = min(int(self.headers.get("Content-Length", "0")), _MOST)
                given = json.loads(self.rfile.read(length))
                problem = page.score(str(given["candidate"]), int(given["item"]), float(given["score"]))
            except (ValueError, KeyError, TypeError):
                self.send_error(HTTPStatus.BAD_REQUEST)
                return
            self._answer(json.dumps({"problem": problem}), "application/json")

        def _answer(self, text: str, kind: str, policy: str = "default-src 'none'") -> None:
            body = text.encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", policy)
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the terminal shows the address."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.secret = secret  # type: ignore[attr-defined]
    return server


def address(server: ThreadingHTTPServer) -> str:
    """Where a browser finds the page."""
    return f"http://127.0.0.1:{server.server_address[1]}/{server.secret}/"  # type: ignore[attr-defined]
