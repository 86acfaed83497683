"""What is said of models that score 0 on every item: what the fitness can tell of it."""

from __future__ import annotations

from evomerge.session.answers import advice
from fitness.classification import ClassificationFitness
from fitness.images import ImagesFitness
from fitness.lm_eval_tasks import LmEvalFitness
from fitness.retrieval import RetrievalFitness
from fitness.segmentation import SegmentationFitness
from fitness.several import SeveralFitness

TEXTS = ClassificationFitness([{"task": "mood", "file": "mood.jsonl"}])
PICTURES = ImagesFitness([{"task": "animals", "images": "animals"}])


def test_chat_templates_are_spoken_of_where_there_are_some() -> None:
    others = [
        TEXTS,
        PICTURES,
        SegmentationFitness([{"task": "streets", "images": "streets"}]),
        RetrievalFitness([{"task": "likeness", "pairs": "sts.csv", "metrics": "spearman"}]),
        object(),
    ]
    assert "fitness.apply_chat_template" in advice(LmEvalFitness(["gsm8k"]))
    said = [advice(own) for own in others]
    assert not [line for line in said if "template" in line or "fewshot" in line]
    assert len(set(said)) == len(others)
    for line, key in zip(said, ("id2label", "processor", "background", "qrels", "task"), strict=True):
        assert key in line


def test_each_kind_of_several_says_its_own() -> None:
    both = SeveralFitness({"texts": TEXTS, "pictures": PICTURES})
    assert advice(both) == f"{advice(TEXTS)}; {advice(PICTURES)}"
    alike = SeveralFitness({"texts": TEXTS})
    assert advice(alike) == advice(TEXTS)
