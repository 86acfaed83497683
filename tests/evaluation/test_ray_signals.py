"""A search that is asked to end while its workers begin, which takes minutes for large models."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SEARCH = """
import os, signal, sys
from evomerge.evaluation.ray_cluster import Cluster
from evomerge.session.signals import Interrupts, Terminated

cluster = Cluster(None, 1, 0, 1)
with Interrupts() as interrupts:
    cluster.open()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except Terminated:
        cluster.close()
        sys.exit(143)
sys.exit("the signal was somebody else's")
"""


def test_signals_stay_the_search_s_when_ray_has_started() -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run([sys.executable, "-c", SEARCH], capture_output=True, text=True, env=environment)
    assert done.returncode == 143, done.stderr
