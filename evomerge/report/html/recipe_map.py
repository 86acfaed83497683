"""The winner as a picture: heat maps of its parameters by layer and component, or its path through the layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import EVERY_LAYER_COMPONENT, LAYER_COMPONENTS, SliceId
from evomerge.recipes.switches import SWITCHES, merged_recipe, switch_of
from evomerge.report.formatting import clean, count, listed
from evomerge.report.html.data import RunView
from evomerge.report.html.page import Page
from evomerge.report.html.plots import RAISED, TWO_SIDED, Plot, axis, figure, label, series
from evomerge.report.html.shares import number_of, shares_of
from evomerge.report.path_svg import path_svg

Cells = Mapping[SliceId, float]
OUTER = {"embed": "E", "time_embed": "T", "final_norm": "N", "head": "H"}
_MOST_PANELS = 12
_MOST_PATH = 400
_WRITTEN = 14
"""Columns up to which the numbers stand in the cells."""


def recipe_map(view: RunView, page: Page) -> Markup | None:
    """The pictures of the best recipe."""
    recipe = view.recipe
    if recipe is None:
        return None
    pictures: list[tuple[str, Plot]] = []
    drawn = _path(view)
    switched, recipe = recipe, merged_recipe(recipe)
    stages = dict(recipe.intermediates)
    if drawn:
        shown = {name: stage for name, stage in stages.items() if not stage.intermediates}
        for name, stage in list(shown.items())[:3]:
            pictures += [(f"{clean(name, 40)}: {title}", plot) for title, plot in parameter_maps(stage)]
    elif stages:
        plot = panels({f"share of {name}": cells for name, cells in _by_model(shares_of(recipe)).items()})
        if plot is not None:
            pictures.append(("How much of each model is in every part", plot))
    else:
        pictures += parameter_maps(recipe)
    methods = list(dict.fromkeys(e.method for r in (*switched.stages.values(), switched) for e in r.slices))
    return page.render(
        "recipe_map.html",
        path=drawn,
        pictures=pictures,
        sentence=_sentence(recipe, methods),
        fixed=" ".join(text for text in (_constants(recipe) if not stages else "", _switch(switched)) if text),
        outer=any(entry.slice.layer is None for entry in recipe.slices),
        merges=len(recipe.stages),
        has_path=bool(drawn),
    )


def parameter_maps(recipe: Recipe) -> list[tuple[str, Plot]]:
    """A picture for every parameter that differs between slices, or between inputs."""
    found: dict[str, dict[str, dict[SliceId, float]]] = {}
    for entry in recipe.slices:
        for source in entry.inputs:
            for name, value in source.parameters:
                found.setdefault(name, {}).setdefault(source.model, {})[entry.slice] = number_of(value)
        for name, value in entry.parameters:
            if not isinstance(value, bool | str):
                found.setdefault(name, {}).setdefault("", {})[entry.slice] = number_of(value)
    plots = []
    methods = {entry.slice: entry.method for entry in recipe.slices}
    if len(set(methods.values())) > 1:
        plots.append(("Method", _methods(methods)))
    for name, panel in found.items():
        values = {value for cells in panel.values() for value in cells.values()}
        if len(values) > 1:
            plot = panels({f"{name} of {model}" if model else name: cells for model, cells in panel.items()})
            if plot is not None:
                plots.append((f"{clean(name, 40).capitalize()}", plot))
    return plots


def panels(maps: Mapping[str, Cells]) -> Plot | None:
    """One heat map over the other, with the same columns and colours."""
    shown = dict(list(maps.items())[:_MOST_PANELS])
    places = list(dict.fromkeys(place for cells in shown.values() for place in cells))
    if not places:
        return None
    columns, rows = _columns(places), _rows(shown)
    values = [value for cells in shown.values() for value in cells.values()]
    low, high = min(values), max(values)
    if low < 0:
        low, high = -max(-low, high), max(-low, high)
    else:
        low, high = 0.0, max(high, 1.0 if 0.5 < high <= 1 else high) or 1.0
    layout: dict[str, Any] = {
        "coloraxis": {
            "cmin": low,
            "cmax": high,
            "colorscale": TWO_SIDED if low < 0 else RAISED,
            "colorbar": {"thickness": 8, "outlinewidth": 0, "len": 1, "tickfont": {"size": 10}, "xpad": 6, "nticks": 5},
        },
        "annotations": [],
        "margin": {"t": 26, "b": 40, "r": 8},
    }
    gap = 30.0
    cell = 26.0 if len(rows) > 1 else 34.0
    inner = len(shown) * len(rows) * cell + (len(shown) - 1) * gap
    traces, top = [], 1.0
    for place, (name, cells) in enumerate(shown.items()):
        bottom = max(0.0, top - len(rows) * cell / inner)
        mark = "" if place == 0 else str(place + 1)
        last = place == len(shown) - 1
        traces.append(
            {
                "type": "heatmap",
                "x": list(range(len(columns))),
                "y": rows,
                "z": _matrix(cells, columns, rows),
                "customdata": [[_place(row, column) for column in columns] for row in rows],
                "xaxis": "x",
                "yaxis": f"y{mark}",
                "coloraxis": "coloraxis",
                "xgap": 1.5,
                "ygap": 1.5,
                "texttemplate": "%{z:.2f}" if len(columns) <= _WRITTEN else "",
                "textfont": {"size": 10},
                "hovertemplate": f"{label(name)}<br>%{{customdata}}: %{{z:.4g}}<extra></extra>",
                "hoverongaps": False,
            }
        )
        layout[f"yaxis{mark}"] = axis(
            domain=[bottom, top], autorange="reversed", showgrid=False, showticklabels=len(rows) > 1
        )
        title = {"text": label(name), "x": 0, "xref": "paper", "xanchor": "left", "showarrow": False}
        layout["annotations"].append({**title, "y": top, "yref": "paper", "yanchor": "bottom"})
        if last:
            ticks = _ticks(columns)
            layout["xaxis"] = axis(
                "layer",
                tickvals=[t for t, _ in ticks],
                ticktext=[text for _, text in ticks],
                showgrid=False,
                anchor=f"y{mark}",
                tickangle=0,
            )
        top = bottom - gap / inner
    about = f"Heat maps of {listed(list(shown))} by layer and component"
    return Plot({"map": figure(*traces, **layout)}, round(inner) + 66, about)


def _methods(methods: Mapping[SliceId, str]) -> Plot:
    """Which method makes which slice."""
    names = list(dict.fromkeys(methods.values()))
    found = {place.component for place in methods}
    columns, rows = _columns(methods), [*LAYER_COMPONENTS, *(c for c in EVERY_LAYER_COMPONENT[3:] if c in found)]
    cells = {place: float(names.index(method)) for place, method in methods.items()}
    matrix = _matrix(cells, columns, rows)
    words = [["" if v is None else label(names[round(v)], 30) for v in line] for line in matrix]
    scale: list[tuple[float, str]] = []
    for place in range(len(names)):
        scale += [(place / len(names), series(place)), ((place + 1) / len(names), series(place))]
    trace = {
        "type": "heatmap",
        "x": list(range(len(columns))),
        "y": rows,
        "z": matrix,
        "text": words,
        "colorscale": scale,
        "zmin": -0.5,
        "zmax": len(names) - 0.5,
        "showscale": False,
        "xgap": 1.5,
        "ygap": 1.5,
        "hovertemplate": "%{text}<extra></extra>",
    }
    keys = [
        {"type": "scatter", "mode": "markers", "x": [None], "y": [None], "name": label(name, 30)}
        | {"marker": {"symbol": "square", "size": 10, "color": series(place)}}
        for place, name in enumerate(names)
    ]
    ticks = _ticks(columns)
    layout = {
        "xaxis": axis("layer", tickvals=[t for t, _ in ticks], ticktext=[text for _, text in ticks], showgrid=False),
        "yaxis": axis(autorange="reversed", showgrid=False),
        "showlegend": True,
    }
    return Plot({"map": figure(trace, *keys, **layout)}, 190, f"Methods by layer: {listed(names)}")


def _by_model(shares: Mapping[SliceId, Mapping[str, float]]) -> dict[str, dict[SliceId, float]]:
    models = dict.fromkeys(model for own in shares.values() for model in own)
    return {model: {place: own.get(model, 0.0) for place, own in shares.items()} for model in models}


def _columns(places: Iterable[SliceId]) -> list[str | int]:
    """Embeddings, the layers, final norm and head, as far as there are any."""
    known = sorted(places, key=lambda place: place.order)
    return list(dict.fromkeys(OUTER[p.component] if p.layer is None else p.layer for p in known))


def _rows(maps: Mapping[str, Cells]) -> list[str]:
    """The components of a layer, or one row where they never differ."""
    for cells in maps.values():
        layers: dict[int, set[float]] = {}
        for place, value in cells.items():
            if place.layer is not None:
                layers.setdefault(place.layer, set()).add(value)
        if any(len(values) > 1 for values in layers.values()):
            found = {place.component for own in maps.values() for place in own if place.layer is not None}
            return [component for component in EVERY_LAYER_COMPONENT if component in found]
    return ["all"]


def _matrix(cells: Cells, columns: Sequence[str | int], rows: Sequence[str]) -> list[list[float | None]]:
    found: dict[tuple[str, str | int], float] = {}
    for place, value in cells.items():
        if place.layer is None:
            found.update({(row, OUTER[place.component]): value for row in rows})
        else:
            found["all" if rows == ["all"] else place.component, place.layer] = value
    return [
        [None if (v := found.get((row, column))) is None else float(f"{v:.6g}") for column in columns] for row in rows
    ]


def _place(row: str, column: str | int) -> str:
    if isinstance(column, str):
        return {"E": "embeddings", "N": "final norm", "H": "head"}[column]
    return f"layer {column}" if row == "all" else f"layer {column}, {row}"


def _ticks(columns: Sequence[str | int]) -> list[tuple[int, str]]:
    """As many as there is room for on a phone."""
    layers = [place for place, column in enumerate(columns) if not isinstance(column, str)]
    step = next(s for s in (1, 2, 4, 5, 8, 10, 16, 20, 50, 100, 1000, 10**6) if len(layers) / s <= 12)
    return [(p, str(c)) for p, c in enumerate(columns) if isinstance(c, str) or c % step == 0]


def _path(view: RunView) -> dict[str, str | Markup] | None:
    """The picture of a path, for wide and for narrow screens."""
    path = view.path
    if path is None or len(path.layers) > _MOST_PATH:
        return None
    # Its texts are escaped by `path_svg`.
    return {
        "title": clean(path.title),
        "note": _sentence_case(clean(path.note, 400)),
        "wide": Markup(path_svg(path, per_line=18, captions=False)),
        "narrow": Markup(path_svg(path, per_line=6, captions=False)),
    }


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:] + ("." if text else "")


def _sentence(recipe: Recipe, methods: Sequence[str]) -> str:
    models = [clean(name, 40) for name, _ in recipe.models]
    layers = len({entry.slice.layer for entry in recipe.slices if entry.slice.layer is not None})
    by = listed([clean(method, 40) for method in methods])
    return f"{count(layers, 'layer')} in {clean(recipe.dtype)} from {listed(models)}, by {by}."


def _switch(recipe: Recipe) -> str:
    """What the switch or the head of each task is; empty where there is none."""
    switch = switch_of(recipe)
    if switch is None and recipe.heads is not None:
        whose = listed([clean(task, 40) for task in recipe.heads.tasks], 8)
        return f"Shown is the encoder; the heads of {whose} are carried from these models as they are."
    if switch is None:
        return ""
    entry = next(entry for entry in recipe.slices if entry.method in SWITCHES)
    tasks = []
    for source in entry.inputs[1:]:
        values = [f"{clean(name, 40)} {number_of(value):g}" for name, value in source.parameters]
        tasks.append(clean(source.model, 40) + (f" ({', '.join(values)})" if values else ""))
    return f"Shown is the shared model; {clean(entry.method, 40)} makes that of each task: {listed(tasks, 8)}."


def _constants(recipe: Recipe) -> str:
    """Parameters that are the same everywhere."""
    values: dict[str, set[Any]] = {}
    for entry in recipe.slices:
        for name, value in (*entry.parameters, *(p for source in entry.inputs for p in source.parameters)):
            values.setdefault(name, set()).add(value)
    same = {name: next(iter(found)) for name, found in values.items() if len(found) == 1}
    shown = [
        f"{clean(name, 40)} {value:g}" if isinstance(value, float) else f"{clean(name, 40)} {clean(value, 40).lower()}"
        for name, value in same.items()
    ]
    return f"The same everywhere: {listed(shown, 8)}." if shown else ""
