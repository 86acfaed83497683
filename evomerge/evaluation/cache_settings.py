"""What workers keep of merged slices, as it is configured. Needs no torch: workers that start know it at once."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, replace

from evomerge.errors import ConfigError
from evomerge.utils.sizes import byte_count

WORDS = ("auto", "off", "memory", "disk")


@dataclass(frozen=True)
class CacheSettings:
    """What workers keep of merged slices.

    Attributes:
        memory: bytes in each worker; ``None`` for a quarter of what is free, divided among the workers.
        shared: ``off``; ``memory`` or ``disk``, for as long as the run lasts; or a folder, which stays.
        shared_size: bytes of the shared cache; ``None`` for a part of what is free.
        keep_all: whether the shared cache keeps what was merged once, and not only what is likely wanted again.
        workers: how many of them one machine may hold.
        run: tells the temporary folders of runs apart.
        sharing: how many of them share a GPU.
        gpu: bytes of a GPU to count with; ``None`` for those that it has.
        automatic: whether nobody said what is shared.
        states: bytes of hidden states in each worker; ``None`` for an eighth of what is free, divided likewise.
        group: bytes of every GPU that the processes of a worker's engine have on Ray; empty where it has what it sees.
    """

    memory: int | None = None
    shared: str = "off"
    shared_size: int | None = None
    keep_all: bool = False
    workers: int = 1
    run: str = ""
    sharing: int = 1
    gpu: int | None = None
    automatic: bool = False
    states: int | None = None
    group: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        cache: str | int,
        shared_cache: str,
        shared_cache_size: str | int,
        keeps: str = "likely",
        workers: int = 1,
        gpu: str | int | None = None,
        hidden_states: str | int = "auto",
    ) -> CacheSettings:
        """From an evaluator's configuration: ``auto`` shares in memory between several workers.

        Raises:
            ConfigError: a size or a word that cannot be read.
        """
        memory = None if cache == "auto" else byte_count(cache, "evaluator.cache", least=0, words="auto, 0 for none")
        size = (
            None
            if shared_cache_size == "auto"
            else byte_count(shared_cache_size, "evaluator.shared_cache_size", words="auto")
        )
        shared = ("memory" if workers > 1 else "off") if shared_cache == "auto" else shared_cache
        if shared not in WORDS and os.sep not in shared:
            raise ConfigError(
                f"evaluator.shared_cache is {shared_cache!r}", f"{', '.join(WORDS)}, run, or a folder's path"
            )
        if keeps not in ("likely", "all"):
            raise ConfigError(f"evaluator.shared_cache_keeps is {keeps!r}", "likely or all")
        found = cls(memory, shared, size, keeps == "all", workers, secrets.token_hex(4))
        # a number alone is bytes, and 24 was meant as 24GB
        most = None if gpu is None else byte_count(gpu, "evaluator.gpu", least=10**6, words="null")
        states = (
            None
            if hidden_states == "auto"
            else byte_count(hidden_states, "evaluator.hidden_states", least=0, words="auto, 0 for none")
        )
        return replace(found, gpu=most, automatic=shared_cache == "auto", states=states)

    def on_gpus(self, sharing: int = 1) -> CacheSettings:
        """The same for workers on GPUs.

        There merging takes less time than fetching what another worker merged from the host's memory, and publishing
        copies it there: nothing is shared unless somebody said so.

        Args:
            sharing: workers on each GPU.
        """
        return replace(self, sharing=sharing, shared="off" if self.automatic else self.shared)
