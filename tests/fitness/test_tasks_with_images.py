"""Tasks with images: the numbers of lm-eval's ``hf-multimodal``, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import accuracy
from fitness_parity import assert_equal
from lm_eval import evaluator
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from vlm_models import save_vlm, save_words

from evomerge.errors import ConfigError, FitnessError
from evomerge.models.loaded import LoadedModel
from fitness.lm_eval_tasks import LmEvalFitness

TASK = {
    "task": "look",
    "dataset_path": "parquet",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_image": ["image"],
    "doc_to_text": "w5 <image> {{q}}",
    "doc_to_target": "{{a}}",
    "num_fewshot": 0,
    "generation_kwargs": {"until": ["w9"], "max_gen_toks": 4},
    "metric_list": [accuracy("exact_match")],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A task of nine images of random pixels and of several sizes, and questions of one to three words."""
    from datasets import Dataset
    from PIL import Image

    rng, rows = np.random.default_rng(0), []
    for number in range(9):
        pixels = rng.integers(0, 255, (8 + number, 12, 3), dtype=np.uint8)
        words = " ".join(f"w{i}" for i in rng.integers(4, 30, 1 + number % 3))
        rows.append({"image": Image.fromarray(pixels), "q": words, "a": f"w{number}"})
    file = tmp_path_factory.mktemp("images") / "look.parquet"
    Dataset.from_list(rows).to_parquet(file)
    return {**TASK, "dataset_kwargs": {"data_files": {"test": str(file)}}}


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = save_vlm(tmp_path_factory.mktemp("vlm") / "llava")
    module = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return LoadedModel(module, AutoTokenizer.from_pretrained(folder), torch.float32, torch.device("cpu"), str(folder))


def stock(task: dict[str, Any], model: LoadedModel, chat: bool, **arguments: Any) -> Any:
    return evaluator.simple_evaluate(
        model="hf-multimodal",
        model_args={"pretrained": model.name_or_path, "dtype": "float32", **arguments},
        tasks=[task],
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
        apply_chat_template=chat,
        task_manager=TaskManager(include_defaults=False),
    )


IMAGES = {"max_images": 1, "convert_img_format": True, "image_max_side": 6}


@pytest.mark.parametrize(
    ("chat", "arguments"), [(False, {}), pytest.param(True, IMAGES, marks=pytest.mark.slow)], ids=("plain", "chat")
)
def test_every_number_is_that_of_the_stock_tool(
    chat: bool, arguments: dict[str, Any], images: dict[str, Any], seeing: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "add_env_info", lambda *_: None)
    how: dict[str, Any] = {"image_args": arguments, "apply_chat_template": chat}
    fitness = LmEvalFitness([{"task": images}], batch_size=4, forwards="shared", **how)
    fitness.check()
    fitness.prepare(seeing)
    theirs = stock(images, seeing, chat, **arguments)
    assert_equal(fitness, fitness.run(seeing), theirs)
    assert fitness._prepared is not None
    answers = [str(sample["resps"]) for sample in theirs["samples"]["look"]]
    assert len(set(answers)) > 2  # the images and the questions matter
    assert_equal(fitness, fitness.run(seeing), theirs)  # of what is kept


@pytest.mark.slow
def test_images_decide_fingerprints_and_documents(images: dict[str, Any], seeing: LoadedModel, tmp_path: Path) -> None:
    from datasets import Dataset

    rows = Dataset.from_parquet(images["dataset_kwargs"]["data_files"]["test"]).to_list()
    rows[0]["image"], rows[3]["image"] = rows[3]["image"], rows[0]["image"]
    kind = Dataset.from_parquet(images["dataset_kwargs"]["data_files"]["test"]).features
    Dataset.from_list(rows, features=kind).to_parquet(tmp_path / "other.parquet")
    other = {**images, "dataset_kwargs": {"data_files": {"test": str(tmp_path / "other.parquet")}}}
    made = []
    for task in (images, images, other):
        fitness = LmEvalFitness([{"task": task}], batch_size=4)
        fitness.prepare(seeing)
        made.append((fitness.fingerprint(), list(fitness.documents())))
    assert made[0] == made[1]
    assert made[0][0] != made[2][0]
    assert [a != b for a, b in zip(made[0][1], made[2][1], strict=True)] == [i in (0, 3) for i in range(9)]


@pytest.mark.slow
def test_texts_beside_images_are_those_of_a_command_of_their_own(
    images: dict[str, Any], seeing: LoadedModel, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval takes tasks of both in one command for tasks with images, and fails."""
    monkeypatch.setattr(evaluator, "add_env_info", lambda *_: None)
    fitness = LmEvalFitness([{"task": images}, "write"], include_path=str(tasks.path), batch_size=4)
    fitness.prepare(seeing)
    both = fitness.run(seeing)
    alone = LmEvalFitness([{"task": images}], batch_size=4)
    alone.prepare(seeing)
    key = "look/exact_match"
    assert list(both.items[key]) == list(alone.run(seeing).items[key])


def test_chats_are_one_way_for_all_tasks_with_images(images: dict[str, Any], seeing: LoadedModel) -> None:
    """lm-eval puts image tokens into all prompts, or leaves them to the template for all."""
    tasks = [{"task": images, "apply_chat_template": True}, {"task": {**images, "task": "other"}}]
    with pytest.raises(
        FitnessError, match="apply_chat_template differs between tasks with images: look true, other fal"
    ):
        LmEvalFitness(tasks).prepare(seeing)
    with pytest.raises(FitnessError, match="task 'look' has images, and a chat template is named or given arguments"):
        LmEvalFitness([{"task": images, "apply_chat_template": "default"}]).prepare(seeing)


def test_what_cannot_be(images: dict[str, Any], seeing: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"image_args has 'max_image'; .*max_images"):
        LmEvalFitness([{"task": images}], image_args={"max_image": 1})
    with pytest.raises(ConfigError, match=r"image_args\.max_images is 'one'; a whole number, 1 or more"):
        LmEvalFitness([{"task": images}], image_args={"max_images": "one"})
    with pytest.raises(ConfigError, match=r"model_args has 'max_images'; .*set fitness\.image_args\.max_images"):
        LmEvalFitness([{"task": images}], model_args={"max_images": 1})
    choice = {**images, "output_type": "multiple_choice", "doc_to_choice": ["w5", "w6"], "doc_to_target": 0}
    with pytest.raises(FitnessError, match=r"task 'look' has images and output_type multiple_choice; generate_until"):
        LmEvalFitness([{"task": {**choice, "metric_list": [accuracy()]}}]).check()
    for column in (["imge"], "imge"):
        with pytest.raises(FitnessError, match=r"task 'look' has doc_to_image 'imge', which no column .*mean 'image'"):
            LmEvalFitness([{"task": {**images, "doc_to_image": column}}]).check()
    folder = save_words(tmp_path / "words")
    module = AutoModelForCausalLM.from_pretrained(folder).eval()
    blind = LoadedModel(module, AutoTokenizer.from_pretrained(folder), torch.float32, torch.device("cpu"), str(folder))
    with pytest.raises(FitnessError, match="tasks have images, and the model reads texts alone"):
        LmEvalFitness([{"task": images}]).prepare(blind)
    (tmp_path / "bare").mkdir()
    bare = LoadedModel(seeing.module, seeing.tokenizer, torch.float32, torch.device("cpu"), str(tmp_path / "bare"))
    with pytest.raises(FitnessError, match=r"lm-eval's hf-multimodal cannot be built from .*bare"):
        LmEvalFitness([{"task": images}]).prepare(bare)
