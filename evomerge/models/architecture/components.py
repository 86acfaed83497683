"""Which component of a slice a module's parameter is part of."""

from __future__ import annotations

from torch import nn

from evomerge.recipes.slices import Component


def component_of(layer: nn.Module, inner: str) -> Component:
    """The component of a layer that holds the parameter `inner`, by name and class of the layer's child.

    In layers without norms of their own (BERT normalises inside its attention and feed-forward parts), the norms
    further inside are the layer's.
    """
    parts = inner.split(".")
    child, name = layer, ""
    for part in parts[:-1]:
        child, name = getattr(child, part), part
        if not isinstance(child, nn.ModuleList):
            break
    words = f"{name} {type(child).__name__}".lower() if name else parts[-1].lower()
    if "norm" in words:
        return "norm"
    if len(parts) > 1 and not any(_is_norm(*own) for own in layer.named_children()):
        parent = inner.rpartition(".")[0]
        if _is_norm(parent.rpartition(".")[2], layer.get_submodule(parent)):
            return "norm"
    return "attn" if "attn" in words or "attention" in words else "mlp"


def _is_norm(name: str, module: nn.Module) -> bool:
    return "norm" in f"{name} {type(module).__name__}".lower()


class OuterComponents:
    """The components of parameters outside the layers.

    Of the base model, what comes before the layers and all embeddings are ``embed``, and the norm of what the layers
    give is ``final_norm``. All else belongs to the head of a task: also its own norms, wherever it is registered.

    Args:
        module: that they are of.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._embeddings = _parameters_of(module, "get_input_embeddings")
        self._output = _parameters_of(module, "get_output_embeddings")

    def __call__(self, place: str, after_layers: bool) -> Component:
        """The component of a parameter by its name; the module lists it after its layers or before them."""
        module = self._module
        if place in self._embeddings:
            return "embed"
        if place in self._output or self.is_outside(place):
            return "head"
        path = place.rpartition(".")[0]
        parent = module.get_submodule(path)
        # OPT registers its final norm first, BART that of its embeddings last.
        is_embedding = "embed" in path.rpartition(".")[2]
        if _is_norm(place, parent) and (after_layers or "final" in place) and not is_embedding:
            return "final_norm"
        return "embed" if not after_layers or isinstance(parent, nn.Embedding) or is_embedding else "head"

    def is_outside(self, place: str) -> bool:
        """Whether a parameter is outside of what the architecture calls its base model."""
        base = getattr(self._module, "base_model", self._module)
        return base is not self._module and not place.startswith(f"{self._module.base_model_prefix}.")

    def is_task(self, place: str) -> bool:
        """Whether it is outside of it and belongs to no output embeddings."""
        return self.is_outside(place) and place not in self._output


def _parameters_of(module: nn.Module, getter: str) -> set[str]:
    """Names of the parameters of the input or output embeddings (first names, where tied)."""
    try:
        embeddings = getattr(module, getter)()
    except (AttributeError, NotImplementedError):
        return set()
    if not isinstance(embeddings, nn.Module):
        return set()
    own = {id(parameter) for parameter in embeddings.parameters()}
    return {name for name, parameter in module.named_parameters() if id(parameter) in own}
