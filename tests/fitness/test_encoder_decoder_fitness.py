"""Encoder-decoders on lm-eval's tasks: the numbers of the stock tool's ``backend=seq2seq``, to the last bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fitness_parity import assert_equal
from seq2seq_models import save_seq2seq
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from evomerge.errors import FitnessError
from evomerge.models.loaded import LoadedModel
from fitness.lm_eval_tasks import LmEvalFitness
from fitness.unlabelled import UnlabelledFitness


def seq2seq(tmp_path: Path, model_folder: Path, kind: str) -> LoadedModel:
    folder = save_seq2seq(tmp_path / kind, kind, 0, vocab_size=51)
    for file in model_folder.glob("*token*"):
        shutil.copyfile(file, folder / file.name)
    module = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return LoadedModel(module, tokenizer, torch.float32, torch.device("cpu"), str(folder))


@pytest.mark.parametrize(("kind", "names"), [("t5", ["choose", "write"]), ("bart", ["complete", "read", "write"])])
def test_every_number_is_that_of_the_stock_tool(
    kind: str, names: list[str], stock: Any, tasks: Any, model_folder: Path, tmp_path: Path
) -> None:
    model = seq2seq(tmp_path, model_folder, kind)
    fitness = LmEvalFitness(names, include_path=str(tasks.path), batch_size=7, forwards="shared")
    fitness.prepare(model)
    theirs = stock(names, arguments={"pretrained": model.name_or_path}, batch_size=7)
    assert_equal(fitness, fitness.run(model), theirs)
    part = fitness.run(model)  # candidates that follow are scored from what is kept
    assert_equal(fitness, part, theirs)


def test_targets_that_the_decoder_has_no_room_for(tasks: Any, model_folder: Path, tmp_path: Path) -> None:
    model = seq2seq(tmp_path, model_folder, "bart")
    fitness = LmEvalFitness(["complete"], include_path=str(tasks.path), max_length=2)
    with pytest.raises(FitnessError, match=r"has a target of \d tokens; at most 2, what the model takes"):
        fitness.prepare(model)


def test_texts_that_follow_prompts_are_for_decoders(model_folder: Path, tmp_path: Path) -> None:
    model = seq2seq(tmp_path, model_folder, "t5")
    (tmp_path / "texts.txt").write_text("w1 w2\n")
    fitness = UnlabelledFitness({"own": str(tmp_path / "texts.txt")})
    with pytest.raises(FitnessError, match=r"the model is an encoder-decoder; a decoder: .*; use fitness=lm_eval"):
        fitness.prepare(model)
