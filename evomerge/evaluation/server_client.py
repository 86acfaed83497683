"""Requests to an OpenAI-compatible server: time-outs, retries, and errors of one line. The only door to httpx."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import httpx

from evomerge.errors import ServerError
from evomerge.evaluation.server_settings import ServerSettings

_FIRST, _LONGEST = 0.5, 30.0  # seconds before a request is made again: the first time, and at most
_SHOWN = 300  # characters of an answer
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_LOG = logging.getLogger(__name__)

LOADING = "vLLM loads adapters with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 (docs: engines)"


class ServerClient:
    """Asks one server. Threads may share it.

    The key is read from the environment whenever a request is made, goes into the header of that request, and nowhere
    else: what a server repeats of it is struck out.

    Args:
        settings: where the server is and how long it may take.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it writes a line for every request
        limits = httpx.Limits(max_connections=settings.concurrency + 2)
        self._http = httpx.Client(timeout=settings.timeout, limits=limits)
        self._closed = threading.Event()

    def models(self) -> list[Mapping[str, Any]]:
        """What the server has: entries with ``id``, and with what else it says of them.

        Raises:
            ServerError: it is no such server.
        """
        answer = self._json("GET", "/v1/models", None)
        found = answer.get("data") if isinstance(answer, Mapping) else None
        if not isinstance(found, list) or not all(
            isinstance(e, Mapping) and isinstance(e.get("id"), str) for e in found
        ):
            raise self._error("GET", "/v1/models", "an answer that is no list of models", "an OpenAI-compatible server")
        return found

    def complete(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of ``/v1/completions``.

        Raises:
            ServerError: there is none after all retries, or it is an error.
        """
        answer = self._json("POST", "/v1/completions", payload)
        if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
            raise self._error("POST", "/v1/completions", "an answer without choices", "completions as OpenAI's")
        return answer

    def load(self, name: str, path: str) -> None:
        """Load an adapter from a folder that the server can read.

        Raises:
            ServerError: it does not.
        """
        where = "/v1/load_lora_adapter"
        response, again = self._send("POST", where, {"lora_name": name, "lora_path": str(PurePosixPath(path))})
        text = self._text(response)
        if response.status_code == 200 or (again and "already" in text):  # the first try had reached it
            return
        missing = response.status_code == 404 and ("Not Found" in text or not text)
        allowed = LOADING if missing else "an adapter that it can take (--max-lora-rank, the base's own layers)"
        advice = "" if missing else "evaluator.server.adapters must be a folder that the server can read"
        raise self._error("POST", where, f"{response.status_code} {text}", allowed, advice)

    def unload(self, name: str) -> None:
        """Let an adapter go; one that is not there is gone already.

        Raises:
            ServerError: the server gives no answer.
        """
        where = "/v1/unload_lora_adapter"
        response, _ = self._send("POST", where, {"lora_name": name})
        text = self._text(response)
        if response.status_code != 200 and "found" not in text.lower():
            raise self._error("POST", where, f"{response.status_code} {text}", LOADING)

    def close(self) -> None:
        """End what is under way, and every connection."""
        self._closed.set()
        self._http.close()

    def _json(self, verb: str, where: str, payload: Mapping[str, Any] | None) -> Any:
        response, _ = self._send(verb, where, payload)
        if response.status_code != 200:
            raise self._error(
                verb, where, f"{response.status_code} {self._text(response)}", "200", self._advice(response)
            )
        try:
            return response.json()
        except ValueError:
            raise self._error(verb, where, f"no JSON: {self._text(response)}", "an OpenAI-compatible server") from None

    def _advice(self, response: httpx.Response) -> str:
        if response.status_code in (401, 403):
            return f"the key is read from the environment variable {self._settings.key_from or 'OPENAI_API_KEY'}"
        return ""

    def _send(self, verb: str, where: str, payload: Mapping[str, Any] | None) -> tuple[httpx.Response, bool]:
        """The answer, and whether the request was made more than once.

        Made again, each time later: where nobody answers, or in no time, and for 429 and what a server says of itself
        (5xx). Its own last answer is returned whatever it is.

        Raises:
            ServerError: there was none.
        """
        tries = self._settings.retries + 1
        why = ""
        for number in range(tries):
            response = None
            try:
                key = self._settings.key
                header = {"Authorization": f"Bearer {key}"} if key else {}
                response = self._http.request(verb, self._settings.root + where, json=payload, headers=header)
                if response.status_code not in _BUSY or number + 1 == tries:
                    return response, number > 0
                why = f"{response.status_code} {self._text(response)}"
            except httpx.TimeoutException:
                why = f"no answer within evaluator.server.timeout={self._settings.timeout:g} s"
            except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:
                if self._closed.is_set():
                    break
                if isinstance(error, RuntimeError):
                    raise
                why = self._clean(str(error) or type(error).__name__)
            if number + 1 < tries:
                _LOG.info("%s %s came to nothing (%s): again", verb, where, why)
                if self._closed.wait(_pause(number, response)):
                    break
        if self._closed.is_set():
            raise ServerError(f"{verb} {self._settings.root}{where} was broken off")
        times = f", {tries} times" if tries > 1 else ""
        raise self._error(
            verb, where, f"{why}{times}", "a server that runs", "`evomerge resume RUN` goes on once it does"
        )

    def _text(self, response: httpx.Response) -> str:
        """What an answer says, in one line: the message of an error where it has one."""
        try:
            content = response.json()
        except ValueError:
            content = response.text
        for key in ("error", "message", "detail"):
            content = content[key] if isinstance(content, Mapping) and content.get(key) else content
        return self._clean(str(content))

    def _clean(self, text: str) -> str:
        key = self._settings.key
        line = " ".join((text.replace(f"Bearer {key}", "***").replace(key, "***") if key else text).split())
        line = "".join(c if c.isprintable() else "?" for c in line)
        return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."

    def _error(self, verb: str, where: str, came: str, allowed: str, do: str = "") -> ServerError:
        return ServerError(f"{verb} {self._settings.root}{where} gave {came}", allowed, do)


def _pause(number: int, response: httpx.Response | None) -> float:
    """Seconds before a request is made again: twice as long each time, not at once by all, or as the server says."""
    asked = response.headers.get("retry-after", "") if response is not None else ""
    if asked.isdigit():
        return float(min(int(asked), _LONGEST))
    return min(_FIRST * 2.0**number, _LONGEST) * (0.75 + secrets.randbelow(501) / 1000)
