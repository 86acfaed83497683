"""A model on a server, moved from candidate to candidate: each is an adapter that the server loads and lets go of."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

import torch

from evomerge.errors import InfeasibleError, RecipeError, ServerError, nearest
from evomerge.evaluation.server_adapters import AdapterFolder
from evomerge.evaluation.server_client import ServerClient
from evomerge.evaluation.server_settings import ServerSettings
from evomerge.merge.adapters.exact import ADAPTER_METHODS, ExactAdapters
from evomerge.merge.execution.engine import TORCH_DTYPES
from evomerge.merge.execution.notes import Notes
from evomerge.merge.planning.slice_plan import Plan
from evomerge.merge.resident.merge_count import MergeCount
from evomerge.merge.resident.merge_progress import MergeProgress
from evomerge.models.loaded import LoadedModel
from evomerge.models.pool import Pool
from evomerge.models.tokenizers import load_tokenizer

_POSITIONS = 2048
"""Of a server that does not say, as lm-eval has it."""


class ServedModel:
    """What a server has at present: `Served` for a fitness.

    Args:
        client: asks the server.
        settings: of it.
        positions, rows: as of `Served`.
    """

    def __init__(self, client: ServerClient, settings: ServerSettings, positions: int, rows: int) -> None:
        self._client = client
        self.name, self.positions, self.rows = settings.model, positions, rows
        self.url = f"{settings.root}/v1/completions"
        self.concurrency = settings.concurrency

    def complete(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request for completions.

        Raises:
            ServerError: there is none.
        """
        return self._client.complete(payload)


class ServerResident:
    """Adapters on one server, one at a time: the present candidate's.

    What a candidate adds to the base is found from its recipe and the factors of the pool's adapters; no weight of the
    base is read. The folder is written, loaded and, when the next candidate comes, let go of and deleted.

    Args:
        pool: adapters of one base, which the server has.
        settings: of the server.

    Attributes:
        model: without a module; its `served` is a `ServedModel`.
        progress: how far the model is on its way to the plan that is applied.

    Raises:
        RecipeError: the pool has models that are no adapters of one base.
        ServerError: there is no such server, or it does not have the base.
        OutputError: the folder for adapters cannot be written.
    """

    full = True  # the server's weights are what they are

    def __init__(self, pool: Pool, settings: ServerSettings) -> None:
        self.pool, self.settings = pool, settings
        self.adapters, self.folder = ExactAdapters(pool), AdapterFolder(settings)
        self.folder.make()
        self.client = ServerClient(settings)
        self._key, self._loaded = "", ""
        self._slices: dict[Any, str] = {}
        info = pool.info
        text = pool.config.get_text_config()
        positions = self._positions() or int(getattr(text, "max_position_embeddings", 0) or _POSITIONS)
        self.served = ServedModel(self.client, settings, positions, int(text.vocab_size))
        self.model = LoadedModel(
            cast(Any, None),
            load_tokenizer(pool.tokenizer_folder, pool.trust_remote_code),
            TORCH_DTYPES[info.dtype],
            torch.device("cpu"),
            str(pool.folder(info.config_from)),
            self.spare_memory,
            served=self.served,
        )
        self.progress = MergeProgress(Notes(0))

    def _positions(self) -> int:
        """What the server says of the base's positions, 0 where it says nothing."""
        entries = {str(entry["id"]): entry for entry in self.client.models()}
        if self.settings.model not in entries:
            self.client.close()
            raise ServerError(
                f"GET {self.settings.root}/v1/models gave no {self.settings.model!r}",
                nearest(self.settings.model, entries),
                "set evaluator.server.model to the base's name there (--served-model-name)",
            )
        found = entries[self.settings.model].get("max_model_len")
        return found if isinstance(found, int) and found > 1 else 0

    @torch.no_grad()
    def apply(self, plan: Plan) -> MergeCount:
        """Let the server have the adapter that `plan` describes, in the place of the one before.

        Raises:
            InfeasibleError: it is no adapter of the base.
            ServerError: the server does not take it.
            OutputError: it cannot be written.
        """
        start = time.perf_counter()
        key = hashlib.sha256("".join(entry.key for entry in plan.slices).encode()).hexdigest()
        changed = sum(self._slices.get(entry.slice) != entry.key for entry in plan.slices)
        if key != self._key:
            self.progress.begin(changed)
            try:
                self._change(key, plan)
            finally:
                self.progress.end()
        self._slices = {entry.slice: entry.key for entry in plan.slices}
        return MergeCount(kept=len(plan.slices) - changed, computed=changed, seconds=time.perf_counter() - start)

    def _change(self, key: str, plan: Plan) -> None:
        try:
            factors = self.adapters.of(plan)
        except RecipeError as error:
            raise InfeasibleError(f"it is no adapter: {error.given}", error.allowed or ADAPTER_METHODS) from error
        self._let_go()
        name = self.folder.name(key)
        if factors:
            self.folder.write(name, factors, self.adapters.base, self.adapters.places)
            self._loaded = name
            self.client.load(name, self.folder.there(name))
        self.served.name = name if factors else self.settings.model
        self._key = key
        self.pool.unmap()

    def _let_go(self) -> None:
        """Unload the present adapter and delete it; should that fail, the next call tries it again."""
        self._key = ""
        if self._loaded:
            self.folder.remove(self._loaded)
            self.client.unload(self._loaded)
            self._loaded = ""
        self.served.name = self.settings.model

    def clean(self) -> None:
        """Unload and delete what earlier sessions of this run have left: they were killed.

        Raises:
            ServerError: the server gives no answer.
        """
        for name in self.folder.left(str(entry["id"]) for entry in self.client.models()):
            self.client.unload(name)
        self.folder.clean()

    def use_room(self) -> None:
        """Nothing: the memory is the server's."""

    def spare_memory(self) -> bool:
        """Nothing is kept to save time."""
        return False

    def close(self) -> None:
        """Unload what is loaded, delete it, and end every connection."""
        with suppress(ServerError):  # of a server that has gone
            self._let_go()
        self.folder.forget()
        self.client.close()
