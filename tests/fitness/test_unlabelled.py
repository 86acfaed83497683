"""Texts without labels: every metric beside plain transformers, models of the pool, texts that they write."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.fitness_contract import FitnessContract
from tiny_llama import save_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, EvomergeError, FitnessError
from evomerge.evaluation.worker import Worker
from evomerge.models.loaded import LoadedModel
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from fitness._unlabelled.terms import METRICS, WriteTerm
from fitness._unlabelled.writing import write
from fitness.unlabelled import UnlabelledFitness

NAMES = ("base", "one", "two")
LENGTHS = (2, 9, 3, 30, 7, 7, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unlabelled")
    for seed, name in enumerate(NAMES):
        save_llama(folder / name, seed)
    rng = np.random.default_rng(0)
    rows = [" ".join(f"t{word}" for word in rng.integers(0, 46, length)) for length in LENGTHS]
    (folder / "words.txt").write_text("\n\n".join(rows) + "\n")
    (folder / "words.jsonl").write_text("".join(json.dumps({"body": row, "n": 1}) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def pool(folder: Path) -> Pool:
    return open_pool({name: str(folder / name) for name in NAMES}, base="base")


def evaluated(pool: Pool, fitness: UnlabelledFitness, weights: dict[str, float]) -> Evaluation:
    fitness.check()
    found = Worker(pool, {"search": fitness}, device="cpu").evaluate(Candidate(0, pool.info.linear(weights)))
    assert found.ok, found.error
    return found


def plainly(folder: Path, weights: dict[str, float], texts: list[str], expert: str) -> dict[str, list[float]]:
    """Every metric of every text, one text at a time in float64, by formulas written anew."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    modules = {name: AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float64) for name in NAMES}
    merged = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float64)
    own = {name: module.state_dict() for name, module in modules.items()}
    merged.load_state_dict({key: sum(w * own[name][key] for name, w in weights.items()) for key in own["base"]})
    found: dict[str, list[float]] = {name: [] for name in METRICS if name != "reward"}
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            out = {
                name: module(ids, output_hidden_states=True) for name, module in {**modules, "merged": merged}.items()
            }
        p, q, b = (torch.softmax(out[name].logits[0], -1) for name in ("merged", expert, "base"))
        following = ids[0, 1:, None]
        nll = -p[:-1].gather(1, following).log().mean()
        found["perplexity"].append(float(nll))
        found["forgetting"].append(float(nll + b[:-1].gather(1, following).log().mean()))
        found["entropy"].append(float(torch.distributions.Categorical(probs=p).entropy().mean()))
        found["soft_cross_entropy"].append(float(-(q * p.log()).sum(1).mean()))
        found["kl_to_base"].append(float(torch.nn.functional.kl_div(p.log(), b, reduction="sum") / len(b)))
        found["agreement"].append(float((p.argmax(1) == q.argmax(1)).double().mean()))
        squares = [(out["merged"].hidden_states[k] - out[expert].hidden_states[k]).square().mean() for k in (1, 3)]
        found["hidden_distance"].append(float(sum(squares) / 2))
    return found


def test_every_metric_is_what_plain_transformers_gives(folder: Path, pool: Pool) -> None:
    texts = {
        "words": {
            "file": str(folder / "words.jsonl"),
            "key": "body",
            "expert": "two",
            "metrics": [m for m in METRICS if m != "reward"],
        }
    }
    weights = {"one": 0.5, "two": 0.6}
    expected = plainly(folder, weights, (folder / "words.txt").read_text().split("\n\n"), "two")
    for tokens in (2048, 20):
        fitness = UnlabelledFitness(texts, hidden_layers=[1, -1], batch_tokens=tokens)
        found = evaluated(pool, fitness, weights)
        for name, values in expected.items():
            np.testing.assert_allclose(found.items[f"words/{name}"], values, rtol=1e-4, atol=2e-5, err_msg=name)
    mean = {name: float(np.mean(values)) for name, values in expected.items()}
    signed = sum(value if METRICS[name].rises else -value for name, value in mean.items() if name != "perplexity")
    assert found.objectives["score"] == pytest.approx(signed - math.exp(mean["perplexity"]), rel=1e-4)
    assert found.metrics["words/perplexity"] == pytest.approx(math.exp(mean["perplexity"]), rel=1e-4)


def test_a_source_beside_itself(folder: Path, pool: Pool) -> None:
    metrics = ["soft_cross_entropy", "entropy", "agreement", "hidden_distance", "kl_to_base", "forgetting"]
    texts = {"words": {"file": str(folder / "words.txt"), "expert": "base", "metrics": metrics}}
    found = evaluated(pool, UnlabelledFitness(texts), {"base": 1.0})
    assert found.items["words/kl_to_base"].tolist() == [0.0] * len(LENGTHS)
    assert found.items["words/forgetting"].tolist() == [0.0] * len(LENGTHS)
    assert found.items["words/hidden_distance"].tolist() == [0.0] * len(LENGTHS)
    assert found.items["words/agreement"].tolist() == [1.0] * len(LENGTHS)
    np.testing.assert_allclose(found.items["words/soft_cross_entropy"], found.items["words/entropy"], rtol=1e-6)
    assert evaluated(pool, UnlabelledFitness(texts), {"one": 1.0}).metrics["words/kl_to_base"] > 0.1


def test_a_uniform_head_has_the_entropy_of_its_vocabulary(folder: Path) -> None:
    module = AutoModelForCausalLM.from_pretrained(folder / "base").eval()
    torch.nn.init.zeros_(module.lm_head.weight)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    model = LoadedModel(module, tokenizer, torch.float32, torch.device("cpu"), str(folder / "base"))
    fitness = UnlabelledFitness({"words": {"file": str(folder / "words.txt"), "metrics": ["entropy", "perplexity"]}})
    fitness.prepare(model)
    found = fitness.run(model)
    np.testing.assert_allclose(found.items["words/entropy"], math.log(48), rtol=1e-6)
    assert found.metrics["words/perplexity"] == pytest.approx(48, rel=1e-5)


def test_the_last_prediction_alone(folder: Path, pool: Pool) -> None:
    file = str(folder / "words.txt")
    texts = {
        "all": {"file": file, "metrics": ["entropy"]},
        "last": {"file": file, "metrics": ["entropy"], "positions": "last"},
    }
    found = evaluated(pool, UnlabelledFitness(texts), {"one": 1.0}).items
    assert not np.allclose(found["all/entropy"], found["last/entropy"])
    module = AutoModelForCausalLM.from_pretrained(folder / "one")
    ids = AutoTokenizer.from_pretrained(folder / "one")(Path(file).read_text().split("\n\n")[3], return_tensors="pt")
    with torch.no_grad():
        last = torch.distributions.Categorical(logits=module(ids.input_ids).logits[0, -1])
    assert found["last/entropy"][3] == pytest.approx(float(last.entropy()), rel=1e-5)


def loaded(folder: Path, name: str) -> LoadedModel:
    module = AutoModelForCausalLM.from_pretrained(folder / name).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / name)
    return LoadedModel(module, tokenizer, torch.float32, torch.device("cpu"), str(folder / name))


def test_greedy_texts_are_those_of_transformers(folder: Path) -> None:
    model = loaded(folder, "one")
    prompts = [(3, 4, 5), (6, 7), (8, 9, 10), (11, 12)]
    found = write(model, prompts, WriteTerm("one", tokens=12, temperature=0.0), 2048)
    for prompt, text in zip(prompts, found, strict=True):
        whole = model.module.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=47, pad_token_id=47
        )
        assert list(text) == whole[0].tolist()


def test_sampled_texts_follow_the_model_and_not_the_batch(folder: Path) -> None:
    model = loaded(folder, "one")
    prompts = [(3, 4)] * 1200
    found = write(model, prompts, WriteTerm("one", tokens=1), 2048)
    assert found == write(model, prompts, WriteTerm("one", tokens=1), 100)
    assert found != write(model, prompts, WriteTerm("one", tokens=1, seed=1), 2048)
    with torch.no_grad():
        p = torch.softmax(model.module(torch.tensor([[3, 4]])).logits[0, -1].double(), 0).numpy()
    counts = np.bincount([text[-1] for text in found], minlength=48)
    expected = 1200 * p
    enough = expected > 5
    statistic = float(((counts - expected)[enough] ** 2 / expected[enough]).sum())
    assert statistic < enough.sum() + 4 * math.sqrt(2 * enough.sum())  # chi square: mean n, variance 2n


def test_what_the_base_wrote_is_forgotten_as_its_divergence_says(folder: Path, pool: Pool) -> None:
    texts = {"own": {"write": {"texts": 60, "tokens": 20}, "metrics": ["kl_to_base", "forgetting"]}}
    fitness = UnlabelledFitness(texts)
    found = evaluated(pool, fitness, {"base": 0.7, "one": 0.3})
    kl, lost = found.metrics["own/kl_to_base"], found.metrics["own/forgetting"]
    error = float(found.items["own/forgetting"].std()) / math.sqrt(60)
    assert kl > 3 * error, "too few texts to see anything"
    assert abs(kl - lost) < 4 * error, "the one is the mean of the other"
    assert evaluated(pool, UnlabelledFitness(texts), {"base": 1.0}).objectives == {"score": 0.0}


def test_only_what_was_written_after_a_prompt_counts(folder: Path, pool: Pool) -> None:
    (folder / "prompts.txt").write_text("t1 t2 t3\nt4 t5\n")
    written = {"by": "one", "tokens": 6, "temperature": 0}
    texts = {"said": {"file": str(folder / "prompts.txt"), "write": written, "metrics": ["perplexity"]}}
    found = evaluated(pool, UnlabelledFitness(texts), {"two": 1.0}).items["said/perplexity"]
    texts_of_one = write(loaded(folder, "one"), [(1, 2, 3), (4, 5)], WriteTerm("one", 6, 0, 0.0), 2048)
    module = loaded(folder, "two").module
    for text, prompt, value in zip(texts_of_one, (3, 2), found, strict=True):
        with torch.no_grad():
            logits = module(torch.tensor([text])).logits[0, prompt - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(text[prompt:]))
        assert value == pytest.approx(float(loss), rel=1e-5)


def test_a_small_budget_keeps_the_likeliest_tokens(folder: Path, pool: Pool) -> None:
    texts = {"words": {"file": str(folder / "words.txt"), "metrics": ["kl_to_base"]}}
    size = sum(LENGTHS)
    values = {
        budget: evaluated(pool, UnlabelledFitness(texts, reference_size=budget), {"one": 1.0}).objectives["score"]
        for budget in (size * 48 * 4, size * 48 * 2, size * (8 * 20 + 4))
    }
    exact, half, top = values.values()
    assert half == pytest.approx(exact, rel=2e-3)
    assert half != exact
    assert exact < top < 0.3 * exact, "never more than what all tokens say"
    worker = Worker(pool, {"search": UnlabelledFitness(texts, reference_size=100)}, device="cpu")
    with pytest.raises(FitnessError, match="reference_size is"):
        worker.fitness("search")


def test_estimates_from_some_texts(folder: Path, pool: Pool) -> None:
    texts = {
        "a": {"file": str(folder / "words.txt"), "metrics": {"perplexity": {"transform": "log"}, "entropy": 0.5}},
        "b": {"file": str(folder / "words.jsonl"), "key": "body", "limit": 4, "expert": "one"},
    }
    fitness = UnlabelledFitness(texts)
    fitness.check()
    worker = Worker(pool, {"search": fitness}, device="cpu")
    recipe = pool.info.linear({"two": 1.0})
    whole = worker.evaluate(Candidate(0, recipe))
    some = worker.evaluate(Candidate(1, recipe, part={"a": [1, 4, 6], "b": [0, 2]}))
    assert fitness.items() == {"a": 7, "b": 4}
    assert np.flatnonzero(np.isfinite(some.items["a/entropy"])).tolist() == [1, 4, 6]
    ours, theirs = (found.items["b/soft_cross_entropy"][[0, 2]] for found in (some, whole))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    estimator = fitness.build_estimator()
    estimator.fit([])
    for found in (whole, some):
        assert estimator.estimate(found.items)["score"].value == pytest.approx(found.objectives["score"], rel=1e-9)
    assert not worker.evaluate(Candidate(2, recipe, part={"a": [9], "b": [0]})).ok


class TestUnlabelledContract(FitnessContract):
    """What needs no other model."""

    @pytest.fixture
    def make(self, tasks: Any, tmp_path: Path) -> Any:
        file = tmp_path / "words.txt"
        file.write_text("".join(f"w{i} w{i + 1} w3 {'w5 ' * i}\n" for i in range(9)))
        texts = {
            "words": {"file": str(file), "metrics": {"perplexity": {"transform": "log"}, "entropy": 0.1}},
            "prompts": {"task": "complete", "metrics": ["entropy"], "weight": 2.0, "objective": "sure"},
        }
        return lambda: UnlabelledFitness(texts, include_path=str(tasks.path), batch_tokens=100)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({}, "texts is empty"),
        ({"a": {"fil": "x"}}, "texts.a has no key 'fil'; did you mean 'file'?"),
        ({"a": {"key": "x"}}, "texts.a has no texts"),
        ({"a": {"file": "x.txt", "key": "body"}}, "texts.a.key is 'body'; the key of the text in a JSONL file"),
        ({"a": {"file": "x.txt", "metrics": ["entrpy"]}}, "texts.a.metrics has 'entrpy'; did you mean 'entropy'?"),
        ({"a": {"file": "x.txt", "metrics": ["agreement"]}}, "texts.a.expert is not set"),
        ({"a": {"file": "x.txt", "metrics": {"entropy": {"transform": "log"}}}}, "of a perplexity only"),
        (
            {"a": {"file": "x.txt", "metrics": {"entropy": "much"}}},
            "texts.a.metrics.entropy is 'much'; a finite number",
        ),
        ({"a": {"file": "x.txt", "positions": "lst"}}, "did you mean 'last'?"),
        ({"a": {"file": "x.txt", "positions": "last"}}, "no token comes after the last"),
        ({"a": {"file": "x.txt", "limit": 0}}, "texts.a.limit is 0; a whole number from 1"),
        ({"a": {"file": "x.txt", "weight": 0}}, "texts.a.weight is 0"),
        ({"a": {"write": {"tokns": 3}}}, "texts.a.write has no key 'tokns'; did you mean 'tokens'?"),
        ({"a": {"write": {"temperature": 0}}}, "would all be the same"),
        ({"a": {"file": "x.txt", "write": {"texts": 3}}}, "texts.a.write.texts is 3"),
        ({"a": {"file": "x.txt", "objective": "a b"}}, "texts.a.objective is 'a b'"),
        ({"a b": "x.txt"}, "texts has the name 'a b'"),
    ],
)
def test_what_is_refused_before_anything_is_read(texts: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        UnlabelledFitness(texts)
    assert said in str(error.value)


def test_what_reading_refuses(folder: Path, pool: Pool, tmp_path: Path) -> None:
    def error(text: dict[str, Any], **more: Any) -> str:
        fitness = UnlabelledFitness({"a": text}, **more)
        with pytest.raises(EvomergeError) as found:
            checked(fitness)
        assert "\n" not in str(found.value)
        return str(found.value)

    def checked(fitness: UnlabelledFitness) -> None:
        fitness.references(pool.info)
        fitness.check()
        fitness.check_tokenizer(lambda: AutoTokenizer.from_pretrained(folder / "base"))

    rows, short = folder / "words.jsonl", tmp_path / "short.txt"
    short.write_text("t1 t2\nt3\n")
    assert "did you mean 'words.jsonl'" in error({"file": str(folder / "word.jsonl")})
    assert "line 1 has no key 'bdy'; did you mean 'body'?; set texts.a.key" in (
        error({"file": str(rows), "key": "bdy"}).replace("(one of: body, n)", "").replace("? ;", "?;")
    )
    assert "line 1: its n is '1'" in error({"file": str(rows), "key": "n"})
    assert "text 1 of a has one token" in error({"file": str(short)})
    (tmp_path / "bad.jsonl").write_text('{"text": "t1 t2"}\n{"text": \n')
    assert "line 2 is no JSON" in error({"file": str(tmp_path / "bad.jsonl")})
    (tmp_path / "none.txt").write_text("\n \n")
    assert "has no texts" in error({"file": str(tmp_path / "none.txt")})
    assert "texts.a.expert is 'tow', which is no model of the pool; did you mean 'two'?" in (
        error({"file": str(short), "expert": "tow"})
    )
    without = open_pool({"one": str(folder / "one")})
    with pytest.raises(FitnessError, match=r"the pool has no base; .*set pool.base=NAME"):
        UnlabelledFitness({"a": {"write": {}}}).references(without.info)


def test_the_fingerprint_is_of_texts_models_and_settings(folder: Path, pool: Pool) -> None:
    file = str(folder / "words.txt")

    def fingerprint(models: Pool = pool, text: dict[str, Any] | None = None, **more: Any) -> str:
        fitness = UnlabelledFitness({"a": {"file": file, "expert": "one", **(text or {})}}, **more)
        fitness.check()
        return Worker(models, {"search": fitness}, device="cpu").fitness("search").fingerprint()

    others = open_pool({"base": str(folder / "base"), "one": str(folder / "two")}, base="base")
    found = [
        fingerprint(),
        fingerprint(others),
        fingerprint(text={"expert": "two"}),
        fingerprint(text={"limit": 3}),
        fingerprint(text={"weight": 2.0}),
        fingerprint(batch_tokens=64),
        fingerprint(hidden_layers=[0]),
        fingerprint(reference_size=sum(LENGTHS) * (4 * 32 + 3 * 48)),
    ]
    assert len(set(found)) == len(found)
    assert fingerprint() == found[0]
