"""Where the texts of each domain come from, read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fitness._text_files import document_of, read_lines, text_of
from fitness._unlabelled.terms import TextTerm


@dataclass(frozen=True)
class Source:
    """The texts of a domain before any model was asked.

    Attributes:
        texts: as they stand in the file or task; none where a model begins with nothing.
        count: how many items there will be.
        documents: of each text two hashes, by which others find that it is the same.
    """

    texts: Sequence[str]
    count: int
    documents: Sequence[tuple[str, str]]


def read_sources(terms: Sequence[TextTerm], include_path: Sequence[str], timeout: float | None) -> dict[str, Source]:
    """Read every domain's texts, by name.

    Raises:
        FitnessError: a file or a task that cannot be read, or has no texts.
    """
    return {term.name: _read(term, include_path, timeout) for term in terms}


def _read(term: TextTerm, include_path: Sequence[str], timeout: float | None) -> Source:
    if term.task:
        from fitness._lm_eval.prompts import task_prompts

        prompts, documents = task_prompts(term.task, include_path, term.limit, timeout)
        return Source(prompts, len(prompts), documents)
    if term.file:
        example = f'{{"{term.key}": "words"}}'
        lines = read_lines(term.file, f"texts.{term.name}.file", term.limit, example)
        texts = [text_of(line, term.key, f"texts.{term.name}.key") for line in lines]
        own = [document_of(line, text) for line, text in zip(lines, texts, strict=True)]
        return Source(texts, len(texts), own)
    assert term.write is not None
    return Source((), term.write.texts, ())
