"""What `validate` says of a GPU that need not be there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.test_estimate import found
from tiny_models import write_tokenizer
from transformers import MistralConfig

from evomerge.merge.resident.budgets import layer_bytes
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.session.gpu_plan import MAPPED, PINNED, fewest_gpus, plan_gpu
from evomerge.session.memory import _largest_layer

GB = 10**9


def write_headers(folder: Path) -> Path:
    """A checkpoint of the shapes of Mistral 7B in bfloat16: configuration, header, and a hole for the numbers."""
    folder.mkdir()
    config = MistralConfig(architectures=["MistralForCausalLM"], vocab_size=32000, dtype="bfloat16")
    config.save_pretrained(folder)
    hidden, inner, heads, layers = 4096, 14336, 1024, 32
    shapes = {"model.embed_tokens.weight": [32000, hidden], "model.norm.weight": [hidden]}
    for i in range(layers):
        name = f"model.layers.{i}."
        shapes |= {f"{name}self_attn.{part}_proj.weight": [hidden, hidden] for part in "qo"}
        shapes |= {f"{name}self_attn.{part}_proj.weight": [heads, hidden] for part in "kv"}
        shapes |= {f"{name}mlp.{part}_proj.weight": [inner, hidden] for part in ("gate", "up")}
        shapes[f"{name}mlp.down_proj.weight"] = [hidden, inner]
        shapes |= {f"{name}{part}_layernorm.weight": [hidden] for part in ("input", "post_attention")}
    shapes["lm_head.weight"] = [32000, hidden]
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    root = tmp_path_factory.mktemp("headers")
    folders = {name: str(write_headers(root / name)) for name in ("base", "math", "code")}
    return open_pool(folders, base="base", fingerprints=False)


@pytest.mark.parametrize(
    ("gpu", "left", "device", "staging", "pinned", "mapped", "seconds"),
    [
        (24, 8.3, 3.2, 1.1, 40.2, 0.0, 1.6),
        (48, 31.1, 25.0, 2.1, 18.4, 0.0, 0.7),
        (80, 61.5, 43.5, 0.0, 0.0, 0.0, 0.0),
        (141, 119.5, 43.5, 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_three_models_of_7b(
    pool: Pool, gpu: int, left: float, device: float, staging: float, pinned: float, mapped: float, seconds: float
) -> None:
    """With 4 GB for forwards, on a host with 200 GB free."""
    weights = 2 * sum(pool.info.sizes)
    assert weights == pytest.approx(14.48 * GB, rel=1e-3)
    assert pool.nbytes == 3 * weights
    plan = plan_gpu(gpu * GB, 1, weights, 4 * GB, pool.nbytes, 200 * GB, layer_bytes(pool))
    assert plan.left / GB == pytest.approx(left, abs=0.06)
    found_bytes = (plan.device, plan.staging, plan.pinned, plan.mapped)
    for found_, expected in zip(found_bytes, (device, staging, pinned, mapped), strict=True):
        assert found_ / GB == pytest.approx(expected, abs=0.06)
    assert plan.seconds == pytest.approx(seconds, abs=0.06)
    assert plan.device + plan.staging + plan.cache + plan.weights + plan.forwards <= 0.95 * gpu * GB + 1
    text = "\n".join(plan.lines())
    assert f"{gpu} GB: 14.5 GB of weights" in text
    assert ("no candidate copies any" in text) == (gpu >= 80)


def test_where_the_host_is_small_sources_are_read_from_their_files(pool: Pool) -> None:
    plan = plan_gpu(24 * GB, 1, 2 * sum(pool.info.sizes), 4 * GB, pool.nbytes, 16 * GB)
    assert (plan.pinned, plan.mapped) == (4 * GB, pool.nbytes - plan.device - 4 * GB)
    assert plan.seconds == pytest.approx(plan.pinned / PINNED + plan.mapped / MAPPED)
    assert "mapped from their files" in "\n".join(plan.lines())


def test_a_model_that_does_not_fit_says_spread(pool: Pool) -> None:
    (line,) = plan_gpu(24 * GB, 2, 2 * sum(pool.info.sizes), None, pool.nbytes, 200 * GB).lines()
    assert "14.5 GB of weights do not fit into a share of 1/2 of 24 GB" in line
    assert "evaluator.device=spread" in line
    (line,) = plan_gpu(6 * GB, 1, 2 * sum(pool.info.sizes), None, pool.nbytes, 200 * GB, gpus=2).lines()
    assert "14.5 GB of weights do not fit into 2 GPUs of 6 GB: give a worker more than 2" in line


@pytest.mark.parametrize(
    ("gpu", "gpus", "left", "device", "pinned"),
    [(24, 2, 30.2, 22.2, 21.2), (16, 2, 15.0, 7.0, 36.4), (12, 4, 29.4, 13.4, 30.1), (12, 2, 7.4, 0.0, 43.5)],
)
def test_a_model_that_several_gpus_hold(
    pool: Pool, gpu: int, gpus: int, left: float, device: float, pinned: float
) -> None:
    """As a worker divides what it measures: of its GPUs the least that is left, as many times."""
    weights, piece = 2 * sum(pool.info.sizes), _largest_layer(pool)
    assert piece == 2 * 218_112_000
    plan = plan_gpu(gpu * GB, 1, weights, 4 * GB, pool.nbytes, 200 * GB, gpus=gpus, piece=piece)
    assert plan.left / GB == pytest.approx(left, abs=0.06)
    assert (plan.device / GB, plan.pinned / GB) == (pytest.approx(device, abs=0.06), pytest.approx(pinned, abs=0.06))
    assert f"{gpus} GPUs of {gpu} GB: 14.5 GB of weights" in plan.lines()[0]
    assert ("a batch does not fit" in "\n".join(plan.lines())) == (plan.left < gpus * 4 * GB)


def test_how_many_gpus_a_model_asks_for(pool: Pool) -> None:
    weights, piece = 2 * sum(pool.info.sizes), _largest_layer(pool)
    assert [fewest_gpus(gpu * GB, weights, 4 * GB, piece) for gpu in (24, 12, 8, 4)] == [1, 3, 5, 1]
    assert plan_gpu(12 * GB, 1, weights, 4 * GB, 0, 0, gpus=3, piece=piece).left >= 3 * 4 * GB


def test_two_workers_of_the_small_experiment_fit_a_gpu_of_24_gb() -> None:
    weights = int(3.1 * GB)
    plan = plan_gpu(24 * GB, 2, weights, 3 * GB, 4 * weights, 60 * GB)
    assert 2 * (plan.weights + plan.forwards + plan.device + plan.cache) < 24 * GB


@pytest.mark.parametrize("evaluator", ["local", "ray"])
def test_validate_needs_no_gpu_to_say_so(quick_search: list[str], evaluator: str) -> None:
    own = found(quick_search, f"evaluator={evaluator}", "evaluator.gpu=24GB").memory
    assert not own.on_host
    assert own.gpu is not None
    assert (own.gpu.gpu, own.gpu.sharing, own.device) == (24 * GB, 1, 24 * GB)
    assert own.gpu.known
    assert own.gpu.device == own.gpu.sources
    assert {part.name for part in own.at("device")} >= {"model", "sources", "forwards"}
    half = found(quick_search, "evaluator=ray", "evaluator.gpus_per_worker=0.5", "evaluator.gpu=24GB").memory
    assert half.gpu is not None
    assert half.gpu.sharing == 2
    assert half.device == 12 * GB
    two = found(quick_search, "evaluator=ray", "evaluator.gpus_per_worker=2", "evaluator.gpu=24GB").memory
    assert two.gpu is not None
    assert (two.gpu.gpus, two.gpu.sharing, two.device) == (2, 1, 48 * GB)
    spread = found(quick_search, "evaluator.device=spread", "evaluator.gpu=24GB").memory
    assert spread.gpu is not None
    assert spread.gpu.gpus == 1  # there are none here: as many as it asks for
    assert found(quick_search, "evaluator.device=cpu", "evaluator.gpu=24GB").memory.gpu is None
