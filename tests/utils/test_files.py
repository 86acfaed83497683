from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

import pytest

from evomerge.errors import OutputError
from evomerge.utils.files import write_bytes_atomic, write_text_atomic


def test_the_new_content_replaces_the_old_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    write_text_atomic(path, "first: é\n")
    write_bytes_atomic(path, b"second\n", sync=False)
    assert path.read_bytes() == b"second\n"
    assert os.listdir(tmp_path) == ["recipe.yaml"]


def test_a_reader_that_opened_the_old_file_keeps_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    write_text_atomic(path, "old")
    with path.open() as reader:
        write_text_atomic(path, "new content")
        assert reader.read() == "old"
    assert path.read_text() == "new content"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text_atomic(tmp_path / "shared", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    write_text_atomic(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (1000, before[1])
    )  # the kernel refuses what goes beyond, as a full disk does
    try:
        with pytest.raises(OutputError, match=r"recipe\.yaml cannot be written: File too large"):
            write_text_atomic(path, "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["recipe.yaml"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere/x cannot be written: No such file"):
        write_text_atomic(tmp_path / "nowhere" / "x", "")


def test_a_device_is_written_into_and_stays_one(tmp_path: Path) -> None:
    """A file in its place would be there for all programs."""
    device = tmp_path / "null"
    device.symlink_to("/dev/null")
    write_text_atomic(device, "text")
    assert device.is_symlink()
    device.unlink()
    device.symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left"):
        write_text_atomic(device, "text")
    assert device.is_symlink()


def test_a_pipe_is_written_into_where_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="cannot be written"):
        write_text_atomic(tmp_path / "pipe", "text")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text_atomic(tmp_path / "pipe", "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
