"""The Ray cluster: started here or found by its address, its room, and whether it is still there."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray

from evomerge.errors import ConfigError, EvomergeError
from evomerge.evaluation import ray_groups
from evomerge.evaluation.limits import sharing

_LOG = logging.getLogger(__name__)
_BETWEEN_CHECKS = 1.0  # seconds
_RESUME = "`evomerge resume RUN` goes on with the search"

GONE = 30.0
"""Seconds after which a head that does not answer is given up. Ray itself ends the process after 60."""

_SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""What Ray adds to the folder of its files, with the largest number that a process has."""
_LONGEST_SOCKET = 107  # bytes


class ClusterError(EvomergeError):
    """The cluster has gone; nothing of the run is lost."""

    exit_status = 3


class Cluster:
    """A connection to Ray.

    Args:
        address: ``host:port`` or ``auto``; ``None`` starts Ray on this machine.
        cpus, gpus: of each worker; GPUs may be ``None`` until `open` has seen the cluster: then one each where there
            are any, else none.
        workers: CPUs for so many are promised to a Ray that is started here; ``None`` for all that there are.
        modules: files and folders with modules that workers of other machines need.
        working_dir: a folder whose content they get, and run in.
        strategy: of each worker's placement group, where its engine lies on several GPUs: Ray's name for it; ``None``
            for workers of one process, which has what GPUs the worker has.
    """

    def __init__(
        self,
        address: str | None,
        cpus: int,
        gpus: float | None,
        workers: int | None,
        modules: Sequence[str] = (),
        working_dir: str | None = None,
        strategy: str | None = None,
    ) -> None:
        self.address, self.cpus, self.workers, self.strategy = address, cpus, workers, strategy
        self.gpus, self._asked = gpus or 0, gpus
        self._environment: dict[str, Any] = {}
        if address is not None and modules:
            self._environment["py_modules"] = list(modules)
        if working_dir is not None:
            self._environment["working_dir"] = working_dir
        self._ours = self.is_open = self.gone = False
        self._head = ""
        self._identity: str | None = None
        self._silent_since = self._checked_at = 0.0

    def open(self) -> None:
        """Connect; `ConfigError` where that fails."""
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # CPU actors still see the GPUs as set
        if not ray.is_initialized():
            self._connect()
            self._ours = True
        elif self._environment:
            _LOG.warning("Ray was started before: its workers get no modules and no folder")
        if self._asked is None:
            self.gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        self._head = str(ray.get_runtime_context().gcs_address)
        self._identity = _identity(self._head)
        self.is_open = True

    def _connect(self) -> None:
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._environment:
            settings["runtime_env"] = self._environment
        if self.address is None:
            # Without an address Ray would look for a cluster that somebody has started on this machine.
            settings |= {"address": "local", "include_dashboard": False}
            short = _short_folder()
            if short is not None:
                settings["_temp_dir"] = short
            if self.workers is not None:
                settings["num_cpus"] = self.workers * self.cpus
        else:
            settings["address"] = self.address
            self._require_listener(self.address)
            _find_token()
        try:
            with _own_signals():
                ray.init(**settings)
        except (Exception, SystemExit) as error:  # Ray raises whatever it likes, and exits for a timeout
            with contextlib.suppress(Exception):
                ray.shutdown()
            reason = "it does not answer" if isinstance(error, SystemExit) else " ".join(str(error).split())[:300]
            raise ConfigError(
                f"Ray did not start: {reason}",
                "evaluator.address is a running cluster's, or null to start one here",
                "check `ray status`, that this machine is a node of the cluster, and that RAY_AUTH_MODE and the token "
                "(~/.ray/auth_token, RAY_AUTH_TOKEN) are those of the head",
            ) from error

    def _require_listener(self, address: str) -> None:
        """Raise unless something listens: Ray would wait for two minutes."""
        if "://" in address:
            raise ConfigError(
                f"evaluator.address is {address!r}",
                "auto, or the head's host:port",
                "run on a node of the cluster: Ray's client protocol loses what is in flight",
            )
        host, colon, port = address.rpartition(":")
        if not colon:
            return
        if not port.isdigit():
            raise ConfigError(f"evaluator.address is {address!r}", "auto, or the head's host:port")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            raise ConfigError(
                f"nothing answers at evaluator.address={address} ({error.strerror or error})",
                "the address that `ray start --head` printed",
                "start the cluster, or leave the address out to start Ray here",
            ) from error

    @property
    def sharing(self) -> int:
        """How many workers share a GPU."""
        return sharing(self.gpus)

    def room(self) -> list[int]:
        """How many workers each node could hold, were it empty; where they have groups, how many begin on it."""
        return self._room_of([node["Resources"] for node in ray.nodes() if node["Alive"]])

    def _room_of(self, nodes: Sequence[Mapping[str, float]]) -> list[int]:
        if self.strategy is not None:
            return ray_groups.workers_on(nodes, self.cpus, int(self.gpus), self.strategy)
        found = []
        for have in nodes:
            count = int(have.get("CPU", 0) / self.cpus)
            if 0 < self.gpus < 1:
                count = min(count, int(have.get("GPU", 0)) * self.sharing)
            elif self.gpus:
                count = min(count, int(have.get("GPU", 0) / self.gpus))
            found.append(count)
        return found

    @property
    def each(self) -> str:
        """What each worker asks for, for people."""
        if self.strategy is not None:
            return ray_groups.described(self.cpus, int(self.gpus), self.strategy)
        return f"{self.cpus} CPUs and {self.gpus:g} GPUs"

    def unplaced(self) -> str:
        """What to say where fewer workers have a place than are wanted; connects to a cluster for a moment.

        Of Ray that is to start on this machine only the GPUs are counted: it is promised the CPUs.
        """
        if self.address is None:
            if not self.gpus:
                return ""
            import torch

            here = {"CPU": self.cpus * (self.workers or 1), "GPU": torch.cuda.device_count()}
            return self._short_of([here], f"this machine has {here['GPU']} GPUs")
        look = Cluster(self.address, self.cpus, self._asked, self.workers, strategy=self.strategy)
        try:
            look.open()
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            have = (f"{node.get('GPU', 0):g} GPUs and {node.get('CPU', 0):g} CPUs" for node in nodes)
            return look._short_of(nodes, f"the nodes of the cluster have {'; '.join(have)}")
        except ConfigError as error:
            return f"the cluster could not be asked whether workers have a place: {error.given}"
        finally:
            look.close()

    def _short_of(self, nodes: Sequence[Mapping[str, float]], have: str) -> str:
        found, wanted = sum(self._room_of(nodes)), self.workers or 1
        if found >= wanted:
            return ""
        short = "no worker has" if not found else f"{found} of {wanted} workers have"
        cpus = ", gpus_per_worker or cpus_per_worker" if self.address is not None else " or gpus_per_worker"
        less = f"lower evaluator.workers{cpus}"
        if self.strategy is not None and sum(ray_groups.workers_on(nodes, self.cpus, int(self.gpus), "PACK")) > found:
            less += ", or let evaluator.placement_strategy=PACK give a worker GPUs of several nodes"
        later = ""
        if self.address is not None:
            later = f"; {'the others' if found else 'they'} start when nodes join that have room"
        return f"{short} a place: each asks for {self.each}, {have}; {less}{later}"

    def check(self) -> bool:
        """Whether the head answers; once in a while it is asked.

        Raises:
            ClusterError: it has been silent for `GONE` seconds, or another one answers.
        """
        now = time.monotonic()
        if now - self._checked_at < _BETWEEN_CHECKS:
            return not self._silent_since
        self._checked_at = now
        host, _, port = self._head.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        except OSError:
            self._silent_since = self._silent_since or now
            if now - self._silent_since >= GONE:
                raise self.lost(f"the head of the Ray cluster at {self._head} does not answer any more") from None
            return False
        # Asking another cluster's head for anything would make Ray abort the process.
        if self._silent_since and self._identity is not None and _identity(self._head) != self._identity:
            raise self.lost(f"the head of the Ray cluster at {self._head} was started again and knows nothing of this")
        self._silent_since = 0.0
        return True

    def lost(self, what: str) -> ClusterError:
        """The error that says so."""
        self.gone = True
        return ClusterError(what, "a cluster that stays up", f"start it; {_RESUME}")

    def close(self) -> None:
        """Disconnect, where `open` connected."""
        if self._ours:
            ray.shutdown()
        self._ours = self.is_open = False


def _find_token() -> None:
    """Use the token that this user has, as `ray start` does, unless RAY_AUTH_MODE says what to do.

    Ray's clients do so only for ``address="auto"``. A cluster without authentication takes clients with a token.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    try:
        from ray._private.authentication import authentication_token_setup as setup
    except ImportError:  # before Ray 2.52 there were no tokens
        return
    find = getattr(setup, "maybe_enable_token_auth_if_token_available", None)
    if find is not None:
        level = setup.logger.level
        setup.logger.setLevel(logging.ERROR)
        try:
            find(warn_if_disabled=False)
        finally:
            setup.logger.setLevel(level)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes over what SIGTERM does when it starts: a search that is asked to end would crash."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _identity(head: str) -> str | None:
    """What tells a cluster from another one at the same address; ``None`` where Ray does not say."""
    try:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        return str(GcsClient(address=head).cluster_id.hex())
    except Exception:  # not a public interface: without it a head that was started again ends the process
        return None


def _short_folder() -> str | None:
    """A folder for Ray's files where the usual one is too long for the names of its sockets; ``None`` where it is not.

    Raises:
        ConfigError: there is no other.
    """
    usual = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.path.join(os.path.abspath(usual), _SOCKET).encode()) <= _LONGEST_SOCKET:
        return None
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        if os.access(folder, os.W_OK | os.X_OK):
            return os.path.join(folder, f"ray-{os.getuid() if hasattr(os, 'getuid') else 0}")
    raise ConfigError(
        f"Ray's sockets would lie in {usual}, whose name is too long for them",
        f"a folder with a name of at most {_LONGEST_SOCKET - len(_SOCKET) - 1} bytes",
        "set RAY_TMPDIR (or TMPDIR) to a short one",
    )
