"""Embeddings, similarities and metrics beside those of the sentence-transformers package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_encoders import CLASSES, LATE, LATE_SETTINGS, POOLING, WIDTH, save_encoder, write_corpus, write_pairs
from transformers import AutoModel, AutoTokenizer

from evomerge.candidate import Candidate
from evomerge.evaluation.worker import Worker
from evomerge.export.writer import write_model
from evomerge.models.loaded import LoadedModel
from evomerge.models.opening import open_pool
from fitness._retrieval.embedding import similarities
from fitness.retrieval import RetrievalFitness

pytestmark = pytest.mark.slow
package = pytest.importorskip("sentence_transformers")


def ways(*names: str, **more: Any) -> dict[str, Any]:
    return {"word_embedding_dimension": WIDTH, **{f"pooling_mode_{name}": True for name in names}, **more}


NATIVE = "sentence_transformers.base.modules.normalize.Normalize"
TOKENS = {"module_input_name": "token_embeddings"}
ENCODERS: Mapping[str, dict[str, Any]] = {
    "mean": {},
    "cls": {"pooling": ways("cls_token"), "normalize": False},
    "max and last": {"pooling": ways("max_tokens", "lasttoken")},
    "weighted": {"pooling": ways("weightedmean_tokens"), "settings": {"similarity_fn_name": "dot"}, "normalize": False},
    "square root": {
        "pooling": ways("mean_sqrt_len_tokens"),
        "settings": {"similarity_fn_name": "euclidean"},
        "normalize": False,
    },
    "prompts": {"settings": {"prompts": {"query": "w4 w5 ", "passage": "w6 "}}, "transformer": {"do_lower_case": True}},
    "prompts not pooled": {
        "pooling": {"embedding_dimension": WIDTH, "pooling_mode": "mean", "include_prompt": False},
        "settings": {"prompts": {"query": "w4 w5 ", "document": "w6 "}},
    },
    "a default prompt": {"settings": {"prompts": {"own": "w4 "}, "default_prompt_name": "own"}},
    "dense": {"dense": 5},
    "tokens, of PyLate": {"modules": LATE, "settings": LATE_SETTINGS},
    "tokens": {
        "modules": [
            ("Dense", f"{CLASSES}.Dense", {"in_features": WIDTH, "out_features": 4, "bias": True, **TOKENS}),
            ("MultiVectorMask", "sentence_transformers.multi_vector_encoder.modules.MultiVectorMask", {}),
            ("Normalize", NATIVE, TOKENS),
        ],
        "settings": {
            "model_type": "MultiVectorEncoder",
            "prompts": {"query": "w4 "},
            "similarity_fn_name": "meanmaxsim",
        },
        "transformer": {"query_expansion": {"strategy": "min", "length": 6, "attend": True}, "document_length": 9},
    },
}


def loaded(folder: Path) -> LoadedModel:
    module, tokenizer = (
        AutoModel.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    return LoadedModel(module, tokenizer, torch.float32, torch.device("cpu"), str(folder))


@pytest.mark.parametrize("name", ENCODERS)
def test_similarities_are_those_of_the_package(name: str, tmp_path: Path) -> None:
    given = ENCODERS[name]
    folder, data = save_encoder(tmp_path / "model", 3, **given), write_corpus(tmp_path / "data")
    fitness = RetrievalFitness([{"task": "find", "folder": str(data)}], batch_tokens=100)
    model = loaded(folder)
    fitness.check()
    fitness.prepare(model)
    assert fitness._prepared is not None
    embeddings, _ = fitness._prepared.embed(model, {"find": None})
    texts = fitness._texts
    assert texts is not None
    own = similarities(embeddings.of(texts.one["find"]), embeddings.of(texts.two["find"]), fitness._encoder.similarity)
    late = fitness._encoder.is_late
    theirs = (package.MultiVectorEncoder if late else package.SentenceTransformer)(str(folder), device="cpu")
    source = fitness._read()["find"]
    queries = theirs.encode_query(list(source.queries))
    passage = {"prompt_name": "passage"} if "passage" in given.get("settings", {}).get("prompts", {}) else {}
    documents = theirs.encode_document(list(source.documents), **passage)
    assert own.numpy() == pytest.approx(np.asarray(theirs.similarity(queries, documents)), abs=2e-5)


@pytest.mark.parametrize("dense", [0, 5])
def test_an_export_loads_in_the_package_with_the_searchs_numbers(dense: int, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.evaluation import (
        EmbeddingSimilarityEvaluator,
        InformationRetrievalEvaluator,
    )

    for seed, name in enumerate(("base", "one", "two")):
        save_encoder(tmp_path / name, seed, dense=dense)
    data, pairs = write_corpus(tmp_path / "data"), write_pairs(tmp_path / "pairs.jsonl")
    pool = open_pool({name: name for name in ("base", "one", "two")}, "base", tmp_path, dense="auto")
    assert pool.info.dense == ("merged" if dense else None)
    metrics = ["ndcg@10", "mrr@10", "recall@5"]
    fitness = RetrievalFitness(
        [{"task": "find", "folder": str(data), "metrics": metrics}, {"task": "like", "pairs": str(pairs)}]
    )
    recipe = pool.info.linear({"one": 0.7, "two": 0.4})
    found = Worker(pool, {"search": fitness}, device="cpu").evaluate(Candidate(0, recipe))
    assert found.ok, found.error
    model = package.SentenceTransformer(str(write_model(recipe, pool, tmp_path / "out")), device="cpu")
    read = lambda name: [json.loads(line) for line in (data / f"{name}.jsonl").read_text().splitlines()]  # noqa: E731
    corpus = {row["_id"]: f"{row['title']} {row['text']}" for row in read("corpus")}
    right: dict[str, set[str]] = {}
    for line in (data / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, score = line.split("\t")
        if int(score):
            right.setdefault(query, set()).add(document)
    asked = {row["_id"]: row["text"] for row in read("queries")}
    depths = {"mrr_at_k": [10], "ndcg_at_k": [10], "precision_recall_at_k": [5], "map_at_k": [5], "accuracy_at_k": [1]}
    theirs = InformationRetrievalEvaluator(asked, corpus, right, **depths)(model)
    assert found.metrics["find/mrr@10"] == pytest.approx(theirs["cosine_mrr@10"], abs=1e-6)
    assert found.metrics["find/recall@5"] == pytest.approx(theirs["cosine_recall@5"], abs=1e-6)
    # Theirs takes every grade for 1, so only queries with one right document have the same value.
    single = [place for place in range(len(asked)) if len(right[f"q{place}"]) == 1]
    only = {f"q{place}": asked[f"q{place}"] for place in single}
    some = InformationRetrievalEvaluator(only, corpus, {name: right[name] for name in only}, **depths)(model)
    assert found.items["find/ndcg@10"][single].mean() == pytest.approx(some["cosine_ndcg@10"], abs=1e-6)
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    columns = [[row[key] for row in rows] for key in ("sentence1", "sentence2", "score")]
    like = EmbeddingSimilarityEvaluator(*columns)(model)
    assert found.metrics["like/spearman"] == pytest.approx(like["spearman_cosine"], abs=1e-6)
    assert found.metrics["like/pearson"] == pytest.approx(like["pearson_cosine"], abs=1e-5)


def test_a_model_without_settings_is_read_as_the_package_reads_it(tmp_path: Path) -> None:
    folder, data = save_encoder(tmp_path / "model", 3, POOLING), write_corpus(tmp_path / "data")
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    fitness = RetrievalFitness([{"task": "find", "folder": str(data)}])
    model = loaded(folder)
    fitness.prepare(model)
    assert fitness._prepared is not None
    embeddings, _ = fitness._prepared.embed(model, {"find": None})
    theirs = package.SentenceTransformer(str(folder), device="cpu")
    source = fitness._read()["find"]
    assert fitness._texts is not None
    own = embeddings.of(fitness._texts.one["find"])
    assert isinstance(own, torch.Tensor)
    assert own.numpy() == pytest.approx(np.asarray(theirs.encode(list(source.queries))), abs=2e-5)
