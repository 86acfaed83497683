"""A pool's configuration as a model in memory, with its tokenizer, as transformers loads them."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import ConfigError, PoolError, reason_of
from evomerge.merge.execution.engine import TORCH_DTYPES
from evomerge.merge.planning.slice_plan import SlicePlan
from evomerge.merge.resident.codecs import Codec
from evomerge.merge.resident.module_slices import ModuleSlice
from evomerge.merge.resident.quantised_linear import linears_of, quantise_linears
from evomerge.models.architecture.dense_layers import give_dense, merged_layers, places
from evomerge.models.architecture.layout import skeleton
from evomerge.models.architecture.self_built import SelfBuilt
from evomerge.models.memory import MORE_GPUS, give_back, out_of_memory
from evomerge.models.pool import Pool
from evomerge.models.progress_bars import no_progress_bar
from evomerge.models.vocabularies.vocabulary import Vocabulary
from evomerge.utils.sizes import size_text


def load_module(pool: Pool, attn_implementation: str | None, device_map: Any = None, codec: Codec | None = None) -> Any:
    """The model that gives the pool's configuration, in evaluation mode, its weights in memory of its own.

    transformers builds it and is given the tensors that the pool's layout has, as the pool reads them: whatever else
    lies in the folder (a second set of weights, stored buffers, a head that is tied, an adapter) is not loaded.

    Args:
        pool: the source models.
        attn_implementation: as in `from_pretrained`; ``None`` leaves the choice to transformers.
        device_map: as in `from_pretrained`, where each tensor then goes straight from its file; ``None`` for the CPU.
        codec: how the weights of linear layers are to be kept, which have none to begin with; ``None`` for as they are.

    Raises:
        ConfigError: there are no linear layers that could be quantised.
        PoolError: transformers cannot load the model.
    """
    if isinstance(pool.config, SelfBuilt):
        return _load_network(pool, pool.config, device_map, codec)
    name = pool.info.config_from
    folder = str(pool.folder(name))
    options = {"attn_implementation": attn_implementation, "device_map": device_map}
    options = {option: value for option, value in options.items() if value}
    empty = skeleton(pool.config, pool.trust_remote_code)
    cls, dtype = type(empty), TORCH_DTYPES[pool.info.dtype]
    joined = {tensor for join in pool.layout.joins for tensor in join.names}
    hollow = {f"{linear}.weight" for linear in linears_of(empty)} if codec is not None else set()

    def given(tensor: str, place: str) -> torch.Tensor:
        if place in hollow and tensor not in joined:  # of its shape, without its memory
            return torch.zeros((), dtype=dtype).expand(pool.layout.shapes[tensor])
        # On the CPU copies: transformers makes parameters of the very tensors, and the pool's are mapped.
        own = pool.read(name, tensor)
        return own.to(dtype if pool.is_merged(tensor) else None, copy=device_map is None)

    tensors = {tensor: given(tensor, place) for tensor, place in pool.layout.parameters.items()}
    carried = pool.read_kept()
    if pool.heads is not None:
        carried |= {pool.heads.names[place]: own for place, own in pool.read_head(name).items()}
    for tensor, stored in carried.items():
        tensors[tensor] = stored.to(dtype if stored.is_floating_point() else None, copy=device_map is None)
    dense = {place: tensors.pop(place) for place in places(merged_layers(pool.config))}
    try:
        with no_progress_bar():
            module = cls.from_pretrained(  # type: ignore[attr-defined]
                None,
                config=deepcopy(pool.config),
                state_dict=tensors,
                dtype=dtype,
                **options,
            )
        give_dense(module, pool.config, dense)
        module.name_or_path = module.config.name_or_path = folder
        set_generation(module, folder, pool.vocabulary)
    except PoolError:
        raise
    except Exception as error:  # transformers raises whatever the architecture's code raises
        if out_of_memory(error):
            raise
        raise PoolError(f"transformers cannot load {folder} ({reason_of(error)})") from error
    if codec is not None:
        quantise_linears(module, codec)
    module.eval()
    for parameter in module.parameters():
        # Loading may leave them as views of larger storages.
        if parameter.untyped_storage().nbytes() != parameter.nbytes or not parameter.is_contiguous():
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return module


def _load_network(pool: Pool, config: SelfBuilt, device_map: Any, codec: Codec | None) -> Any:
    """The network of a pool that transformers does not know."""
    if codec is not None or isinstance(device_map, str):
        what = "quantised" if codec is not None else "spread over several GPUs"
        raise ConfigError(
            f"a {config.model_type} is to be {what}", "models that transformers loads", "set evaluator.quantise=null"
        )
    name, dtype = pool.info.config_from, TORCH_DTYPES[pool.info.dtype]
    device = torch.device("cpu") if device_map is None else torch.device(device_map[""])
    tensors = {}
    for tensor, place in pool.layout.parameters.items():
        own = pool.read(name, tensor)
        tensors[place] = own.to(device, dtype if pool.is_merged(tensor) else None, copy=True)
    return config.load(tensors, dtype, device)


def load_on(device: str | torch.device, pool: Pool, attn_implementation: str | None, codec: Codec | None = None) -> Any:
    """The model on a device, never as a whole in main memory where that is a GPU; with a codec nowhere as a whole.

    Raises:
        PoolError: transformers cannot load the model, or a GPU has no room for it.
    """
    where = torch.device(device)
    if where.type != "cuda" or codec is not None:
        return load_module(pool, attn_implementation, codec=codec).to(where)
    weights = sum(pool.info.sizes) * TORCH_DTYPES[pool.info.dtype].itemsize
    free, total = torch.cuda.mem_get_info(where)
    if weights <= free:
        try:
            return load_module(pool, attn_implementation, device_map={"": where})
        except Exception as error:
            if not out_of_memory(error):
                raise
    give_back()
    raise PoolError(
        f"the model has {size_text(weights)} of weights in {pool.info.dtype}, and {size_text(free)} of the "
        f"{size_text(total)} of {where} are free",
        "a GPU that holds it, with room for forwards",
        MORE_GPUS + (", or set pool.dtype=bfloat16" if pool.info.dtype == "float32" else ""),
    )


def set_generation(module: Any, folder: str, vocabulary: Vocabulary | None = None) -> None:
    """Give a model the generation settings that lie beside its weights, where there are any; ids by `vocabulary`."""
    from transformers import GenerationConfig

    if Path(folder, "generation_config.json").is_file() and module.can_generate():
        try:
            module.generation_config = GenerationConfig.from_pretrained(folder)
            if vocabulary is not None:
                vocabulary.set_ids(module.generation_config)
        except Exception as error:  # its checks raise what they like
            file = Path(folder, "generation_config.json")
            raise PoolError(
                f"transformers refuses {file} ({reason_of(error)})", "", "correct it, or download it again"
            ) from error


def holds(pool: Pool, entry: SlicePlan, place: ModuleSlice) -> bool:
    """Whether a slice of the loaded module is, bit for bit, what the pool reads for the model it was loaded from.

    Args:
        pool: the source models.
        entry: the slice's plan, of the model that gives the configuration alone.
        place: the module's slice.
    """
    own = place.own()
    if place.may_quantise or any(tensor.is_meta for tensor in own):
        return False
    memory = [torch.empty_like(tensor) for tensor in own]
    out = place.out(entry.tensors, memory)
    for name, tensor in out.items():
        tensor.copy_(pool.read(pool.info.config_from, name))
    place.settle(out, memory)
    return all(torch.equal(one, other) for one, other in zip(memory, own, strict=True))
