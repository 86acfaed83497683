"""The chat templates of a pool's models: whose the results take, and whether others have another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from evomerge.models.pool import Pool
from evomerge.utils.files import read_bounded

_MOST_BYTES = 2**24
_DEFAULT = "default"


def chat_templates(folder: Path) -> dict[str, str]:
    """The chat templates in a folder by name, as transformers finds them; empty where there are none.

    Files of their own count before what ``tokenizer_config.json`` holds. White space at both ends is none of them.
    """
    found: dict[str, str] = {}
    given = _json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(given, str):
        found[_DEFAULT] = given
    elif isinstance(given, dict):
        found |= {name: text for name, text in given.items() if isinstance(text, str)}
    elif isinstance(given, list):
        pairs = [entry for entry in given if isinstance(entry, dict)]
        found |= {str(entry.get("name")): str(entry.get("template")) for entry in pairs}
    whole = _json(folder / "chat_template.json").get("chat_template")
    if isinstance(whole, str):
        found.setdefault(_DEFAULT, whole)
    files = {_DEFAULT: folder / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    for name, file in files.items():
        if file.is_file():
            found[name] = read_bounded(file, _MOST_BYTES).decode("utf-8", "replace")
    return {name: text.strip() for name, text in sorted(found.items())}


def template_digest(templates: dict[str, str]) -> str:
    """Eight digits that tell chat templates apart: the first of the SHA-256 of the only one, or of all by name."""
    text = templates[_DEFAULT] if list(templates) == [_DEFAULT] else json.dumps(templates, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def tokenizer_words(pool: Pool) -> str:
    """Whose tokenizer the results of a pool take, and which chat template comes with it."""
    vocabulary = pool.vocabulary
    giver = vocabulary.giver if vocabulary is not None else pool.tokenizer_from or pool.info.config_from
    words = f"of {giver}"
    if vocabulary is not None and vocabulary.folder != pool.folder(giver):
        words = f"of {giver}, with more tokens" if vocabulary.spec.source != "union" else "the union of all models'"
    if vocabulary is not None:
        words += f"; {vocabulary.rows.count:,} rows in every model"
    templates = chat_templates(pool.tokenizer_folder)
    return (
        f"{words}; chat template {template_digest(templates)} of {giver}" if templates else f"{words}; no chat template"
    )


def template_caution(pool: Pool) -> str:
    """What to say where the models' chat templates differ; empty where they do not.

    Adapters have the template of their base.
    """
    own = chat_templates(pool.tokenizer_folder)
    vocabulary = pool.vocabulary
    giver = vocabulary.giver if vocabulary is not None else pool.tokenizer_from or pool.info.config_from
    kinds: dict[str, list[str]] = {}
    for name, checkpoint in pool.checkpoints.items():
        theirs = chat_templates(checkpoint.folder)
        if name != giver and theirs and theirs != own:
            kinds.setdefault(template_digest(theirs), []).append(name)
    if not kinds:
        return ""
    others = ", ".join(f"{digest} of {' and '.join(names)}" for digest, names in kinds.items())
    first = next(iter(kinds.values()))[0]
    which = f"takes {template_digest(own)} of {giver}" if own else f"has none, as {giver} has none"
    return (
        f"chat templates differ: the result {which}, and not {others}; "
        f"set pool.tokenizer={first} for the tokenizer and template of another model"
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_bounded(path, _MOST_BYTES))
    except ValueError:  # said where the tokenizer is loaded
        return {}
    return content if isinstance(content, dict) else {}
