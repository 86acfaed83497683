"""Models that read no text: a tiny ViT's statistics against autograd, and items of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from evomerge.calibration.encoding import EncodedTensors, Item, encode_tensors
from evomerge.calibration.measure import measure
from evomerge.calibration.measurement import Measurement
from evomerge.errors import ConfigError, FitnessError, PoolError
from evomerge.models.opening import open_pool
from evomerge.models.statistics import ModelStatistics
from fitness.calibration_tensors import TensorItems

LABELS = [2, 0, 1, 2]


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    """A ViT of one layer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3, initializer_range=0.5)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images and their classes."""
    pixels = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    save_file({"pixel_values": pixels, "labels": np.array(LABELS)}, tmp_path / "images.safetensors")
    return tmp_path / "images.safetensors"


def items_of(file: Path, **more: Any) -> list[EncodedTensors]:
    source = TensorItems([str(file)], **more)
    source.check()
    return encode_tensors(source.items("vit"))


def made(folder: Path, root: Path, items: list[EncodedTensors], kind: str = "fisher", **how: Any) -> ModelStatistics:
    pool = open_pool({"vit": str(folder)}, dtype="float32")
    measurement, given = Measurement(kind, **how), list[Item](items)
    into = ModelStatistics(root, kind, measurement.key(dict(pool.info.refs)["vit"].identity, given))
    measure(pool, given, measurement, into, memory=1 << 30)
    return into


def test_statistics_of_images_are_those_of_autograd(vit: Path, images: Path, tmp_path: Path) -> None:
    items = items_of(images)
    model = AutoModelForImageClassification.from_pretrained(vit).eval()
    squares = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    read: dict[str, list[torch.Tensor]] = {"vit.layers.0.mlp.fc2": [], "classifier": []}
    for name, rows in read.items():
        model.get_submodule(name).register_forward_pre_hook(lambda _, x, rows=rows: rows.append(x[0].detach()))
    for item in items:
        model.zero_grad()
        logits = model(pixel_values=torch.from_numpy(dict(item.tensors)["pixel_values"])[None]).logits
        (-logits.log_softmax(-1)[0, item.label]).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            squares[name] += p.grad.square() / len(items)
    found, gram = made(vit, tmp_path, items), made(vit, tmp_path, items, "gram")
    pool = open_pool({"vit": str(vit)})
    called = {parameter: pool.stored["vit"][name] for name, parameter in pool.layout.parameters.items()}
    for name, expected in squares.items():
        stored = found.read(called[name])
        assert stored is not None, name
        torch.testing.assert_close(stored.values.view(expected.shape), expected, rtol=1e-3, atol=1e-7)
    for name, rows in read.items():
        every = torch.cat([x.reshape(-1, x.shape[-1]) for x in rows])
        stored = gram.read(called[f"{name}.weight"])
        assert stored is not None
        torch.testing.assert_close(stored.values, every.T @ every / len(every), rtol=1e-4, atol=1e-6)
    assert len(torch.cat(read["classifier"])) == 4  # one row of an image, of which the layers read five


def test_labels_can_be_the_models_own(vit: Path, images: Path, tmp_path: Path) -> None:
    items = [item._replace(label=None) for item in items_of(images)]
    with pytest.raises(PoolError, match=r"without a label .*statistics.labels=sampled"):
        made(vit, tmp_path, items)
    assert made(vit, tmp_path, items, labels="sampled").index["items"] == 4
    with pytest.raises(PoolError, match="an item has label 7; 0 to 2"):
        made(vit, tmp_path, [item._replace(label=7) for item in items])
    with pytest.raises(PoolError, match=r"does not take words of shape \(3, 8, 8\)"):
        made(vit, tmp_path, [EncodedTensors((("words", dict(item.tensors)["pixel_values"]),), 0) for item in items])


def test_keys_are_of_the_tensors_and_their_labels(images: Path) -> None:
    items, how = items_of(images), Measurement("fisher")
    key = how.key("vit", items)
    assert key == how.key("vit", items_of(images))
    others = [items[:3], [items[0]._replace(label=1), *items[1:]], [*items[1:], items[0]]]
    assert len({key, *(how.key("vit", other) for other in others)}) == 4


def test_items_are_drawn_and_told_apart(images: Path) -> None:
    source = TensorItems({"vit": [str(images)]}, items=2, seed=1)
    source.check()
    assert len(source.items("vit")) == 2
    assert len({asked for asked, _ in source.documents()}) == 2
    with pytest.raises(ConfigError, match="files says nothing of model 'other'"):
        source.items("other")
    with pytest.raises(ConfigError, match="files is empty"):
        TensorItems([])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"pixel_values": np.zeros((2, 3)), "labels": np.zeros(3, np.int64)}, "as many items as each other"),
        ({"labels": np.zeros(3, np.int64)}, "has no tensor"),
        ({"pixel_values": np.zeros((2, 3)), "labels": np.zeros(2)}, "labels are float64"),
        ({"pixel_values": np.full((2, 3), np.nan)}, "NaN or infinite"),
        (None, "cannot be read"),
    ],
)
def test_files_are_checked(tmp_path: Path, content: dict[str, Any] | None, said: str) -> None:
    file = tmp_path / "items.safetensors"
    if content is not None:
        save_file(content, file)
    with pytest.raises(FitnessError, match=said):
        TensorItems([str(file)]).check()
