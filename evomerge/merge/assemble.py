"""The resident model: built once, then moved from candidate to candidate slice by slice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from evomerge.errors import PoolError, RecipeError
from evomerge.merge.engine import TORCH_DTYPES, Sources, merge_slice
from evomerge.merge.plan import Plan, make_plan
from evomerge.models.compatibility import has_tokenizer
from evomerge.models.conversion import ModuleTensors
from evomerge.models.layout import model_class
from evomerge.models.loaded import LoadedModel
from evomerge.models.pool import Pool
from evomerge.recipe import SliceId


@dataclass(frozen=True)
class MergeCount:
    """What moving the resident model to a plan took.

    Attributes:
        computed: slices that were written.
        kept: slices that were right already.
        bytes: size of the written tensors.
    """

    computed: int
    kept: int
    bytes: int


class Resident:
    """One transformers model in memory that plans are applied to in place.

    It is loaded by `from_pretrained` from the model that gives the pool's configuration, so that buffers,
    attention implementation and generation settings are those of an ordinary load.

    Args:
        pool: the source models.
        device: where the model lives and merging happens.
        attn_implementation: as in `from_pretrained`; ``None`` leaves the choice to transformers.
        budget: bytes of source tensors to keep on the device (see `engine.Sources`).

    Raises:
        PoolError: transformers cannot load the model.
    """

    def __init__(
        self,
        pool: Pool,
        device: str | torch.device = "cpu",
        attn_implementation: str | None = None,
        budget: int | None = None,
    ) -> None:
        self.pool = pool
        self.dtype = pool.info.dtype
        module = _load(pool, attn_implementation).to(torch.device(device))
        self.model = LoadedModel(
            module, _tokenizer(pool), TORCH_DTYPES[self.dtype], module.device, str(pool.folder(pool.info.config_from))
        )
        self._sources = Sources(pool, module.device, budget)
        self._tensors = ModuleTensors(module, pool.layout)
        self._keys: dict[SliceId, str] = {}
        own = make_plan(pool.info.linear({pool.info.config_from: 1.0}), pool)
        given, stored = pool.checkpoints[pool.info.config_from], pool.stored[pool.info.config_from]
        for entry in own.slices:
            as_read = not any(stored[name] in given.changed for name in entry.tensors)  # loaded without its adapter
            if as_read and all(self._tensors.dtype(name) == self.model.dtype for name in entry.tensors):
                self._keys[entry.slice] = entry.key

    def apply(self, plan: Plan) -> MergeCount:
        """Make the model the one that `plan` describes, writing only slices whose content key differs.

        Raises:
            RecipeError: the plan's dtype or slices are not the model's.
        """
        if plan.dtype != self.dtype:
            raise RecipeError(f"the recipe's dtype is {plan.dtype}", f"the resident model is in {self.dtype}")
        if {entry.slice for entry in plan.slices} != set(self.pool.layout.slices):
            raise RecipeError(
                f"the recipe makes {len(plan.slices)} slices",
                f"the resident model has the {len(self.pool.layout.slices)} of its {self.pool.layout.layers} layers",
                "recipes that change the depth are written out with `evomerge merge`",
            )
        computed = written = 0
        for entry in plan.slices:
            if self._keys.get(entry.slice) == entry.key:
                continue
            self._keys.pop(entry.slice, None)  # half written, should merging fail
            out = self._tensors.out(entry.tensors)
            merge_slice(entry, self.pool, sources=self._sources, out=out)
            self._tensors.settle(out)
            self._keys[entry.slice] = entry.key
            computed += 1
            written += sum(tensor.nbytes for tensor in out.values())
        return MergeCount(computed, len(plan.slices) - computed, written)


def _load(pool: Pool, attn_implementation: str | None) -> Any:
    """The model as `from_pretrained` loads it, in evaluation mode, its weights in memory of its own."""
    from transformers.utils import logging

    folder = str(pool.folder(pool.info.config_from))
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        module = model_class(pool.config, pool.trust_remote_code).from_pretrained(
            folder, dtype=TORCH_DTYPES[pool.info.dtype], trust_remote_code=pool.trust_remote_code, **options
        )
    except Exception as error:  # transformers raises whatever the architecture's code raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PoolError(f"transformers cannot load {folder} ({reason})") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    module.eval()
    for parameter in module.parameters():
        # Loading may leave them as views of the mapped file, or of larger storages.
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return module


def _tokenizer(pool: Pool) -> Any:
    from transformers import AutoTokenizer

    folder = pool.folder(pool.info.config_from)
    if not has_tokenizer(folder):
        return None
    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=pool.trust_remote_code)
