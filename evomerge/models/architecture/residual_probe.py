"""The layers of a tiny random instance of an architecture, run one by one to see how the residual stream passes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from evomerge.errors import PoolError
from evomerge.models.architecture.stacks import find_layers
from evomerge.models.architecture.tiny_model import HIDDEN, _reason

LENGTH = 5

# The stream is large beside the norms' epsilon, and what modules add to it far above its rounding in float32.
STREAM = 32.0
TOLERANCE = 1e-3
_MOST_WRITERS = 3


@dataclass
class Call:
    """What a module was called with, and what it gave.

    Attributes:
        args, kwargs: of the call.
        output: the first tensor that it returned.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: torch.Tensor | None

    @property
    def input(self) -> torch.Tensor | None:
        """The hidden states that it was given."""
        if self.args:
            return self.args[0] if isinstance(self.args[0], torch.Tensor) else None
        return next((value for value in self.kwargs.values() if isinstance(value, torch.Tensor)), None)


@dataclass
class Stage:
    """A module that the stream enters, whose inputs can be scaled: a layer, or what follows the layers.

    Attributes:
        module: that is called.
        call: what with.
        units: the modules within that have parameters of their own, by name, in the order in which they ran.
    """

    module: nn.Module
    call: Call
    units: dict[str, nn.Module] = field(default_factory=dict)

    def run(
        self, factor: float, scaled: Mapping[str, float] | None = None, calls: dict[str, Call] | None = None
    ) -> torch.Tensor:
        """The output for the stream times `factor`.

        Args:
            factor: of the stream.
            scaled: factors on the outputs of units.
            calls: receives the calls of the units, in order.
        """

        def multiply(by: float) -> Any:
            return lambda module, args, output: _times(output, by)

        def note(name: str) -> Any:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                assert calls is not None, "registered only then"
                calls[name] = Call(args, kwargs, first_tensor(output))

            return hook

        with ExitStack() as stack:
            for name, by in (scaled or {}).items():
                stack.callback(self.units[name].register_forward_hook(multiply(by)).remove)
            if calls is not None:
                for name, unit in self.units.items():
                    stack.callback(unit.register_forward_hook(note(name), with_kwargs=True).remove)
            stream = self.call.input
            assert stream is not None, "a stage has a stream"
            args, kwargs = list(self.call.args), dict(self.call.kwargs)
            if args:
                args[0] = stream * factor
            else:
                kwargs[next(key for key, value in kwargs.items() if value is stream)] = stream * factor
            output = first_tensor(self.module(*args, **kwargs))
        assert output is not None, "a stage gives hidden states"
        return output

    def unnormalised(self) -> str | None:
        """The first unit to take the stream whose output depends on the stream's scale; ``None`` where none does."""
        one: dict[str, Call] = {}
        two: dict[str, Call] = {}
        self.run(1.0, calls=one)
        self.run(2.0, calls=two)
        for name, call in one.items():
            taken, twice, given, then = call.input, two[name].input, call.output, two[name].output
            if taken is None or twice is None or given is None or then is None or not taken.is_floating_point():
                continue
            if close(twice, 2.0 * taken) and not close(then, given):
                return name
        return None

    def added(self, factor: float, scaled: Mapping[str, float] | None = None) -> torch.Tensor:
        """What is added to the stream times `factor`."""
        stream = self.call.input
        assert stream is not None, "a stage has a stream"
        return self.run(factor, scaled) - factor * stream

    def writers(self) -> tuple[str, ...] | None:
        """The units whose outputs must be multiplied where the stream is, for the layer to give all of it multiplied.

        The fewest there are, and of those the last to run. ``None`` where no few units do.
        """
        calls: dict[str, Call] = {}
        stream = self.call.input
        assert stream is not None, "a stage has a stream"
        base = self.run(1.0, calls=calls) - stream
        width = stream.shape[-1]
        inner = [name for name in calls if not any(other.startswith(f"{name}.") for other in calls)]
        able = [name for name in inner if (found := calls[name].output) is not None and found.shape[-1] == width]
        for count in range(1, _MOST_WRITERS + 1):
            for chosen in itertools.combinations(reversed(able), count):
                if close(self.added(2.0, dict.fromkeys(chosen, 2.0)), 2.0 * base):
                    return tuple(reversed(chosen))
        return None


def first_tensor(output: Any) -> torch.Tensor | None:
    """A tensor, or the first of what a module returned."""
    found = output[0] if isinstance(output, (tuple, list)) and output else output
    return found if isinstance(found, torch.Tensor) else None


def _times(output: Any, by: float) -> Any:
    return type(output)((output[0] * by, *output[1:])) if isinstance(output, (tuple, list)) else output * by


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal but for rounding and the norms' epsilon."""
    return bool((one - other).abs().max() <= TOLERANCE * other.abs().max())


def calls_of(module: nn.Module, layers: nn.ModuleList) -> dict[int, Call]:
    """What each layer is called with when the module is given tokens, without a cache of keys and values.

    Raises:
        PoolError: the module does not take tokens.
    """
    taken: dict[int, Call] = {}

    def note(number: int) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            taken[number] = Call(args, {k: None if "past_key" in k else v for k, v in kwargs.items()}, None)

        return hook

    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            stack.callback(layer.register_forward_hook(note(number), with_kwargs=True).remove)
        try:
            module(input_ids=torch.arange(1, 1 + LENGTH).view(1, -1), use_cache=False)
        except Exception as error:  # models of other inputs, and whatever else a class raises
            raise PoolError(_reason(error)) from error
    return taken


def stages(module: nn.Module) -> tuple[str, dict[int, Stage], Stage]:
    """Name of the list of layers, the layers by number, one of each kind, and the module that gives the logits.

    Raises:
        PoolError: the module does not take tokens, or its layers do not take hidden states.
    """
    prefix, layers = find_layers(module)
    taken = calls_of(module, layers)
    generator = torch.Generator().manual_seed(1)
    kinds: dict[str, int] = {}
    found = {}
    for number, call in sorted(taken.items()):
        kind = "|".join(f"{name}:{type(part).__name__}" for name, part in layers[number].named_modules())
        stream = call.input
        if kind in kinds or stream is None:
            continue
        kinds[kind] = number
        large = STREAM * torch.randn(stream.shape, generator=generator)
        replaced = tuple(large if value is stream else value for value in call.args)
        named = {key: large if value is stream else value for key, value in call.kwargs.items()}
        units = {
            n: m for n, m in layers[number].named_modules() if n and next(m.parameters(recurse=False), None) is not None
        }
        found[number] = Stage(layers[number], Call(replaced, named, None), units)
    if not found:
        raise PoolError("its layers do not take hidden states")
    return prefix, found, _end(module, prefix, layers)


class _End(nn.Module):
    """The model as a function of what its last layer gives."""

    def __init__(self, model: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.model, self._last = model, [last]

    def forward(self, stream: torch.Tensor) -> Any:
        """Logits."""

        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            return type(output)((stream, *output[1:])) if isinstance(output, (tuple, list)) else stream

        handle = self._last[0].register_forward_hook(replace)
        try:
            output = self.model(input_ids=torch.arange(1, 1 + LENGTH).view(1, -1), use_cache=False)
        finally:
            handle.remove()
        return output[0]


def _end(module: nn.Module, prefix: str, layers: nn.ModuleList) -> Stage:
    generator = torch.Generator().manual_seed(2)
    stream = STREAM * torch.randn((1, LENGTH, HIDDEN), generator=generator)
    named = {name: part for name, part in module.named_modules() if name and not name.startswith(f"{prefix}.")}
    units = {n: m for n, m in named.items() if next(m.parameters(recurse=False), None) is not None}
    return Stage(_End(module, layers[-1]), Call((stream,), {}, None), units)


@contextmanager
def parameters_of(unit: nn.Module, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """A module with other values of its own parameters."""
    own = dict(unit.named_parameters(recurse=False))
    kept = {name: own[name].data for name in values}
    try:
        for name, value in values.items():
            own[name].data = value
        yield
    finally:
        for name, value in kept.items():
            own[name].data = value


def rules_of(unit: nn.Module, call: Call, factors: Sequence[float], flip: bool) -> dict[str, float] | None:
    """The parameters of a unit that must change for its output to change by a factor, with their offsets.

    Args:
        unit: the module.
        call: one of its calls.
        factors: that the output is to be multiplied by; for a reader (`flip`), -1 on its input and none on its output.
        flip: whether the input is negated and the output is to stay as it is.
    """
    own = {name: p.data for name, p in unit.named_parameters(recurse=False)}
    forms = [(None, 0.0, 1.0) if p.dim() < 2 else (None, 0.0) for p in own.values()]
    choices = sorted(itertools.product(*forms), key=lambda each: sum(1 + o for o in each if o is not None))
    stream, output = call.input, call.output
    if stream is None or output is None:
        return None
    args = (-stream if flip else stream, *call.args[1:]) if call.args else ()
    kwargs = call.kwargs if call.args else {k: -v if flip and v is stream else v for k, v in call.kwargs.items()}
    for choice in choices:
        offsets = {name: offset for name, offset in zip(own, choice, strict=True) if offset is not None}
        for factor in factors:
            changed = {name: factor * (own[name] + offset) - offset for name, offset in offsets.items()}
            with parameters_of(unit, changed):
                given = first_tensor(unit(*args, **kwargs))
            if given is None or not close(given, output if flip else factor * output):
                break
        else:
            return offsets
    return None
