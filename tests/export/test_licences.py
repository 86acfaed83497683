"""Licences by their identifiers on the hub, alone and together."""

from __future__ import annotations

import pytest

from evomerge.export.licences import Stated, licence_notes, stated_licences


@pytest.mark.parametrize(
    ("licence", "kind", "non_commercial"),
    [
        ("apache-2.0", "permissive", False),
        ("MIT", "permissive", False),
        ("bsd-3-clause", "permissive", False),
        ("cc-by-4.0", "permissive", False),
        ("cc-by-sa-4.0", "share alike", False),
        ("cc-by-nc-4.0", "non-commercial", True),
        ("cc-by-nc-sa-4.0", "share alike", True),
        ("cc-by-nc-nd-4.0", "no derivatives", True),
        ("cc-by-nd-4.0", "no derivatives", False),
        ("gpl-3.0", "share alike", False),
        ("agpl-3.0", "share alike", False),
        ("lgpl-3.0", "share alike", False),
        ("llama2", "llama", False),
        ("llama3.1", "llama", False),
        ("gemma", "gemma", False),
        ("openrail", "use terms", False),
        ("bigscience-bloom-rail-1.0", "use terms", False),
        ("creativeml-openrail-m", "use terms", False),
        ("qwen", "own terms", False),
        ("qwen-research", "non-commercial", True),
        ("tongyi-qianwen", "own terms", False),
        ("my-own", "unknown", False),
        ("", "unknown", False),
    ],
)
def test_kinds(licence: str, kind: str, non_commercial: bool) -> None:
    stated = Stated("a", licence)
    assert (stated.kind, stated.non_commercial) == (kind, non_commercial)


def notes(**licences: str) -> list[tuple[str, bool]]:
    return [(note.text, note.conflict) for note in licence_notes([Stated(*entry) for entry in licences.items()])]


def test_permissive_ones_need_no_words() -> None:
    assert notes(a="apache-2.0", b="mit", c="cc-by-4.0") == []


def test_one_kind_by_itself_is_no_conflict() -> None:
    assert notes(a="gpl-3.0", b="apache-2.0") == [("a (gpl-3.0): what is derived has to have the same licence", False)]
    assert notes(a="cc-by-nc-4.0", b="cc-by-nc-4.0") == [
        ("a, b (cc-by-nc-4.0): no commercial use, and so none of the merge", False)
    ]
    ((text, conflict),) = notes(a="llama3.1", b="llama3.1")
    assert text.startswith("a, b (llama3.1): a Llama licence: ")
    assert not conflict


def test_conflicts() -> None:
    assert ("a (cc-by-nc-4.0): no commercial use, and so none of the merge", True) in notes(a="cc-by-nc-4.0", b="mit")
    assert notes(a="cc-by-nd-4.0")[0] == (
        "a (cc-by-nd-4.0): what is derived may not be shared, and a merge is likely to be that",
        True,
    )
    assert notes(a="gpl-3.0", b="cc-by-sa-4.0") == [
        (
            "a (gpl-3.0); b (cc-by-sa-4.0): what is derived has to have the same licence, "
            "and the merge cannot have all of them",
            True,
        )
    ]
    assert notes(a="gpl-3.0", b="gemma")[-1] == (
        "a (gpl-3.0): what is derived has to have the same licence; b (gemma): other terms; both may not be possible",
        True,
    )


def test_what_is_not_known_is_said_to_be_so() -> None:
    assert notes(a="my-own", b="") == [
        ("a (my-own): not one that is known here; read it", False),
        ("b: no licence is stated; ask the authors", False),
    ]


def test_names_of_other_licences_count() -> None:
    cards = {
        "a": [{"license": "other", "license_name": "qwen-research"}, {"license": "mit"}],
        "b": [{"license": "other"}],
        "c": [],
    }
    assert stated_licences(cards) == [
        Stated("a", "qwen-research"),
        Stated("a", "mit"),
        Stated("b", "other"),
        Stated("c", ""),
    ]
