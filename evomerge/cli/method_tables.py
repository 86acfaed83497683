"""The declarations of merge methods as tables for the terminal and as a page of Markdown."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from evomerge.merge.methods import Method
from evomerge.merge.methods.registry import functions_of
from evomerge.recipes.method_spec import FAMILIES, MethodSpec, ParameterSpec, Scalar

_BASES = {"none": "-", "optional": "optional", "required": "required"}
_COLUMNS = ("parameter", "of", "default", "searched", "accepts", "")
_PAGE = """# Merge methods

This page is made from the methods' declarations: `evomerge methods --markdown > docs/methods.md`.

A method merges one slice at a time (`attn`, `mlp` and `norm` of a layer, the embeddings, the head), tensor by tensor,
in float32, and the result is rounded once. *Base* says whether a method works on the differences from a base model
(`pool.base`); an optional one is used when the pool has it. *Inputs* is how many source models a slice takes.

A parameter has a value for every *input*, or one for the *slice*. A search varies those marked *yes*, within this
range, unless it is told otherwise; the others keep their default until a configuration gives them a value, a range or a
list of choices (`search_space.parameters`). Several methods in `search_space.method` make the method of every layer
group a choice too: `search_space.method=[task_arithmetic,ties]`.

Some methods make a tensor of all models by costly means (singular values, least squares) and add it to the base with
one factor, or one for each model: iso_c, iso_cts, tsv_m, wudi, optmerge, opcm, doge and lora_lego. That tensor is made
once per pool and kept, as far as a quarter of the free memory goes, so that candidates which differ in these factors
cost what task arithmetic costs. Where a search varies one of the parameters that are *found anew for every value*,
candidates make theirs, at full cost, and the last ones stay; of intermediates (lineages) nothing is kept. It is made
in float64, with one thread for each tensor, so that the bits do not depend on the number of threads; another kind of
processor or a GPU may round the last digit otherwise.

Switches act on a model that is merged already, and make one task's out of it: `search_space=switch` and `evomerge merge
--task` put them there, `search_space.method` has no use for them. [Models with a switch](switches.md) has the formulas.

Sources with LoRA adapters are merged by any of these: `task_arithmetic` of adapters is CAT of LoRA Soups, and
`evomerge merge --format lora` writes it as an adapter without leaving the low rank. [LoRA adapters](adapters.md) has
the formula, and the other operators of adapters.

A recipe that is written by hand names any of them but switches, in evomerge's form or in mergekit's: [by
hand](mergekit.md#a-recipe-by-hand).

`evomerge methods --family NAME` lists one of the families that the methods are grouped by here.

A method of your own is a function with the decorator `evomerge.merge.methods.merge_method`, in a module that the
configuration names in `imports`, and `evomerge merge`, `export` and `evaluate` with `--import`.
"""


def by_family(methods: Iterable[Method]) -> Iterator[tuple[str, Method]]:
    """Methods by family, each with the name of its family where that begins and an empty one otherwise."""
    order = list(FAMILIES)
    before = ""
    for method in sorted(methods, key=lambda method: order.index(method.spec.family)):
        family = method.spec.family
        yield family if family != before else "", method
        before = family


def overview(methods: Iterable[Method]) -> Group:
    """All methods, for the terminal."""
    table = _plain_table(1)
    table.add_column("method", no_wrap=True, style="bold")
    table.add_column("base", no_wrap=True)
    table.add_column("inputs", no_wrap=True)
    table.add_column("what it does, and its parameters", ratio=1)
    for family, method in by_family(methods):
        spec = method.spec
        if family:
            table.add_row(
                Text(family, style="italic"), "", "", Text(FAMILIES[family], style="italic"), end_section=True
            )
        text = Text(spec.summary)
        for word, chosen in (("searched", True), ("fixed", False)):
            found = [_brief(p) for p in spec.parameters if p.searched == chosen]
            if found:
                text.append(f"\n{word}: {', '.join(found)}", style="" if chosen else "dim")
        table.add_row(spec.name, _BASES[spec.base], inputs(spec).replace(" or more", "+"), text, end_section=True)
    legend = (
        "\n* a value for every input. In brackets is what a search explores, of the fixed ones when it is told to by "
        "search_space.parameters. The first of several words is the default. `evomerge methods NAME` tells more."
    )
    return Group(table, Text(legend, style="dim"))


def detail(method: Method) -> Group:
    """One method, for the terminal."""
    spec = method.spec
    head = Text.from_markup(f"[bold]{escape(spec.name)}[/]: {escape(spec.summary)}\n")
    head.append(f"base: {spec.base}; inputs: {inputs(spec)}{'; random masks' * _drops(method)}\n")
    table = _plain_table(2)
    table.add_column("parameter", no_wrap=True, style="bold")
    table.add_column("default", no_wrap=True)
    for column in _COLUMNS[3:]:
        table.add_column(column)
    for parameter in spec.parameters:
        name, of, *cells = _cells(parameter)
        table.add_row(*(Text(cell) for cell in (name + "*" * (of == "input"), *cells)))
    parts: list[Table | Text] = [head, table if spec.parameters else Text("It has no parameters.")]
    if any(parameter.per_input for parameter in spec.parameters):
        parts.append(Text("* a value for every input", style="dim"))
    words = documentation(method)
    return Group(*parts, *([Text(f"\n{words}")] if words else []))


def _plain_table(gap: int) -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0), show_edge=False, pad_edge=False)


def markdown(methods: Sequence[Method]) -> str:
    """The page of all methods."""
    parts = [_PAGE]
    rows: list[tuple[str, ...]] = []
    for family, m in by_family(methods):
        if family:
            rows = []
            parts += [f"**{_sentence(FAMILIES[family])[:-1]}** (`{family}`)\n", ""]
        spec = m.spec
        rows.append((f"[{spec.name}](#{spec.name})", spec.summary, _BASES[spec.base], inputs(spec), _names(spec)))
        parts[-1] = _markdown_table(("method", "", "base", "inputs", "parameters"), rows) + "\n"
    for method in methods:
        spec = method.spec
        about = f"Family: {spec.family}. Base: {spec.base}. Inputs: {inputs(spec)}." + (
            " Elements are dropped at random." * _drops(method)
        )
        parts.append(f"\n## {spec.name}\n\n{_sentence(spec.summary)} {about}\n")
        if spec.parameters:
            parts.append(_markdown_table(_COLUMNS, [_cells(p) for p in spec.parameters]))
        words = documentation(method)
        if words:
            parts.append(f"\n{words}\n")
    return "\n".join(parts).replace("\n\n\n", "\n\n")


def documentation(method: Method) -> str:
    """The docstring of a method's function: paragraphs of one line each, code in single backquotes."""
    words = next((f.__doc__ for f in functions_of(method) if f.__doc__), "")
    paragraphs = [" ".join(part.split()) for part in inspect.cleandoc(words).replace("``", "`").split("\n\n")]
    return "\n\n".join(part for part in paragraphs if not part.startswith(("Args:", "Returns:", "Raises:")))


def inputs(spec: MethodSpec) -> str:
    """How many inputs a slice has."""
    few, most = spec.min_inputs, spec.max_inputs
    return f"{few}" if few == most else f"{few} or more" if most is None else f"{few} to {most}"


def _brief(parameter: ParameterSpec) -> str:
    """Without spaces, so that lines do not break within."""
    name = f"{parameter.name}{'*' * parameter.per_input}"
    if parameter.kind == "numbers":
        return name
    if parameter.kind == "categorical":  # its default first
        return f"{name}={'|'.join(sorted(parameter.choices, key=lambda word: word != parameter.default))}"
    if not parameter.searched:
        name += f"={shown(parameter.default)}"
    return name if parameter.kind == "boolean" else f"{name}[{shown(parameter.low)}..{shown(parameter.high)}]"


def _cells(parameter: ParameterSpec) -> tuple[str, ...]:
    """A row of `_COLUMNS`."""
    explored = ""
    if parameter.kind in ("continuous", "integer"):
        explored = f"{shown(parameter.low)} to {shown(parameter.high)}"
    if parameter.searched:
        start = f" from {shown(parameter.initial)} on" if parameter.initial is not None else ""
        searched = f"yes, {explored}{start}" if explored else "yes"
    else:
        searched = f"no ({explored})" if explored else "no"
    of = "input" if parameter.per_input else "slice"
    return parameter.name, of, shown(parameter.default), searched, _accepted(parameter), parameter.summary


def _accepted(parameter: ParameterSpec) -> str:
    if parameter.kind in ("boolean", "categorical"):
        return ", ".join(parameter.choices) or "true, false"
    if parameter.kind == "numbers":
        return "numbers with spaces between"
    low, high = parameter.minimum, parameter.maximum
    if math.isfinite(low) and math.isfinite(high):
        found = f"{shown(low)} to {shown(high)}"
    else:
        found = f"from {shown(low)}" if math.isfinite(low) else f"up to {shown(high)}" if math.isfinite(high) else "any"
    return f"{found}, whole" if parameter.kind == "integer" else found


def _drops(method: Method) -> bool:
    return method.random and method.spec.family != "noise"


def shown(value: Scalar) -> str:
    """A value as a configuration has it."""
    return str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) else f"{value:g}"


def _names(spec: MethodSpec) -> str:
    return ", ".join(f"**{p.name}**" if p.searched else p.name for p in spec.parameters)


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith('.') else '.'}"


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
