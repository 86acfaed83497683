"""Whose chat template a merged model has, and that it is said where the models' differ."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import pytest
from tiny_models import TinyModel, write_tokenizer
from transformers import AutoTokenizer

from evomerge.errors import EvomergeWarning
from evomerge.models.chat_templates import chat_templates, template_caution, tokenizer_words
from evomerge.models.opening import open_pool

ONE, OTHER = "{% for m in messages %}<{{ m.content }}>{% endfor %}", "{{ messages[0].content }}"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@pytest.mark.parametrize("written", ["in the configuration", "in a file", "several", "several in a list"])
def test_templates_are_read_as_transformers_reads_them(written: str, tiny_model: TinyModel) -> None:
    folder = tiny_model("a")
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text())
    if written == "in the configuration":
        content["chat_template"] = ONE
    elif written == "in a file":
        content["chat_template"] = OTHER  # the file counts
        (folder / "chat_template.jinja").write_text(ONE)
    elif written == "several":
        (folder / "chat_template.jinja").write_text(ONE)
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(OTHER)
    else:
        content["chat_template"] = [{"name": "default", "template": ONE}, {"name": "tool_use", "template": OTHER}]
    path.write_text(json.dumps(content))
    found = chat_templates(folder)
    theirs = AutoTokenizer.from_pretrained(folder).chat_template
    assert found == (theirs if isinstance(theirs, dict) else {"default": theirs})
    assert found["default"] == ONE
    assert len(found) == (2 if "several" in written else 1)


def test_models_with_other_templates_are_named(tiny_model: TinyModel) -> None:
    folders = {name: tiny_model(name, seed=i) for i, name in enumerate(("base", "same", "other", "none"))}
    names = {name: str(folder) for name, folder in folders.items()}
    for name, text in {"base": ONE, "same": f"{ONE}\n", "other": OTHER}.items():
        (folders[name] / "chat_template.jinja").write_text(text)
    pool = open_pool(names, "base")
    assert tokenizer_words(pool) == f"of base; chat template {digest(ONE)} of base"
    said = f"the result takes {digest(ONE)} of base, and not {digest(OTHER)} of other; set pool.tokenizer=other"
    assert said in template_caution(pool)
    taken = open_pool(names, "base", tokenizer="other")
    assert tokenizer_words(taken) == f"of other; chat template {digest(OTHER)} of other"
    assert f"and not {digest(ONE)} of base and same" in template_caution(taken)
    without = open_pool(names, "base", tokenizer_from="none")
    assert tokenizer_words(without) == "of none; no chat template"
    assert "the result has none, as none has none, and not" in template_caution(without)
    alike = {name: names[name] for name in ("base", "same", "none")}
    assert template_caution(open_pool(alike, "base")) == ""


def test_a_tokenizer_of_several_has_the_template_of_the_first(tiny_model: TinyModel, tmp_path: Path) -> None:
    a, b = tiny_model("a"), tiny_model("b", seed=1)
    write_tokenizer(b, renamed={30: "new"})
    (a / "chat_template.jinja").write_text(ONE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvomergeWarning)
        pool = open_pool({"a": str(a), "b": str(b)}, tokenizer="union")
    assert tokenizer_words(pool) == (
        f"the union of all models'; 41 rows in every model; chat template {digest(ONE)} of a"
    )
    assert AutoTokenizer.from_pretrained(pool.tokenizer_folder).chat_template == ONE
