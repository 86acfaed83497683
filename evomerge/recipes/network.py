"""The network of a pipeline: which of its parts is merged, and whose the others are.

    network: {name: unet, others: base}

A pipeline that draws images has several parts: a network that takes noise away, text encoders, an autoencoder, a
scheduler. One is merged, the others are one model's as they are.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from evomerge.errors import RecipeError, nearest
from evomerge.utils import safe_yaml


@dataclass(frozen=True)
class Network:
    """Which part of the models' pipelines is merged.

    Attributes:
        name: of the part, as the pipeline calls it: ``unet`` or ``transformer``.
        others: the model of the recipe whose other parts the result takes; or where they lie, as a model's location,
            where they are of none that is merged.

    >>> Network("unet", "base").name
    'unet'
    """

    name: str
    others: str

    def check(self, names: Collection[str]) -> None:
        """Check it against a recipe.

        Args:
            names: of the recipe's models.

        Raises:
            RecipeError: the name is none that a folder can have, or the others are nobody's.
        """
        if not self.name.isidentifier():
            raise RecipeError(f"network.name is {self.name[:80]!r}", "the name of a part, such as unet or transformer")
        if not self.others or ("/" not in self.others and self.others not in names):
            raise RecipeError(
                f"network.others is {self.others[:200]!r}",
                nearest(self.others, names),
                "name the model whose other parts the result takes, or the folder where they lie",
            )


def read_network(content: Any, where: str) -> Network | None:
    """The network that a recipe file says; ``None`` for none.

    Raises:
        RecipeError: it says something else; names the place.
    """
    if content is None:
        return None
    fields = safe_yaml.mapping(content, where, ("name", "others"), ())
    return Network(**{key: safe_yaml.text(fields[key], f"{where}.{key}") for key in ("name", "others")})


def network_content(network: Network) -> dict[str, str]:
    """What `read_network` reads."""
    return {"name": network.name, "others": network.others}
