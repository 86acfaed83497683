"""mergekit-moe's recipes: dense models of which a mixture of experts is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import RecipeError, nearest
from evomerge.mergekit.references import Reference, read_reference
from evomerge.recipes.slices import DTYPES
from evomerge.utils import safe_yaml

GATES = ("hidden", "hidden_last", "hidden_avg", "cheap_embed", "random", "uniform_random")
"""Where the router's rows come from: hidden states of the base at the prompts' last tokens (the first two) or their
means, sums of the prompts' embeddings, or noise."""
_NAMES = {"mixtral": "mixtral", "qwen moe": "qwen2_moe", "qwen3 moe": "qwen3_moe"}
"""mergekit's names of what can be made."""
_INPUTS = {"mixtral": ("llama", "mistral"), "qwen2_moe": ("llama", "mistral", "qwen2"), "qwen3_moe": ("qwen3",)}


@dataclass(frozen=True)
class Expert:
    """A dense model whose feed-forward layers become experts.

    Attributes:
        model: the source.
        positive, negative: prompts that are to be routed to it, and prompts that are not.
        noise: standard deviation of noise added to its weights; ``None`` for none.
        scale: factor of what it adds to the residual stream; ``None`` for 1.
    """

    model: Reference
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    noise: float | None = None
    scale: float | None = None


@dataclass(frozen=True)
class MixtureRecipe:
    """What a file of mergekit-moe says.

    Attributes:
        base: gives embeddings, attention, norms, head, configuration and tokenizer.
        experts: in order.
        shared: the expert that sees every token; only Qwen2-MoE's has one.
        gate: of `GATES`.
        dtype: of the result; ``None`` for the base's.
        chosen: experts of each token.
        architecture: what the file asks for, in mergekit's words; ``None`` for any.
    """

    base: Reference
    experts: tuple[Expert, ...]
    shared: Expert | None
    gate: str
    dtype: str | None
    chosen: int
    architecture: str | None

    @property
    def references(self) -> tuple[Reference, ...]:
        """Every model once, the base first."""
        own = [self.base, *(expert.model for expert in self.experts)]
        return tuple(dict.fromkeys([*own, self.shared.model] if self.shared else own))


def looks_like_a_mixture(content: Any) -> bool:
    """Whether a file's content is mergekit-moe's."""
    return isinstance(content, Mapping) and "experts" in content and "merge_method" not in content


def read_mixture(text: str, equal: bool = False) -> MixtureRecipe:
    """Read a recipe and check it as mergekit-moe does.

    Args:
        text: the file.
        equal: let all experts be one model, which is of use where it is trained on.

    Raises:
        RecipeError: names the key.
    """
    optional = ("gate_mode", "dtype", "experts_per_token", "shared_experts", "architecture")
    fields = safe_yaml.mapping(safe_yaml.parse(text), "", ("base_model", "experts"), optional)
    gate = safe_yaml.optional(fields, "gate_mode", "", safe_yaml.text) or "hidden"
    if gate not in GATES:
        raise RecipeError(f"gate_mode is {gate!r}", nearest(gate, GATES))
    dtype = safe_yaml.optional(fields, "dtype", "", safe_yaml.text)
    if dtype is not None and dtype not in DTYPES:
        raise RecipeError(f"dtype is {dtype!r}", nearest(dtype, DTYPES))
    experts = tuple(
        _expert(own, f"experts[{i}]") for i, own in enumerate(safe_yaml.items(fields["experts"], "experts"))
    )
    shared = [_expert(own, f"shared_experts[{i}]") for i, own in enumerate(fields.get("shared_experts") or ())]
    if len(shared) > 1:
        raise RecipeError(f"shared_experts has {len(shared)}", "one, or none")
    chosen = safe_yaml.optional(fields, "experts_per_token", "", safe_yaml.integer)
    chosen = 2 if chosen is None else chosen
    if not 1 <= chosen <= len(experts):
        raise RecipeError(f"experts_per_token is {chosen}", f"1 to {len(experts)}, the number of experts")
    found = MixtureRecipe(
        read_reference(fields["base_model"], "base_model"),
        experts,
        shared[0] if shared else None,
        gate,
        dtype,
        chosen,
        safe_yaml.optional(fields, "architecture", "", safe_yaml.text),
    )
    _check_prompts(found)
    if not equal and len({own.model for own in experts}) == 1:
        raise RecipeError(
            "all experts are one model, and a mixture of them computes what it does",
            "two models at least",
            "--allow-equal makes it, to be trained on",
        )
    return found


def kind_of(recipe: MixtureRecipe, model_type: str) -> str:
    """The `model_type` of the mixture that is made of models of one type, as mergekit-moe chooses it.

    Raises:
        RecipeError: there is none.
    """
    wanted = (recipe.architecture or "").lower()
    named = {own for name, own in _NAMES.items() if name.startswith(wanted)}
    if not named:
        raise RecipeError(
            f"architecture is {recipe.architecture!r}", f"one of {', '.join(_NAMES)}; DeepSeek's is not written here"
        )
    kinds = [own for own in named if model_type in _INPUTS[own] and (own == "qwen2_moe") == (recipe.shared is not None)]
    if not kinds:
        shared = "one shared expert" if recipe.shared else "no shared expert"
        raise RecipeError(
            f"no mixture is made of {model_type!r} models with {shared}"
            + (f" and architecture {recipe.architecture!r}" if wanted else ""),
            "mixtral of llama or mistral, qwen3_moe of qwen3; with a shared one qwen2_moe of qwen2, llama or mistral",
        )
    return kinds[0]


def _check_prompts(recipe: MixtureRecipe) -> None:
    if recipe.gate in ("random", "uniform_random"):
        return
    for number, own in enumerate(recipe.experts):
        if not own.positive:
            raise RecipeError(f"experts[{number}] has no positive_prompts", f"prompts, with gate_mode {recipe.gate}")
    if recipe.shared is not None and not recipe.shared.positive:
        raise RecipeError("shared_experts[0] has no positive_prompts", f"prompts, with gate_mode {recipe.gate}")
    if len({(own.positive, own.negative) for own in recipe.experts}) == 1 and len(recipe.experts) > 1:
        raise RecipeError(
            "all experts have the same prompts, so that their rows of the router are equal",
            "for each expert prompts of what is to be routed to it",
        )


def _expert(content: Any, where: str) -> Expert:
    optional = ("positive_prompts", "negative_prompts", "noise_scale", "residual_scale")
    fields = safe_yaml.mapping(content, where, ("source_model",), optional)

    def prompts(key: str) -> tuple[str, ...]:
        own = fields.get(key)
        listed = [] if own is None else safe_yaml.items(own, f"{where}.{key}")
        return tuple(safe_yaml.text(text, f"{where}.{key}[{i}]") for i, text in enumerate(listed))

    return Expert(
        read_reference(fields["source_model"], f"{where}.source_model"),
        prompts("positive_prompts"),
        prompts("negative_prompts"),
        safe_yaml.optional(fields, "noise_scale", where, safe_yaml.number),
        safe_yaml.optional(fields, "residual_scale", where, safe_yaml.number),
    )
