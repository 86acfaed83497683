"""The pool: source models that share an architecture, opened and compared without reading their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import EvomergeError, PoolError
from evomerge.models.architecture.layout import Layout
from evomerge.models.architecture.residual import Residual
from evomerge.models.architecture.residual_rules import residual_of
from evomerge.models.checkpoints.folding import FoldedCheckpoint
from evomerge.models.checkpoints.reader import Checkpoint
from evomerge.models.checkpoints.sentence_modules import MODULES
from evomerge.models.heads import PoolHeads
from evomerge.models.pool_settings import of_model
from evomerge.models.statistics import ModelStatistics, pool_words
from evomerge.models.vocabularies.vocabulary import Vocabulary
from evomerge.recipes.calibration import LEARNED
from evomerge.recipes.pool_info import PoolInfo
from evomerge.utils.memory import MemoryPart


@dataclass(frozen=True)
class Pool:
    """Open source models that can be merged with each other.

    Attributes:
        info: what search spaces and strategies see of the pool.
        layout: the slices, in the tensor names of the model that configuration and tokenizer come from.
        checkpoints: the open checkpoints by model name.
        config: the transformers configuration of ``info.config_from``.
        stored: for every model: layout tensor name -> the name in its own checkpoint.
        trust_remote_code: whether code from the models' folders may run.
        tokenizer_from: the model whose tokenizer is used, ``None`` for ``info.config_from``.
        statistics: of data, by model and kind; they may still be to be made.
        vocabulary: what the models' rows were brought to; ``None`` where they are merged as they are.
        heads: what sources carry on their own; ``None`` where all is merged.
        kept: names of the tensors that results have from one model, by their places in the module; empty where all are
            merged.
        tied: what `tie_word_embeddings` of the results is, where models differ in it; otherwise ``None``.
    """

    info: PoolInfo
    layout: Layout
    checkpoints: Mapping[str, Checkpoint]
    config: Any
    stored: Mapping[str, Mapping[str, str]]
    trust_remote_code: bool = False
    tokenizer_from: str | None = None
    tied: bool | None = None
    statistics: Mapping[tuple[str, str], ModelStatistics] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None
    heads: PoolHeads | None = None
    kept: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def residual(self) -> Residual:
        """How the residual stream of the architecture is written and read."""
        return residual_of(self.config, self.trust_remote_code)

    @property
    def encoder_from(self) -> str | None:
        """The model whose files of sentence-transformers the results get: that of the configuration, or the first."""
        names = dict.fromkeys((self.info.config_from, *self.info.sources, *self.checkpoints))
        return next((name for name in names if (self.folder(name) / MODULES).is_file()), None)

    @property
    def encoder_folder(self) -> str:
        """Its folder; empty where no model has such files."""
        return "" if self.encoder_from is None else str(self.folder(self.encoder_from))

    def folder(self, name: str) -> Path:
        """The folder of one model."""
        return self.checkpoints[name].folder

    def read(self, model: str, name: str) -> torch.Tensor:
        """A model's tensor by its name in the layout, in the stored dtype, mapped from its file."""
        return self.checkpoints[model].read(self.stored[model][name])

    def read_head(self, task: str) -> dict[str, torch.Tensor]:
        """The tensors of a task's head by their names in the module, in the stored dtype, mapped from its file."""
        assert self.heads is not None
        own = self.checkpoints[task]
        return {place: own.read(name) for place, name in self.heads.stored[task].items()}

    def read_kept(self) -> dict[str, torch.Tensor]:
        """The tensors that are kept, by their names in the checkpoint of their model, as they are stored there."""
        own = self.checkpoints[self.info.config_from]
        return {name: own.read(name) for name in self.kept.values()}

    def statistics_of(self, model: str, kind: str, key: str) -> ModelStatistics:
        """The statistics of a model; `PoolError` with the command that makes them where they are not there."""
        found = self.statistics.get((model, kind))
        if found is None or found.key != key or not found.complete:
            ref = self.info.calibration
            known = {own for own, _, _ in ref.statistics} if ref is not None else ()
            learnt = kind in LEARNED  # of differences from the base, which the recipe says
            pool = pool_words([own for own in self.info.refs if own[0] in known or learnt])[: 1 if learnt else 2]
            raise PoolError(
                f"the statistics ({kind}) of model {model!r} are not there ({key[:19]})",
                "those of the recipe's calibration",
                f"make them: {ref.command(pool)}" if ref is not None and ref.key(model, kind) == key else "",
            )
        return found

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer of merged models lies."""
        if self.vocabulary is not None:
            return self.vocabulary.folder
        return self.folder(self.tokenizer_from or self.info.config_from)

    def tokenizer_of(self, model: str) -> Path:
        """Where the tokenizer lies that a source model reads texts with, as the pool reads its weights."""
        return self.folder(model) if self.vocabulary is None else self.vocabulary.folder

    def is_kept(self, model: str, name: str) -> bool:
        """Whether a model's tensor that was read stays in memory or mapped; one that is folded may find no room."""
        return self.checkpoints[model].is_kept(self.stored[model][name])

    @property
    def nbytes(self) -> int:
        """Bytes of all models' tensors, as they are stored."""
        return sum(checkpoint.nbytes for checkpoint in self.checkpoints.values())

    def release(self) -> None:
        """Give back the memory of tensors with an adapter folded in; they are folded again when they are read."""
        for checkpoint in self.checkpoints.values():
            checkpoint.release()

    def unmap(self) -> None:
        """Give back the memory that mapped files take; they are read again when their tensors are."""
        for checkpoint in self.checkpoints.values():
            checkpoint.unmap()

    def require_unchanged(self) -> None:
        """`PoolError` where a file of a model is not as it was when the pool was opened; takes microseconds."""
        for name, checkpoint in self.checkpoints.items():
            try:
                checkpoint.require_unchanged()
            except PoolError as error:
                raise of_model(name, error) from None

    def memory(self) -> list[MemoryPart]:
        """What the open models take once all of their tensors have been read."""
        every = self.checkpoints.values()
        own = [checkpoint.plain for checkpoint in every]
        files = {info.file for checkpoint in own for info in checkpoint.tensors.values()}
        mapped = sum(file.stat().st_size for file in files)
        parts = [MemoryPart("sources", mapped, "files, mapped; they may be dropped", per_machine=True)]
        adapted = [checkpoint for checkpoint in own if isinstance(checkpoint, FoldedCheckpoint)]
        folded, room = sum(own.memory for own in adapted), max((own.room.limit for own in adapted), default=0)
        if folded > room:  # those of one tensor are there at a time, beside what is kept
            folded = min(
                folded, room + sum(max((own.tensors[n].nbytes for n in own.changed), default=0) for own in adapted)
            )
        if folded:
            parts.append(MemoryPart("adapters", folded, "tensors with adapters folded in"))
        rows = sum(checkpoint.memory for checkpoint in every if checkpoint.plain is not checkpoint)
        if rows:
            parts.append(MemoryPart("vocabularies", rows, "embeddings and heads brought to one vocabulary"))
        return parts

    def is_merged(self, name: str) -> bool:
        """Whether a tensor of the layout is a float that is merged, rather than an integer buffer."""
        return name not in self.layout.integers


def require_own_rows(pool: Pool, what: str, kind: type[EvomergeError] = PoolError) -> None:
    """An error where a pool's models were brought to one vocabulary, for what reads them as their files hold them.

    Args:
        pool: the source models.
        what: the subject of the sentence.
        kind: of error.
    """
    if pool.vocabulary is not None:
        raise kind(
            f"{what} takes models with the rows of their own files, and those of this pool are brought to one "
            f"vocabulary of {pool.vocabulary.rows.count} rows",
            "models with one tokenizer and equally many rows",
            "write each with `evomerge merge` first: a recipe of one model alone, of this pool",
        )


def unadapted(checkpoint: Checkpoint) -> Checkpoint:
    """The files of a model without the adapter that is folded into it, where there is one."""
    plain = checkpoint.plain
    return plain.base if isinstance(plain, FoldedCheckpoint) else plain
