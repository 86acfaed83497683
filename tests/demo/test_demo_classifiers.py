"""The demo's classifiers: texts out of docstrings, and what a search finds that no average has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evomerge.cli.main import main
from evomerge.demo import classifiers, text_training
from evomerge.demo.classifiers import PARTS, Sizes, make_classifiers
from evomerge.demo.docstrings import LABELS, Example, _documented, _sections, balanced
from evomerge.errors import ConfigError, OutputError
from evomerge.models.opening import open_pool

SOURCE = '''
class Box:
    """A box that holds things."""

    def open(self, lid, hinge=(1, 2)):
        r"""Open the box.

        Parameters
        ----------
        lid : str
            What it has.

            More of it.

        Raises
        ------
        ValueError
            Without a lid.
        """

    def _shut(self):
        """Shut it."""

text = """no docstring"""
def turn(x: int) -> int:
    """Turn around.

    Args:
        x: how far.

    Returns:
        What is left.
    """
'''


def test_texts_and_labels_are_those_of_the_source() -> None:
    found = list(_documented(SOURCE))
    assert [(kind, text.splitlines()[0]) for kind, text in found] == [
        ("class", "A box that holds things."),
        ("function", "Open the box."),
        ("function", "Turn around."),
    ]
    assert list(_sections(found[1][1])) == [
        ("parameters", "lid : str\n    What it has."),
        ("raises", "ValueError\n    Without a lid."),
    ]
    assert list(_sections(found[2][1])) == [("parameters", "x: how far."), ("returns", "What is left.")]
    own = [Example(str(number), "ab"[number % 2]) for number in range(9)]
    assert [example.text for example in balanced(own, "ab", 2)] == ["0", "1", "2", "3"]


def test_other_folders_are_not_written_over_and_options_go_together(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    with pytest.raises(OutputError, match="holds no pool of classifiers of a demo"):
        make_classifiers(tmp_path / "own", quick=True)
    with pytest.raises(ConfigError, match="--classifiers and --adapters"):
        main(["demo", "--classifiers", "--adapters", "3", "--pool-only", "--debug"])


@pytest.mark.slow
def test_the_pool_is_three_classifiers_with_heads_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "MODEL", {**classifiers.MODEL, "hidden_size": 16, "num_hidden_layers": 1})
    monkeypatch.setattr(text_training, "BATCH", 4)
    pool = make_classifiers(tmp_path / "pool", threads=1, sizes=Sizes(30, 90, 18, 27, 300, 1, 1))
    parts = {part: set[str]() for part in PARTS}
    for task, labels in LABELS.items():
        for part, texts in parts.items():
            rows = [json.loads(line) for line in (pool / "data" / f"{task}-{part}.jsonl").read_text().splitlines()]
            assert {row["label"] for row in rows} <= set(labels)
            texts |= {row["text"].lower() for row in rows}
        config = json.loads((pool / task / "config.json").read_text())
        assert tuple(config["id2label"].values()) == labels
    assert not parts["train"] & (parts["held_out"] | parts["search"])
    assert not parts["search"] & parts["held_out"]
    opened = open_pool({name: name for name in ("base", *LABELS)}, "base", pool, fingerprints=False)
    assert opened.info.heads is not None
    assert opened.info.heads.tasks == tuple(LABELS)
    before = (pool / "manifest.json").stat().st_mtime_ns
    make_classifiers(pool, threads=1, sizes=Sizes(30, 90, 18, 27, 300, 1, 1))
    assert (pool / "manifest.json").stat().st_mtime_ns == before
