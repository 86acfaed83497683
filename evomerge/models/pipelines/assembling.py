"""A pipeline around a network that is in memory: the other parts loaded once, and what they compute kept."""

from __future__ import annotations

import inspect
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
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
    cls, parts = _scheduler_class(sampler), read_pipeline(rest.folder).parts
    if "scheduler" not in parts:
        raise ConfigError(f"sampler is {sampler!r}", f"the pipeline {rest.folder} has no scheduler", "leave it out")
    settings, own = read_json(path, "how noise is taken away"), parts["scheduler"][1]
    if sampler == own:
        return
    given, do = f"sampler is {sampler!r}", "leave it out for the pipeline's own"
    if _flows(own, settings) != _flows(sampler, settings, cls):
        kind = "matches flows" if _flows(own, settings) else "takes noise away step by step"
        raise ConfigError(f"{given}, and {own} of {rest.pipeline} {kind}", _of_kind(own, settings), do)
    if _SETS_SIGMAS.search(inspect.getsource(pipeline_class(rest.pipeline).__call__)) and not _takes_sigmas(cls):
        given = f"{given}, and {rest.pipeline} says the noise of each step itself"
        raise ConfigError(given, _of_kind(own, settings), do)


_SETS_SIGMAS = re.compile(r"^\s*sigmas = ", re.MULTILINE)
"""In the call of a pipeline that gives its scheduler the noise of each step."""


def _flows(name: str, settings: Mapping[str, Any], cls: Any = None) -> bool:
    """Whether a scheduler with a pipeline's settings goes along flows; of another class than theirs where `cls` is."""
    if name.startswith("FlowMatch"):
        return True
    said = bool(settings.get("use_flow_sigmas")) or settings.get("prediction_type") == "flow_prediction"
    return said and (cls is None or "use_flow_sigmas" in inspect.signature(cls.__init__).parameters)


def _takes_sigmas(cls: Any) -> bool:
    return "sigmas" in inspect.signature(cls.set_timesteps).parameters


def _of_kind(own: str, settings: Mapping[str, Any]) -> str:
    """Samplers that may stand for a pipeline's own, some of them."""
    if _flows(own, settings):
        return "FlowMatchEulerDiscreteScheduler, or another that matches flows"
    return "DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, or another of that kind"


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
