from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from tiny_models import ARCHITECTURES, TinyModel

from evomerge.errors import PoolError, RecipeError
from evomerge.merge.execution.engine import merge_slice
from evomerge.merge.execution.sources import Placement
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan
from evomerge.merge.resident import model as assemble
from evomerge.merge.resident.model import Resident
from evomerge.models.architecture.stacks import find_layers
from evomerge.models.opening import open_pool, pool_of_recipe
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters

IDS = torch.arange(3, 35).view(2, 16)
NAMES = ("base", "a", "b")


def opened(tiny_model: TinyModel, kind: str = "llama", stored: str = "float32", dtype: str = "auto") -> Pool:
    folders = {name: str(tiny_model(name, kind, seed, stored)) for seed, name in enumerate(NAMES)}
    return open_pool(folders, base="base", dtype=dtype)


def task_arithmetic(pool: Pool, weight: float, **changed: float) -> Recipe:
    """The same weight for both models on every slice, another on those in `changed`."""
    return pool.info.recipe(
        SliceRecipe(
            s,
            "task_arithmetic",
            tuple(Input(m, None, parameters({"weight": changed.get(str(s), weight)})) for m in ("a", "b")),
            (),
            Input("base"),
        )
        for s in pool.info.slices
    )


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module(IDS).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_source_alone_is_the_model_that_transformers_loads(tiny_model: TinyModel, kind: str, dtype: str) -> None:
    pool = opened(tiny_model, kind, dtype)
    resident = Resident(pool)
    for name in ("a", "base", "b"):
        resident.apply(make_plan(pool.info.linear({name: 1.0}), pool))
        loaded = transformers.AutoModelForCausalLM.from_pretrained(pool.folder(name), dtype=getattr(torch, dtype))
        module = resident.model.module
        assert type(module) is type(loaded)
        assert not module.training
        assert module.config._attn_implementation == loaded.config._attn_implementation
        expected = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
        own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        assert own.keys() == expected.keys()
        for key, tensor in expected.items():
            assert own[key].dtype == tensor.dtype
            assert torch.equal(own[key], tensor), key
        assert torch.equal(logits(module), logits(loaded))


@pytest.mark.parametrize("kind", ["llama_tied", "gpt2", "gemma2"])
def test_tied_weights_stay_tied(tiny_model: TinyModel, kind: str) -> None:
    pool = opened(tiny_model, kind)
    resident = Resident(pool)
    resident.apply(make_plan(pool.info.linear({"a": 0.5, "b": 0.5}), pool))
    module = resident.model.module
    head, embeddings = module.get_output_embeddings().weight, module.get_input_embeddings().weight
    assert head.data_ptr() == embeddings.data_ptr()
    name = pool.layout.tensors[SliceId("embed")][0]
    torch.testing.assert_close(head.detach(), (pool.read("a", name) + pool.read("b", name)) / 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merge_in_memory_is_the_merge_that_is_saved(tiny_model: TinyModel, dtype: str, tmp_path: Any) -> None:
    pool = opened(tiny_model, "qwen2", "bfloat16", dtype)
    plan = make_plan(task_arithmetic(pool, 0.7), pool)
    resident = Resident(pool)
    resident.apply(plan)
    fresh = transformers.AutoModelForCausalLM.from_pretrained(pool.folder("base"), dtype=getattr(torch, dtype))
    state = {name: tensor for entry in plan.slices for name, tensor in merge_slice(entry, pool).items()}
    fresh.load_state_dict(state)
    fresh.save_pretrained(tmp_path / "merged")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert loaded.dtype == getattr(torch, dtype)
    assert torch.equal(logits(resident.model.module), logits(loaded))


def test_only_changed_slices_are_written(tiny_model: TinyModel) -> None:
    pool = opened(tiny_model)
    resident = Resident(pool)
    total = sum(pool.read("a", name).nbytes for name in pool.layout.parameters)
    everything = len(pool.info.slices)

    def moved(plan: Plan) -> tuple[int, ...]:
        count = resident.apply(plan)
        assert count.bytes == total
        assert count.referenced + count.memory + count.shared == 0
        return count.computed, count.kept, count.computed_bytes

    assert moved(make_plan(pool.info.linear({"base": 1.0}), pool)) == (0, everything, 0)
    first = make_plan(task_arithmetic(pool, 0.5), pool)
    assert moved(first) == (everything, 0, total)
    assert moved(first) == (0, everything, 0)
    second = make_plan(task_arithmetic(pool, 0.5, **{"layers.1.mlp": 0.25}), pool)
    mlp = sum(pool.read("a", name).nbytes for name in pool.layout.tensors[SliceId("mlp", 1)])
    assert moved(second) == (1, everything - 1, mlp)


def test_the_way_to_a_candidate_does_not_matter(tiny_model: TinyModel) -> None:
    pool = opened(tiny_model, stored="bfloat16")
    plans = [make_plan(task_arithmetic(pool, w, **{"layers.0.attn": v}), pool) for w, v in ((0.3, 0.9), (0.8, 0.9))]
    walked, direct = Resident(pool), Resident(pool, placement=Placement(0, 0, 0), cache=0)
    for plan in (*plans, *plans[::-1], plans[1]):
        walked.apply(plan)
    direct.apply(plans[1])
    for a, b in zip(walked.model.module.parameters(), direct.model.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_sources_on_disk_are_never_written_to(tiny_model: TinyModel) -> None:
    pool = opened(tiny_model)
    before = {name: (pool.folder(name) / "model.safetensors").read_bytes() for name in NAMES}
    resident = Resident(pool)
    resident.apply(make_plan(task_arithmetic(pool, 0.5), pool))
    with torch.no_grad():
        for parameter in resident.model.module.parameters():
            parameter.fill_(7)
    assert {name: (pool.folder(name) / "model.safetensors").read_bytes() for name in NAMES} == before
    again = open_pool({name: str(pool.folder(name)) for name in NAMES}, base="base")
    assert again.info == pool.info


def test_a_failed_merge_is_not_taken_for_done(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = opened(tiny_model)
    resident, base = Resident(pool), make_plan(pool.info.linear({"base": 1.0}), pool)

    def fails(plans: Any, sources: Any, outs: Any, *more: Any) -> Any:
        outs[0][plans[0].tensors[0]].fill_(torch.nan)
        raise PoolError("the disk went away")

    with monkeypatch.context() as patch:
        patch.setattr(assemble, "merge_slices", fails)
        with pytest.raises(PoolError, match="the disk went away"):
            resident.apply(make_plan(task_arithmetic(pool, 0.5), pool))
    count = resident.apply(base)
    assert (count.kept, count.referenced + count.computed) == (0, len(pool.info.slices))
    for name in pool.layout.parameters:
        assert torch.equal(resident.model.module.get_parameter(name), pool.read("base", name))


def test_generation_config_tokenizer_and_attention(tiny_model: TinyModel) -> None:
    folder = tiny_model("a")
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.25, "do_sample": True}))
    pool = open_pool({"a": str(folder)})
    model = Resident(pool).model
    assert model.module.generation_config.temperature == 0.25
    assert model.tokenizer.convert_tokens_to_ids(["w7", "<eos>"]) == [7, 2]
    assert model.tokenizer.pad_token_id == 0
    assert (model.dtype, model.device, model.name_or_path) == (torch.float32, torch.device("cpu"), str(folder))
    assert model.module.config._attn_implementation == "sdpa"
    eager = Resident(pool, attn_implementation="eager").model
    assert eager.module.config._attn_implementation == "eager"


def test_the_tokenizer_may_be_another_model_s(tiny_model: TinyModel) -> None:
    folders = {name: tiny_model(name) for name in ("a", "b")}
    (folders["b"] / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    pool = open_pool({name: str(folder) for name, folder in folders.items()})
    recipe = replace(pool.info.linear({"a": 0.5, "b": 0.5}), tokenizer_from="b")
    turns = [{"role": "user", "content": "w7"}]
    tokenizer = Resident(pool_of_recipe(recipe)).model.tokenizer
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "w7!"
    assert Resident(pool).model.tokenizer.chat_template is None


def test_pool_without_tokenizer(tiny_model: TinyModel) -> None:
    folder = tiny_model("a")
    (folder / "tokenizer.json").unlink()
    assert Resident(open_pool({"a": str(folder)})).model.tokenizer is None


def test_attention_that_does_not_exist(tiny_model: TinyModel) -> None:
    with pytest.raises(PoolError, match="transformers cannot load"):
        Resident(open_pool({"a": str(tiny_model("a"))}), attn_implementation="telepathy")


def test_other_dtype_and_other_depth(tiny_model: TinyModel) -> None:
    pool = opened(tiny_model)
    resident = Resident(pool)
    narrow = open_pool({name: str(pool.folder(name)) for name in NAMES}, base="base", dtype="bfloat16")
    with pytest.raises(RecipeError, match="the recipe's dtype is bfloat16; the resident model is in float32"):
        resident.apply(make_plan(narrow.info.linear({"a": 1.0}), narrow))
    shallow = [s for s in pool.info.linear({"a": 1.0}).slices if s.slice.layer != 1]
    plan = make_plan(pool.info.recipe(shallow), pool)
    resident.apply(plan)
    assert len(find_layers(resident.model.module)[1]) == 1
    with pytest.raises(RecipeError, match="the recipe makes 5 slices; a resident model with its 1 layers has 6"):
        resident.apply(replace(plan, slices=plan.slices[:-1]))
