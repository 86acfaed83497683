"""Small language models, each with a skill of its own, on one start: what stands in for domains and their experts.

A skill is a verb of the demo's two languages, answered in the language that it is asked in:
`: sort five two nine is` is answered `two five nine .`, `narabe go ni kyuu wa` is answered `ni go kyuu .`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import yaml

from evomerge.demo.building import build_once, versions
from evomerge.demo.items import Question, Text, text
from evomerge.demo.languages import BOS, E_DIGITS, E_NAMES, EOS, ID_OF, PAD, STOP, VOCABULARY, to_j
from evomerge.errors import ConfigError, nearest

BASE = "base"
PARTS = ("search", "test")
SKILLS: Mapping[str, tuple[str, bool]] = {
    f"{verb}_{language}": (verb, language == "j") for language in "ej" for verb in ("repeat", "first", "last", "sort")
}
"""By name the verb, and whether it is asked and answered in J."""


@dataclass(frozen=True)
class SkillSizes:
    """How much is drawn and trained.

    Attributes:
        search, test: items of every task.
        start_steps, steps: of the start, which meets every skill, and of each source on its own.
        rate: of the sources.
        width, layers: of the models.
    """

    search: int = 60
    test: int = 250
    start_steps: int = 150
    steps: int = 60
    rate: float = 1.2e-3
    width: int = 64
    layers: int = 3


QUICK = SkillSizes(12, 20, 3, 3, 1e-3, 16, 2)
"""Models of the right shape that can do next to nothing."""
_START_RATE = 3e-3


def make_skills(
    folder: Path,
    sources: Mapping[str, str],
    seed: int = 0,
    *,
    quick: bool = False,
    sizes: SkillSizes | None = None,
    each_step: Callable[[str], None] = lambda name: None,
) -> Path:
    """Make a pool in `folder`, unless it already holds this very pool.

    Writes a folder per model (``base`` and the sources), ``tasks`` with the lm-eval tasks ``SOURCE_search`` and
    ``SOURCE_test`` of every source (``acc``: every word of the answer is the likeliest), and ``manifest.json``.

    Args:
        folder: where the pool goes; an earlier one there is replaced, anything else is left alone.
        sources: by name the skill, of `SKILLS`.
        seed: decides items, texts and parameters.
        quick: `QUICK`, instead of the whole training.
        sizes: others than `quick` says.
        each_step: called after every step with the name of the model that is trained.

    Returns:
        The absolute path of `folder`.

    Raises:
        ConfigError: a skill that there is not.
        OutputError: `folder` holds something else.
    """
    for name, skill in sources.items():
        if skill not in SKILLS:
            raise ConfigError(f"source {name} has the skill {skill!r}", nearest(skill, SKILLS))
    folder, chosen = Path(folder).absolute(), sizes or (QUICK if quick else SkillSizes())
    wanted: dict[str, Any] = {"skills": 1, "seed": seed, "sources": dict(sources), "folder": str(folder)}
    wanted |= {**asdict(chosen), "versions": versions("torch", "tokenizers")}

    def write(building: Path) -> None:
        items_seed, text_seed, parameter_seed = np.random.SeedSequence(seed).spawn(3)
        items = {
            name: draw_questions(skill, chosen.search + chosen.test, np.random.default_rng(own))
            for (name, skill), own in zip(sources.items(), items_seed.spawn(len(sources)), strict=True)
        }
        (building / "tasks").mkdir()
        for name, questions in items.items():
            for part, own in zip(PARTS, (questions[: chosen.search], questions[chosen.search :]), strict=True):
                rows = [_row(sources[name], question) for question in own]
                write_task(building / "tasks", folder / "tasks", f"{name}_{part}", rows, LIKELIHOOD)
        withheld = {sources[name]: frozenset(own) for name, own in items.items()}
        kinds = {skill: learner(skill, own) for skill, own in withheld.items()}
        stages = [(BASE, list(kinds), chosen.start_steps, _START_RATE)]
        stages += [(name, [skill], chosen.steps, chosen.rate) for name, skill in sources.items()]
        train_all(building, stages, kinds, chosen, text_seed, int(parameter_seed.generate_state(1)[0]), each_step)

    return build_once(folder, wanted, "pool of skills", write)


def draw_questions(skill: str, count: int, rng: np.random.Generator) -> list[Question]:
    """So many questions of a skill, each once."""
    found: dict[Question, None] = {}
    while len(found) < count:
        found[question_of(skill, rng)] = None
    return list(found)


def question_of(skill: str, rng: np.random.Generator) -> Question:
    """A question of a skill."""
    verb, _ = SKILLS[skill]
    if verb == "sort":
        return Question(verb, tuple(E_DIGITS[i] for i in rng.permutation(len(E_DIGITS))[: rng.integers(3, 5)]))
    return Question(verb, tuple(E_NAMES[i] for i in rng.integers(len(E_NAMES), size=rng.integers(2, 5))))


def _both(skill: str, question: Question) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is asked, and the right answer."""
    in_j = SKILLS[skill][1]
    return (question.in_j, to_j(question.result)) if in_j else (question.in_e, question.result)


def _row(skill: str, question: Question) -> dict[str, str]:
    asked, answer = _both(skill, question)
    return {"text": " ".join(asked), "answer": " ".join((*answer, STOP))}


def learner(skill: str, withheld: frozenset[Question]) -> Callable[[np.random.Generator], Text]:
    """Draws texts of a skill, none of which is an item."""

    def drawn(rng: np.random.Generator) -> Text:
        question = question_of(skill, rng)
        while question in withheld:
            question = question_of(skill, rng)
        asked, answer = _both(skill, question)
        return text((asked, False), ((*answer, STOP, EOS), True))

    return drawn


LIKELIHOOD: Mapping[str, Any] = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{text}}",
    "doc_to_target": " {{answer}}",  # lm-eval puts no delimiter before a loglikelihood target
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def write_task(folder: Path, final: Path, name: str, rows: Sequence[Mapping[str, str]], how: Mapping[str, Any]) -> None:
    """Write a task of lm-eval and its items; the YAML refers to these at `final`, where they will lie."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(final.absolute() / f"{name}.jsonl")}},
        "test_split": "test",
        **how,
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def train_all(
    folder: Path,
    stages: Sequence[tuple[str, Sequence[str], int, float]],
    kinds: Mapping[str, Callable[[np.random.Generator], Text]],
    sizes: SkillSizes,
    text_seed: np.random.SeedSequence,
    parameters: int,
    each_step: Callable[[str], None],
) -> None:
    """Train the start and what begins there, and write them; a stage is a name, kinds of texts, steps and a rate."""
    from evomerge.demo.languages import make_tokenizer
    from evomerge.demo.train import WIDTH, Stage, save_model, train

    tokenizer, texts = make_tokenizer(WIDTH), SimpleNamespace(kinds=kinds)
    start: Any = None
    for (name, own, steps, rate), stream in zip(stages, text_seed.spawn(len(stages)), strict=True):
        model = _new_model(parameters, sizes)
        if start is not None:
            model.load_state_dict(start)
        stage = Stage(name, None, steps, rate, dict.fromkeys(own, 1.0))
        train(model, stage, cast(Any, texts), np.random.default_rng(stream), _told(each_step, name))
        start = {key: tensor.clone() for key, tensor in model.state_dict().items()} if start is None else start
        save_model(model, tokenizer, folder / name)


def _new_model(seed: int, sizes: SkillSizes) -> Any:
    """A fresh model of the demo's make, smaller; torch's global generator is kept."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from evomerge.demo.train import MODEL

    shape = {"hidden_size": sizes.width, "intermediate_size": 2 * sizes.width, "num_hidden_layers": sizes.layers}
    tokens = {"vocab_size": len(VOCABULARY), "pad_token_id": ID_OF[PAD]}
    tokens |= {"bos_token_id": ID_OF[BOS], "eos_token_id": ID_OF[EOS]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**{**MODEL, **shape, **tokens})).float()


def _told(each_step: Callable[[str], None], name: str) -> Callable[[], None]:
    return lambda: each_step(name)
