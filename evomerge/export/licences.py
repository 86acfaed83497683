"""What the licences of a merge's sources ask for together, as far as their identifiers tell.

Identifiers are those of the Hugging Face Hub. The kinds are coarse, and what is not known is said to be unknown:
nobody's licence has been read here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_KINDS: tuple[tuple[str, str], ...] = (
    (r"cc-by-(nc-)?nd(-.*)?", "no derivatives"),
    (r"cc-by-nc-sa(-.*)?", "share alike"),
    (r"cc-by-sa(-.*)?|[al]?gpl(-.*)?|eupl-.*|mpl-2\.0|osl-.*|ms-rl|odbl", "share alike"),
    (r"cc-by-nc(-.*)?|.*non-?commercial.*|.*-nc|.*research.*|mnpl.*|mrl", "non-commercial"),
    (r"llama.*", "llama"),
    (r"gemma.*", "gemma"),
    (r"(big(science|code)-)?.*openrail.*|bigscience-.*|creativeml-.*|deepfloyd-.*|intel-.*", "use terms"),
    (r"apple-.*|falcon-.*|qwen.*|tongyi.*|deepseek.*|yi-.*|h-research|grok2-community|nvidia-.*", "own terms"),
    (
        r"apache-2\.0|mit|bsd.*|isc|cc0-1\.0|cc-by-\d.*|cc-by|unlicense|wtfpl|zlib|afl-3\.0|artistic-2\.0|bsl-1\.0"
        r"|cdla-permissive-.*|ecl-2\.0|postgresql|ncsa|odc-by|pddl|etalab-2\.0|0bsd|ms-pl|lppl-.*|ofl-1\.1|openmdw.*",
        "permissive",
    ),
)
_NONCOMMERCIAL = re.compile(r"cc-by-nc(-.*)?|.*non-?commercial.*|.*-nc|.*research.*|mnpl.*|mrl")
_TERMS = {
    "no derivatives": "what is derived may not be shared, and a merge is likely to be that",
    "llama": "a Llama licence: notices, a policy of use, and from Llama 3 on a name that begins with Llama",
    "gemma": "Gemma's terms: restrictions of use, which go along with what is derived",
    "use terms": "restrictions of use, which go along with what is derived",
    "own terms": "a licence of its own, with conditions that go along",
}
NOT_ADVICE = (
    "This follows from the names of the licences that the sources' cards state. Nobody has read the licences for this "
    "card, and it is not legal advice."
)


@dataclass(frozen=True)
class Stated:
    """A licence that a source states.

    Attributes:
        source: its name in the pool.
        licence: the identifier, or the name that goes with ``other``; empty when none is stated.
    """

    source: str
    licence: str

    @property
    def kind(self) -> str:
        """What it is like; ``unknown`` where the identifier does not tell."""
        text = self.licence.lower()
        return next((kind for pattern, kind in _KINDS if re.fullmatch(pattern, text)), "unknown")

    @property
    def non_commercial(self) -> bool:
        """Whether its name says that it is for no commercial use."""
        return re.fullmatch(_NONCOMMERCIAL, self.licence.lower()) is not None


@dataclass(frozen=True)
class Note:
    """A line about licences; a `conflict` is one that may keep the merge from being published, or used."""

    text: str
    conflict: bool = False


def stated_licences(licences: Mapping[str, Sequence[Mapping[str, str]]]) -> list[Stated]:
    """What sources state, by the entries of their cards (`model_card.card_license`), adapters included."""
    found = [Stated(source, _identifier(entry)) for source, entries in licences.items() for entry in (entries or ({},))]
    return list(dict.fromkeys(found))


def licence_notes(stated: Sequence[Stated]) -> list[Note]:
    """What to know before a merge of these sources is published; nothing where all are permissive."""
    notes = []
    for kind, text in _TERMS.items():
        notes += _of([entry for entry in stated if entry.kind == kind], text, conflict=kind == "no derivatives")
    limited = [entry for entry in stated if entry.non_commercial]
    notes += _of(limited, "no commercial use, and so none of the merge", conflict=len(limited) < len(stated))
    notes += _of([e for e in stated if e.licence and e.kind == "unknown"], "not one that is known here; read it")
    notes += _of([entry for entry in stated if not entry.licence], "no licence is stated; ask the authors")
    return notes + _shares(stated)


def _shares(stated: Sequence[Stated]) -> list[Note]:
    """Copyleft beside terms that cannot be carried by the same licence."""
    shares = [entry for entry in stated if entry.kind == "share alike"]
    others = [
        e for e in stated if e.kind in ("llama", "gemma", "use terms", "own terms", "no derivatives", "non-commercial")
    ]
    names = {entry.licence.lower() for entry in shares}
    if not shares:
        return []
    text = "what is derived has to have the same licence"
    if len(names) > 1:
        return [Note(f"{_list(shares)}: {text}, and the merge cannot have all of them", conflict=True)]
    if others:
        return [Note(f"{_list(shares)}: {text}; {_list(others)}: other terms; both may not be possible", conflict=True)]
    return _of(shares, text)


def _of(entries: Sequence[Stated], text: str, *, conflict: bool = False) -> list[Note]:
    """One note for each licence, naming its sources."""
    by_licence: dict[str, list[Stated]] = {}
    for entry in entries:
        by_licence.setdefault(entry.licence, []).append(entry)
    return [Note(f"{_list(group)}: {text}", conflict) for group in by_licence.values()]


def _list(entries: Sequence[Stated]) -> str:
    by_licence: dict[str, list[str]] = {}
    for entry in entries:
        by_licence.setdefault(entry.licence, []).append(entry.source)
    return "; ".join(", ".join(names) + (f" ({licence})" if licence else "") for licence, names in by_licence.items())


def _identifier(entry: Mapping[str, str]) -> str:
    licence = entry.get("license", "")
    named = entry.get("license_name", "")
    return named if named and licence in ("", "other") else licence
