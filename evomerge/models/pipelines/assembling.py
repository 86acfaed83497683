"""A pipeline around a network that is in memory: the other parts loaded once, and what they compute kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from evomerge.errors import ConfigError, PoolError, nearest, reason_of
from evomerge.models.memory import out_of_memory
from evomerge.models.pipelines.folders import read_pipeline
from evomerge.models.pipelines.libraries import pipeline_class, quiet, require_diffusers
from evomerge.models.pipelines.rest import PipelineRest
from evomerge.models.pipelines.text_encoders import fold_into

_MOST_KEPT = 4096  # calls whose results are kept


def assemble(module: Any, rest: PipelineRest, dtype: torch.dtype, device: torch.device, sampler: str = "") -> Any:
    """The diffusers pipeline of a network, on its device.

    What does not depend on the network is computed once for equal arguments: embeddings of prompts, and the noise that
    a seed gives.

    Args:
        module: the network, which stays itself: its weights may change from call to call.
        rest: where the other parts lie.
        dtype: of the other parts.
        device: where they compute.
        sampler: a scheduler class of diffusers in the place of the pipeline's own; empty for that.

    Raises:
        ConfigError: there is no such sampler, or it does not fit.
        PoolError: diffusers cannot load the other parts.
    """
    cls = pipeline_class(rest.pipeline)
    try:
        with quiet():
            pipeline = cls.from_pretrained(
                str(rest.folder), **{rest.network: module}, torch_dtype=dtype, local_files_only=True
            )
            fold_into(pipeline, rest)
            pipeline.to(device)
    except PoolError:
        raise
    except Exception as error:  # of any of its parts
        if out_of_memory(error):
            raise
        raise PoolError(
            f"diffusers cannot load the pipeline in {rest.folder} ({reason_of(error)})",
            "a folder that DiffusionPipeline.from_pretrained loads",
            "download it again, or set pool.others to another",
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    if sampler:
        pipeline.scheduler = _scheduler(sampler, pipeline.scheduler)
    if hasattr(pipeline, "encode_prompt"):
        pipeline.encode_prompt = _Kept(pipeline.encode_prompt)
    if hasattr(pipeline, "prepare_latents"):
        pipeline.prepare_latents = _Kept(pipeline.prepare_latents)
    return pipeline


def check_sampler(sampler: str, rest: PipelineRest) -> None:
    """`ConfigError` for a sampler that diffusers does not have, or that does not go with the pipeline's own."""
    from evomerge.models.checkpoints.headers import read_json

    path = rest.folder / "scheduler" / "scheduler_config.json"
    _scheduler_class(sampler)
    if "scheduler" not in read_pipeline(rest.folder).parts:
        raise ConfigError(f"sampler is {sampler!r}", f"the pipeline {rest.folder} has no scheduler", "leave it out")
    read_json(path, "how noise is taken away")


def _scheduler_class(sampler: str) -> Any:
    diffusers = require_diffusers()
    with quiet():
        found = getattr(diffusers, sampler, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
        known = [name for name in dir(diffusers) if name.endswith("Scheduler")]
        raise ConfigError(f"sampler is {sampler[:80]!r}", nearest(sampler, known))
    return found


def _scheduler(sampler: str, own: Any) -> Any:
    """A sampler with the settings of the pipeline's own."""
    cls = _scheduler_class(sampler)
    try:
        with quiet():
            return cls.from_config(own.config)
    except Exception as error:  # schedulers refuse settings in any way
        raise ConfigError(
            f"sampler is {sampler!r}, which does not take the settings of {type(own).__name__} ({reason_of(error)})",
            "a sampler for such a pipeline",
        ) from error


class _Kept:
    """A method whose results are kept by its arguments; what generators drew meanwhile they have drawn again."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self._known: OrderedDict[str, tuple[Any, list[torch.Tensor]]] = OrderedDict()

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        """What the method gives, or has given."""
        generators: list[torch.Generator] = []
        key = _text((args, arguments), generators)
        if key is None:
            return self._method(*args, **arguments)
        if key not in self._known:
            made = self._method(*args, **arguments)
            self._known[key] = made, [own.get_state() for own in generators]
            if len(self._known) > _MOST_KEPT:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        made, states = self._known[key]
        for own, state in zip(generators, states, strict=True):
            own.set_state(state)
        return _copied(made)


def _text(value: Any, generators: list[torch.Generator]) -> str | None:
    """Arguments as a text, equal for equal ones; ``None`` where they hold tensors."""
    if isinstance(value, torch.Generator):
        generators.append(value)
        return f"generator {value.device} {hash(bytes(value.get_state().numpy()))}"
    if isinstance(value, torch.Tensor):
        return None
    if isinstance(value, list | tuple):
        parts = [_text(own, generators) for own in value]
        return None if None in parts else f"[{','.join(map(str, parts))}]"
    if isinstance(value, dict):
        pairs = [(repr(key), _text(own, generators)) for key, own in sorted(value.items())]
        return None if any(text is None for _, text in pairs) else f"{{{pairs}}}"
    if value is None or isinstance(value, str | int | float | torch.device | torch.dtype):
        return repr(value)
    return None


def _copied(value: Any) -> Any:
    """The same with tensors of its own: pipelines may write into them."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, list | tuple):
        return type(value)(_copied(own) for own in value)
    return value
