"""Embedding models: metrics beside other implementations, values of items, files, encoders, parts and exports."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.fitness_contract import FitnessContract
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import ndcg_score
from tiny_encoders import POOLING, save_encoder, write_corpus, write_pairs
from transformers import AutoModel, AutoTokenizer

from evomerge.candidate import Candidate
from evomerge.errors import ConfigError, FitnessError
from evomerge.evaluation.worker import Worker
from evomerge.export.writer import write_model
from evomerge.models.loaded import LoadedModel
from evomerge.models.opening import open_pool
from evomerge.search.racing.joined import joined_items
from evomerge.session.builders import check_fitnesses
from fitness._classification import metrics as m
from fitness._classification.terms import SplitTerm
from fitness._retrieval.embedding import maxsim, pooled
from fitness._retrieval.ranking import Ranks
from fitness._retrieval.sources import Queries, read_source
from fitness._retrieval.terms import parse_tasks
from fitness.retrieval import RetrievalFitness


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("encoders")
    for seed, name in enumerate(("base", "one", "two")):
        save_encoder(made / name, seed)
    write_corpus(made / "data")
    write_pairs(made / "pairs.jsonl")
    return made


def tasks(folder: Path, **more: Any) -> list[dict[str, Any]]:
    metrics = {"ndcg@10": 1.0, "mrr@3": 0.5, "recall@5": 0.25, "loss": 0.1}
    pairs = {"task": "like", "pairs": str(folder / "pairs.jsonl"), "metrics": {"spearman": 1.0, "pearson": 0.5}}
    return [{"task": "find", "folder": str(folder / "data"), "metrics": metrics, **more}, pairs]


def loaded(folder: Path) -> LoadedModel:
    module, tokenizer = (
        AutoModel.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    return LoadedModel(module, tokenizer, torch.float32, torch.device("cpu"), str(folder))


class TestContract(FitnessContract):
    @pytest.fixture
    def make(self, folder: Path) -> Callable[[], RetrievalFitness]:
        return lambda: RetrievalFitness(tasks(folder)[:1], batch_tokens=60)

    @pytest.fixture
    def load(self, folder: Path) -> Callable[[], LoadedModel]:
        return lambda: loaded(folder / "one")


def queries(right: list[dict[int, float]], lost: list[tuple[float, ...]], documents: int) -> Queries:
    count = len(right)
    texts = tuple(f"text {i}" for i in range(documents))
    return Queries(("q",) * count, texts, tuple(right), tuple(lost), (None,) * (count - 1) + (0,), (), 0)


def test_metrics_are_those_that_one_computes_by_hand() -> None:
    found = queries([{1: 2.0, 3: 1.0}, {2: 1.0}, {1: 1.0}], [(), (1.0,), ()], 5)
    ranks = Ranks(found, [0, 1, 2], 1.0)
    scores = [[0.9, 0.8, 0.1, 0.8, 0.2], [0.5, 0.5, 0.5, 0.1, 0.0], [9.0, 1.0, 2.0, 0.0, 0.0]]
    for some in (scores[:2], scores[2:]):
        ranks.add(torch.tensor(some))
    # Of equal scores the first document comes first; the last query does not find document 0, its own.
    log = np.log2
    first = (2 / log(3) + 1 / log(4)) / (2 / log(2) + 1 / log(3))
    assert ranks.metric("ndcg@3") == pytest.approx([first, (1 / log(4)) / (1 + 1 / log(3)), 1 / log(3)])
    assert ranks.metric("ndcg@2") == pytest.approx([(2 / log(3)) / (2 + 1 / log(3)), 0, 1 / log(3)])
    assert ranks.metric("mrr@10").tolist() == [1 / 2, 1 / 3, 1 / 2]
    assert ranks.metric("mrr@2").tolist() == [1 / 2, 0, 1 / 2]
    assert ranks.metric("recall@3").tolist() == [1.0, 0.5, 1.0]
    assert ranks.metric("recall@2").tolist() == [0.5, 0.0, 1.0]
    assert ranks.metric("hit@2").tolist() == [1.0, 0.0, 1.0]
    assert ranks.before().tolist() == [1.0, 2.0, 1.0]
    assert ranks.first() == [0, 0, 2]
    own = np.log(np.exp(scores[0]).sum()) - (2 * 0.8 + 0.8) / 3
    last = np.log(np.exp(scores[2][1:]).sum()) - 1.0
    assert ranks.metric("loss")[[0, 2]] == pytest.approx([own, last], abs=1e-6)


def test_ndcg_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(20, 40)).astype(np.float32)
    grades = rng.integers(0, 3, (20, 40)) * (rng.random((20, 40)) < 0.15)
    grades[:, 0] = 1
    found = queries([{int(d): float(row[d]) for d in np.flatnonzero(row)} for row in grades], [()] * 20, 40)
    object.__setattr__(found, "own", (None,) * 20)
    ranks = Ranks(found, list(range(20)), 1.0)
    ranks.add(torch.from_numpy(scores.copy()))
    for depth in (1, 10, 40):
        wanted = [ndcg_score(g[None], s[None], k=depth) for g, s in zip(grades, scores, strict=True)]
        assert ranks.metric(f"ndcg@{depth}") == pytest.approx(wanted, abs=1e-6)


def test_a_model_is_scored_as_plain_transformers_embeds_text_by_text(folder: Path) -> None:
    fitness = RetrievalFitness(tasks(folder), batch_tokens=60)
    model = loaded(folder / "one")
    fitness.check()
    fitness.prepare(model)
    found = fitness.run(model)

    def embed(texts: list[str]) -> torch.Tensor:
        with torch.no_grad():
            rows = [model.module(**model.tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in texts]
        return torch.nn.functional.normalize(torch.stack([row.mean(0) for row in rows]), dim=-1)

    corpus = [json.loads(line) for line in (folder / "data" / "corpus.jsonl").read_text().splitlines()]
    asked = [json.loads(line) for line in (folder / "data" / "queries.jsonl").read_text().splitlines()]
    like = (
        embed([row["text"] for row in asked]) @ embed([f"{row['title']} {row['text']}" for row in corpus]).T
    ).numpy()
    grades = np.zeros(like.shape)
    for row in csv.DictReader((folder / "data" / "qrels" / "test.tsv").open(), delimiter="\t"):
        grades[int(row["query-id"][1:]), int(row["corpus-id"][1:])] = float(row["score"])
    ndcg = [ndcg_score(g[None], s[None], k=10) for g, s in zip(grades, like, strict=True)]
    assert found.items["find/ndcg@10"] == pytest.approx(ndcg, abs=1e-5)
    assert found.metrics["find/ndcg@10"] == pytest.approx(np.mean(ndcg), abs=1e-5)
    ranks = [
        sorted(np.argsort(-s).tolist().index(d) + 1 for d in np.flatnonzero(g))
        for g, s in zip(grades, like, strict=True)
    ]
    assert found.metrics["find/mrr@3"] == pytest.approx(np.mean([1 / r[0] if r[0] <= 3 else 0 for r in ranks]))
    assert found.metrics["find/recall@5"] == pytest.approx(np.mean([np.mean([x <= 5 for x in r]) for r in ranks]))
    assert found.items["find/error"].tolist() == [r[0] - 1 for r in ranks]
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    cosines = (embed([row["sentence1"] for row in rows]) * embed([row["sentence2"] for row in rows])).sum(-1).numpy()
    labels = [row["score"] for row in rows]
    assert found.metrics["like/spearman"] == pytest.approx(spearmanr(labels, cosines).statistic, abs=1e-6)
    assert found.metrics["like/pearson"] == pytest.approx(pearsonr(labels, cosines).statistic, abs=1e-5)
    assert found.items["like/spearman"].mean() == pytest.approx(found.metrics["like/spearman"], abs=1e-12)
    metrics = found.metrics
    first = (
        metrics["find/ndcg@10"] + metrics["find/mrr@3"] / 2 + metrics["find/recall@5"] / 4 - metrics["find/loss"] / 10
    )
    second = metrics["like/spearman"] + metrics["like/pearson"] / 2
    assert found.objectives == {"score": pytest.approx((first + second) / 2, abs=1e-12)}
    best = corpus[int(like[0].argmax())]
    assert found.responses["find"][0] == f"{best['title']} {best['text']}"


def test_values_of_pairs_are_spearmans_coefficient_and_its_derivative_by_their_weights() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, 30).astype(float)  # with ties
    y = x + rng.normal(size=30)

    def weighted(weights: Any) -> float:
        def ranks(values: Any) -> Any:
            below = (values[:, None] > values).astype(float) + 0.5 * (values[:, None] == values)
            return below @ weights

        r, s = ranks(x), ranks(y)
        mean = lambda values: (weights * values).sum() / weights.sum()  # noqa: E731
        cov = lambda a, b: mean((a - mean(a)) * (b - mean(b)))  # noqa: E731
        return float(cov(r, s) / np.sqrt(cov(r, r) * cov(s, s)))

    value, items = m.spearman(x, y)
    assert value == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert value == pytest.approx(weighted(np.ones(30)), abs=1e-12)
    assert items.mean() == pytest.approx(value, abs=1e-12)
    for place in (0, 11, 29):
        step = np.zeros(30)
        step[place] = 1e-5
        slope = (weighted(1 + step) - weighted(1 - step)) / 2e-5
        assert 30 * slope == pytest.approx(items[place] - value, abs=1e-6), place
    assert m.spearman(np.ones(4), np.arange(4.0)) == (0.0, pytest.approx(np.zeros(4)))


def test_tokens_are_pooled_as_each_way_says() -> None:
    states = torch.tensor(
        [[[1.0, 9.0], [3.0, 1.0], [8.0, 2.0], [0.0, 0.0]], [[2.0, 2.0], [4.0, 0.0], [6.0, 1.0], [5.0, 5.0]]]
    )
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])  # padding behind the first, before the second
    counted = torch.tensor([[0.0, 1, 1, 0], [0, 1, 1, 1]])  # the first begins with a prompt
    wanted = {
        "cls": [[3, 1], [4, 0]],
        "last": [[8, 2], [5, 5]],
        "max": [[8, 2], [6, 5]],
        "mean": [[5.5, 1.5], [5, 2]],
        "mean_sqrt": [[11 / 2**0.5, 3 / 2**0.5], [15 / 3**0.5, 6 / 3**0.5]],
        "weighted": [[(3 * 2 + 8 * 3) / 5, (1 * 2 + 2 * 3) / 5], [(4 + 12 + 15) / 6, (0 + 2 + 15) / 6]],
    }
    for way, values in wanted.items():
        assert torch.allclose(pooled(states, counted, mask, [way]), torch.tensor(values, dtype=torch.float32)), way
    both = pooled(states, counted, mask, ["cls", "mean"])
    assert both.tolist() == [[3, 1, 5.5, 1.5], [4, 0, 5, 2]]


def test_late_interaction_sums_what_is_most_alike_for_every_token() -> None:
    rng = np.random.default_rng(1)
    one = [torch.from_numpy(rng.normal(size=(n, 4)).astype(np.float32)) for n in (3, 1)]
    two = [torch.from_numpy(rng.normal(size=(n, 4)).astype(np.float32)) for n in (5, 0, 2)]
    found = maxsim(one, two)
    for i, query in enumerate(one):
        for j in (0, 2):
            assert float(found[i, j]) == pytest.approx(float((query @ two[j].T).max(1).values.sum()), abs=1e-5)
    assert bool((found[:, 1] < -1e8).all())
    assert torch.allclose(maxsim(one, two, mean=True)[0, [0, 2]], found[0, [0, 2]] / 3)


def test_parts_of_the_items_are_told_together_as_if_run_at_once(folder: Path) -> None:
    pool = open_pool({name: name for name in ("base", "one", "two")}, "base", folder, fingerprints=False)
    fitness = RetrievalFitness(tasks(folder), batch_tokens=60)
    check_fitnesses(fitness, pool=pool)
    worker = Worker(pool, {"search": fitness}, device="cpu")
    recipe = pool.info.linear({"one": 0.5, "two": 0.5})
    whole = worker.evaluate(Candidate(0, recipe))
    assert whole.ok, whole.error
    estimator = fitness.build_estimator()
    estimator.fit([])
    found: dict[str, Any] = {}
    counts = fitness.items()
    for first in (0, 1):
        part = {task: range(first, count, 2) for task, count in counts.items()}
        one = worker.evaluate(Candidate(0, recipe, part=part))
        assert one.ok, one.error
        assert estimator.estimate(one.items)["score"].value == pytest.approx(one.objectives["score"], abs=1e-6)
        found = joined_items(found, one.items)
    joined = estimator.estimate(found)["score"]
    assert joined.value == pytest.approx(whole.objectives["score"], abs=1e-6)
    assert joined.error == 0
    assert fitness.fixed_share() == pytest.approx(30 / (30 + 12 + 2 * 14))


def test_the_exported_model_scores_what_the_candidate_did(folder: Path, tmp_path: Path) -> None:
    pool = open_pool({name: name for name in ("base", "one", "two")}, "base", folder)
    recipe = pool.info.linear({"one": 0.7, "two": 0.3})
    found = Worker(pool, {"search": RetrievalFitness(tasks(folder))}, device="cpu").evaluate(Candidate(0, recipe))
    model = loaded(write_model(recipe, pool, tmp_path / "out"))
    fitness = RetrievalFitness(tasks(folder))
    fitness.check()
    fitness.prepare(model)
    assert fitness.run(model).metrics == found.metrics
    assert (tmp_path / "out" / "1_Pooling" / "config.json").is_file()


def source_of(task: dict[str, Any], seed: int = 0, **split: Any) -> Any:
    (term,) = parse_tasks([task])
    return read_source(term, "tasks[0]", SplitTerm(**split), seed)


def test_corpora_are_read_in_beirs_form_and_from_tables(tmp_path: Path) -> None:
    data = write_corpus(tmp_path / "data")
    whole = source_of({"task": "find", "folder": str(data)})
    assert (len(whole.queries), len(whole.documents), whole.skipped) == (12, 30, 0)
    assert whole.right[0] == {0: 2.0, 7: 1.0}
    assert whole.right[1] == {1: 1.0}
    some = source_of({"task": "find", "folder": str(data), "limit": 2, "documents": 5}, seed=3)
    assert len(some.documents) == 5
    assert {0, 1, 7, 12} <= {whole.documents.index(text) for text in some.documents}, "all that are judged are kept"
    assert [some.documents[min(own)] for own in some.right] == [whole.documents[0], whole.documents[1]]
    parts = [source_of({"task": "find", "folder": str(data)}, part=p, held_out=0.4) for p in ("search", "held_out")]
    assert sorted(text for own in parts for text in own.queries) == sorted(whole.queries)
    assert [own.documents for own in parts] == [whole.documents] * 2
    rows = [json.loads(line) for line in (data / "corpus.jsonl").read_text().splitlines()]
    with (tmp_path / "corpus.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["_id", "title", "text"])
        writer.writeheader()
        writer.writerows(rows[2:])
    given = {"corpus": str(tmp_path / "corpus.csv"), "queries": str(data / "queries.jsonl")}
    gone = source_of({"task": "find", **given, "qrels": str(data / "qrels" / "test.tsv")})
    assert gone.lost[0] == (2.0,)
    assert gone.right[1] == {}
    qrels = (data / "qrels" / "test.tsv").read_text()
    (data / "qrels" / "own.tsv").write_text(qrels.replace("q1\td1\t1", "q1\tq1\t1\nq1\td1\t1"))
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"_id": "q1", "text": "w9"}]))
    own = {
        "task": "find",
        "folder": str(data),
        "corpus": str((tmp_path / "own.jsonl").absolute()),
        "qrels": "qrels/own.tsv",
    }
    assert source_of({**own, "ignore_identical_ids": True}).right[1] == {1: 1.0}
    assert source_of(own).right[1] == {30: 1.0, 1: 1.0}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"tasks": []}, "a list of tasks"),
    ({"tasks": [{"task": "a"}]}, r"tasks\[0\] has no corpus"),
    (
        {"tasks": [{"task": "a", "folder": "x", "pairs": "y"}]},
        "has pairs and folder; a task of queries or one of pairs",
    ),
    ({"tasks": [{"task": "a", "foldr": "x"}]}, "no key 'foldr'.*folder"),
    ({"tasks": [{"task": "a", "folder": "x", "metrics": "ndgc"}]}, "'ndgc'.*ndcg@10"),
    ({"tasks": [{"task": "a", "folder": "x", "metrics": "ndcg@x"}]}, "'ndcg@x'; a number of documents"),
    ({"tasks": [{"task": "a", "folder": "x", "metrics": ["ndcg", "ndcg@10"]}]}, "ndcg@10 twice"),
    ({"tasks": [{"task": "a", "pairs": "x", "metrics": "ndcg"}]}, "'ndcg'; .*spearman"),
    ({"tasks": [{"task": "a", "pairs": "x", "two": "score"}]}, r"tasks\[0\].label is 'score', .* the column of two"),
    ({"tasks": [{"task": "a", "folder": "x", "prompts": {"qery": ""}}]}, "'qery'.*query"),
    ({"tasks": [{"task": "a", "folder": "x", "weight": 0}]}, "a number above 0"),
    ({"tasks": [{"task": "a", "folder": "x"}] * 2}, "'a' twice"),
    ({"pooling": "meen"}, "pooling is 'meen'.*mean"),
    ({"pooling": ["tokens", "cls"]}, "tokens alone"),
    ({"similarity": "cosin"}, "similarity is 'cosin'.*cosine"),
    ({"similarity": "maxsim", "pooling": "mean"}, "similarity is maxsim with pooling=mean"),
    ({"normalize": 1}, "normalize is 1"),
    ({"prompts": {"querry": "x"}}, "prompts has no key 'querry'"),
    ({"query_length": 0}, "query_length is 0"),
    ({"split": {"held_out": 0.3}}, "without a part"),
]


@pytest.mark.parametrize(("given", "said"), BAD)
def test_arguments_are_named_with_what_is_allowed(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RetrievalFitness(**{"tasks": [{"task": "a", "folder": "x"}], **given})


def test_files_are_named_with_what_is_wrong(tmp_path: Path) -> None:
    data = write_corpus(tmp_path / "data")
    task = {"task": "find", "folder": str(data)}
    with pytest.raises(FitnessError, match=r"tasks\[0\].qrels names .*tset.tsv.*test.tsv"):
        RetrievalFitness([{**task, "qrels": "qrels/tset.tsv"}]).check_files()
    with pytest.raises(FitnessError, match=r"documents is 3; 4 or more: so many are judged"):
        source_of({**task, "documents": 3, "limit": 2})
    for line, said in (
        ("query-id\tcorpus-id\tscore\nq99\td1\t1\n", "has no query that .* has a right document for"),
        ("query-id\tcorpus-id\tscore\nq1\td99\t1\n", r"has 'd99', no document of .*corpus\.jsonl"),
        ("query\tcorpus-id\tscore\nq1\td1\t1\n", "has no 'query-id'"),
    ):
        (data / "qrels" / "other.tsv").write_text(line)
        with pytest.raises(FitnessError, match=said):
            source_of({**task, "qrels": "qrels/other.tsv"})
    (data / "plain.csv").write_text("ident,text\nd1,w5\n")
    with pytest.raises(FitnessError, match=r"plain.csv, row 1 has no '_id'; did you mean 'ident'"):
        source_of({**task, "corpus": "plain.csv"})
    (data / "pairs.csv").write_text("sentence1,sentence2,score\nw1,w2,3\nw2,w3,3\n")
    with pytest.raises(FitnessError, match=r"pairs.csv has 3 for a label in every row that counts; two different"):
        source_of({"task": "like", "pairs": str(data / "pairs.csv")})
    (data / "corpus.jsonl").write_text((data / "corpus.jsonl").read_text() + '{"_id": "d0", "text": "w9"}\n')
    with pytest.raises(FitnessError, match="the _id 'd0' is there twice"):
        source_of(task)


def test_what_makes_a_search_hard_to_trust_is_said(folder: Path, tmp_path: Path) -> None:
    data = write_corpus(tmp_path / "data", 9, 4)
    (data / "qrels" / "test.tsv").open("a").write("q1\td99\t1\n")
    fitness = RetrievalFitness([{"task": "find", "folder": str(data)}], pooling="cls", max_length=3)
    fitness.check()
    fitness.check_tokenizer(lambda: AutoTokenizer.from_pretrained(folder / "one"))
    fitness.check_encoder(str(folder / "one"), loaded(folder / "one").module.config)
    said = "\n".join(fitness.cautions())
    for line in (
        "1 right documents are not in the corpus",
        "of 9 documents any query",
        "are cut",
        "pooling: exports say",
    ):
        assert line in said
    with pytest.raises(FitnessError, match="similarity is maxsim, and the models give one embedding"):
        RetrievalFitness([{"task": "find", "folder": str(data)}], similarity="maxsim").check_encoder(
            str(folder / "one"), None
        )
    save_encoder(tmp_path / "odd", 1, modules=[("LSTM", "", {}), ("Pooling", "", POOLING)])
    with pytest.raises(FitnessError, match="has a module LSTM; one of"):
        RetrievalFitness([{"task": "find", "folder": str(data)}]).check_encoder(str(tmp_path / "odd"), None)
