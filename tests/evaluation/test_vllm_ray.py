"""An engine over several GPUs on Ray: vLLM's own executor in the worker's placement group.

The GPUs are pretended: Ray counts two, and a platform that tells vLLM of them computes on the processor. What starts
processes in bundles, splits weights between them and ends them is vLLM's and Ray's own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from vllm_models import VOCABULARY, know_architectures, save_models

from evomerge.candidate import Candidate
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.evaluation.ray_pool import RayEvaluator
from evomerge.evaluation.worker import Worker
from evomerge.merge.execution.sources import Placement
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool
from evomerge.objectives import Objective
from evomerge.protocols import Scores

pytest.importorskip("vllm", reason="vLLM is not installed: scripts/vllm_environment.sh FOLDER makes an environment")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PROMPT = [int(token) for token in torch.randint(3, VOCABULARY, (40,), generator=torch.Generator().manual_seed(0))]
_HERE = Path(__file__).resolve().parents[2]


class Likelihood:
    """The log-likelihood of a prompt, by the engine."""

    objectives = (Objective("nats"),)

    def prepare(self, model: Any) -> None: ...

    def fingerprint(self) -> str:
        return "sha256:same"

    def run(self, model: Any, part: Any = None) -> Scores:
        from vllm import SamplingParams, TokensPrompt

        asked = [TokensPrompt(prompt_token_ids=PROMPT)]
        (found,) = model.engine.generate(asked, SamplingParams(max_tokens=1, prompt_logprobs=1), use_tqdm=False)
        own = zip(found.prompt_logprobs[1:], PROMPT[1:], strict=True)
        return Scores({"nats": sum(logprobs[token].logprob for logprobs, token in own)})


class Build:
    """A worker's, on what Ray gives it; each process of the engine is on the processor."""

    def __init__(self, folders: dict[str, str]) -> None:
        self.folders = folders

    def __call__(self, *, device: str, threads: int | None, cache: Any) -> Worker:
        assert (device, len(cache.group)) == ("spread", 2)
        know_architectures()
        settings = EngineSettings("vllm", {"kv_cache_memory_bytes": 64 << 20, "max_num_seqs": 16, "max_model_len": 64})
        fitnesses: Any = {"search": Likelihood()}
        return Worker(open_pool(self.folders), fitnesses, device="cpu", cache=cache, engine=settings)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "pretended.py").write_text("def register():\n    return 'pretended_platform.PretendedGpus'\n")
    (tmp_path / "pretended_platform.py").write_text(
        "from vllm.platforms.cpu import CpuPlatform\n\n\n"
        "class PretendedGpus(CpuPlatform):\n    ray_device_key = 'GPU'\n"
    )
    (tmp_path / "pretended-1.dist-info").mkdir()
    (tmp_path / "pretended-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: pretended\nVersion: 1\n")
    (tmp_path / "pretended-1.dist-info" / "entry_points.txt").write_text(
        "[vllm.platform_plugins]\npretended = pretended:register\n"
    )
    paths = [tmp_path, _HERE, _HERE / "tests", os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, map(str, paths))))
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def _processes() -> dict[str, int]:
    """Of vLLM's executor that are alive: ids by name."""
    from ray._private.state import actors

    return {a["Name"]: a["Pid"] for a in actors().values() if a["State"] == "ALIVE" and a["Name"].startswith("vllm")}


@torch.no_grad()
def _expected(folders: dict[str, str], recipe: Any) -> float:
    pool = open_pool(folders)
    plain = Resident(pool, "cpu", placement=Placement(0, 0, 0), cache=0, states=0)
    plain.apply(make_plan(recipe, pool))
    logits = plain.model.module(torch.tensor([PROMPT]), use_cache=False).logits[0, :-1].double().log_softmax(dim=-1)
    return float(logits.gather(1, torch.tensor(PROMPT[1:])[:, None]).sum())


def test_an_engine_of_two_processes_in_a_group_scores_as_transformers_and_is_replaced(
    cluster: None, tmp_path: Path
) -> None:
    folders = save_models(tmp_path, "Llama", num_hidden_layers=2)
    linear = open_pool(folders).info.linear
    evaluator = RayEvaluator(Build(folders), workers=1, gpus_per_worker=2, engine="vllm", address="auto")  # type: ignore[arg-type]
    pids = list[dict[str, int]]()
    try:
        for number, weights in enumerate(({"a": 1.0}, {"a": 0.5, "b": 0.5}, {"b": 1.0})):
            recipe = linear(weights)
            evaluator.submit(Candidate(number, recipe))
            found = evaluator.collect()
            assert found.ok, found.error
            assert abs(found.objectives["nats"] - _expected(folders, recipe)) < 1e-3 * len(PROMPT)
            pids.append(_processes())
            assert sorted(name[-4:] for name in pids[-1]) == ["_TP0", "_TP1"]
            if number == 1:  # one of both: the engine is of no use any more
                with contextlib.suppress(ProcessLookupError):
                    os.kill(next(pid for name, pid in pids[-1].items() if name.endswith("_TP1")), signal.SIGKILL)
    finally:
        evaluator.close()
    assert pids[0] == pids[1]
    assert not pids[1].keys() & pids[2].keys()
    states = [group["state"] for group in ray.util.placement_group_table().values()]
    assert states == ["REMOVED", "REMOVED"]
    assert _processes() == {}
