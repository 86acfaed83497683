"""Paths through layers of several models: their limits, and the recipes of the ordinary models that they are.

The data flow of EvoLLM (arXiv 2403.13187, section 3.2): hidden states pass through layers of several models, scaled
by a factor on their way into each layer. The recipe has the scales folded into the layers: with S the product of the
factors so far, a layer writes 1/S of its output into a residual stream that nobody scales, and reads that stream
through norms to which its size means nothing; where S is negative, their sign is flipped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from evomerge.errors import ConfigError, InfeasibleError
from evomerge.recipes.slices import Dtype, Input, SliceId, SliceRecipe
from search_spaces.path_pool import KEY, PathPool

_LARGEST: dict[Dtype, float] = {"float32": 2.0**40, "bfloat16": 2.0**40, "float16": 2.0**8}
"""How far products of scales may go from 1 either way: beyond, norms overflow or outputs vanish."""


@dataclass(frozen=True)
class Step:
    """One layer of a path.

    Attributes:
        model, layer: where it comes from.
        input_scale: factor on the hidden states on their way into it; not used for the first.
    """

    model: str
    layer: int
    input_scale: float = 1.0


@dataclass(frozen=True)
class Limits:
    """What paths are refused.

    Attributes:
        min_layers, max_layers: of a path; ``None`` is no limit.
        max_uses: how often one layer of one model may come in a path.
        max_parameters: of the resulting model, in all.
    """

    min_layers: int = 1
    max_layers: int | None = None
    max_uses: int | None = None
    max_parameters: float | None = None

    @staticmethod
    def of(
        pool: PathPool,
        min_layers: int | None,
        max_layers: int | None,
        max_uses: int | None,
        max_parameters: float | None,
    ) -> Limits:
        """The limits that a configuration gives.

        Raises:
            ConfigError: a limit below 1 or in the wrong order, or one on parameters of a pool that has no sizes.
        """
        for name, value in (("min_layers", min_layers), ("max_layers", max_layers), ("max_uses", max_uses)):
            if value is not None and (isinstance(value, bool) or value < 1):
                raise ConfigError(f"{KEY}.{name} is {value}", "a whole number from 1, or null for no limit")
        if min_layers is not None and max_layers is not None and min_layers > max_layers:
            raise ConfigError(f"{KEY}.min_layers is {min_layers}", f"at most {KEY}.max_layers, {max_layers}")
        if max_parameters is not None and not max_parameters > 0:
            raise ConfigError(f"{KEY}.max_parameters is {max_parameters}", "a number above 0, or null for no limit")
        if max_parameters is not None and not pool.info.sizes:
            raise ConfigError(
                f"{KEY}.max_parameters is {max_parameters}", "this pool does not say how large its layers are"
            )
        return Limits(min_layers or 1, max_layers, max_uses, max_parameters)

    def check(self, layers: Sequence[tuple[str, int]], pool: PathPool) -> None:
        """Raise `InfeasibleError` with the reason for a path of these (model, layer) pairs that is not allowed."""
        if not layers:
            raise InfeasibleError("the path is empty", "at least one layer")
        if len(layers) < self.min_layers:
            given = f"the path has {len(layers)} layers"
            raise InfeasibleError(given, f"at least {self.min_layers} ({KEY}.min_layers)")
        if self.max_layers is not None and len(layers) > self.max_layers:
            raise InfeasibleError(f"the path has {len(layers)} layers", f"at most {self.max_layers} ({KEY}.max_layers)")
        if self.max_uses is not None:
            (model, layer), count = Counter(layers).most_common(1)[0]
            if count > self.max_uses:
                given = f"layer {layer} of {model} comes {count} times"
                raise InfeasibleError(given, f"at most {self.max_uses} ({KEY}.max_uses)")
        sizes = pool.layer_sizes() if self.max_parameters is not None else None
        if sizes is not None and self.max_parameters is not None:
            total = pool.outer_size() + sum(sizes[layer] for _, layer in layers)
            if total > self.max_parameters:
                given = f"the path makes a model of {total:,} parameters"
                raise InfeasibleError(given, f"at most {self.max_parameters:,.0f} ({KEY}.max_parameters)")


def factors(input_scales: Sequence[float], dtype: Dtype) -> list[float]:
    """For every layer of a path, the factor on what it writes: 1/S, S the product of the scales up to it.

    Args:
        input_scales: the scale on the way into each layer but the first, whose own is passed over.
        dtype: of the result; float16 has less room.

    Raises:
        InfeasibleError: a scale is zero, or S goes beyond what the dtype can carry.
    """
    largest, product, found = _LARGEST[dtype], 1.0, [1.0]
    for place, input_scale in enumerate(input_scales[1:], start=1):
        product *= input_scale
        if not 1 / largest <= abs(product) <= largest:
            given = f"the scales up to layer {place} of the path have the product {product:g}"
            raise InfeasibleError(given, f"an absolute value from {1 / largest:.3g} to {largest:.3g} in {dtype}")
        found.append(1.0 / product)
    return found


def path_slices(steps: Sequence[Step], pool: PathPool, input_model: str, head: str) -> Iterator[SliceRecipe]:
    """The slices of a path: embeddings and final norm of the input model, its layers, and a head.

    Raises:
        InfeasibleError: as `factors`.
    """
    written = factors([step.input_scale for step in steps], pool.info.dtype)
    components = {layer: pool.components(layer) for layer in {step.layer for step in steps}}
    for place, (step, factor) in enumerate(zip(steps, written, strict=True)):
        inputs = (Input(step.model, step.layer if step.layer != place else None),)
        for component in components[step.layer]:
            slice_ = SliceId(component, place)
            yield SliceRecipe(slice_, "passthrough", inputs, scale=slice_scale(slice_, factor))
    yield from outer_slices(pool, input_model, head, written[-1])


def outer_slices(pool: PathPool, input_model: str, head: str, factor: float) -> Iterator[SliceRecipe]:
    """The slices outside the layers; `factor` is that of the last layer, whose sign the final norm sees."""
    for slice_ in pool.outer:
        source = head if slice_.component == "head" else input_model
        yield SliceRecipe(slice_, "passthrough", (Input(source),), scale=slice_scale(slice_, factor))


def slice_scale(slice_: SliceId, factor: float) -> float | None:
    """The scale of a slice where the stream is 1/factor of what it would be: -1 on norms means a flipped sign."""
    if slice_.component in ("attn", "mlp"):
        return None if factor == 1 else factor
    if slice_.component in ("norm", "final_norm"):
        return -1.0 if math.copysign(1.0, factor) < 0 else None
    return None


def check_head(pool: PathPool, head: str | None, input_model: str) -> str:
    """The model that the head comes from.

    Raises:
        ConfigError: unknown, or the head is tied to the embeddings of another model.
    """
    if head is None:
        return input_model
    name = pool.model(head, "head")
    if name != input_model and not any(s.component == "head" for s in pool.outer):
        raise ConfigError(
            f"{KEY}.head is {head!r}",
            "the models of this pool have no head of their own: it is their embeddings",
            f"leave {KEY}.head out, or set {KEY}.input_model={head}",
        )
    return name


def check_counts(repeats: int, block: int, fixed: int, depth: int, input_model: str) -> None:
    """Raise `ConfigError` for numbers of repeats, layers in a block and fixed layers that cannot be."""
    if isinstance(repeats, bool) or repeats < 1:
        raise ConfigError(f"{KEY}.repeats is {repeats}", "a whole number from 1")
    if isinstance(block, bool) or not 1 <= block <= depth:
        raise ConfigError(f"{KEY}.block is {block}", f"1 to {depth}, the layers of {input_model}")
    if isinstance(fixed, bool) or not 0 <= 2 * fixed <= depth:
        raise ConfigError(f"{KEY}.fixed is {fixed}", f"0 to {depth // 2}: {input_model} has {depth} layers in all")


def starting_path(body: Sequence[int], free: Sequence[int], check: Callable[[Sequence[int]], None]) -> set[int]:
    """The slots of a path to start from: `body`, thinned evenly or followed by other slots until it is allowed.

    Args:
        body: the slots that are wanted.
        free: all that a path may take or leave.
        check: raises `InfeasibleError` for slots that make no path.

    Raises:
        ConfigError: none of these paths is allowed.
    """
    rest = [slot for slot in free if slot not in body]
    tried = [_spread(body, count) for count in range(len(body), -1, -1)]
    tried += [sorted([*body, *rest[: count + 1]]) for count in range(len(rest))]
    reasons: list[str] = []
    for chosen in tried:
        try:
            check(chosen)
        except InfeasibleError as error:
            reasons.append(error.given)
        else:
            return set(chosen)
    shortest, longest = reasons[len(body)], reasons[-1]
    raise ConfigError(
        f"{KEY} leaves no path to start from",
        f"of those tried, the shortest: {shortest}; the longest: {longest}",
        "change the limits",
    )


def _spread(slots: Sequence[int], count: int) -> list[int]:
    """So many of the slots, evenly spread."""
    return [slots[(2 * place + 1) * len(slots) // (2 * count)] for place in range(count)]
