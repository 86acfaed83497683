"""Image classification as a fitness: folders or tables of images, models with a head or zero-shot ones."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from evomerge.candidate import Part
from evomerge.errors import ConfigError, FitnessError
from evomerge.objectives import MetricShare, Objective
from evomerge.protocols import Estimator, Scores
from evomerge.utils.sizes import byte_count
from fitness._images.metrics import item_shares, objective_weights, shares, totals
from fitness._images.sources import ImageItem, ImageSource, check_place, read_folder, read_source
from fitness._images.terms import parse_batch_norm, parse_tasks
from fitness._lm_eval.terms import plain
from fitness._unlabelled.values import finite, whole
from fitness.estimators.settings import parse_estimator

if TYPE_CHECKING:
    import torch

    from evomerge.models.loaded import LoadedModel, ModelOutline
    from evomerge.utils.memory import MemoryPart
    from fitness._images.prepared import How, Prepared


class ImagesFitness:
    """Scores a model on images of known classes, a task for each set of them.

    An item is an image; its value of ``acc`` is 1 where the likeliest class is the right one, else 0, that of
    ``cross_entropy`` minus the log-probability of the right one, nats; see `metrics.values_of` for ``macro_f1``. Images
    are decoded once, made tensors by the model's own image processor, and read in the same batches every time.

    Models whose class is ``...ForImageClassification`` are asked for their logits. Others are taken for image towers,
    CLIP's say: their features are compared with what the text tower of `clip` makes of prompts, once, when the
    fitness is prepared: the zero-shot heads of task arithmetic's eight tasks (arXiv 2212.04089, section 4).

    Where a model has batch norms, `batch_norms` gives the statistics of its own activations on images of the search: a
    search puts them into every merged model, and an export writes them.

    Args:
        tasks: by name the path of its images (a folder with a folder for each class; a CSV, JSONL or Parquet table), or
            a mapping with ``images``; ``image`` and ``label`` (columns), ``labels`` (class -> class of the model),
            ``limit``, ``among`` (``all`` classes or the ``task``'s), ``templates``, ``names`` (class -> what prompts
            call it), ``metrics``, ``weight``, ``objective``.
        split: which images of each task: ``all``, or those of the ``search`` or the ``held_out`` ones of a split by
            their content.
        held_out_share: of the held-out images.
        seed: of the split, and of the draw where there is a limit.
        metrics: of tasks that name none, with weights; ``acc`` for ``None``.
        templates: of prompts, of tasks that name none.
        clip: the model with the text tower: a folder or a hub id; ``None`` for the pool's base.
        processor: folder with an image processor; ``None`` for that of the pool's base.
        batch_norm: whether batch-norm statistics are computed again; or a mapping with ``images`` (how many),
            ``folder`` (of others), ``batch_size``, ``seed``.
        batch_size: images of a forward.
        cache_size: bytes of processed images in memory; more lie in a file.
        cache: folder for such files, which other runs then find; ``None`` for a temporary one.
        estimator: as of `LmEvalFitness`.

    Raises:
        ConfigError: an argument out of its range, naming it.
    """

    def __init__(
        self,
        tasks: dict[str, Any],
        *,
        split: Literal["all", "search", "held_out"] = "all",
        held_out_share: float = 0.25,
        seed: int = 0,
        metrics: str | list[str] | dict[str, Any] | None = None,
        templates: str | list[str] | None = None,
        clip: str | None = None,
        processor: str | None = None,
        batch_norm: bool | dict[str, Any] | None = True,
        batch_size: int = 64,
        cache_size: str | int = "2GB",
        cache: str | None = None,
        estimator: str | dict[str, Any] | None = "mean",
    ) -> None:
        self._terms = parse_tasks(plain(tasks), plain(metrics), plain(templates))
        self._estimator = parse_estimator(plain(estimator))
        self._batch_norm = parse_batch_norm(plain(batch_norm))
        self._split, self._share = split, finite(held_out_share, "held_out_share")
        if not 0 < self._share < 1:
            raise ConfigError(f"held_out_share is {held_out_share:g}", "a share above 0 and below 1")
        self._seed = whole(seed, "seed", 0, 2**63 - 1)
        self._batch_size = whole(batch_size, "batch_size", 1, 2**31)
        self._cache_size = byte_count(cache_size, "cache_size")
        self._cache, self._clip, self._processor = cache or "", clip or "", processor or ""
        self._sources: dict[str, ImageSource] | None = None
        self._others: list[ImageItem] = []
        self._prepared: Prepared | None = None

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Those that tasks name, ``score`` for those that name none; all to be maximised."""
        return tuple(Objective(name, "maximize") for name in objective_weights(self._terms))

    def check(self) -> None:
        """Find the images, once.

        Raises:
            FitnessError: a folder or table that is missing, cannot be read or has no images.
            ConfigError: Pillow is not installed.
        """
        from fitness._images.pixels import require_pillow

        require_pillow()
        self._read()

    def check_files(self) -> None:
        """Raise `FitnessError` for a folder or table that is not there."""
        for term in self._terms:
            check_place(term)
        self._estimator.check_files()

    def check_model(self, config: Any, folder: str) -> None:
        """Check the classes against a model's, and that there is an image processor; `check` comes before.

        Args:
            config: the transformers configuration.
            folder: the model's.

        Raises:
            FitnessError: a class that the model does not have, a prompt for none, no image processor.
        """
        from fitness._images.pixels import check_processor
        from fitness._images.prepared import numbers_of
        from fitness._images.zero_shot import has_head, prompts

        check_processor(self._processor or folder)
        for term in self._terms:
            source = self._read()[term.name]
            if has_head(config):
                numbers_of(term, source, config, zero_shot=False)
            else:
                prompts(term, source.classes)

    def items(self) -> dict[str, int]:
        """How many images each task has; `check` comes before."""
        return {name: len(source.items) for name, source in self._read().items()}

    def work(self) -> dict[str, int]:
        """What a candidate asks of a model: ``documents``, which are images."""
        count = sum(self.items().values())
        return {"documents": count, "texts": count, "written": 0}

    def memory(self, model: ModelOutline) -> list[MemoryPart]:
        """What processed images take beside a model's weights; `check` comes before."""
        from evomerge.utils.memory import MemoryPart
        from evomerge.utils.sizes import size_text
        from fitness._images.pixels import load_processor, nbytes_of

        folder = self._processor or str(getattr(model.config, "name_or_path", "") or "")
        try:
            count = sum(self.items().values())
            nbytes = min(nbytes_of(count, load_processor(folder)), self._cache_size)
        except FitnessError:  # said where the model is checked
            return []
        return [MemoryPart("images", nbytes, f"{count:,} images ({size_text(self._cache_size)} at most)", "cache_size")]

    def shares(self) -> list[MetricShare]:
        """What every metric counts in the objectives."""
        return shares(self._terms)

    def build_estimator(self) -> Estimator:
        """Build what tells of some images what all would give; `FitnessError` for macro F1, no mean of them."""
        return self._estimator.build(item_shares(self._terms), self.objectives, self.items())

    def cautions(self) -> list[str]:
        """None."""
        return []

    def prepare(self, model: LoadedModel) -> None:
        """Process the images, and build zero-shot heads where the model has none of its own.

        Raises:
            FitnessError: what `check` and `check_model` find; an image that cannot be decoded.
        """
        from fitness._images.prepared import prepare

        self._prepared = None
        sources = self._read()
        self._prepared = prepare(model, self._terms, sources, self._others, self._how())

    def run(self, model: LoadedModel, part: Part | None = None) -> Scores:
        """Score a model, with the batch-norm statistics that it has.

        Args:
            part: places of images by task, some of every one; in batches of their own, equal to rounding.

        Raises:
            FitnessError: outputs that are not finite, naming the image; a part that is none.
        """
        start = time.perf_counter()
        items, seconds = self._ready().score(model, part)
        found, metrics = totals(self._terms, items)
        return Scores(found, metrics, items, {"model": seconds, "other": time.perf_counter() - start - seconds})

    def batch_norms(self, model: LoadedModel) -> Mapping[str, torch.Tensor]:
        """Statistics of the model's batch norms on images of this fitness, by buffer; the model stays as it is.

        Raises:
            FitnessError: statistics that are not finite.
        """
        return self._ready().batch_norms(model)

    def texts(self, most: int) -> dict[str, list[dict[str, str]]]:
        """Where the first images of every task are, and their classes: for reports."""
        return {
            name: [{"prompt": item.where, "target": item.label} for item in source.items[:most]]
            for name, source in self._read().items()
        }

    def documents(self) -> list[tuple[str, str]]:
        """For each image the hashes of its bytes with its class, and of its bytes; those of batch norms come last."""
        found = [document for source in self._read().values() for document in source.documents]
        others = [hashlib.sha256(item.read()).hexdigest() for item in self._others]
        return [*found, *((text, text) for text in others)]

    def fingerprint(self) -> str:
        """``sha256:`` over pixels, classes, heads, metrics, dtype, batches and versions; not over places of files."""
        return f"sha256:{hashlib.sha256(self._ready().text.encode()).hexdigest()}"

    def _read(self) -> dict[str, ImageSource]:
        if self._sources is None:
            how = self._split, self._share, self._seed
            found = {term.name: read_source(term, *how) for term in self._terms}
            if self._batch_norm is not None and self._batch_norm.folder:
                self._others = read_folder(self._batch_norm.folder, "batch_norm.folder")
            self._sources = found
        return self._sources

    def _how(self) -> How:
        from fitness._images.prepared import How

        return How(self._batch_size, self._cache_size, self._cache, self._processor, self._clip, self._batch_norm)

    def _ready(self) -> Prepared:
        if self._prepared is None:
            raise FitnessError("the fitness has no items yet", "prepare(model) comes first")
        return self._prepared
