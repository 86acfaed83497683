"""Memory that is limited so far that the program itself finds none: one line that says so, and exit status 2."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable

import pytest

from evomerge.cli import scarce_memory
from evomerge.cli.main import main
from evomerge.cli.scarce_memory import lack_of_memory
from evomerge.errors import EvomergeError, NoMemoryError, PoolError

GB = 10**9
LLVM = "Could not find/load shared object file 'libllvmlite.so' from resource location: 'llvmlite.binding'."


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (MemoryError(), True),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (OSError(LLVM), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("can't start new thread"), True),
        (SystemError("error return without exception set"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), True),
        (caused(PoolError("the tokenizer cannot be used"), MemoryError()), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (caused(NoMemoryError("there is no memory to merge"), MemoryError()), False),
        (PoolError("a tokenizer that cannot be used"), False),
        (FileNotFoundError(2, "No such file or directory"), False),
        (ValueError("x"), False),
    ],
    ids=repr,
)
def test_what_lacked_memory(error: Exception, lacks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scarce_memory, "_limit", lambda: 2 * GB)
    monkeypatch.setattr(scarce_memory, "_addresses", lambda: 2 * GB - 10**8)
    found = lack_of_memory(error)
    assert (found is not None) == lacks
    if found is not None:
        assert str(found).startswith("there is no memory left for the program: this process may have 2 GB of addresses")
        assert found.__cause__ is error


def test_a_library_that_is_missing_far_from_any_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scarce_memory, "_limit", lambda: None)
    assert lack_of_memory(ImportError("No module named 'x'")) is None
    assert lack_of_memory(OSError(LLVM)) is None
    assert "the machine has none left" in str(lack_of_memory(MemoryError()))
    monkeypatch.setattr(scarce_memory, "_limit", lambda: 64 * GB)
    assert lack_of_memory(ImportError("No module named 'x'")) is None


@pytest.mark.parametrize("error", [MemoryError(), caused(EvomergeError("cannot be used"), MemoryError())], ids=repr)
def test_the_command_says_it(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import evomerge.cli.status as status

    def failing(_: object) -> int:
        raise error

    monkeypatch.setattr(status, "run", failing)
    assert main(["status", "x"]) == 2
    assert capsys.readouterr().err.startswith("evomerge: error: there is no memory left for the program: ")


def _at_most(nbytes: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (nbytes, nbytes))


@pytest.mark.skipif(sys.platform != "linux", reason="the system has no such limit")
@pytest.mark.parametrize("size", [2 * 10**8, 6 * 10**8])
def test_a_process_with_few_addresses(size: int) -> None:
    command = [sys.executable, "-m", "evomerge", "methods"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, preexec_fn=_at_most(size), env=environment)
    assert ended.returncode == 2
    assert ended.stdout == ""
    start = "evomerge: error: there is no memory left for the program: this process may have"
    assert ended.stderr.startswith(start)
    assert ended.stderr.count("\n") == 1
