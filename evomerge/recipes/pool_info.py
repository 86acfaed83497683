"""What a recipe has to know of its pool: the models, their depth and components; and the baselines made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from evomerge.errors import RecipeError
from evomerge.recipes.calibration import CalibrationRef
from evomerge.recipes.heads import Heads
from evomerge.recipes.kept import Kept
from evomerge.recipes.network import Network
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Dtype, Input, ModelRef, SliceId, SliceRecipe
from evomerge.recipes.tokenizer_spec import TokenizerSpec


@dataclass(frozen=True)
class PoolInfo:
    """What a recipe can be made of: the pool as search spaces and strategies see it, without tensors.

    Attributes:
        refs: every model of the pool by name, the base included, as pairs in order.
        sources: names of the source models (the base is not one), in order.
        base: name of the base model, or ``None``.
        slices: every slice of the architecture, in order.
        layers: number of layers of `config_from`.
        dtype: dtype of the results.
        depths: layers of the models that have another number than `layers`, as pairs.
        unscalable: why the residual outputs of this architecture cannot be scaled; empty where they can.
        unflippable: why they cannot be scaled by negative numbers; empty where they can.
        immovable: why layers of this architecture cannot be put in other places; empty where they can.
        sizes: numbers of parameters of `slices`, in their order; empty where they are not known.
        tensors: names of their tensors with their numbers of parameters, in the same order; empty where they are not
            known.
        tokenizer_from: the model whose tokenizer the results take; ``None`` for that of `config_from`.
        constant: the slices of which all models, the base included, hold the same bits, in order: genomes need say
            nothing of them. Empty where that is not known.
        calibration: the statistics of data that methods may read; ``None`` where there are none.
        tokenizer: the vocabulary that the models are brought to; ``None`` where they are merged as they are.
        heads: what sources carry on their own, which is in none of `slices`; ``None`` where all is merged.
        kept: what results have from one model, which is in none of `slices` either; ``None`` where all is merged.
        dense: what becomes of sentence-transformers' dense layers, see `recipes.dense`; ``None`` where models do not
            differ in them.
        network: of pipelines, which part is merged and whose the others are; ``None`` where models are merged whole.
        blocks: of architectures that have such, runs of layers with names of their own, such as ``down.0``, ``mid`` and
            ``up.0``, in order, with their numbers of layers; empty for others.
    """

    refs: tuple[tuple[str, ModelRef], ...]
    sources: tuple[str, ...]
    base: str | None
    slices: tuple[SliceId, ...]
    layers: int
    dtype: Dtype
    depths: tuple[tuple[str, int], ...] = ()
    unscalable: str = ""
    unflippable: str = ""
    sizes: tuple[int, ...] = ()
    tensors: tuple[tuple[tuple[str, int], ...], ...] = ()
    immovable: str = ""
    tokenizer_from: str | None = None
    constant: tuple[SliceId, ...] = ()
    calibration: CalibrationRef | None = None
    tokenizer: TokenizerSpec | None = None
    heads: Heads | None = None
    kept: Kept | None = None
    dense: str | None = None
    network: Network | None = None
    blocks: tuple[tuple[str, int], ...] = ()

    def depth(self, name: str) -> int:
        """The number of layers of one model."""
        return dict(self.depths).get(name, self.layers)

    @property
    def uneven(self) -> str:
        """Names the models that differ in depth, for whoever merges them layer by layer; empty where none does."""
        if not self.depths:
            return ""
        listed = ", ".join(f"{name} has {self.depth(name)}" for name, _ in self.refs)
        return f"the models of the pool differ in their number of layers: {listed}"

    @property
    def config_from(self) -> str:
        """The model that gives configuration and tokenizer: the base, or the first source; with heads, of one with."""
        if self.kept is not None:
            return self.kept.model
        if self.heads is not None:
            return next(name for name in self.sources if name in self.heads.tasks)
        return self.base or self.sources[0]

    def recipe(
        self, slices: Iterable[SliceRecipe], seed: int = 0, intermediates: Iterable[tuple[str, Recipe]] = ()
    ) -> Recipe:
        """A recipe over this pool's models, and over intermediates by name."""
        return Recipe(
            self.refs,
            tuple(slices),
            self.dtype,
            self.config_from,
            seed,
            tuple(intermediates),
            tokenizer_from=self.tokenizer_from,
            calibration=self.calibration,
            tokenizer=self.tokenizer,
            heads=self.heads,
            kept=self.kept.tensors if self.kept is not None else (),
            dense=self.dense,
            network=self.network,
        )

    def linear(self, weights: Mapping[str, float]) -> Recipe:
        """The same weighted sum on every slice: a source itself (weight one), or the uniform average.

        Raises:
            RecipeError: the models differ in depth.
        """
        depths = {self.depth(name) for name in weights}
        if len(depths) > 1:
            raise RecipeError(f"a sum of {', '.join(weights)}", self.uneven)
        inputs = tuple(Input(name, None, (("weight", weight),)) for name, weight in weights.items())
        slices = self.slices_at(depths.pop()) if depths else self.slices
        made = self.recipe(SliceRecipe(s, "linear", inputs, (("normalize", False),)) for s in slices)
        if self.heads is not None and len(weights) == 1 and next(iter(weights)) in self.heads.tasks:
            return replace(made, config_from=next(iter(weights)))  # with its own head
        return made

    def slices_at(self, depth: int) -> tuple[SliceId, ...]:
        """The slices of a model of this architecture with `depth` layers; those beyond the pool's are as the first."""
        if depth == self.layers:
            return self.slices
        parts = [own.component for own in self.slices if own.layer == 0]
        beyond = [SliceId(part, layer) for layer in range(self.layers, depth) for part in parts]
        kept = [own for own in self.slices if own.layer is None or own.layer < depth]
        return tuple(sorted([*kept, *beyond], key=lambda own: own.order))


UNIFORM = "uniform average"


def baseline_recipes(info: PoolInfo) -> dict[str, Recipe]:
    """Recipes by name: every source, the base, and the uniform average where the models are equally deep."""
    names = [*info.sources, *([info.base] if info.base else [])]
    recipes = {name: info.linear({name: 1.0}) for name in names}
    if not info.uneven:
        recipes[UNIFORM] = info.linear(dict.fromkeys(info.sources, 1.0 / len(info.sources)))
    return recipes
