"""The one reader of files of texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.errors import FitnessError
from fitness import _text_files
from fitness._text_files import read_lines, text_of


def test_lines_end_at_newlines_alone_and_blank_ones_are_none(tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_bytes("one\u2028still one\r\n\n \t\n two \nthree".encode())
    lines = read_lines(str(plain), "files")
    assert [line.text for line in lines] == ["one\u2028still one", " two ", "three"]
    assert [text_of(line, "text") for line in lines] == ["one\u2028still one", " two ", "three"]
    assert lines[1].where == f"files: {plain}, line 4"
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"body": "a\u2028b"}\n{"body": "c"}\nno JSON\n')
    assert [text_of(line, "body") for line in read_lines(str(rows), "files", most=2)] == ["a\u2028b", "c"]


def test_what_is_too_large_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_text_files, "_LARGEST", 20)
    file = tmp_path / "texts.txt"
    file.write_text("123456789\n" * 2)
    assert len(read_lines(str(file), "files")) == 2
    file.write_text("123456789\n" * 2 + "x")
    with pytest.raises(FitnessError, match="has more than 20 characters"):
        read_lines(str(file), "files")
    assert len(read_lines(str(file), "files", most=1)) == 1
    file.write_text("1" * 100)  # a line without an end
    with pytest.raises(FitnessError, match="has more than 20 characters"):
        read_lines(str(file), "files", most=1)


def test_what_cannot_be_read_is_said_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(FitnessError, match=r"texts.a.file: .*texts.txt cannot be read"):
        read_lines(str(tmp_path / "texts.txt"), "texts.a.file")
    with pytest.raises(FitnessError, match=r"texts.a.file names .*text.txt', which is not there; did you mean"):
        read_lines(str(tmp_path / "text.txt"), "texts.a.file")
    (tmp_path / "bare").mkdir()
    with pytest.raises(FitnessError, match=r"which is not there; its folder .*bare has no files"):
        read_lines(str(tmp_path / "bare" / "text.txt"), "texts.a.file")
    with pytest.raises(FitnessError, match=r"texts.a.file names .*bare', which is a folder; a file of texts"):
        read_lines(str(tmp_path / "bare"), "texts.a.file")
    with pytest.raises(FitnessError, match="there is no folder"):
        read_lines(str(tmp_path / "no" / "text.txt"), "texts.a.file")
    (tmp_path / "rows.jsonl").write_text("a red bicycle\n")
    with pytest.raises(FitnessError, match=r'rows.jsonl, line 1 is no JSON: .*lines such as {"text": "words"}'):
        read_lines(str(tmp_path / "rows.jsonl"), "files")
    (tmp_path / "none.txt").write_text("\n \n")
    with pytest.raises(FitnessError, match="has no texts"):
        read_lines(str(tmp_path / "none.txt"), "files")
