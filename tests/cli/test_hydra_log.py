"""What Hydra logs goes to stderr, and takes no other library's messages with it: stdout is the verb's answer."""

import logging
import subprocess
import sys

import pytest

from evomerge.cli.main import main

SWEEP = ["search", "-m", "strategy=random,de", "pool.models={a: no/such, b: no/such}", "fitness.tasks=[x]"]


def test_a_sweep_tells_its_jobs_on_stderr() -> None:
    done = subprocess.run([sys.executable, "-m", "evomerge", *SWEEP], capture_output=True, text=True)
    assert done.stdout == ""
    assert "Launching 2 jobs" in done.stderr
    assert "evomerge: error: " in done.stderr


def test_warnings_of_libraries_stay_off_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    main(SWEEP)
    capsys.readouterr()
    logging.getLogger("another.library").warning("a warning")  # transformers' propagate where CI is set
    assert "a warning" not in capsys.readouterr().out
