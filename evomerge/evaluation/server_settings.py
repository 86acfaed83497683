"""The server that scores candidates, as a configuration names it. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from evomerge.errors import ConfigError, nearest

KEY = "OPENAI_API_KEY"
"""The environment variable that a key is read from unless another one is named."""

_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
_KEYS = ("key", "api_key", "apikey", "auth_token", "token", "authorization", "header", "headers", "password")


@dataclass(frozen=True)
class ServerSettings:
    """Where a server is and how it is asked.

    Attributes:
        url: ``http(s)://host:port``, with or without ``/v1``.
        model: the name of the pool's base there.
        adapters: a folder that the server can read; adapters of candidates are written into it.
        adapters_there: the same folder as the server sees it, where that is another path.
        timeout: seconds that one request may take.
        retries: how often a request is made again that found no server, or none that had time.
        concurrency: requests that are under way at a time, of one worker.
        key_from: the environment variable with the key; `KEY` for ``None``.
        tolerance: nats a token that the server's log-likelihoods may be from transformers' when a search begins;
            ``None`` for what rounding in the pool's dtype gives. For servers that quantise.
        owner: what names of adapters begin with: the run, and this session of it.
    """

    url: str
    model: str
    adapters: str
    adapters_there: str | None = None
    timeout: float = 120.0
    retries: int = 4
    concurrency: int = 16
    key_from: str | None = None
    tolerance: float | None = None
    owner: tuple[str, str] = field(default=("", ""), compare=False)

    def __post_init__(self) -> None:
        """Raise `ConfigError` for what is no such value; no message repeats what could be a key."""
        parts = urlsplit(self.url) if isinstance(self.url, str) else urlsplit("")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError(
                "evaluator.server.url holds more than a place",
                "such as http://host:8000: what is in a configuration is written into run folders",
                f"put a key into the environment variable {KEY}, or name another with evaluator.server.key_from",
            )
        try:
            there = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number
            there = False
        if not there:
            raise ConfigError(
                f"evaluator.server.url is {self.url!r}",
                "the server's address, which begins with http:// or https://",
                "for example evaluator.server.url=http://localhost:8000",
            )
        for name in ("model", "adapters", "adapters_there"):
            value = getattr(self, name)
            if value is None and name == "adapters_there":
                continue
            if not isinstance(value, str) or not value or not value.isprintable():
                what = "the base's name on the server" if name == "model" else "a folder that the server can read"
                raise ConfigError(f"evaluator.server.{name} is {value!r}", what)
        if self.adapters_there is not None and not self.adapters_there.startswith("/"):
            raise ConfigError(f"evaluator.server.adapters_there is {self.adapters_there!r}", "a path from the root on")
        for name, least in (("retries", 0), ("concurrency", 1)):
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or not least <= count <= 1000:
                raise ConfigError(f"evaluator.server.{name} is {count!r}", f"a whole number from {least} to 1000")
        for name in ("timeout", "tolerance"):
            value = getattr(self, name)
            if value is None and name == "tolerance":
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise ConfigError(f"evaluator.server.{name} is {value!r}", "above 0, and finite")
        if self.key_from is not None and not (isinstance(self.key_from, str) and _NAME.fullmatch(self.key_from)):
            raise ConfigError(
                "evaluator.server.key_from is not the name of an environment variable",
                f"capitals, digits and underscores, such as {KEY}; never the key itself",
            )

    @property
    def root(self) -> str:
        """The url without ``/v1``."""
        return self.url.rstrip("/").removesuffix("/v1").rstrip("/")

    @property
    def key(self) -> str:
        """The key, read anew from the environment; empty for none."""
        return os.environ.get(self.key_from or KEY, "").strip()

    def require_key(self) -> None:
        """Raise `ConfigError` where a variable is named and there is none."""
        if self.key_from is not None and not self.key:
            raise ConfigError(
                f"evaluator.server.key_from is {self.key_from}, and there is no such environment variable",
                "one that holds the server's key",
                f"export {self.key_from}=..., or leave key_from out for a server without a key",
            )

    @staticmethod
    def require_none(node: Any, engine: str) -> None:
        """Raise `ConfigError` where a server is named and something else scores."""
        if isinstance(node, Mapping) and any(node.get(name) for name in ("url", "model", "adapters")):
            raise ConfigError(
                f"evaluator.server names a server and evaluator.engine is {engine}",
                "it belongs to evaluator.engine=server",
                "set that, or leave it out",
            )

    @classmethod
    def of(cls, node: Any, owner: tuple[str, str] = ("", "")) -> ServerSettings:
        """The settings in ``evaluator.server``, given as plain values.

        Raises:
            ConfigError: a key of it that there is none of, or a value that is none of its kind; no value is repeated
                that could be a server's key.
        """
        known = [f.name for f in dataclasses.fields(cls) if f.name != "owner"]
        if not isinstance(node, Mapping):
            raise ConfigError("evaluator.server is no mapping", f"a mapping with {', '.join(known[:3])}")
        for name in node:
            if str(name).lower().replace("-", "_") in _KEYS:
                raise ConfigError(
                    f"evaluator.server has {name}",
                    "no key stands in a configuration: it would be written into run folders",
                    f"put it into the environment variable {KEY}, or name another with evaluator.server.key_from",
                )
            if name not in known:
                raise ConfigError(f"evaluator.server has no key {name!r}", nearest(str(name), known))
        for name in known[:3]:
            if node.get(name) is None:
                what = {"url": "its address, such as http://localhost:8000", "model": "the base's name there"}
                allowed = what.get(name, "a folder that the server can read")
                raise ConfigError(f"evaluator.engine is server and evaluator.server.{name} is not set", allowed)
        return cls(**{name: value for name, value in node.items() if value is not None}, owner=owner)
