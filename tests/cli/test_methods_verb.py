from __future__ import annotations

import re
from pathlib import Path

import pytest

from evomerge.cli.main import main
from evomerge.cli.method_tables import markdown
from evomerge.errors import ConfigError
from evomerge.merge.methods import METHODS, Method
from evomerge.merge.methods.registry import functions_of
from evomerge.recipes.method_spec import FAMILIES, MethodSpec, ParameterSpec

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def toy(values: object, statistics: object) -> None:
    """Sum of ``a``
    and b.

    A second paragraph.

    Raises:
        InfeasibleError: never.
    """


TOY = Method(
    MethodSpec(
        "toy",
        (
            ParameterSpec("weight", 1.0, 0.0, 1.5, per_input=True, searched=True),
            ParameterSpec("steps", 3, 1, 9, kind="integer", minimum=1),
            ParameterSpec("how", "sum", kind="categorical", choices=("max", "sum"), summary="max|sum"),
            ParameterSpec("exact", True, kind="boolean"),
            ParameterSpec("cap", 0.5, maximum=2.0),
        ),
        "optional",
        2,
        3,
        "a toy",
    ),
    mix=toy,
    random=True,
)


def output(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    made = output(["methods", "--markdown"], capsys)
    assert PAGE.read_text(encoding="utf-8") == made, "run `evomerge methods --markdown > docs/methods.md`"


@pytest.mark.parametrize("name", METHODS)
def test_a_page_says_formula_source_and_use(name: str) -> None:
    """Genes and their ranges are in the table, which is made from what a search reads."""
    page = PAGE.read_text(encoding="utf-8").partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    text = page.rpartition("|\n")[2]
    assert re.search(r"`[^`]*(theta|tau|sin|max|min|median|sum|concat|W =)[^`]*`", text), "a formula"
    sources = r"arXiv \d{4}\.\d{5}|without a paper|Shoemake|Karcher"
    assert re.search(sources, page) or name in ("passthrough", "ema"), "where it is from"
    whom = "a |any |agents|many|models|tasks|task vectors|two|what|adapters|taking"
    assert re.search(rf"\b([Ff]or ({whom})|suits|meant for)", text), "when to use it"


def test_a_page_made_by_hand() -> None:
    page = markdown([TOY])
    assert "| [toy](#toy) | a toy | optional | 2 to 3 | **weight**, steps, how, exact, cap |" in page
    assert (
        page.partition("\n## ")[2]
        == """toy

A toy. Family: own. Base: optional. Inputs: 2 to 3. Elements are dropped at random.

| parameter | of | default | searched | accepts |  |
| --- | --- | --- | --- | --- | --- |
| weight | input | 1 | yes, 0 to 1.5 | any |  |
| steps | slice | 3 | no (1 to 9) | from 1, whole |  |
| how | slice | sum | no | max, sum | max\\|sum |
| exact | slice | true | no | true, false |  |
| cap | slice | 0.5 | no (0 to 1) | up to 2 |  |

Sum of `a` and b.

A second paragraph.
"""
    )


@pytest.mark.parametrize("width", [80, 120])
def test_every_method_and_parameter_is_listed_whole(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from evomerge.report.plain_console import console

    monkeypatch.setattr(console, "width", width)
    text = output(["methods"], capsys)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    blocks: dict[str, str] = {}
    current = ""
    for line in text.partition("\n* a value for every input")[0].splitlines()[2:]:
        word = line.split(" ")[0]
        current = word if word in METHODS else current
        blocks[current] = blocks.get(current, "") + line
    order = list(FAMILIES)
    assert list(blocks) == ["", *sorted(METHODS, key=lambda name: (order.index(METHODS[name].spec.family), name))]
    for name, method in METHODS.items():
        for parameter in method.spec.parameters:
            assert f"{parameter.name}{'*' * parameter.per_input}" in blocks[name]


def test_a_family(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(["methods", "--family", "spheres"], capsys)
    first = [line.split(" ")[0] for line in text.splitlines()]
    assert [word for word in first if word in METHODS] == ["crossover", "karcher", "multislerp", "nuslerp", "slerp"]
    assert "interpolation on spheres" in text
    assert main(["methods", "--family", "sphere"]) == 2
    assert "there is no method of a family 'sphere'; did you mean 'spheres'" in capsys.readouterr().err
    assert main(["methods", "ties", "--family", "sparse"]) == 2
    assert "a method, ties, and a family, sparse; one of them" in capsys.readouterr().err


def test_every_method_of_evomerges_has_a_family() -> None:
    own = {name for name, method in METHODS.items() if functions_of(method)[0].__module__.startswith("evomerge.")}
    assert own
    assert [name for name in sorted(own) if METHODS[name].spec.family == "own"] == []
    with pytest.raises(ConfigError, match="method 'toy' is of the family 'task_vector'; did you mean 'task_vectors'"):
        MethodSpec("toy", family="task_vector")


def test_one_method(capsys: pytest.CaptureFixture[str]) -> None:
    words = " ".join(output(["methods", "ties"], capsys).split())
    assert "ties: trimmed task vectors" in words
    assert "base: required; inputs: 1 or more" in words
    assert "density* 1 yes, 0.1 to 1 0 to 1" in words
    assert "TIES-merging: trim to the largest magnitudes, elect `sign(sum" in words


def test_an_unknown_method_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "tis"]) == 2
    assert "unknown merge method 'tis'; did you mean 'ties'" in capsys.readouterr().err


def test_methods_that_search_nothing_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    plain = [name for name, method in METHODS.items() if not method.spec.parameters]
    for name in plain:
        assert "It has no parameters." in output(["methods", name], capsys)
    assert plain
