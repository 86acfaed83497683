"""``evomerge dashboard``: a run in optuna-dashboard."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.cli.verbs import verb_parser
from evomerge.errors import ConfigError


def run(arguments: Sequence[str]) -> int:
    """Serve until interrupted; a run that goes on is followed."""
    parser = verb_parser("dashboard")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    parser.add_argument("--port", type=int, default=8080, help="default: 8080; 0 for any that is free")
    parser.add_argument("--host", default="localhost", help="address to listen on (default: localhost)")
    options = parser.parse_args(list(arguments))
    require_dashboard()

    from evomerge.report.plain_console import console

    server = make_server(options.run, options.host, options.port)
    try:
        place = f"http://{options.host}:{server.server_port}/dashboard/studies/0"
        console.print(f"{options.run} is at {place}; Ctrl-C ends it", soft_wrap=True)
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0


def require_dashboard() -> None:
    """`ConfigError` unless optuna-dashboard is installed."""
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise ConfigError(
            "optuna-dashboard is not installed",
            "`evomerge dashboard` needs it",
            "install it with: pip install 'evomerge[dashboard]'",
        )


def make_server(run: Path, host: str, port: int) -> Any:
    """A server of a run's study that listens; `serve_forever` answers.

    Raises:
        LedgerError: the folder is not a run's.
        ConfigError: the address is taken, or not this machine's.
    """
    from socketserver import ThreadingMixIn
    from wsgiref import simple_server

    from optuna_dashboard import wsgi

    from evomerge.report.optuna_storage import FollowingStorage

    storage = FollowingStorage(run)

    class Server(ThreadingMixIn, simple_server.WSGIServer):
        daemon_threads = True

        def server_close(self) -> None:
            storage.close()
            super().server_close()

    class Handler(simple_server.WSGIRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Requests are not worth a line each."""

    try:
        server = simple_server.make_server(host, port, wsgi(storage), server_class=Server, handler_class=Handler)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"{host}:{port} cannot be listened on: {reason}", "an address of this machine", "choose another --port"
        ) from error
    storage.follow()
    return server
