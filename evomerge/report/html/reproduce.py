"""How to get the same again: versions, seeds, models, configuration, recipe and commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from evomerge.config.resume_command import needs_trust
from evomerge.report.formatting import clean, count, cut
from evomerge.report.html.data import RunView
from evomerge.report.html.page import Page

_LONGEST = 200_000
_SECRET = re.compile(
    r"(?im)^(\s*(?:-\s+)?[\w.-]*(?:api_?key|secret|password|passwd|auth_token|access_token|hf_token|credential)"
    r"[\w.-]*\s*:)[ \t]*\S.*$"
)


@dataclass(frozen=True)
class Command:
    """What it is for, and the line to be typed."""

    about: str
    line: str


@dataclass(frozen=True)
class File:
    """A text of the run folder."""

    name: str
    about: str
    text: str


def reproduce(view: RunView, page: Page) -> Markup:
    """Tables, commands and files."""
    return page.render(
        "reproduce.html", facts=_facts(view), versions=_versions(view), models=_models(view), commands=_commands(view)
    ) + page.render("files.html", files=_files(view))


def _facts(view: RunView) -> list[tuple[str, str]]:
    history, started = view.history, view.history.started
    search = view.config.get("search")
    search = search if isinstance(search, dict) else {}
    facts = [
        ("Begun", _day(started.get("time"))),
        ("Seed", clean(started.get("seed", "–"), 40)),
        ("Budget", count(history.evaluations, "evaluation") if history.evaluations else "–"),
        ("Told", "in the order asked" if search.get("ordered", True) else "as they arrived"),
        ("Fitness", clean(started.get("fitness", "–"), 90)),
    ]
    if view.recipe is not None:
        facts.append(("Recipe", f"sha256:{view.recipe.hash}"))
    if history.sessions > 1:
        facts.append(("Sessions", f"{count(history.sessions)}: the run was resumed"))
    return facts


def _versions(view: RunView) -> str:
    found = view.history.started.get("versions")
    if not isinstance(found, dict):
        return f"evomerge {clean(view.history.started.get('version', '?'), 40)}"
    return ", ".join(f"{clean(name, 40)} {clean(version, 40)}" for name, version in list(found.items())[:40])


def _models(view: RunView) -> list[dict[str, str]]:
    if view.pool is None:
        return []
    return [
        {
            "name": clean(name, 60),
            "kind": "base" if name == view.pool.base != "base" else "",
            "address": clean(ref.address, 300),
            "pin": clean(ref.fingerprint or ref.revision or "not pinned", 24),
            "whole": clean(ref.fingerprint or ref.revision or "", 100),
        }
        for name, ref in view.pool.refs[:50]
    ]


def _commands(view: RunView) -> list[Command]:
    run = shlex.quote(str(view.folder.path))
    pool = view.config.get("pool")
    code = " --trust" if isinstance(pool, Mapping) and pool.get("trust_remote_code") else ""
    trust = code or (" --trust" if needs_trust(view.config) else "")
    found = [
        Command("The best recipe", f"evomerge export {run} -o recipe.yaml"),
        Command("The same for mergekit", f"evomerge export {run} --format mergekit -o mergekit.yaml{code}"),
        Command("The merged model, ready for transformers", f"evomerge merge {run} my-model{code}"),
        Command("Its scores on the held-out items", f"evomerge evaluate {run} --held-out{trust}"),
    ]
    if view.recipe is None:
        found = []
    elif not view.config.get("held_out"):
        found[-1] = Command("Its scores again", f"evomerge evaluate {run}{trust}")
    mergekits = view.folder.fits_mergekit()
    if not mergekits:
        found = [command for command in found if "--format mergekit" not in command.line]
    if mergekits and view.recipe is not None and any(ref.adapter is not None for _, ref in view.recipe.models):
        merged = "mergekit-yaml mergekit.yaml my-model --lora-merge-cache adapters"
        found.insert(2, Command("The model by mergekit, adapters folded in", merged))
    if view.state != "ended":
        found.insert(0, Command("Go on with the run", f"evomerge resume {run}{trust}"))
    given = view.folder.path
    place = shlex.quote(str(given)) if given.is_absolute() else f'"$PWD"/{shlex.quote(str(given))}'
    search = f"evomerge search --config-path {place} --config-name config run_dir=runs/again{trust}"
    return [*found, Command("The same search again, from its configuration", search)]


def _files(view: RunView) -> list[File]:
    files = (
        (view.folder.config, "the whole configuration"),
        (view.folder.best_recipe, "the best recipe"),
        (view.folder.best_mergekit, "the best recipe for mergekit"),
    )
    found = []
    for path, about in files:
        text = view.text(path)
        if text:
            found.append(File(path.name, about, cut(hide(_printable(text)), _LONGEST)))
    return found


def hide(text: str) -> str:
    """YAML without the values of keys that are called like secrets: a report is made to be passed on."""
    return _SECRET.sub(r"\1 (left out)", text)


def _printable(text: str) -> str:
    return "".join(c if c in "\n\t" or c.isprintable() else "�" for c in text[: 2 * _LONGEST])


def _day(stamp: Any) -> str:
    try:
        time = datetime.fromisoformat(str(stamp))
    except ValueError:
        return "–"
    return time.astimezone(UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0")
