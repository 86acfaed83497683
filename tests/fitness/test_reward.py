"""Rewards by a classifier, beside plain transformers: who writes, what is read, what it makes of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.fitness_contract import FitnessContract
from tiny_llama import VOCABULARY, save_llama
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

from evomerge.candidate import Candidate
from evomerge.errors import ConfigError, FitnessError
from evomerge.evaluation.worker import Worker
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from fitness.unlabelled import UnlabelledFitness

PROMPTS = ("t1 t2 t3", "t9", "t4 t5 t6 t7 t8", "t3 t2 t1", "t11 t12")
LABELS = {0: "dull", 1: "fine", 2: "splendid"}


def save_classifier(folder: Path, tokens: Path, *, labels: dict[int, str] = LABELS, padded: bool = True) -> Path:
    """A random BERT that classifies texts of the tiny Llamas' words."""
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
        initializer_range=0.5,
        pad_token_id=0,
        id2label=labels,
        label2id={name: place for place, name in labels.items()},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tokens)
    if padded:
        tokenizer.pad_token = "t0"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    for seed, name in enumerate(("base", "one")):
        save_llama(folder / name, seed)
    save_classifier(folder / "judge", folder / "base")
    save_classifier(folder / "unpadded", folder / "base", padded=False)
    save_classifier(folder / "number", folder / "base", labels={0: "LABEL_0"})
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return folder


@pytest.fixture(scope="module")
def pool(folder: Path) -> Pool:
    return open_pool({name: str(folder / name) for name in ("base", "one")}, base="base")


def fitness_of(folder: Path, reward: Any, **more: Any) -> UnlabelledFitness:
    return UnlabelledFitness({"a": {"file": str(folder / "prompts.txt"), "reward": reward}}, **more)


def values(pool: Pool, fitness: UnlabelledFitness, part: dict[str, list[int]] | None = None) -> np.ndarray:
    fitness.check()
    candidate = Candidate(0, pool.info.linear({"base": 0.4, "one": 0.6}), part=part)
    found = Worker(pool, {"search": fitness}, device="cpu").evaluate(candidate)
    assert found.ok, found.error
    return found.items["a/reward"]


def plainly(folder: Path, judge: str, tokens: int, answer: bool) -> list[torch.Tensor]:
    """Logits for what the merged model writes by transformers' own greedy generation, one text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    models = [AutoModelForCausalLM.from_pretrained(folder / name) for name in ("base", "one")]
    merged = models[0]
    own = [model.state_dict() for model in models]
    merged.load_state_dict({name: 0.4 * own[0][name] + 0.6 * own[1][name] for name in own[0]})
    classifier = AutoModelForSequenceClassification.from_pretrained(folder / judge).eval()
    found = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        ends = [merged.config.eos_token_id, tokenizer.eos_token_id]
        out = merged.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0, eos_token_id=ends)[0]
        text = tokenizer.decode(out[ids.shape[1] :] if answer else out, skip_special_tokens=True)
        read = tokenizer(text, return_tensors="pt").input_ids[:, -12:]  # the classifier's positions, from the end
        with torch.no_grad():
            found.append(classifier(read).logits[0].double())
    return found


@pytest.mark.parametrize(
    ("judge", "reads", "batch_size"), [("judge", "all", 2), ("judge", "answer", 16), ("unpadded", "all", 16)]
)
def test_the_reward_is_the_probability_of_a_label(
    folder: Path, pool: Pool, judge: str, reads: str, batch_size: int
) -> None:
    reward = {
        "model": str(folder / judge), "label": "splendid", "tokens": 9, "reads": reads, "batch_size": batch_size
    }  # fmt: skip
    found = values(pool, fitness_of(folder, reward, batch_tokens=40))
    expected = [float(own.softmax(0)[2]) for own in plainly(folder, judge, 9, reads == "answer")]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.ptp(found) > 0.01
    by_number = values(pool, fitness_of(folder, {**reward, "label": 2}, batch_tokens=40))
    np.testing.assert_array_equal(found, by_number)
    some = values(pool, fitness_of(folder, reward, batch_tokens=40), part={"a": [1, 3]})
    np.testing.assert_allclose(some[[1, 3]], found[[1, 3]], atol=1e-6)
    assert np.isnan(some[[0, 2, 4]]).all()


def test_an_only_output_is_the_reward_and_counts_beside_other_metrics(folder: Path, pool: Pool) -> None:
    texts = {
        "a": {
            "file": str(folder / "prompts.txt"),
            "reward": {"model": str(folder / "number"), "tokens": 4},
            "metrics": {"reward": 2.0, "kl_to_base": 0.5},
        }
    }
    fitness = UnlabelledFitness(texts)
    fitness.check()
    assert fitness.work() == {"documents": 5, "texts": 5, "written": 5}
    assert {(s.metric, s.direction) for s in fitness.shares()} == {
        ("a/reward", "maximize"), ("a/kl_to_base", "minimize")
    }  # fmt: skip
    assert fitness.cautions() == []
    found = Worker(pool, {"search": fitness}, device="cpu").evaluate(
        Candidate(0, pool.info.linear({"base": 0.4, "one": 0.6}))
    )
    expected = [float(own[0]) for own in plainly(folder, "number", 4, answer=False)]
    np.testing.assert_allclose(found.items["a/reward"], expected, atol=1e-5)
    drift = found.metrics["a/kl_to_base"]
    assert drift > 0
    assert found.objectives["score"] == pytest.approx(2 * np.mean(expected) - 0.5 * drift, abs=1e-5)
    (caution,) = fitness_of(folder, str(folder / "number")).cautions()
    assert "of a reward alone" in caution


def test_the_fingerprint_is_of_the_classifier_too(folder: Path, pool: Pool, tmp_path: Path) -> None:
    other = shutil.copytree(folder / "number", tmp_path / "other")

    def fingerprint(model: Path, **more: Any) -> str:
        fitness = fitness_of(folder, {"model": str(model), "tokens": 4, **more})
        fitness.check()
        return Worker(pool, {"search": fitness}, device="cpu").fitness("search").fingerprint()

    first = fingerprint(folder / "number")
    assert fingerprint(other) == first
    assert fingerprint(other, tokens=5) != first
    save_classifier(other, folder / "base", labels={0: "LABEL_0"}, padded=False)
    assert fingerprint(other) != first


class TestRewardContract(FitnessContract):
    """A classifier of what the candidate writes."""

    @pytest.fixture
    def make(self, folder: Path, tasks: Any, tmp_path: Path) -> Any:
        file = tmp_path / "words.txt"
        file.write_text("".join(f"w{i} w{i + 1} w3\n" for i in range(6)))
        reward = {"model": str(folder / "judge"), "label": "fine", "tokens": 3}
        return lambda: UnlabelledFitness({
            "words": {"file": str(file), "reward": reward},
            "prompts": {"task": "complete", "metrics": ["entropy"], "objective": "sure"},
        }, include_path=str(tasks.path))  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"metrics": ["reward"]}, "texts.a.reward is not set; the folder of the classifier"),
        ({"reward": "x", "metrics": ["entropy"]}, "texts.a.reward is set, and texts.a.metrics has none"),
        ({"reward": "x", "write": {}}, "texts.a.reward and texts.a.write are both set"),
        ({"reward": {"modl": "x"}}, "texts.a.reward has no key 'modl'; did you mean 'model'?"),
        ({"reward": {"tokens": 3}}, "texts.a.reward.model is None"),
        ({"reward": {"model": "x", "tokens": 0}}, "texts.a.reward.tokens is 0; a whole number from 1"),
        ({"reward": {"model": "x", "reads": "answr"}}, "did you mean 'answer'?"),
        ({"reward": {"model": "x", "label": [1]}}, "texts.a.reward.label is [1]"),
        ({"reward": 3}, "texts.a.reward is 3; a classifier's folder, or a mapping"),
    ],
)
def test_what_is_refused_before_anything_is_read(text: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        UnlabelledFitness({"a": {"file": "x.txt", **text}})
    assert said in str(error.value)


def test_what_is_no_classifier_is_refused_before_anything_is_loaded(folder: Path, pool: Pool, tmp_path: Path) -> None:
    def refused(**reward: Any) -> str:
        with pytest.raises(FitnessError) as error:
            fitness_of(folder, {"model": str(folder / "judge"), "label": "fine", **reward}).check()
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "which is no folder" in refused(model=str(tmp_path / "none"))
    assert "texts.a.reward.model" in refused(model=str(tmp_path))
    assert "is LlamaForCausalLM; a model of a class ...ForSequenceClassification" in refused(model=str(folder / "one"))
    assert "label is 'fin'; did you mean 'fine'?" in refused(label="fin")
    assert "label is '3'" in refused(label=3)
    assert "label is not set; one of: dull, fine, splendid" in refused(label=None)
    bare = shutil.copytree(folder / "judge", tmp_path / "bare")
    for path in bare.glob("token*"):
        path.unlink()
    fitness = fitness_of(folder, {"model": str(bare), "label": "fine", "tokens": 4})
    fitness.check()
    with pytest.raises(FitnessError, match="has no tokenizer"):
        Worker(pool, {"search": fitness}, device="cpu").fitness("search")
    fitness = fitness_of(folder, {"model": str(folder / "judge"), "label": "fine", "tokens": 64})
    fitness.check()
    with pytest.raises(FitnessError, match=r"texts.a.reward.tokens is 64; less than 64"):
        Worker(pool, {"search": fitness}, device="cpu").fitness("search")
