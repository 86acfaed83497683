"""Groups of GPUs for engines over several: what fits where, and what is asked for."""

from typing import Any

import pytest

from evomerge.errors import ConfigError
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.evaluation.ray_cluster import Cluster
from evomerge.evaluation.ray_groups import bundles, workers_on
from evomerge.evaluation.ray_pool import RayEvaluator


def test_a_bundle_for_every_gpu_the_first_with_the_cpus() -> None:
    assert bundles(3, 4) == [{"CPU": 3, "GPU": 1}, {"GPU": 1}, {"GPU": 1}, {"GPU": 1}]


@pytest.mark.parametrize(
    ("nodes", "gpus", "packed", "anywhere"),
    [
        ([(8, 4)], 2, [2], [2]),
        ([(8, 3), (8, 3)], 2, [1, 1], [2, 1]),  # the third has one of each node
        ([(8, 2), (8, 2)], 4, [0, 0], [1, 0]),
        ([(1, 2), (8, 2)], 4, [0, 0], [0, 1]),  # the first has no room for the CPUs
        ([(8, 2), (0, 2)], 4, [0, 0], [1, 0]),
        ([(8, 0), (8, 1)], 2, [0, 0], [0, 0]),
        ([(2, 4)], 2, [1], [1]),  # CPUs for one
        ([], 2, [], []),
    ],
)
def test_how_many_workers_nodes_hold(
    nodes: list[tuple[int, int]], gpus: int, packed: list[int], anywhere: list[int]
) -> None:
    have = [{"CPU": float(cpus), "GPU": float(count), "memory": 1e9} for cpus, count in nodes]
    assert workers_on(have, 2, gpus, "STRICT_PACK") == packed
    assert workers_on(have, 2, gpus, "PACK") == anywhere


def test_a_placement_that_is_none_or_for_one_process() -> None:
    def of(**settings: Any) -> str | None:
        build: Any = object()
        return RayEvaluator(build, **settings)._cluster.strategy

    vllm: dict[str, Any] = {"engine": "vllm", "gpus_per_worker": 2}
    assert of(**vllm) == "STRICT_PACK"
    assert of(**vllm, placement_strategy="PACK", device="spread") == "PACK"
    with pytest.raises(ConfigError, match=r"placement_strategy is 'PACKED'; .*PACK"):
        of(**vllm, placement_strategy="PACKED")
    for other in ({"engine": "transformers"}, {"gpus_per_worker": 1}, {"gpus_per_worker": None}, {"device": "cuda:0"}):
        assert of(**vllm | other) is None
        with pytest.raises(ConfigError, match="a worker is one process, on one machine"):
            of(**vllm | other, placement_strategy="PACK")


def test_vllms_processes_are_started_by_its_executor_on_ray() -> None:
    node = {"engine": "vllm", "engine_args": {"distributed_executor_backend": "mp"}}
    assert EngineSettings.of({**node, "device": "spread"}).arguments == node["engine_args"]
    with pytest.raises(ConfigError, match=r"evaluator\.engine_args has distributed_executor_backend"):
        EngineSettings.of({**node, "gpus_per_worker": 2})


def test_this_machines_gpus_are_counted_before_ray_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert Cluster(None, 4, 2, 1, strategy="STRICT_PACK").unplaced() == ""
    assert Cluster(None, 4, None, 9).unplaced() == ""  # none is asked for
    assert Cluster(None, 4, 4, 1, strategy="STRICT_PACK").unplaced() == (
        "no worker has a place: each asks for 4 CPUs and 4 GPUs of one node, this machine has 3 GPUs; lower "
        "evaluator.workers or gpus_per_worker"
    )
    assert Cluster(None, 1, 1, 5).unplaced().startswith("3 of 5 workers have a place: each asks for 1 CPUs and 1 GPUs")
