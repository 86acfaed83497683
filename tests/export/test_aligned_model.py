from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models.architectures import inputs, load, save_pool
from safetensors.torch import load_file, save_file
from tiny_models import TinyModel, write_tokenizer

from evomerge.cli.main import main
from evomerge.errors import ConfigError, NoMemoryError, OutputError, PoolError
from evomerge.export import aligned_model
from evomerge.export.aligned_model import ALIGNMENT_FILE, align
from evomerge.export.in_memory import merged_model
from evomerge.export.zipped_model import zip_models
from evomerge.merge.alignment import trial
from evomerge.merge.alignment.finding import symmetries_of
from evomerge.models.architecture.names import tied_names
from evomerge.models.opening import open_pool


def shuffled(folder: Path, out: Path, seed: int = 0, **save: bool) -> Path:
    """A copy of a model's folder with the units of the model in another order."""
    module = load(folder)
    tied = tied_names(module)
    shapes = {name: tuple(t.shape) for name, t in module.state_dict().items() if name not in tied}
    found = symmetries_of(module, module.config, shapes)
    found = replace(found, free=found.free & trial.free_kinds(module.config))
    trial.put_in_order(module, found, found.random(np.random.default_rng(seed)))
    module.save_pretrained(out, **save)
    for file in folder.glob("tokenizer*"):
        (out / file.name).write_bytes(file.read_bytes())
    return out


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("llama", "bfloat16"), *((kind, "float32") for kind in ("qwen3", "gpt2", "phi3", "roberta_masked", "vit"))],
)
def test_a_shuffled_copy_is_put_back(kind: str, dtype: str, tmp_path: Path) -> None:
    own = save_pool(kind, tmp_path, ("own",), dtype=dtype)["own"]
    other = shuffled(own, tmp_path / "other")
    found = align(str(own), str(other), tmp_path / "out", starts=1)
    assert found.moved
    assert found.after == pytest.approx(1)
    assert found.before < 0.7
    assert found.difference is not None
    assert found.difference < 1e-5
    expected, module = load(own), load(tmp_path / "out")
    for name, tensor in expected.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name  # bit for bit, in the stored dtype
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads((other / "config.json").read_text())

    if dtype != "float32":
        return  # an average is then rounded
    pool = open_pool({"a": str(own), "b": str(tmp_path / "out")})
    half = merged_model(pool.info.linear({"a": 0.5, "b": 0.5}), pool)
    with torch.no_grad():
        torch.testing.assert_close(half(**inputs(kind))[0], expected(**inputs(kind))[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama_tied", "llama", "gpt2"])
def test_unlike_models(kind: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    one, two = (tiny_model(name, kind, seed) for seed, name in enumerate(("one", "two")))
    (two / "README.md").write_text("---\nlicense: mit\n---\n")
    (two / "notes.txt").write_text("not a model's file")
    found = align(str(one), str(two), tmp_path / "out", max_shard_bytes=2000)
    assert found.moved
    assert found.after > found.before + 0.05
    before, after = load(two), load(tmp_path / "out")
    ids = torch.arange(3, 19).view(2, 8)
    with torch.no_grad():
        torch.testing.assert_close(after(ids).logits, before(ids).logits, atol=1e-5, rtol=1e-5)
    for name, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[name].flatten().sort()[0], tensor.flatten().sort()[0])
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "README.md", "model.safetensors.index.json"} <= written
    assert "notes.txt" not in written
    record = json.loads((tmp_path / "out" / ALIGNMENT_FILE).read_text())
    assert record["cosine"] == {"before": found.before, "after": found.after}
    assert record["model"]["fingerprint"].startswith("sha256:")
    assert "query_key" in record["units"] or kind != "gpt2"


def test_the_same_bytes_every_time(tiny_model: TinyModel, tmp_path: Path) -> None:
    one, two = (str(tiny_model(name, seed=seed)) for seed, name in enumerate(("one", "two")))
    for name in ("first", "second"):
        align(one, two, tmp_path / name, seed=4)
    for file in (tmp_path / "first").iterdir():
        assert (tmp_path / "second" / file.name).read_bytes() == file.read_bytes(), file.name


def test_an_adapter_is_folded_in(tiny_model: TinyModel, tmp_path: Path) -> None:
    """What is aligned is the model with the adapter, written as one."""
    own = tiny_model("own")
    other = shuffled(own, tmp_path / "other")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    module = load(other)
    place = "model.layers.0.mlp.down_proj"
    weight = module.get_submodule(place).weight
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(1, weight.shape[1], generator=generator), torch.randn(weight.shape[0], 1, generator=generator)
    save_file(
        {f"base_model.model.{place}.lora_A.weight": a, f"base_model.model.{place}.lora_B.weight": 0.1 * b},
        adapter / "adapter_model.safetensors",
    )
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["down_proj"], "bias": "none"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    align(str(own), f"{other}+{adapter}", tmp_path / "out", starts=1)
    with torch.no_grad():
        weight += 0.1 * b @ a
        ids = torch.arange(3, 11).view(1, 8)
        torch.testing.assert_close(load(tmp_path / "out")(ids).logits, module(ids).logits, atol=1e-5, rtol=1e-5)


def test_tied_and_untied(tiny_model: TinyModel, tmp_path: Path) -> None:
    """A reference with a head of its own, and a model whose head is its embeddings."""
    one, two = tiny_model("one", "llama", 0), tiny_model("two", "llama_tied", 1)
    found = align(str(one), str(two), tmp_path / "out")
    assert found.moved
    before, after = load(two), load(tmp_path / "out")
    assert after.config.tie_word_embeddings
    ids = torch.arange(3, 11).view(1, 8)
    with torch.no_grad():
        torch.testing.assert_close(after(ids).logits, before(ids).logits, atol=1e-5, rtol=1e-5)


def test_models_that_do_not_fit(tiny_model: TinyModel, tmp_path: Path) -> None:
    one = str(tiny_model("one"))
    for overrides, says in (
        ({"hidden_size": 32}, "hidden_size"),
        ({"intermediate_size": 32}, "intermediate_size"),
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
        ({"num_hidden_layers": 3}, "number of layers"),
    ):
        other = str(tiny_model("other", **overrides))
        with pytest.raises(PoolError, match=says):
            align(one, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_refused_before_anything_is_read(tiny_model: TinyModel, tmp_path: Path) -> None:
    one = str(tiny_model("one"))
    with pytest.raises(ConfigError, match="--starts is 0"):
        align(one, one, tmp_path / "out", starts=0)
    with pytest.raises(OutputError, match="not empty"):
        align(one, one, Path(one))
    folders = save_pool("gpt_oss", tmp_path / "experts", ("a", "b"))
    with pytest.raises(PoolError, match=r"'gpt_oss'.*one of bert"):
        align(str(folders["a"]), str(folders["b"]), tmp_path / "out")


@pytest.mark.parametrize("save", [{}, {"save_original_format": False}])
def test_experts_in_another_order_come_back(save: dict[str, bool], tmp_path: Path) -> None:
    """Stored one by one, as they are published, or as transformers holds them."""
    own = save_pool("mixtral", tmp_path, ("own",), save=save)["own"]
    write_tokenizer(own)
    other = shuffled(own, tmp_path / "other", **save)
    found = align(str(own), str(other), tmp_path / "out", starts=1)
    assert found.moved
    assert {"experts", "expert_units"} <= set(found.free)
    assert found.after == pytest.approx(1)
    tensors, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", own))
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    with pytest.raises(PoolError, match="mixtures of experts"):
        zip_models(str(own), str(other), tmp_path / "zipped", ratio=0.5)


def test_no_room_for_the_comparison(tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (str(tiny_model(name, seed=seed)) for seed, name in enumerate(("one", "two")))
    monkeypatch.setattr(aligned_model, "free_host_memory", lambda: 1000)
    with pytest.raises(NoMemoryError, match="--no-check"):
        align(one, two, tmp_path / "out")
    assert align(one, two, tmp_path / "out", check=False).difference is None
    assert json.loads((tmp_path / "out" / ALIGNMENT_FILE).read_text())["difference"] is None


def test_another_function_is_not_written(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the small model to say that queries and keys may change places, the model itself would not."""
    import dataclasses

    from evomerge.merge.alignment import finding

    wrong = {k: dataclasses.replace(v, fixed=frozenset()) for k, v in finding.MODEL_TYPES.items()}
    one, two = (str(tiny_model(name, seed=seed)) for seed, name in enumerate(("one", "two")))
    monkeypatch.setattr(finding, "MODEL_TYPES", wrong)
    monkeypatch.setattr(aligned_model, "free_kinds", lambda config: frozenset({"mlp", "query_key"}))
    with pytest.raises(PoolError, match="outputs differ"):
        align(one, two, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def output(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_the_verb(tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tiny_model("own")
    other = shuffled(own, tmp_path / "other")
    text = output(["align", str(own), str(other), str(tmp_path / "out"), "--starts", "1"], capsys)
    assert "1.0000 after" in text
    assert "hidden units of feed-forward layers" in text
    assert "dimensions of queries" not in text
    assert f"wrote {tmp_path / 'out'}" in text
    text = output(["align", str(own), str(own), str(tmp_path / "same"), "--no-check"], capsys)
    assert "nothing to align" in text
    assert "outputs" not in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["OWN"], "required: MODEL, OUT"),
        (["OWN", "nowhere/at-all", "out"], "nowhere/at-all"),
        (["OWN", "OWN", "out", "--starts", "0"], "--starts is 0; at least 1"),
        (["OWN", "OWN", "out", "--starts", "many"], "--starts"),
        (["OWN", "OWN", "out", "--seed", "-1"], "--seed is -1; at least 0"),
        (["OWN", "OWN", "OWN"], "not empty"),
        (["OWN", "OWN", "out", "--max-shard-size", "five"], "--max-shard-size"),
    ],
)
def test_what_the_verb_refuses(
    arguments: list[str],
    says: str,
    tiny_model: TinyModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = str(tiny_model("own"))
    monkeypatch.chdir(tmp_path)
    assert main(["align", *(own if word == "OWN" else word for word in arguments)]) == 2
    text = capsys.readouterr().err
    assert says in text
    assert text.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_files_lead_nowhere_else(tiny_model: TinyModel, tmp_path: Path) -> None:
    one, two = tiny_model("one"), tiny_model("two", seed=1)
    (tmp_path / "secret").write_text("of the user's")
    (two / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(PoolError, match="is a link to"):
        align(str(one), str(two), tmp_path / "out")
