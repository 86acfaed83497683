"""Batch-norm statistics of merged weights: beside torch's own way, while a worker scores, and in what is exported."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_images import save_classifier, save_images
from torch.optim.swa_utils import update_bn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.evaluation.worker import Worker
from evomerge.export.in_memory import merged_model
from evomerge.models.loaded import LoadedModel
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.objectives import Objective
from fitness._images.batch_norm import batch_norms_of, recomputed
from fitness.images import ImagesFitness
from fitness.several import SeveralFitness


@pytest.fixture(scope="module")
def resnets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resnets")
    for seed, name in enumerate("ab"):
        save_classifier(folder / name, "ResNet", seed)
    save_images(folder / "search", 1, each=8)
    save_images(folder / "held_out", 2, each=6)
    return folder


@pytest.fixture(scope="module")
def pool(resnets: Path) -> Pool:
    return open_pool({name: str(resnets / name) for name in "ab"}, base="a")


def module_of(folder: Path) -> Any:
    return AutoModelForImageClassification.from_pretrained(folder).eval()


class ByPosition(torch.nn.Module):
    """For `update_bn`, which calls with the batch alone."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixels: torch.Tensor) -> Any:
        return self.module(pixel_values=pixels)


def test_statistics_are_those_of_torchs_update_bn(resnets: Path) -> None:
    module = module_of(resnets / "a")
    batches = list(torch.randn(3, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    before = copy.deepcopy(module.state_dict())
    found = recomputed(module, batches)
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())
    assert not module.training
    assert not any(part.training for part in module.modules())
    assert recomputed(module, batches).keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in recomputed(module, batches).items())

    update_bn(batches, ByPosition(module))
    after = module.state_dict()
    assert len(found) == 2 * len(batch_norms_of(module)) > 8
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, after[name], rtol=1e-5, atol=1e-6)


def test_the_first_batch_norm_by_hand(resnets: Path) -> None:
    """Batches of 3 and 2: means and unbiased variances of each, weighed 3 to 2."""
    module = module_of(resnets / "a")
    batches = list(torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)).split([3, 2]))
    name, _ = next(iter(batch_norms_of(module).items()))
    convolution = module.get_submodule(name.replace("normalization", "convolution"))
    with torch.no_grad():
        given = [convolution(batch).transpose(0, 1).flatten(1).double() for batch in batches]
    found = recomputed(module, batches)
    for part, value in (("mean", torch.mean), ("var", torch.var)):
        expected = 0.6 * value(given[0], dim=1) + 0.4 * value(given[1], dim=1)
        torch.testing.assert_close(found[f"{name}.running_{part}"].double(), expected, rtol=1e-5, atol=1e-6)


def plain_scores(module: Any, resnets: Path, folder: str) -> np.ndarray:
    """Cross-entropies of the images of a folder, one by one."""
    from PIL import Image

    files = sorted((resnets / folder).rglob("*.png"))
    processor = AutoImageProcessor.from_pretrained(resnets / "a")
    pixels = processor([Image.open(file) for file in files], return_tensors="pt")["pixel_values"]
    labels = torch.tensor([("cat", "dog", "owl").index(file.parent.name) for file in files])
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(module(pixels).logits, labels, reduction="none").double().numpy()


def merged_by_hand(resnets: Path, weight: float, *, compute: bool) -> Any:
    """The weighted average, with the statistics of its own on the search's images, or as they are averaged."""
    from PIL import Image

    modules = [module_of(resnets / name) for name in "ab"]
    one, other = (module.state_dict() for module in modules)
    mixed = {k: weight * v + (1 - weight) * other[k] if v.is_floating_point() else v for k, v in one.items()}
    modules[0].load_state_dict(mixed)
    if compute:
        processor = AutoImageProcessor.from_pretrained(resnets / "a")
        pictures = [Image.open(file) for file in sorted((resnets / "search").rglob("*.png"))]
        update_bn([processor(pictures, return_tensors="pt")["pixel_values"]], ByPosition(modules[0]))
    return modules[0].eval()


def fitness(resnets: Path, folder: str, **more: Any) -> ImagesFitness:
    found = ImagesFitness([{"task": folder, "images": str(resnets / folder)}], metrics=["accuracy", "loss"], **more)
    found.check()
    return found


def test_a_worker_scores_merged_models_with_statistics_of_the_searchs_images(resnets: Path, pool: Pool) -> None:
    worker = Worker(
        pool, {"search": fitness(resnets, "search"), "held_out": fitness(resnets, "held_out")}, device="cpu"
    )

    def evaluated(weight: float, split: Any = "search") -> Evaluation:
        recipe = pool.info.linear({name: w for name, w in (("a", weight), ("b", 1 - weight)) if w})
        found = worker.evaluate(Candidate(0, recipe), split)
        assert found.ok, found.error
        return found

    for weight, split in ((0.5, "search"), (0.25, "held_out"), (0.5, "held_out"), (0.5, "search")):
        expected = plain_scores(merged_by_hand(resnets, weight, compute=True), resnets, split)
        items = evaluated(weight, split).items[f"{split}/loss"]
        np.testing.assert_allclose(items, expected, rtol=1e-4, atol=1e-5)
    # A source keeps its own, and nothing that was computed stays in the model.
    own = evaluated(1.0).items["search/loss"]
    np.testing.assert_allclose(own, plain_scores(module_of(resnets / "a"), resnets, "search"), rtol=1e-4, atol=1e-5)
    again = evaluated(0.5)
    assert again.items["search/loss"].tolist() == evaluated(0.5).items["search/loss"].tolist()


def test_statistics_may_stay_as_they_are_merged(resnets: Path, pool: Pool) -> None:
    worker = Worker(pool, {"search": fitness(resnets, "search", batch_norm=False)}, device="cpu")
    found = worker.evaluate(Candidate(0, pool.info.linear({"a": 0.5, "b": 0.5})))
    expected = plain_scores(merged_by_hand(resnets, 0.5, compute=False), resnets, "search")
    np.testing.assert_allclose(found.items["search/loss"], expected, rtol=1e-4, atol=1e-5)


def test_other_images_and_fewer_of_them(resnets: Path, pool: Pool, tmp_path: Path) -> None:
    given = {"images": 5, "batch_size": 2, "folder": str(save_images(tmp_path / "others", 5))}
    own = fitness(resnets, "search", batch_norm=given)
    assert len(own.documents()) == 24 + 12
    worker = Worker(pool, {"search": own}, device="cpu")
    found = worker.evaluate(Candidate(0, pool.info.linear({"a": 0.5, "b": 0.5})))
    assert found.ok, found.error
    default = Worker(pool, {"search": fitness(resnets, "search")}, device="cpu")
    assert default.fingerprint("search") != worker.fingerprint("search")


def test_parts_of_several_give_the_statistics_of_all_their_images(resnets: Path, pool: Pool) -> None:
    """As one fitness with the images of both would: every batch norm sees batches in which they are mixed."""
    tasks = [{"task": name, "images": str(resnets / name), "metrics": "loss"} for name in ("search", "held_out")]
    several = SeveralFitness({own["task"]: ImagesFitness([own]) for own in tasks})
    recipe = pool.info.linear({"a": 0.3, "b": 0.7})
    module = merged_model(recipe, pool, "cpu")
    model = LoadedModel(module, None, torch.float32, torch.device("cpu"), str(resnets / "a"))
    for part in several.parts.values():
        part.check()
    several.prepare(model)
    found = several.batch_norms(model)  # type: ignore[attr-defined]
    alone = [part.batch_norms(model) for part in several.parts.values()]  # type: ignore[attr-defined]
    pixels = [part.batch_norm_pixels() for part in several.parts.values()]  # type: ignore[attr-defined]
    assert [sum(map(len, own)) for own in pixels] == [24, 18]
    mixed = np.concatenate([batch for own in pixels for batch in own])[np.random.default_rng(0).permutation(42)]
    expected = recomputed(module, [torch.from_numpy(own) for own in np.array_split(mixed, 2)])
    assert found.keys() == expected.keys() == alone[0].keys()
    assert all(torch.equal(found[name], own) for name, own in expected.items())
    assert any(not torch.allclose(found[name], own[name]) for own in alone for name in found)
    evaluation = Worker(pool, {"search": several}, device="cpu").evaluate(Candidate(0, recipe))
    assert evaluation.ok, evaluation.error
    module.load_state_dict(expected, strict=False)
    wanted = {part: several.parts[part].run(model).metrics[f"{part}/loss"] for part in several.parts}
    assert {part: evaluation.metrics[f"{part}/loss"] for part in wanted} == pytest.approx(wanted, rel=1e-5)


def test_a_part_that_leaves_statistics_as_merged_gives_no_images(resnets: Path) -> None:
    def part(name: str, computed: bool) -> ImagesFitness:
        return ImagesFitness([{"task": name, "images": str(resnets / name)}], batch_norm=computed)

    module = module_of(resnets / "a")
    model = LoadedModel(module, None, torch.float32, torch.device("cpu"), str(resnets / "a"))
    texts = set()
    for first, second in ((True, True), (True, False), (False, False)):
        several = SeveralFitness({"search": part("search", first), "held_out": part("held_out", second)})
        for own in several.parts.values():
            own.check()
        several.prepare(model)
        texts.add(several.fingerprint())
        found = several.batch_norms(model)  # type: ignore[attr-defined]
        alone = several.parts["search"].batch_norms(model)  # type: ignore[attr-defined]
        same = found.keys() == alone.keys() and all(torch.equal(found[name], own) for name, own in alone.items())
        assert same is not (first and second)
        assert bool(found) is first
    assert len(texts) == 3


def test_parts_that_do_not_say_which_images_are_refused(resnets: Path) -> None:
    class Own:
        objectives = (Objective("own"),)

        def prepare(self, model: Any) -> None: ...

        def run(self, model: Any) -> None: ...

        def fingerprint(self) -> str:
            return ""

        def batch_norms(self, model: Any) -> dict[str, Any]:
            return {}

    images = ImagesFitness([{"task": "x", "images": str(resnets / "search")}])
    SeveralFitness({"own": Own()})  # type: ignore[dict-item]
    with pytest.raises(
        ConfigError, match="parts images and own all compute batch-norm statistics, and own does not say"
    ):
        SeveralFitness({"images": images, "own": Own()})  # type: ignore[dict-item]
