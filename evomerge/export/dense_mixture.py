"""Writes a mixture of experts made of dense models, by a recipe of mergekit-moe."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import ConfigError, PoolError, RecipeError, one_line
from evomerge.export.aligned_model import files_alongside
from evomerge.export.output import check_output, check_space, new_folder
from evomerge.export.router_rows import router_rows
from evomerge.export.shards import DTYPES, Declared, ShardWriter
from evomerge.export.writer import MAX_SHARD_BYTES
from evomerge.mergekit.mixture_recipe import Expert, MixtureRecipe, kind_of
from evomerge.mergekit.references import name_models
from evomerge.models.architecture.layout import skeleton
from evomerge.models.architecture.names import tied_names
from evomerge.models.architecture.stacks import find_layers
from evomerge.models.opening import open_pool
from evomerge.models.placed import PlacedTensors
from evomerge.models.pool import Pool, require_own_rows
from evomerge.models.progress_bars import no_progress_bar
from evomerge.models.tokenizers import load_tokenizer

MIXTURE_FILE = "evomerge_mixture.json"
_LEFT = frozenset({"model_type", "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype"})


@dataclass(frozen=True)
class _Kind:
    """How a mixture is called in its files.

    Attributes:
        name: of its classes: ``NameForCausalLM`` and ``NameConfig``.
        block: of a layer, what holds experts and router.
        parts: of an expert, by the dense model's names, in the order in which mergekit goes through them.
        count: key of the configuration for the number of experts.
        more: other keys.
    """

    name: str
    block: str
    parts: Mapping[str, str]
    count: str
    more: Mapping[str, Any]


_SAME = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}
_QWEN = {"decoder_sparse_step": 1, "norm_topk_prob": True, "mlp_only_layers": []}
KINDS: Mapping[str, _Kind] = {
    "mixtral": _Kind(
        "Mixtral",
        "block_sparse_moe",
        {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"},
        "num_local_experts",
        {"sliding_window": None},
    ),
    "qwen2_moe": _Kind(
        "Qwen2Moe", "mlp", _SAME, "num_experts", {**_QWEN, "sliding_window": None, "use_sliding_window": False}
    ),
    "qwen3_moe": _Kind("Qwen3Moe", "mlp", _SAME, "num_experts", _QWEN),
}


@dataclass(frozen=True)
class DenseMixture:
    """What was made.

    Attributes:
        kind: its `model_type`.
        experts: of a layer.
        layers: how many.
        parameters: numbers in its tensors.
    """

    kind: str
    experts: int
    layers: int
    parameters: int


def dense_mixture(
    recipe: MixtureRecipe,
    out: Path,
    *,
    folder: Path | None = None,
    seed: int = 0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> DenseMixture:
    """Write the mixture that a recipe describes: tensors as mergekit-moe makes them, in the names of published models.

    Args:
        recipe: of mergekit-moe.
        out: the folder to write; must not exist or be empty.
        folder: of the recipe's file, where models may lie too.
        seed: of rows of the router that are noise, and of noise on experts.
        max_shard_bytes: largest size of one file, single larger tensors aside.

    Raises:
        ConfigError: a seed that cannot be.
        RecipeError: no mixture is made of such models.
        PoolError: the models do not fit together.
        OutputError: `out` is not empty or cannot be written.
    """
    out = Path(out)
    check_output(out)
    if seed < 0:
        raise ConfigError(f"--seed is {seed}", "at least 0")
    names = name_models(recipe.references)
    base = names[recipe.base]
    locations = {name: reference.location(folder) for reference, name in names.items()}
    pool = open_pool(locations, tokenizer_from=base if len(locations) > 1 else None)
    require_own_rows(pool, "a mixture of dense models")
    if pool.info.depths:
        raise PoolError(pool.info.uneven, "models of one depth: each layer has the experts of that layer")
    making = _Making(pool, recipe, {own: names[own] for own in recipe.references}, base, seed)
    copied = files_alongside(pool.folder(base))
    sizes = making.write(out, copied, max_shard_bytes)
    return DenseMixture(making.kind, len(recipe.experts), pool.layout.layers, sizes)


class _Making:
    """A mixture's tensors, one after the other."""

    def __init__(self, pool: Pool, recipe: MixtureRecipe, names: Mapping[Any, str], base: str, seed: int) -> None:
        self._pool, self._recipe, self._names, self._base = pool, recipe, names, base
        self.kind = kind_of(recipe, str(pool.config.model_type))
        self._how = KINDS[self.kind]
        self.config = self._configuration()
        self._dtype = getattr(torch, recipe.dtype or pool.info.dtype)
        self._generator = torch.Generator().manual_seed(seed)
        self._placed = PlacedTensors(pool)
        self._prefix = find_layers(self._placed.module)[0]
        self._module = skeleton(self.config)
        self._outside, self._zeros = self._of_base()

    def _configuration(self) -> Any:
        import transformers

        cls = getattr(transformers, f"{self._how.name}Config")
        known = vars(cls())
        own = {key: value for key, value in self._pool.config.to_dict().items() if key in known and key not in _LEFT}
        units = self._pool.config.intermediate_size
        sizes = {"moe_intermediate_size": units, "shared_expert_intermediate_size": units}
        more = {key: value for key, value in {**self._how.more, **sizes}.items() if key in known}
        counts = {self._how.count: len(self._recipe.experts), "num_experts_per_tok": self._recipe.chosen}
        config = cls(**{**own, **more, **counts})
        config.architectures = [f"{self._how.name}ForCausalLM"]
        return config

    def _of_base(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The mixture's places that are the base's, and biases that it wants and the base has not."""
        state, tied = self._module.state_dict(), tied_names(self._module)
        wanted = {name: tuple(own.shape) for name, own in state.items() if name not in tied and not _of_mixture(name)}
        given = {place: shape for place, shape in self._placed.shapes.items() if ".mlp." not in place}
        zeros = tuple(name for name in wanted if name not in given and name.endswith("_proj.bias"))
        unlike = [name for name in wanted if name not in zeros and given.get(name) != wanted[name]]
        unlike += [place for place in given if place not in wanted]
        unlike += [place for place in self._placed.shapes if ".mlp." in place and place.endswith(".bias")]
        if unlike:
            raise RecipeError(
                f"{self._how.name} has no place for the base's {unlike[0]!r}, or another one",
                f"attention and norms as {self._how.name} has them, and no biases of feed-forward layers",
            )
        return tuple(name for name in wanted if name not in zeros), zeros

    def _rows(self) -> torch.Tensor:
        recipe, pool = self._recipe, self._pool
        experts = [*recipe.experts, *([recipe.shared] if recipe.shared else [])]
        return router_rows(
            experts,
            recipe.gate,
            (pool.layout.layers, pool.config.hidden_size),
            self._generator,
            lambda: self._placed.read(self._base, self._embeddings()),
            self._base_module,
            lambda: load_tokenizer(pool.tokenizer_folder, pool.trust_remote_code),
        )

    def _embeddings(self) -> str:
        own = self._placed.module.get_input_embeddings().weight
        found: str = next(name for name, parameter in self._placed.module.named_parameters() if parameter is own)
        return found

    def _base_module(self) -> Any:
        """The base in bfloat16, in which mergekit reads its hidden states."""
        pool = self._pool
        tensors = {name: pool.read(self._base, name) for name in pool.layout.parameters}
        cls: Any = type(self._placed.module)
        try:
            with no_progress_bar():
                return cls.from_pretrained(None, config=pool.config, state_dict=tensors, dtype=torch.bfloat16).eval()
        except Exception as error:  # transformers raises whatever the architecture's code raises
            raise PoolError(f"transformers cannot load the base model ({one_line(error)})") from error

    def _tensors(self, rows: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor with its name in the file."""
        state = self._module.state_dict()
        for place in self._outside:
            yield place, self._placed.read(self._base, place).to(self._dtype)
        for place in self._zeros:
            yield place, torch.zeros(state[place].shape, dtype=self._dtype)
        for layer in range(self._pool.layout.layers):
            block = f"model.layers.{layer}.{self._how.block}"
            for number, expert in enumerate(self._recipe.experts):
                yield from self._of_expert(expert, layer, f"{block}.experts.{number}")
            if self._recipe.shared is not None:
                yield from self._of_expert(self._recipe.shared, layer, f"{block}.shared_expert")
                yield f"{block}.shared_expert_gate.weight", rows[layer, len(self._recipe.experts) :].to(self._dtype)
            yield f"{block}.gate.weight", rows[layer, : len(self._recipe.experts)].to(self._dtype)

    def _of_expert(self, expert: Expert, layer: int, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        for part, called in self._how.parts.items():
            place = f"{self._prefix}.{layer}.mlp.{part}.weight"
            tensor = self._placed.read(self._names[expert.model], place)
            if expert.noise is not None:
                noise = torch.randn(tensor.shape, dtype=tensor.dtype, generator=self._generator)
                tensor = tensor + noise * expert.noise
            if expert.scale is not None and part == "down_proj":
                tensor = tensor * expert.scale
            yield f"{name}.{called}.weight", tensor.to(self._dtype)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor by its name in the file; they are known before any is made."""
        meta = {place: tuple(own.shape) for place, own in self._module.state_dict().items()}
        found = {place: meta[place] for place in (*self._outside, *self._zeros)}
        width = self._pool.config.hidden_size
        for layer in range(self._pool.layout.layers):
            block = f"model.layers.{layer}.{self._how.block}"
            every = [f"{block}.experts.{number}" for number in range(len(self._recipe.experts))]
            if self._recipe.shared is not None:
                every.append(f"{block}.shared_expert")
                found[f"{block}.shared_expert_gate.weight"] = (1, width)
            found[f"{block}.gate.weight"] = (len(self._recipe.experts), width)
            for part, called in self._how.parts.items():
                shape = self._placed.shapes[f"{self._prefix}.{layer}.mlp.{part}.weight"]
                found |= {f"{name}.{called}.weight": shape for name in every}
        return found

    def write(self, out: Path, copied: Mapping[Path, Path], max_shard_bytes: int) -> int:
        """Write the folder; how many parameters it has."""
        assert self._dtype in DTYPES, "a recipe names no others"
        rows = self._rows()
        declared = [Declared(name, self._dtype, shape) for name, shape in self._shapes().items()]
        with new_folder(out) as folder, ShardWriter(folder, declared, max_shard_bytes) as shards:
            check_space(folder, out, shards.nbytes + sum(file.stat().st_size for file in copied.values()))
            for name, tensor in self._tensors(rows):
                shards.write(name, tensor.contiguous())
            shards.finish()
            for place, file in copied.items():
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, folder / place)
            self.config.dtype = self._dtype
            self.config.save_pretrained(folder)
            refs = dict(self._pool.info.refs)
            said = {
                "base": refs[self._base].address,
                "experts": [refs[self._names[own.model]].address for own in self._recipe.experts],
                "gate_mode": self._recipe.gate,
            }
            if self._recipe.shared is not None:
                said["shared_expert"] = refs[self._names[self._recipe.shared.model]].address
            (folder / MIXTURE_FILE).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
        return sum(math.prod(tensor.shape) for tensor in declared)


def _of_mixture(place: str) -> bool:
    return ".mlp." in place
