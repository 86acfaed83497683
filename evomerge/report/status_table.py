"""The progress of a run as lines for terminals."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from evomerge.report.status import RunStatus

_STATES = {"running": "bold green", "ended": "bold", "dead": "bold red", "unknown": "bold yellow"}
_SOURCES = {
    "kept": "in the model already",
    "referenced": "a source's own",
    "memory": "worker's cache",
    "shared": "shared cache",
    "computed": "merged",
}


def render_status(status: RunStatus) -> Table:
    """Two columns: print with a `rich.console.Console`."""
    table = Table(
        title=Text(status.run.resolve().name, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_header=False,
        padding=(0, 1),
        pad_edge=False,
    )
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    state = Text(status.state, style=_STATES[status.state]).append(f", {status.detail}", style="not bold")
    table.add_row("state", state.append(f"; last event {_duration(status.idle)} ago", style="not bold"))
    if status.phase is not None:
        table.add_row("phase", Text(status.phase))
    table.add_row("candidates", Text(_candidates(status)))
    if status.error and set(status.counts) - {"ok"}:
        table.add_row("last failure", Text(status.error))
    table.add_row(f"best {status.objective}", Text(_best(status)))
    for name, value in status.baselines.items():
        best = " (the best baseline)" if name == status.best_baseline and len(status.baselines) > 1 else ""
        table.add_row(f"  {name}", Text(f"{value:.4f}{best}"))
    if status.front is not None:
        table.add_row("Pareto front", f"{status.front} recipe{'s' * (status.front != 1)}")
    if status.held_out:
        table.add_row("held-out", f"{status.held_out} model{'s' * (status.held_out != 1)} scored")
    table.add_row("speed", Text(_speed(status)))
    for label, text in _cache(status):
        table.add_row(label, Text(text))
    return table


def _candidates(status: RunStatus) -> str:
    total = f" of {status.evaluations}" if status.evaluations is not None else ""
    share = f" ({100 * status.told / status.evaluations:.0f} %)" if status.evaluations else ""
    parts = [f"{count} {name}" for name, count in status.counts.items()]
    parts += [f"{status.in_flight} being evaluated"] if status.in_flight else []
    return f"{status.told}{total}{share}" + (f": {', '.join(parts)}" if parts else "")


def _best(status: RunStatus) -> str:
    if status.best is None:
        return "none yet"
    gain = f", {status.gain:+.4f} on the best baseline" if status.gain is not None else ""
    return f"{status.best:.4f}, candidate {status.best_candidate}{gain}"


def _speed(status: RunStatus) -> str:
    if status.per_minute is None:
        return "not known yet"
    rate = f"{status.per_minute:.3g} candidates a minute over {_duration(status.seconds)}"
    left = f", {_duration(status.left)} to go" if status.left is not None else ""
    stages = ", ".join(f"{name} {_duration(value)}" for name, value in status.stages.items())
    return rate + left + (f"; median: {stages}" if stages else "")


def _cache(status: RunStatus) -> list[tuple[str, str]]:
    cache = status.cache
    total = sum(cache.slices.values())
    if not total or cache.slice_hits is None:
        return [("layer cache", "nothing merged yet")]
    hits = f"{100 * cache.slice_hits:.1f} % of slices"
    if cache.byte_hits is not None:
        hits += f" and {100 * cache.byte_hits:.1f} % of bytes"
    where = ", ".join(f"{_SOURCES[name]} {100 * count / total:.1f} %" for name, count in cache.slices.items() if count)
    return [
        ("layer cache", f"{hits} not merged again; {_duration(cache.saved)} saved"),
        ("  slices", f"{total}: {where}"),
    ]


def _duration(seconds: float | None) -> str:
    """Seconds with the two units that matter: ``12 ms``, ``4.2 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    value = seconds or 0.0
    if value < 0.9995:
        return f"{1000 * value:.0f} ms"
    if value < 59.5:
        return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"
    for unit, size, smaller, part in (("min", 60, "s", 1), ("h", 3600, "min", 60), ("d", 86400, "h", 3600)):
        whole = round(value / part)
        if whole * part < 60 * size or unit == "d":
            if unit == "h" and whole * part >= 86400:
                continue
            return f"{whole * part // size} {unit} {whole * part % size // part} {smaller}"
    raise AssertionError("days have no end")
