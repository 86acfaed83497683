"""Models of other numbers of rows and other tokens, brought to one vocabulary."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import TinyModel, write_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.errors import ConfigError, EvomergeWarning, PoolError
from evomerge.export.writer import write_model
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool, pool_of_recipe
from evomerge.models.pool import Pool
from evomerge.models.vocabularies.axes import row_axes
from evomerge.recipes.yaml_reader import dump_recipe, load_recipe
from evomerge.run.folder import RunFolder

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def quiet(*args: Any, **options: Any) -> Pool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvomergeWarning)
        return open_pool(*args, **options)


def locations(*folders: Path) -> dict[str, str]:
    return {folder.name: str(folder) for folder in folders}


def rows_of(folder: Path, name: str = EMBED) -> torch.Tensor:
    return load_file(folder / "model.safetensors")[name]


def test_padding_is_trimmed_and_added(tiny_model: TinyModel, tmp_path: Path) -> None:
    base, long, short = tiny_model("base"), tiny_model("long", seed=1, vocab_size=44), tiny_model("short", seed=2)
    write_tokenizer(long, 38)
    write_tokenizer(base, 38)
    short = tiny_model("short", seed=2, vocab_size=38)
    said = r"rows of embeddings are made 40 in all \(long has 44, short has 38\); results take the tokenizer of 'base'"
    with pytest.warns(EvomergeWarning, match=said):
        pool = open_pool(locations(base, long, short), "base")
    for name in (EMBED, HEAD):
        assert torch.equal(pool.read("base", name), rows_of(base, name))
        assert torch.equal(pool.read("long", name), rows_of(long, name)[:40])
        # What a model lacks is as the reference has it: its task vector is zero there.
        assert torch.equal(pool.read("short", name), torch.cat([rows_of(short, name), rows_of(base, name)[38:]]))
    recipe = pool.info.linear({"base": 0.5, "long": 0.25, "short": 0.25})
    again = load_recipe(dump_recipe(recipe))
    assert again == recipe
    assert again.hash == recipe.hash
    out = write_model(again, quiet_pool(again), tmp_path / "out")
    written = load_file(out / "model.safetensors")
    wanted = 0.5 * rows_of(base)[:38] + 0.25 * rows_of(long)[:38] + 0.25 * rows_of(short)
    torch.testing.assert_close(written[EMBED][:38], wanted)
    torch.testing.assert_close(written[EMBED][38:], 0.75 * rows_of(base)[38:] + 0.25 * rows_of(long)[38:40])
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == 40


def quiet_pool(recipe: Any) -> Pool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvomergeWarning)
        return pool_of_recipe(recipe)


def test_tokens_that_one_source_adds(tiny_model: TinyModel, tmp_path: Path) -> None:
    """The tokenizer is that of the model that has them, whose rows the others take; keys tell such a pool apart."""
    base, chat = tiny_model("base"), tiny_model("chat", seed=1, vocab_size=44)
    other = tiny_model("other", seed=2)
    write_tokenizer(chat, 42)
    said = r"come from those that have them: 'w40' \(not in base and other\), 'w41' .*tokenizer of 'chat'"
    with pytest.warns(EvomergeWarning, match=said):
        pool = open_pool(locations(base, chat, other), "base")
    assert pool.layout.shapes[EMBED] == (44, 16)
    assert pool.config.vocab_size == 44
    assert torch.equal(pool.read("base", EMBED), torch.cat([rows_of(base), rows_of(chat)[40:]]))
    recipe = pool.info.linear({"base": 0.5, "other": 0.5})
    out = write_model(recipe, pool, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("w41") == 41
    torch.testing.assert_close(load_file(out / "model.safetensors")[EMBED][40:], rows_of(chat)[40:])
    # The resident model computes what the exported one does.
    resident = Resident(pool)
    resident.apply(make_plan(recipe, pool))
    ids = torch.tensor([[1, 5, 41, 7]])
    with torch.no_grad():
        live = resident.model.module(ids).logits
        torch.testing.assert_close(live, AutoModelForCausalLM.from_pretrained(out)(ids).logits)
    plain = quiet(locations(base, other), "base")
    keys = [make_plan(own.info.linear({"base": 1.0}), own).by_slice for own in (pool, plain)]
    same = {slice_: keys[0][slice_].key == keys[1][slice_].key for slice_ in keys[0]}
    assert [str(slice_) for slice_, equal in same.items() if not equal] == ["embed", "head"]


def test_a_row_of_padding_is_no_token(tiny_model: TinyModel) -> None:
    """Of models with equally many rows, the one whose tokenizer has a token gives its row: others never trained it."""
    base, chat = tiny_model("base"), tiny_model("chat", seed=1)
    write_tokenizer(base, 38)
    write_tokenizer(chat, 39)
    with pytest.warns(EvomergeWarning, match=r"'w38' \(not in base\); results take the tokenizer of 'chat'"):
        pool = open_pool(locations(base, chat), "base")
    mixed = torch.cat([rows_of(base)[:38], rows_of(chat)[38:39], rows_of(base)[39:]])
    assert torch.equal(pool.read("base", EMBED), mixed)
    assert torch.equal(pool.read("chat", EMBED), rows_of(chat))


@pytest.mark.parametrize("tied", [True, False])
def test_a_union_of_other_vocabularies(tied: bool, tiny_model: TinyModel, tmp_path: Path) -> None:
    """mergekit's rules, computed here row by row: the base's row for tokens that others lack, else the mean."""
    kind = "llama_tied" if tied else "llama"
    folders = [tiny_model(name, kind, seed=i, eos_token_id=2) for i, name in enumerate(("base", "b", "c"))]
    write_tokenizer(folders[1], renamed={30: "new", 2: "w31", 31: "<eos>"})
    write_tokenizer(folders[2], renamed={30: "new", 39: "only c"})
    with pytest.warns(EvomergeWarning, match="base lacks 2 of 42 tokens; b lacks 2 of 42 tokens; c lacks 2 of 42 tok"):
        pool = open_pool(locations(*folders), "base", tokenizer="union")
    assert pool.vocabulary is not None
    tokens = AutoTokenizer.from_pretrained(pool.tokenizer_folder).get_vocab()
    assert set(tokens) == {*AutoTokenizer.from_pretrained(folders[0]).get_vocab(), "new", "only c"}
    own = {folder.name: AutoTokenizer.from_pretrained(folder).get_vocab() for folder in folders}
    rows = {folder.name: rows_of(folder) for folder in folders}
    for model in own:
        for token, place in tokens.items():
            having = [name for name in own if token in own[name]]
            donors = [model] if model in having else ["base"] if "base" in having else having
            wanted = torch.stack([rows[name][own[name][token]] for name in donors]).mean(0)
            torch.testing.assert_close(pool.read(model, EMBED)[place], wanted, rtol=0, atol=1e-7)
    out = write_model(pool.info.linear({"b": 1.0}), pool, tmp_path / "out")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert tokenizer.get_vocab() == tokens
    # A text of tokens that b has: what b says of them, b's ids and all.
    words = ["w4", "w31", "new", "w9"]
    before = AutoModelForCausalLM.from_pretrained(folders[1])(torch.tensor([[own["b"][w] for w in words]])).logits
    after = model(torch.tensor([tokenizer.convert_tokens_to_ids(words)])).logits
    common = list(own["b"])
    torch.testing.assert_close(after[..., [tokens[t] for t in common]], before[..., [own["b"][t] for t in common]])
    assert model.config.eos_token_id == tokens["<eos>"] == 2


def test_sources_of_single_tokens(tiny_model: TinyModel) -> None:
    base, b = tiny_model("base"), tiny_model("b", seed=1)
    write_tokenizer(b, renamed={30: "new"})
    spec = {
        "source": "base",
        "tokens": {
            "w7": {"source": "b", "force": True},
            "w8": {"source": {"kind": "mean"}, "force": True},
            "w9": {"source": {"kind": "zero"}, "force": True},
            "w30": {"source": {"kind": "model_token", "model": "b", "token": "new"}},
            "fresh": {"source": {"kind": "model_token", "model": "base", "token_id": 5}},
            "w10": {"source": "b"},
        },
        "pad_to_multiple_of": 16,
    }
    pool = quiet(locations(base, b), "base", tokenizer=spec)
    rows = {"base": rows_of(base), "b": rows_of(b)}
    assert pool.layout.shapes[EMBED] == (48, 16)
    fresh = AutoTokenizer.from_pretrained(pool.tokenizer_folder).convert_tokens_to_ids("fresh")
    assert fresh == 40
    for model in ("base", "b"):
        found = pool.read(model, EMBED)
        wanted = rows[model].clone()
        wanted[7], wanted[8], wanted[9] = rows["b"][7], (rows["base"][8] + rows["b"][8]) / 2, 0
        wanted[30] = rows["base"][30] if model == "base" else rows["b"][30]
        wanted = torch.cat([wanted, rows["base"][5:6]])
        wanted = torch.cat([wanted, wanted.mean(0, keepdim=True).expand(7, -1)])
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    recipe = pool.info.linear({"base": 0.5, "b": 0.5})
    assert load_recipe(dump_recipe(recipe)) == recipe
    assert recipe.hash != quiet(locations(base, b), "base", tokenizer="base").info.linear({"base": 0.5, "b": 0.5}).hash


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("unoin", r"pool\.tokenizer names model 'unoin'; did you mean 'union'"),
        ({"sorce": "union"}, r"unknown key pool\.tokenizer\.sorce; .*source"),
        ({"tokens": {"x": {"source": {"kind": "nil"}}}}, r"pool\.tokenizer\.tokens\.x\.source\.kind is 'nil'"),
        ({"tokens": {"x": {"forced": True}}}, r"unknown key pool\.tokenizer\.tokens\.x\.forced"),
        ({"tokens": {"x": {"source": "nobody"}}}, r"names model 'nobody'"),
        ({"pad_to_multiple_of": 0}, r"pad_to_multiple_of is 0; 1 to"),
        ({"source": "aligned", "pad_to_multiple_of": 8}, "source is aligned and more is said"),
        (7, r"pool\.tokenizer is 7; text"),
    ],
)
def test_what_is_no_vocabulary(given: Any, error: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=error):
        open_pool({"a": str(tmp_path), "b": str(tmp_path)}, tokenizer=given)


def test_what_cannot_be_had(tiny_model: TinyModel) -> None:
    a, b = tiny_model("a"), tiny_model("b", seed=1, vocab_size=44)
    write_tokenizer(b, renamed={30: "new"}, size=44)
    names = locations(a, b)
    with pytest.raises(PoolError, match=r"a vocabulary of 44, 'a' of 40; .*; set pool\.tokenizer=union, or a model"):
        open_pool(names)
    with pytest.raises(PoolError, match=r"'w30' from model 'b', which has no row for 'w30'"):
        quiet(names, tokenizer={"source": "a", "tokens": {"w30": {"source": "b"}}})
    token = {"source": {"kind": "model_token", "model": "b", "token_id": 44}}
    with pytest.raises(PoolError, match=r"'w30' from id 44 of model 'b'; it has rows 0 to 43"):
        quiet(names, tokenizer={"source": "a", "tokens": {"w30": token}})
    with pytest.raises(ConfigError, match=r"pool\.tokenizer and pool\.tokenizer_from are given"):
        open_pool(names, tokenizer="union", tokenizer_from="a")
    (b / "tokenizer.json").unlink()
    with pytest.raises(PoolError, match=r"model 'b' has no tokenizer, and pool\.tokenizer is union"):
        open_pool(names, tokenizer="union")


def test_nothing_is_done_where_nothing_need_be(tiny_model: TinyModel) -> None:
    a, b = tiny_model("a"), tiny_model("b", seed=1)
    for given in (None, "a", "b", "union", "aligned"):
        pool = open_pool(locations(a, b), tokenizer=given)
        assert (pool.vocabulary, pool.info.tokenizer) == (None, None)
        assert pool.info.tokenizer_from == ("b" if given == "b" else None)


def test_which_tensors_have_a_row_for_every_token() -> None:
    from transformers import BertConfig, GPT2Config

    gpt2 = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8, architectures=["GPT2LMHeadModel"])
    assert set(row_axes(gpt2)) == {"transformer.wte.weight", "lm_head.weight"}
    bert = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        architectures=["BertForMaskedLM"],
    )
    assert {name.rpartition("predictions.")[2]: axis for name, axis in row_axes(bert).items()} == {
        "bert.embeddings.word_embeddings.weight": 0,
        "bias": 0,
        "decoder.weight": 0,
        "decoder.bias": 0,
    }


def test_ids_of_special_tokens_follow_their_tokens(tiny_model: TinyModel, tmp_path: Path) -> None:
    """config.json and generation_config.json of the result name the ids that its tokenizer has."""
    base, b = tiny_model("base"), tiny_model("b", seed=1)
    write_tokenizer(b, renamed={2: "w39", 39: "<eos>"})
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5], "bos_token_id": 1}))
    pool = quiet(locations(base, b), "base", tokenizer="b")
    assert pool.config.eos_token_id == 39
    out = write_model(pool.info.linear({"base": 0.5, "b": 0.5}), pool, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 39
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": [39, 5], "bos_token_id": 1}
    assert (out / "tokenizer.json").read_bytes() == (b / "tokenizer.json").read_bytes()
    assert Resident(pool).model.module.generation_config.eos_token_id == [39, 5]


def test_narrow_dtypes_hold_what_they_can(tiny_model: TinyModel) -> None:
    """Rows of others stay in 16 bits; means are float32, as they are merged in."""
    base, b = tiny_model("base", dtype="bfloat16"), tiny_model("b", seed=1, dtype="bfloat16")
    write_tokenizer(b, renamed={30: "new"})
    union = quiet(locations(base, b), "base", tokenizer="union")
    assert union.read("base", EMBED).dtype == torch.bfloat16
    assert union.read("base", EMBED)[40].equal(rows_of(b)[30])
    mean = {"source": "base", "tokens": {"w5": {"force": True}}}
    found = quiet(locations(base, b), "base", tokenizer=mean).read("b", EMBED)
    assert found.dtype == torch.float32
    assert found[5].equal((rows_of(base)[5].float() + rows_of(b)[5].float()) / 2)


def test_a_run_keeps_the_vocabulary(tiny_model: TinyModel, tmp_path: Path) -> None:
    base, b = tiny_model("base"), tiny_model("b", seed=1)
    write_tokenizer(b, renamed={30: "new"})
    spec = {"source": "union", "tokens": {"w5": {"source": {"kind": "zero"}, "force": True}}}
    pool = quiet(locations(base, b), "base", tokenizer=spec)
    (tmp_path / "run").mkdir()
    folder = RunFolder(tmp_path / "run")
    folder.write_pool(pool.info)
    assert folder.read_pool().tokenizer == pool.info.tokenizer
    assert folder.read_pool().tokenizer_from is None


def test_memory_is_given_back(tiny_model: TinyModel) -> None:
    base, b = tiny_model("base"), tiny_model("b", seed=1)
    write_tokenizer(b, renamed={30: "new"})
    pool = quiet(locations(base, b), "base", tokenizer="union")
    first = pool.read("b", EMBED)
    assert pool.read("b", EMBED) is first
    assert pool.is_kept("b", EMBED)
    assert [part.nbytes for part in pool.memory() if part.name == "vocabularies"] == [2 * 2 * 41 * 16 * 4]
    pool.release()
    assert not pool.is_kept("b", EMBED)
    assert pool.read("b", EMBED).equal(first)
    assert np.isfinite(first.numpy()).all()
