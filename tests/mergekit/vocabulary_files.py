"""Models of other vocabularies, and mergekit files that bring them to one."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_llama import VOCABULARY, save_llama
from transformers import AutoModelForCausalLM

LETTERS = {"BASE": "base", "A": "a", "B": "b", "C": "c"}

HEAD = (
    "merge_method: linear\nmodels:\n- {model: A, parameters: {weight: 0.6}}\n- {model: B, parameters: {weight: 0.4}}\n"
)
THREE = (
    "merge_method: linear\nbase_model: BASE\nmodels:\n- {model: A, parameters: {weight: 0.3}}\n"
    "- {model: B, parameters: {weight: 0.5}}\n- {model: BASE, parameters: {weight: 0.2}}\n"
)
TIES = (
    "merge_method: task_arithmetic\nbase_model: BASE\nmodels:\n- {model: A, parameters: {weight: 0.7}}\n"
    "- {model: B, parameters: {weight: 0.5}}\n- {model: C, parameters: {weight: -0.2}}\n"
)
TOKENS = """
tokenizer:
  source: %s
  tokens:
    t5: {source: B, force: true}
    <eos>: {source: {kind: zero}, force: true}
    t7: {source: {kind: model_token, model: A, token: t9}, force: true}
    fresh: {source: {kind: model_token, model: A, token_id: 3}}
    other: {source: {kind: zero}}
    bonly: {source: {kind: model_token, model: B, token: bonly}}
  pad_to_multiple_of: 8
"""
FLOAT = "dtype: float32\n"
FILES = {
    "union": THREE + FLOAT + "tokenizer_source: union\n",
    "union without a base": HEAD + FLOAT + "tokenizer_source: union\n",
    "base": THREE + FLOAT + "tokenizer_source: base\n",
    "a model": THREE + FLOAT + "tokenizer_source: B\n",
    "differences": TIES + FLOAT + "tokenizer: {source: union, pad_to_multiple_of: 16}\n",
    "tokens": THREE + FLOAT + TOKENS % "union",
    "tokens of a model": THREE + FLOAT + TOKENS % "B",
    "bfloat16": TIES + "dtype: float32\nout_dtype: bfloat16\ntokenizer_source: union\n",
}


def models(root: Path) -> dict[str, Path]:
    """Llamas: ``a`` has the base's tokens in another order, ``b`` and ``c`` have tokens of their own, and ``c`` more
    rows than tokens."""
    words = [f"t{i}" for i in range(VOCABULARY - 2)] + ["<unk>", "<eos>"]
    own = {
        "base": words,
        "a": [*words[10:46], *words[:10], *words[46:]],
        "b": ["bonly" if word == "t20" else "both" if word == "t30" else word for word in words],
        "c": [*["both" if word == "t40" else word for word in words], "conly"],
    }
    folders = {}
    for seed, (name, tokens) in enumerate(own.items()):
        folders[name] = save_llama(root / name, seed, layers=2)
        path = folders[name] / "tokenizer.json"
        content = json.loads(path.read_text())
        content["model"]["vocab"] = {token: i for i, token in enumerate(tokens)}
        for added in content["added_tokens"]:
            added["id"] = tokens.index(added["content"])
        path.write_text(json.dumps(content))
    wide = AutoModelForCausalLM.from_pretrained(folders["c"])
    wide.resize_token_embeddings(VOCABULARY + 5, mean_resizing=False)
    wide.save_pretrained(folders["c"])
    return folders
