"""Tokenizers of a pool: loaded when it is opened; those that differ are merged where a key says whose is taken."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TinyModel, write_tokenizer

from evomerge.errors import ConfigError, EvomergeWarning, PoolError
from evomerge.export.writer import write_model
from evomerge.models.opening import open_pool, pool_of_recipe
from evomerge.models.tokenizers import load_tokenizer


def test_renamed_tokens_are_accepted_where_a_key_says_whose_are_taken(tiny_model: TinyModel, tmp_path: Path) -> None:
    a, b = tiny_model("a"), tiny_model("b", seed=1)
    write_tokenizer(b, renamed={30: "new", 31: "newer"})
    names = {"a": str(a), "b": str(b)}
    with pytest.raises(PoolError) as caught:
        open_pool(names)
    assert "token 'new' has id 30 in model 'b', no id in 'a' (also " in str(caught.value)
    assert "or pool.tokenizer_from=a to merge row by row all the same" in str(caught.value)
    for giver, folder in (("a", a), ("b", b)):
        with pytest.warns(EvomergeWarning, match=f"tokenizers differ: token 'new'.* take the tokenizer of '{giver}'"):
            pool = open_pool(names, tokenizer_from=giver)
        recipe = pool.info.linear({"a": 0.5, "b": 0.5})
        assert recipe.tokenizer_from == giver
        with pytest.warns(EvomergeWarning, match="tokenizers differ"):
            again = pool_of_recipe(recipe)
        out = write_model(recipe, again, tmp_path / f"out_{giver}")
        assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    with pytest.raises(ConfigError, match=r"pool\.tokenizer_from is 'c'; one of: a, b"):
        open_pool(names, tokenizer_from="c")


def test_tokens_without_a_row_of_the_embeddings_are_said(tiny_model: TinyModel) -> None:
    a = tiny_model("a")
    path = a / "tokenizer.json"
    content = json.loads(path.read_text())
    entry = {"id": 40, "content": "<extra>", "special": True, "single_word": False, "lstrip": False}
    content["added_tokens"] = [*(content.get("added_tokens") or []), entry | {"rstrip": False, "normalized": False}]
    path.write_text(json.dumps(content))
    with pytest.warns(EvomergeWarning, match="has ids up to 40, its embeddings 40 rows"):
        open_pool({"a": str(a)})


JUNK = {
    "not JSON": "junk",
    "empty": "",
    "no object": "[]",
    "an empty object": "{}",
    "no vocabulary": '{"model": {"type": "BPE"}}',
    "numbers": '{"version": 3, "model": 4}',
}


@pytest.mark.parametrize("content", JUNK.values(), ids=JUNK.keys())
def test_junk_in_the_place_of_a_tokenizer(content: str, tiny_model: TinyModel) -> None:
    a = tiny_model("a")
    (a / "tokenizer.json").write_text(content)
    with pytest.raises(
        PoolError, match=r"model 'a': (the tokenizer in .* cannot be loaded|.*tokenizer\.json is (no|list))"
    ) as caught:
        open_pool({"a": str(a)})
    assert "\n" not in str(caught.value)


def test_code_of_the_tokenizer_alone_is_not_run(tiny_model: TinyModel) -> None:
    a = tiny_model("a")
    (a / "own.py").write_text(f"open({str(a / 'ran')!r}, 'w')")
    path = a / "tokenizer_config.json"
    content = json.loads(path.read_text())
    content |= {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    path.write_text(json.dumps(content))
    with contextlib.suppress(PoolError):  # transformers may take its own class instead
        open_pool({"a": str(a)})
    assert not (a / "ran").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "vocab.json"])
def test_pipes_and_links_are_refused_and_not_waited_for(name: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    a = tiny_model("a")
    (a / name).unlink(missing_ok=True)
    os.mkfifo(a / name)
    start = time.monotonic()
    with pytest.raises(PoolError, match=f"{name} is not a regular file"):
        open_pool({"a": str(a)})
    assert time.monotonic() - start < 30
    (a / name).unlink()
    (tmp_path / "elsewhere").write_text("{}")
    (a / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PoolError, match=f"{name} is a link to .*elsewhere"):
        open_pool({"a": str(a)})


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('only tools') }}", "only tools"),
        ("{% for x in %}", "Expected an expression"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a %}{% endfor %}{% endfor %}",
            "takes longer than",
        ),
    ],
)
def test_a_chat_template_that_fails_is_said(
    template: str, reason: str, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evomerge.models import tokenizers

    monkeypatch.setattr(tokenizers, "_SECONDS", 0.5)
    a = tiny_model("a")
    (a / "chat_template.jinja").write_text(template)
    with pytest.warns(EvomergeWarning, match=f"the chat template of model 'a' fails on a message .*{reason}"):
        open_pool({"a": str(a)})


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer_config.json", [1, 2], "tokenizer_config.json is list [1, 2]; a mapping of settings"),
        ("tokenizer_config.json", {"model_max_length": "many"}, "has model_max_length 'many'; a number of tokens"),
        ("tokenizer_config.json", {"model_max_length": True}, "has model_max_length 'True'"),
        ("tokenizer_config.json", {"chat_template": 5}, "has chat_template '5'; a text, or texts by name"),
        ("tokenizer_config.json", {"padding_side": "up"}, "up"),
        ("special_tokens_map.json", 3, "special_tokens_map.json is 3; a mapping of settings"),
    ],
)
def test_odd_fields_of_a_tokenizer_are_named(
    tiny_model: Any, tmp_path: Path, file: str, content: Any, words: str
) -> None:
    folder = Path(tiny_model("odd"))
    path = folder / file
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | content if isinstance(content, dict) else content))
    with pytest.raises(PoolError, match=re.escape(words)):
        load_tokenizer(folder)
