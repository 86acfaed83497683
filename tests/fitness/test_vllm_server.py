"""``vllm serve`` with adapters that come and go, against transformers and ``lm_eval --model local-completions``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval import evaluator
from lm_eval.tasks import TaskManager
from lora_server import save_adapters
from vllm_models import save_for_tasks

from evomerge.candidate import Candidate
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.evaluation.server_settings import ServerSettings
from evomerge.evaluation.worker import Worker
from evomerge.models.opening import open_pool
from fitness.lm_eval_tasks import LmEvalFitness

pytest.importorskip("vllm", reason="vLLM is not installed: scripts/vllm_environment.sh FOLDER makes an environment")
pytest.importorskip("tenacity", reason="lm-eval's model of servers is not installed whole: evomerge[server]")
pytestmark = pytest.mark.vllm

ALL = ["choose", "complete", "read", "write"]
POSITIONS = 64
PATIENCE = 120
"""Seconds for the server to begin; CI has five minutes for all tests of vLLM."""


@pytest.fixture(scope="module")
def base(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the tokenizer that the tasks are written for, and heads that vLLM takes."""
    folder = tmp_path_factory.mktemp("served") / "base"
    save_for_tasks(folder, model_folder, POSITIONS)
    return folder


@pytest.fixture(scope="module")
def url(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "serve.txt"
    command = [sys.executable, str(Path(__file__).parents[1] / "vllm_server.py"), str(base), "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--max-model-len", str(POSITIONS)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    try:
        begin = time.monotonic()
        while True:
            assert process.poll() is None, log.read_text()[-4000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                if time.monotonic() - begin > PATIENCE:
                    pytest.skip(f"vLLM's server did not begin within {PATIENCE} s")
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_adapters_on_vllms_server_score_as_transformers_and_as_lm_eval(
    base: Path, url: str, tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = save_adapters(base, tmp_path)
    pool = open_pool({"base": str(base)} | {name: f"{base}+{place}" for name, place in adapters.items()}, base="base")
    settings = ServerSettings(url, "base", str(tmp_path / "served"), concurrency=4)
    served = LmEvalFitness(ALL, include_path=str(tasks.path))
    own = LmEvalFitness(ALL, include_path=str(tasks.path), add_bos_token=False, max_length=POSITIONS - 2)
    remote: Any = Worker(pool, {"search": served}, engine=EngineSettings("server", server=settings))  # compares both
    local = Worker(pool, {"search": own}, device="cpu")
    shares = ({"base": 1.0}, {"a": 0.7, "b": 0.5, "base": -0.2}, {"b": 1.5, "base": -0.5}, {"a": 1.0})
    seen = set()
    for number, share in enumerate(shares):
        recipe = pool.info.linear(share)
        found, expected = (worker.evaluate(Candidate(number, recipe)) for worker in (remote, local))
        assert found.ok, found.error
        assert found.metrics["choose/acc"] == expected.metrics["choose/acc"]
        for name in ("complete/perplexity", "read/bits_per_byte", "choose/brier_score", "write/exact_match,whole"):
            assert np.abs(found.items[name] - expected.items[name]).max() < 1e-3, name
        seen.add(found.metrics["complete/perplexity"])
    assert len(seen) == len(shares)
    monkeypatch.setattr(evaluator, "add_env_info", lambda *_: None)
    arguments = {
        "model": remote._resident.served.name,
        "base_url": f"{url}/v1/completions",
        "tokenizer": str(base),
        "tokenizer_backend": "huggingface",
        "max_length": POSITIONS,
        "num_concurrent": 1,
    }
    manager = TaskManager(include_path=str(tasks.path), include_defaults=False)
    given = {"tasks": ALL, "task_manager": manager, "bootstrap_iters": 0, "batch_size": 16}
    stock = evaluator.simple_evaluate("local-completions", model_args=arguments, **given)["results"]
    for name, table in stock.items():
        for metric, value in table.items():
            if "," in metric and "_stderr" not in metric:
                assert found.metrics[f"{name}/{metric.removesuffix(',none')}"] == pytest.approx(value, rel=1e-4), metric
    remote.close()
    with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as answer:
        assert b"evomerge-" not in answer.read()
