from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from evomerge.export.auto_class import auto_class, processor_class


@pytest.mark.parametrize(
    ("config", "named", "expected"),
    [
        (transformers.LlamaConfig, "LlamaForCausalLM", "AutoModelForCausalLM"),
        (transformers.GPT2Config, "GPT2LMHeadModel", "AutoModelForCausalLM"),
        (transformers.LlamaConfig, "LlamaForSequenceClassification", "AutoModelForSequenceClassification"),
        (transformers.BertConfig, "BertForMaskedLM", "AutoModelForMaskedLM"),
        (transformers.BertConfig, "BertForQuestionAnswering", "AutoModelForQuestionAnswering"),
        (transformers.BertConfig, "BertForTokenClassification", "AutoModelForTokenClassification"),
        (transformers.BertConfig, "BertModel", "AutoModel"),
        (transformers.ViTConfig, "ViTForImageClassification", "AutoModelForImageClassification"),
        (transformers.LlavaConfig, "LlavaForConditionalGeneration", "AutoModelForImageTextToText"),
        # A class that no Auto class of this model type finds, one that transformers does not have, and none.
        (transformers.BertConfig, "BertLMHeadModel", "AutoModelForCausalLM"),
        (transformers.BertConfig, "LlamaForCausalLM", "LlamaForCausalLM"),
        (transformers.LlamaConfig, "LlamaForPoetry", "AutoModelForCausalLM"),
        (transformers.LlamaConfig, None, "AutoModelForCausalLM"),
    ],
)
def test_the_class_that_loads_an_architecture(config: type, named: str | None, expected: str) -> None:
    assert auto_class(config(architectures=[named] if named else None)) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer.json": {}}, "AutoTokenizer"),
        ({"preprocessor_config.json": {"image_processor_type": "ViTImageProcessor"}}, "AutoImageProcessor"),
        ({"preprocessor_config.json": {"feature_extractor_type": "ASTFeatureExtractor"}}, "AutoFeatureExtractor"),
        ({"preprocessor_config.json": {}, "tokenizer.json": {}}, "AutoProcessor"),
        ({"processor_config.json": {}}, "AutoProcessor"),
    ],
)
def test_the_class_that_prepares_inputs(files: dict[str, dict[str, str]], expected: str | None, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert processor_class(tmp_path) == expected
