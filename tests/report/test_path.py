"""Paths of recipes and their pictures, in the terminal and as SVG."""

from __future__ import annotations

import re
from io import StringIO
from xml.etree import ElementTree

import pytest
from contracts.space_samples import METHODS, pool
from rich.console import Console

from evomerge.cli.main import main
from evomerge.recipes.path import LayerPath, PathLayer, path_of, scale_text
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.yaml_reader import dump_recipe
from evomerge.report.colours import COLOURS
from evomerge.report.path_picture import PathPicture
from evomerge.report.path_svg import path_svg
from search_spaces.data_flow import DataFlowSpace
from search_spaces.hybrid import JointSpace
from search_spaces.parameter import ParameterSpace

SVG = "{http://www.w3.org/2000/svg}"


def recipe(taken: str = "lang.1", **scales: float) -> Recipe:
    made = DataFlowSpace(pool(4, head=True), METHODS, head="lang", scale_range={"low": -2.0, "high": 2.0})
    named = dict.fromkeys(made.spec.named(made.spec.initial), False) | dict.fromkeys(taken.split(), True)
    named |= {name: scales.get(name.split("/")[0], 1.0) for name in named if name.endswith("/scale")}
    return made.decode(made.spec.genome(list(named.values())))


def path(*args: str, **scales: float) -> LayerPath:
    found = path_of(recipe(*args, **scales))
    assert found is not None
    return found


def printed(found: LayerPath, width: int = 100) -> list[str]:
    console = Console(width=width, color_system=None, record=True, file=StringIO())
    console.print(PathPicture(found))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_layers_and_the_scales_that_were_chosen() -> None:
    found = path("math.1 lang.1 lang.2", **{"lang.1": 0.8, "lang.2": -1.5, "math.3": -0.3})
    assert [(layer.source, layer.layer) for layer in found.layers] == [
        *(("math", 0), ("math", 1), ("lang", 1), ("lang", 2), ("math", 3)),
    ]
    assert [layer.input_scale for layer in found.layers] == pytest.approx([1.0, 1.0, 0.8, -1.5, -0.3])
    assert found.sources == ("math", "lang")
    assert found.title == "A path of 5 layers: 3 of math, 2 of lang"
    assert found.note.startswith("embeddings and final norm of math; head of lang; × is the scale")


def test_merges_of_layers_in_their_places_are_no_paths() -> None:
    merges = ParameterSpace(pool(4), METHODS)
    assert path_of(merges.decode(merges.spec.initial)) is None
    assert path_of(pool(4).linear({"math": 1.0})) is None
    joint = JointSpace(pool(4), METHODS, repeats=2, scales="none")
    values = list(joint.spec.initial.values)
    values[0] = False  # without layer 1
    found = path_of(joint.decode(joint.spec.genome(values)))
    assert found is not None
    assert found.layers == tuple(PathLayer(("math", "lang"), layer, 1.0) for layer in (0, 2, 3))
    assert found.sources == ("math + lang",)


def test_a_merged_model_is_a_source() -> None:
    merges = ParameterSpace(pool(4), METHODS)
    made = DataFlowSpace(pool(4), METHODS, winner=merges.decode(merges.spec.initial), scales="none")
    taken = [gene.name in ("merged.1", "math.3") for gene in made.spec]
    found = path_of(made.decode(made.spec.genome(taken)))
    assert found is not None
    assert [(layer.source, layer.layer) for layer in found.layers] == [
        ("merged", 0),
        ("merged", 1),
        ("math", 3),
        ("merged", 3),
    ]
    assert found.sources == ("merged", "math")


def test_the_terminal_shows_names_numbers_and_scales() -> None:
    lines = printed(path("math.1 lang.1 lang.2", **{"lang.1": 0.8, "math.3": -1.25}), width=120)
    assert lines == [
        "A path of 5 layers: 3 of math, 2 of lang  ■ math  ■ lang",
        "",
        "math          lang          math",
        "  0      1      1      2      3",
        "              ×0.80         ×-1.25",
        "",
        path("math.1", **{"math.3": 2.0}).note,
    ]


def test_a_narrow_terminal_gets_several_lines() -> None:
    found = path("math.1 math.2 lang.0 lang.1 lang.2 lang.3")
    lines = printed(found, width=18)
    cells = [line for line in lines if re.fullmatch(r"[ \d]+", line)]
    assert [line.split() for line in cells] == [["0", "0", "1", "1"], ["2", "2", "3", "3"]]
    assert max(len(line) for line in lines) <= 18


def test_the_svg_has_every_layer_in_the_row_and_colour_of_its_source() -> None:
    found = path("math.1 lang.1 lang.2", **{"lang.1": 0.8})
    root = ElementTree.fromstring(path_svg(found))
    groups = root.findall(f"{SVG}g")
    titles = [group.findtext(f"{SVG}title") for group in groups]
    assert titles[1:3] == ["layer 1 of the path: layer 1 of math", "layer 2 of the path: layer 1 of lang, scale 0.8"]
    boxes = [group.find(f"{SVG}rect") for group in groups]
    assert [box.get("fill") for box in boxes if box is not None] == [COLOURS[i] for i in (0, 0, 1, 1, 0)]
    ys = [float(box.get("y", "")) for box in boxes if box is not None]
    assert ys[0] == ys[1] == ys[4] < ys[2] == ys[3]
    xs = [float(box.get("x", "")) for box in boxes if box is not None]
    assert xs == sorted(set(xs))
    assert max(xs) < float(root.get("width", ""))
    assert len(root.findall(f"{SVG}path")) == 4


def test_long_paths_are_wrapped_and_names_escaped() -> None:
    layers = tuple(PathLayer(("a<b",) if i % 7 else ("c & d",), i % 50, 1.0) for i in range(60))
    text = path_svg(LayerPath(layers, ("a<b", "c & d"), (("head", "a<b"),)))
    root = ElementTree.fromstring(text)
    rows = {float(box.get("y", "")) for box in root.iterfind(f"{SVG}g/{SVG}rect")}
    assert len(rows) == 6  # three lines of two sources
    assert not re.search(r"(href|url\(|src=|@import)", text)
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.834, "×0.83"),
        (-1.25, "×-1.25"),
        (12.5, "×12.5"),
        (123.4, "×123"),
        (0.002, "×2e-3"),
        (1e6, "×1e6"),
        (1.0, "×1.00"),
    ],
)
def test_scales_are_short(value: float, text: str) -> None:
    assert scale_text(value) == text


def test_the_command_line_writes_the_picture(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    file = f"{tmp_path}/recipe.yaml"
    with open(file, "w", encoding="utf-8") as stream:
        stream.write(dump_recipe(recipe()))
    assert main(["export", file, "--format", "svg"]) == 0
    found = path_of(recipe())
    assert found is not None
    assert capsys.readouterr().out == path_svg(found)
    with open(file, "w", encoding="utf-8") as stream:
        stream.write(dump_recipe(pool(4).linear({"math": 1.0})))
    assert main(["export", file, "--format", "svg"]) == 2
    assert "has no path: its layers all are where they were" in capsys.readouterr().err
