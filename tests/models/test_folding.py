"""Folding against PEFT's own merge: every tensor of tiny models with random adapters."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import architectures
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TinyModel

from evomerge.errors import PoolError
from evomerge.merge.execution.sources import Placement, Sources
from evomerge.models.checkpoints.folding import FoldedCheckpoint
from evomerge.models.opening import open_pool, pool_of_recipe
from evomerge.models.pool import Pool
from evomerge.recipes.slices import ModelRef

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_adapter(base: Path, folder: Path, dtype: str = "float32", seed: int = 0, **settings: Any) -> Path:
    """A random adapter for the model in `base`; factors of which one starts as zeros are random too."""
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 5} | settings)
    model = peft.get_peft_model(architectures.load(base).float(), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = 0.3 * torch.randn(parameter.shape, generator=generator)
                # Of a module that is saved whole only the copy is trained.
                parameter.copy_(noise if "lora_" in name else parameter + noise)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The model's tensors as PEFT merges them, in float32."""
    model = peft.PeftModel.from_pretrained(architectures.load(base).float(), str(adapter)).merge_and_unload()
    return {name: tensor.detach().float() for name, tensor in model.state_dict().items()}


def folded(base: Path, adapter: Path) -> tuple[Pool, FoldedCheckpoint]:
    pool = open_pool({"a": f"{base}+{adapter}"})
    checkpoint = pool.checkpoints["a"]
    assert isinstance(checkpoint, FoldedCheckpoint)
    return pool, checkpoint


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "every linear layer": ("llama", {"target_modules": LINEAR}),
    "rank stabilised": ("llama", {"target_modules": LINEAR, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": LINEAR,
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 4, "proj": 9, "down_proj": 1},
            "alpha_pattern": {"layers.0.self_attn.k_proj": 7, "mlp.up_proj": 11},
        },
    ),
    "embeddings and head": ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "saved whole": ("llama", {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "norm", "embed_tokens"]}),
    "tied, saved, kept so": (
        "llama_tied",
        {"target_modules": ["o_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "all biases": ("qwen2", {"target_modules": ["q_proj", "o_proj"], "bias": "all"}),
    "biases of changed layers": ("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "bias of the adapter": ("qwen2", {"target_modules": ["q_proj", "k_proj"], "lora_bias": True}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "gpt2, wrongly declared": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": False}),
    "fused projections": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_that_of_peft(case: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    kind, settings = CASES[case]
    base = tiny_model("base", kind)
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    pool, checkpoint = folded(base, adapter)
    expected, before = merged_by_peft(base, adapter), load_file(base / "model.safetensors")
    changed = set()
    for name, place in pool.layout.parameters.items():
        got = pool.read("a", name)
        torch.testing.assert_close(got, expected[place], rtol=1e-6, atol=1e-6)
        if not torch.equal(got, before[name]):
            changed.add(name)
            assert (got - before[name]).abs().max() > 0.01
    assert changed
    assert changed == checkpoint.changed


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bert_classifier", {"target_modules": ["query", "value"], "modules_to_save": ["classifier"]}),
        ("bert_masked", {"target_modules": ["query", "dense"], "bias": "lora_only"}),
        ("llama_classifier", {"target_modules": ["q_proj"], "task_type": "SEQ_CLS"}),  # which saves the score too
        ("vit", {"target_modules": "all-linear", "modules_to_save": ["classifier"]}),
        ("mixtral", {"target_modules": ["q_proj", "o_proj"]}),
        ("gpt_neox", {"target_modules": ["query_key_value", "embed_out"]}),
    ],
)
def test_architectures_beyond_decoders(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    base = architectures.save_pool(kind, tmp_path, ("base",))["base"]
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    pool, checkpoint = folded(base, adapter)
    assert checkpoint.changed
    expected, joined = merged_by_peft(base, adapter), {name for join in pool.layout.joins for name in join.names}
    for name, place in pool.layout.parameters.items():
        if name not in joined:
            torch.testing.assert_close(pool.read("a", name), expected[place], rtol=1e-6, atol=1e-6)


def test_an_adapter_of_single_experts_fits_a_checkpoint_of_single_experts(tmp_path: Path) -> None:
    # transformers joins the experts on loading; adapters trained before it did name them one by one.
    base = architectures.save_pool("mixtral", tmp_path, ("base",))["base"]
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    name = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    before = load_file(base / "model.safetensors")[name]
    a, b = torch.randn(3, before.shape[1]), torch.randn(before.shape[0], 3)
    own = "base_model.model." + name.removesuffix(".weight")
    save_file({f"{own}.lora_A.weight": a, f"{own}.lora_B.weight": b}, adapter / "adapter_model.safetensors")
    pool, checkpoint = folded(base, adapter)
    assert checkpoint.changed == {name}
    torch.testing.assert_close(pool.read("a", name), before + 5 / 3 * (b @ a))
    rename(adapter, "experts.2", "experts.9")
    with pytest.raises(PoolError, match=r"changes '.*experts\.9\.w1\.weight', which the base model lacks"):
        folded(base, adapter)


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
@pytest.mark.parametrize("trained", ["float32", "bfloat16"])
def test_half_precision_is_rounded_once(stored: str, trained: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    base = tiny_model("base", dtype=stored)
    adapter = make_adapter(base, tmp_path / "adapter", trained, target_modules=LINEAR, modules_to_save=["norm"])
    pool, checkpoint = folded(base, adapter)
    expected = merged_by_peft(base, adapter)  # the same numbers in float32
    dtype = getattr(torch, stored)
    off = total = 0
    for name, place in pool.layout.parameters.items():
        got = pool.read("a", name)
        assert got.dtype == dtype
        total += got.numel()
        # A sum that lies between two numbers of the dtype to the last bit may round either way.
        off += int((got != expected[place].to(dtype)).sum())
        torch.testing.assert_close(got, expected[place].to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
    assert off <= total * 1e-3
    assert checkpoint.nbytes == sum(info.nbytes for info in checkpoint.base.tensors.values())


def test_checkpoint_of_the_bare_model_and_adapter_of_the_whole(tiny_model: TinyModel, tmp_path: Path) -> None:
    base = tiny_model("base", "gpt2")
    whole = make_adapter(base, tmp_path / "whole", target_modules=["c_attn", "wpe"], fan_in_fan_out=True)
    expected = merged_by_peft(base, whole)
    weights = load_file(base / "model.safetensors")
    save_file({n.removeprefix("transformer."): t for n, t in weights.items()}, base / "model.safetensors")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "adapter_config.json").write_text((whole / "adapter_config.json").read_text())
    tensors = load_file(whole / "adapter_model.safetensors")
    tensors = {name.replace("model.transformer.", "model."): tensor for name, tensor in tensors.items()}
    save_file(tensors, bare / "adapter_model.safetensors")
    for adapter in (whole, bare):
        pool, checkpoint = folded(base, adapter)
        assert len(checkpoint.changed) == 3
        for name, place in pool.layout.parameters.items():
            torch.testing.assert_close(pool.read("a", name), expected[place], rtol=1e-6, atol=1e-6)


def test_folded_once_when_read_and_the_rest_stays_mapped(tiny_model: TinyModel, tmp_path: Path) -> None:
    base = tiny_model("base")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    pool, checkpoint = folded(base, adapter)
    changed = "model.layers.1.self_attn.q_proj.weight"
    assert checkpoint.changed == {f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)}
    assert checkpoint.memory == 2 * 16 * 16 * 4
    first = pool.read("a", changed)
    assert pool.read("a", changed) is first
    mapped = "model.layers.1.self_attn.k_proj.weight"
    assert pool.read("a", mapped).data_ptr() == checkpoint.base.read(mapped).data_ptr()
    checkpoint.release()
    again = pool.read("a", changed)
    assert again is not first
    assert torch.equal(again, first)


def adapter_bytes(pool: Pool) -> int:
    return next(part.nbytes for part in pool.memory() if part.name == "adapters")


def test_what_finds_no_room_is_folded_again(tiny_model: TinyModel, tmp_path: Path) -> None:
    base = tiny_model("base")
    adapters = [make_adapter(base, tmp_path / f"adapter{i}", seed=i, target_modules=["q_proj"]) for i in range(2)]
    pool = open_pool({f"m{i}": f"{base}+{adapter}" for i, adapter in enumerate(adapters)})
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)]
    expected = [[pool.read(model, name).clone() for name in names] for model in ("m0", "m1")]
    pool.release()
    own = pool.checkpoints["m0"], pool.checkpoints["m1"]
    assert isinstance(own[0], FoldedCheckpoint)
    assert isinstance(own[1], FoldedCheckpoint)
    room = own[0].room
    assert room is own[1].room  # of the pool together
    assert room.used == 0
    assert room.limit >= base.joinpath("model.safetensors").stat().st_size * 0.9
    room.limit = 3 * 16 * 16 * 4
    assert adapter_bytes(pool) == 4 * 16 * 16 * 4  # three are kept, and never more than there are
    sources = Sources(pool, "cpu", Placement(0, 0, 0))
    for _ in range(2):
        found = [[sources.held(model, name) for name in names] for model in ("m0", "m1")]
        assert all(torch.equal(found[m][n], expected[m][n].view(-1)) for m in (0, 1) for n in (0, 1))
    assert room.used == room.limit
    assert [pool.is_kept(model, name) for model in ("m0", "m1") for name in names] == [True, True, True, False]
    last = weakref.ref(pool.read("m1", names[1]))
    del found
    assert last() is None
    assert sources.held("m0", names[0]).data_ptr() == pool.read("m0", names[0]).data_ptr()
    pool.release()
    assert room.used == 0
    room.limit = 0
    assert adapter_bytes(pool) == 2 * 16 * 16 * 4  # of one tensor at a time


def test_opening_reads_headers_alone(tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evomerge.models.checkpoints import reader

    base = tiny_model("base")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=LINEAR)

    def no_reading(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(reader, "mapped", no_reading)
    pool, checkpoint = folded(base, adapter)
    assert all(pool.is_merged(name) for name in pool.layout.parameters)
    assert checkpoint.shapes == checkpoint.base.shapes
    assert pool.info.dtype == "float32"


def test_base_and_adapter_are_pinned_by_their_content(tiny_model: TinyModel, tmp_path: Path) -> None:
    base = tiny_model("base")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    pool = open_pool({"base": str(base), "a": f"base+{adapter.name}"}, base="base", root=tmp_path)
    refs = dict(pool.info.refs)
    assert refs["a"] == ModelRef(
        str(base), None, refs["base"].fingerprint, ModelRef(str(adapter), None, refs["a"].adapter.fingerprint)
    )
    assert refs["a"].adapter.fingerprint.startswith("sha256:")
    assert pool.checkpoints["a"].fingerprint() != pool.checkpoints["base"].fingerprint()
    recipe = pool.info.linear({"a": 1.0})
    again = pool_of_recipe(recipe)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert again.info.refs[0] == ("base", refs["base"])
    assert torch.equal(again.read("a", name), pool.read("a", name))

    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "elsewhere/base"  # where it was trained is not what it is
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    pool_of_recipe(recipe)
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(PoolError, match=r"the adapter of model 'a' in .*adapter is not the one that the recipe"):
        pool_of_recipe(recipe)


def test_an_adapter_of_another_base_is_warned_of(tiny_model: TinyModel, tmp_path: Path) -> None:
    base = tiny_model("base")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "org/Other-7B"}))
    with pytest.warns(UserWarning, match=r"model 'a': the adapter in .*adapter was trained on org/Other-7B"):
        folded(base, adapter)


def edit(adapter: Path, **changes: Any) -> None:
    """Change tensors of an adapter, ``None`` taking one out; names by the end of theirs."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    for ending, value in changes.items():
        name = next(name for name in tensors if name.endswith(ending))
        tensors.pop(name)
        if value is not None:
            tensors[name] = value
    save_file(tensors, adapter / "adapter_model.safetensors")


def rename(adapter: Path, old: str, new: str) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({n.replace(old, new): t for n, t in tensors.items()}, adapter / "adapter_model.safetensors")


FIRST = "0.self_attn.q_proj.lora_"
Q = r"base_model\.model\.model\.layers\.0\.self_attn\.q_proj"
MISFITS = {
    "lacks B": (
        lambda a: edit(a, **{FIRST + "B.weight": None}),
        rf"'{Q}\.lora_A\.weight' has no lora_B",
    ),
    "lacks A": (
        lambda a: edit(a, **{FIRST + "A.weight": None}),
        rf"'{Q}\.lora_B\.weight' has no lora_A",
    ),
    "rank of A": (
        lambda a: edit(a, **{FIRST + "A.weight": torch.ones(4, 16)}),
        rf"tensor '{Q}\.lora_A\.weight' has shape \(4, 16\); adapter_config.json gives .*q_proj rank 3",
    ),
    "rank of B": (
        lambda a: edit(a, **{FIRST + "B.weight": torch.ones(16, 2)}),
        rf"tensor '{Q}\.lora_B\.weight' has shape \(16, 2\)",
    ),
    "width": (
        lambda a: edit(a, **{FIRST + "A.weight": torch.ones(3, 8)}),
        r"module 'model\.layers\.0\.self_attn\.q_proj' makes a difference of shape \(16, 8\); the base's .* \(16, 16\)",
    ),
    "a vector": (
        lambda a: edit(a, **{FIRST + "A.weight": torch.ones(48)}),
        rf"tensor '{Q}\.lora_A\.weight' has shape \(48,\); factors are matrices",
    ),
    "integers": (
        lambda a: edit(a, **{FIRST + "A.weight": torch.ones(3, 16, dtype=torch.int64)}),
        rf"tensor '{Q}\.lora_A\.weight' is stored as I64",
    ),
    "shape of a whole tensor": (
        lambda a: edit(a, **{"model.norm.weight": torch.ones(8)}),
        r"module 'model\.norm' has shape \(8,\) in 'base_model\.model\.model\.norm\.weight'; the base's .* \(16,\)",
    ),
    "unknown module": (
        lambda a: rename(a, "0.self_attn.q_proj", "0.self_attn.query"),
        r"changes 'model\.layers\.0\.self_attn\.query\.weight', which the base model lacks; did you mean",
    ),
    "unknown part": (
        lambda a: rename(a, "lora_A", "lora_C"),
        r"tensor '.*q_proj\.lora_C\.weight' is not part of a plain LoRA adapter",
    ),
    "other names": (lambda a: rename(a, "base_model.model.", "unet."), r"is not named base_model\.model\.\.\."),
    "no tensors": (lambda a: save_file({}, a / "adapter_model.safetensors"), "holds no tensors"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_an_adapter_that_does_not_fit_names_the_tensor(case: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    base = tiny_model("base")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["norm"])
    change, message = MISFITS[case]
    change(adapter)
    with pytest.raises(PoolError, match=message) as caught:
        folded(base, adapter)
    assert str(caught.value).startswith("model 'a': ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ],
)
def test_one_of_two_tied_tensors_cannot_change(settings: dict[str, Any], tiny_model: TinyModel, tmp_path: Path) -> None:
    base = tiny_model("base", "llama_tied")
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    with pytest.raises(PoolError, match=r"'model\.embed_tokens\.weight', which config\.json ties.*ensure_weight_tying"):
        folded(base, adapter)


def test_tied_embeddings_that_were_trained_as_one_compute_what_peft_does(tiny_model: TinyModel, tmp_path: Path) -> None:
    # Not compared with PEFT's merge, which adds the difference to the shared weight once for each use.
    base = tiny_model("base", "llama_tied")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens"], ensure_weight_tying=True)
    pool, _ = folded(base, adapter)
    plain = architectures.load(base)
    embeddings = pool.read("a", "model.embed_tokens.weight")
    assert (embeddings - plain.model.embed_tokens.weight).abs().max() > 0.1
    plain.load_state_dict({"model.embed_tokens.weight": embeddings}, strict=False)
    tokens = torch.arange(20)[None]
    expected = peft.PeftModel.from_pretrained(architectures.load(base), str(adapter))(tokens).logits
    torch.testing.assert_close(plain(tokens).logits, expected, rtol=1e-5, atol=1e-5)


def test_a_saved_copy_of_tied_embeddings_is_no_change_of_one_use(tiny_model: TinyModel, tmp_path: Path) -> None:
    base = tiny_model("base", "llama_tied")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    copy = torch.randn(40, 16)
    name = "base_model.model.model.embed_tokens.weight"
    save_file({**tensors, name: copy}, adapter / "adapter_model.safetensors")
    pool, _ = folded(base, adapter)
    assert torch.equal(pool.read("a", "model.embed_tokens.weight"), copy)
    assert torch.equal(merged_by_peft(base, adapter)["lm_head.weight"], copy)
