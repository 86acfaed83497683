"""Candidates as adapters inside vLLM's engine: the requests of one batch may each have another."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.errors import OutputError, RecipeError, reason_of
from evomerge.evaluation.adapter_files import write_adapter
from evomerge.evaluation.caching import folder_prefix, sweep
from evomerge.evaluation.fitting_adapters import FittingAdapters, FoundAdapter
from evomerge.merge.cache.shared_cache import lock_folder, remove_if_unused
from evomerge.merge.planning.slice_plan import Plan
from evomerge.merge.resident.merge_count import MergeCount
from evomerge.models.loaded import LoadedModel
from evomerge.models.memory import device_lost, out_of_memory


def engine_arguments(fitting: FittingAdapters, at_once: int) -> dict[str, Any]:
    """Arguments of ``vllm.LLM`` for an engine that takes so many adapters at once.

    The head is not among the modules: with an adapter there vLLM 0.32 leaves it out of log-likelihoods of prompts, and
    on processors it ends.
    """
    return {
        "enable_lora": True,
        "max_loras": at_once,
        "max_lora_rank": fitting.rank,
        "lora_target_modules": fitting.targets,
    }


class EngineAdapters:
    """The adapters of one engine, those that were asked for last.

    vLLM finds the weights of an adapter by its number, and keys and values of prompts that it has read by its name and
    folder: none of these is ever given to other content.

    Args:
        llm: a ``vllm.LLM`` that was started with `engine_arguments`.
        model: around it.
        fitting: which plans are adapters.
        at_once: how many the engine has room for.
        hold_base: lets the engine have the base's own weights.
        recover: lets it forget what a candidate has left that could not be scored.

    Raises:
        OutputError: there is no folder for them.
    """

    def __init__(
        self,
        llm: Any,
        model: LoadedModel,
        fitting: FittingAdapters,
        at_once: int,
        hold_base: Callable[[Plan], MergeCount],
        recover: Callable[[], None],
    ) -> None:
        self.at_once, self.fitting = at_once, fitting
        self._llm, self._model, self._hold_base = llm, model, hold_base
        self.recover = recover
        self._numbers = itertools.count(1)
        self._known: OrderedDict[str, Any] = OrderedDict()  # requests by content, the last used behind
        root = Path(tempfile.gettempdir())
        sweep(root)  # what killed workers have left
        self._folder = root / f"{folder_prefix()}adapters-{secrets.token_hex(8)}"
        try:
            self._lock = lock_folder(self._folder)
        except OSError as error:
            raise self._unwritten(error) from error

    def find(self, plan: Plan) -> FoundAdapter | None:
        """The adapter that a plan is; ``None`` for one whose slices have to be merged."""
        try:
            return self.fitting.of(plan)
        except RecipeError:
            return None

    def begin(self) -> None:
        """Let the engine have the base, whatever was merged into it before.

        Raises:
            DeviceLostError: the engine cannot be used any more.
        """
        self._hold_base(self.fitting.base)

    def load(self, adapter: FoundAdapter) -> tuple[LoadedModel, MergeCount]:
        """The model that an adapter makes, loaded; until `at_once` others have been.

        Raises:
            RecipeError: vLLM does not take it; its weights are not finite.
            OutputError: it cannot be written.
        """
        start = time.perf_counter()
        request = self._known.get(adapter.key)
        computed = adapter.changed if request is None else 0
        if request is None:
            request = self._written(adapter)
        else:
            self._known.move_to_end(adapter.key)
        try:
            self._llm.llm_engine.add_lora(request)
        except Exception as error:
            if out_of_memory(error) or device_lost(error):
                raise
            given = f"vLLM does not take its adapter ({reason_of(error)})"
            raise RecipeError(given, "", "evaluator.adapters_at_once=0 merges every candidate") from error
        seconds = time.perf_counter() - start
        return replace(self._model, adapter=request), MergeCount(
            kept=adapter.slices - computed, computed=computed, seconds=seconds
        )

    def _written(self, adapter: FoundAdapter) -> Any:
        """A request with a new name and number for what is in a new folder."""
        for module, (own, _) in adapter.factors.items():
            if not all(bool(factor.to(self._model.dtype).isfinite().all()) for factor in own):
                name = str(self._model.dtype).removeprefix("torch.")
                raise RecipeError(f"what is added to {module} is NaN or beyond the range of {name}", "smaller weights")
        while len(self._known) >= self.at_once:
            _, old = self._known.popitem(last=False)
            shutil.rmtree(old.lora_path, ignore_errors=True)
        number = self._next_number()
        folder = self._folder / f"{adapter.key[:16]}-{number}"
        try:
            folder.mkdir()
            write_adapter(folder, adapter.factors, self.fitting.exact.base, self.fitting.exact.places)
        except (OSError, RuntimeError) as error:  # safetensors has errors of its own
            shutil.rmtree(folder, ignore_errors=True)
            raise self._unwritten(error) from error
        request = self._request(folder.name, number, folder)
        self._known[adapter.key] = request
        return request

    @staticmethod
    def _request(name: str, number: int, folder: Path) -> Any:
        from vllm.lora.request import LoRARequest

        return LoRARequest(name, number, str(folder))

    def _next_number(self) -> int:
        return next(self._numbers)

    def _unwritten(self, error: Exception) -> OutputError:
        return OutputError(
            f"candidates' adapters cannot be written into {self._folder.parent}: {reason_of(error)}",
            "a folder with room for them",
            f"set TMPDIR, now {os.environ.get('TMPDIR') or 'not set'}, to another",
        )

    def close(self) -> None:
        """Delete what was written."""
        self._known.clear()
        self._lock.close()
        remove_if_unused(self._folder)
