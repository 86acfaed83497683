"""Segmentation beside values by hand, scikit-learn's, and transformers' own processors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.fitness_contract import FitnessContract, Load, Make
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score
from tiny_images import CLASSES, save_masked, save_sam, save_segmenter
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, SamModel, SamProcessor, SamVisionModel

from evomerge.errors import ConfigError, FitnessError
from evomerge.models.loaded import LoadedModel
from evomerge.models.opening import open_pool
from evomerge.protocols import Scores
from fitness._segmentation.prompts import box_of, point_of
from fitness._segmentation.scored import score_classes, score_things
from fitness.segmentation import SegmentationFitness

ALL = {"dice": 1.0, "iou": 0.5, "accuracy": 0.5, "loss": 0.1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_masked(tmp_path_factory.mktemp("masked") / "all")


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_segmenter(tmp_path_factory.mktemp("segmenters") / "a")


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sam(tmp_path_factory.mktemp("sams") / "a", 3)


def loaded(folder: Path, kind: Any = AutoModelForSemanticSegmentation) -> LoadedModel:
    return LoadedModel(kind.from_pretrained(folder).eval(), None, torch.float32, torch.device("cpu"), str(folder))


def scores(fitness: SegmentationFitness, model: LoadedModel) -> Scores:
    fitness.check()
    fitness.check_model(model.module.config, model.name_or_path)
    fitness.prepare(model)
    return fitness.run(model)


class TestSegmentationContract(FitnessContract):
    @pytest.fixture
    def make(self, data: Path) -> Make:
        other = {"task": "some", "images": str(data), "limit": 3, "background": 0, "metrics": {"loss": 1.0}}
        return lambda: SegmentationFitness([{"task": "all", "images": str(data)}, other], metrics=ALL)

    @pytest.fixture
    def load(self, segmenter: Path) -> Load:
        return lambda: loaded(segmenter)


class TestPromptsContract(FitnessContract):
    @pytest.fixture
    def make(self, data: Path) -> Make:
        tasks = [
            {"task": own, "images": str(data), "prompt": own, "metrics": ALL, "limit": 2} for own in ("box", "point")
        ]
        return lambda: SegmentationFitness(tasks)

    @pytest.fixture
    def load(self, sam: Path) -> Load:
        return lambda: loaded(sam, SamModel)


def test_dice_and_iou_by_hand() -> None:
    """Class 1: 2 of 3 and 4 pixels. Class 2: in the mask alone. Class 3: nowhere. The ground: 2 of 3 and 4."""
    gold = np.array([[0, 0, 0, 1], [1, 1, 2, -1]])
    told = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 1]])
    logits = torch.nn.functional.one_hot(told, 4).permute(2, 0, 1) * 2.0
    found = score_classes(gold, logits, None).values
    assert found["dice"] == pytest.approx((4 / 7 + 4 / 6 + 0) / 3)
    assert found["iou"] == pytest.approx((2 / 5 + 2 / 4 + 0) / 3)
    assert found["accuracy"] == pytest.approx(4 / 7)
    right, wrong = -np.log(np.e**2 / (np.e**2 + 3)), -np.log(1 / (np.e**2 + 3))
    assert found["loss"] == pytest.approx((4 * right + 3 * wrong) / 7)
    without = score_classes(gold, logits, 0).values
    assert (without["dice"], without["iou"]) == (pytest.approx((4 / 6 + 0) / 2), pytest.approx((2 / 4 + 0) / 2))


def test_an_image_of_background_alone_is_right_or_wrong() -> None:
    gold = np.zeros((2, 2), np.int64)
    logits = torch.zeros(2, 2, 2)
    logits[0] = 1
    assert score_classes(gold, logits, 0).values["dice"] == 1.0
    logits[1, 0, 0] = 3
    assert score_classes(gold, logits, 0).values["dice"] == 0.0
    assert score_classes(gold, logits, None).values["dice"] == pytest.approx((2 * 3 / 7 + 0) / 2)


def test_things_by_hand() -> None:
    gold = [np.array([[True, True, False, False]]), np.array([[False, False, False, True]])]
    logits = torch.tensor([[[2.0, -2.0, -2.0, 2.0]], [[-2.0, -2.0, -2.0, -2.0]]])
    counted = np.array([[True, True, True, False]])
    found = score_things(gold, logits, np.ones((1, 4), bool)).values
    assert (found["dice"], found["iou"]) == (pytest.approx((2 / 4 + 0) / 2), pytest.approx((1 / 3 + 0) / 2))
    assert found["accuracy"] == pytest.approx(5 / 8)
    low, high = np.log1p(np.exp(-2.0)), np.log1p(np.exp(2.0))
    assert found["loss"] == pytest.approx((5 * low + 3 * high) / 8)
    assert score_things(gold[:1], logits[:1], counted).values["dice"] == pytest.approx(2 / 3)


def test_prompts_of_a_mask_by_hand() -> None:
    region = np.zeros((6, 8), bool)
    region[1:6, 2:7] = True
    region[1, 7] = True
    assert box_of(region).tolist() == [2, 1, 7, 5]
    assert point_of(region).tolist() == [[4, 3]]


def test_classes_are_those_of_transformers_and_scikit_learn(data: Path, segmenter: Path) -> None:
    fitness = SegmentationFitness([{"task": "x", "images": str(data)}], metrics=ALL, batch_size=2)
    model = loaded(segmenter)
    found = scores(fitness, model)
    processor = AutoImageProcessor.from_pretrained(segmenter)
    dices, ious = [], []
    for file in sorted((data / "images").iterdir()):
        mask = np.asarray(Image.open(data / "masks" / file.name))
        with torch.no_grad():
            out = model.module(**processor(Image.open(file), return_tensors="pt"))
        told = processor.post_process_semantic_segmentation(out, [mask.shape])[0].numpy()
        dices.append(f1_score(mask.ravel(), told.ravel(), average="macro", zero_division=0))
        ious.append(jaccard_score(mask.ravel(), told.ravel(), average="macro", zero_division=0))
    np.testing.assert_allclose(found.items["x/dice"], dices)
    np.testing.assert_allclose(found.items["x/iou"], ious)
    assert found.metrics["x/dice"] == pytest.approx(np.mean(dices))
    expected = sum(weight * found.metrics[f"x/{name}"] * (-1 if name == "loss" else 1) for name, weight in ALL.items())
    assert found.objectives["score"] == pytest.approx(expected)
    by_class = [found.metrics[f"x/iou {name}"] for name in CLASSES]
    assert found.metrics["x/miou"] == pytest.approx(np.mean(by_class))
    assert all(name in "".join(found.responses["x"]) for name in CLASSES)


@pytest.mark.parametrize("prompt", ["box", "point"])
def test_masks_for_prompts_are_those_of_sams_processor(prompt: str, data: Path, sam: Path) -> None:
    model = loaded(sam, SamModel)
    found = scores(SegmentationFitness([{"task": "x", "images": str(data), "prompt": prompt}]), model)
    processor, dices = SamProcessor(AutoImageProcessor.from_pretrained(sam)), []
    for file in sorted((data / "images").iterdir()):
        mask = np.asarray(Image.open(data / "masks" / file.name))
        things = [mask == own for own in np.unique(mask)[1:]]
        if prompt == "box":
            asked = {"input_boxes": [[box_of(own).tolist() for own in things]]}
        else:
            points = [point_of(own).tolist() for own in things]
            asked = {"input_points": [points], "input_labels": [[[1]] * len(things)]}
        ready = processor(Image.open(file), return_tensors="pt", **asked)
        sizes = ready.pop("original_sizes"), ready.pop("reshaped_input_sizes")
        ready = {name: own.float() if own.is_floating_point() else own for name, own in ready.items()}
        with torch.no_grad():
            out = model.module(**ready, multimask_output=False)
        masks = processor.post_process_masks(list(out.pred_masks), *sizes)[0][:, 0].numpy()
        own = [f1_score(a.ravel(), b.ravel(), zero_division=0) for a, b in zip(things, masks, strict=True)]
        dices.append(np.mean(own))
    np.testing.assert_allclose(found.items["x/dice"], dices)
    assert np.std(dices) > 0


def test_an_image_encoder_is_scored_with_the_rest_of_a_sam(data: Path, sam: Path, tmp_path: Path) -> None:
    save_sam(tmp_path / "tower", 4, encoder=True)
    tower, whole = loaded(tmp_path / "tower", SamVisionModel), loaded(sam, SamModel)
    task = {"task": "x", "images": str(data), "prompt": "box", "metrics": ALL}
    found = scores(SegmentationFitness([task], sam=str(sam)), tower)
    whole.module.vision_encoder.load_state_dict(tower.module.vision_encoder.state_dict())
    expected = scores(SegmentationFitness([task]), whole)
    assert dict(found.metrics) == pytest.approx(dict(expected.metrics))
    for given, fitted, message in (
        (None, tower, r"image encoders alone.*set fitness\.sam=FOLDER"),
        (str(tmp_path / "nowhere"), tower, "nowhere"),
        (str(tmp_path / "tower"), tower, "is a sam_vision_model; a SAM"),
        (str(sam), whole, "and the pool's models give masks"),
    ):
        with pytest.raises(FitnessError, match=message):
            scores(SegmentationFitness([task], sam=given), fitted)


def test_layers_of_a_sam_are_its_image_encoders_and_the_rest_can_be_kept(sam: Path, tmp_path: Path) -> None:
    save_sam(tmp_path / "b", 5)
    kept = ["prompt_encoder.*", "mask_decoder.*", "shared_image_embedding.*"]
    pool = open_pool({"a": str(sam), "b": str(tmp_path / "b")}, base="a", kept=kept)
    assert {name.split(".")[0] for name in pool.layout.parameters} == {"vision_encoder"}
    assert pool.layout.layers == 2


def table(kind: str, data: Path, folder: Path, more: dict[str, list[Any]]) -> Path:
    names = sorted(own.name for own in (data / "images").iterdir())
    rows = [
        {"picture": str(data / "images" / name), "truth": str(data / "masks" / name)}
        | {column: own[i] for column, own in more.items()}
        for i, name in enumerate(names)
    ]
    path = folder / f"table.{kind}"
    if kind == "csv":
        path.write_text("picture,truth\n" + "".join(f"{row['picture']},{row['truth']}\n" for row in rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_tables_give_what_folders_give(kind: str, data: Path, segmenter: Path, tmp_path: Path) -> None:
    columns = {"image": "picture", "mask": "truth"}
    made = {"task": "x", "images": str(table(kind, data, tmp_path, {})), **columns}
    one, other = SegmentationFitness([made]), SegmentationFitness([{"task": "x", "images": str(data)}])
    assert dict(scores(one, loaded(segmenter)).metrics) == dict(scores(other, loaded(segmenter)).metrics)
    assert one.fingerprint() == other.fingerprint()
    assert one.documents() == other.documents()


def test_prompts_of_the_data_take_the_place_of_those_of_masks(data: Path, sam: Path, tmp_path: Path) -> None:
    masks = [np.asarray(Image.open(own)) for own in sorted((data / "masks").iterdir())]
    boxes = [{str(k): box_of(mask == k).tolist() for k in np.unique(mask)[1:].tolist()} for mask in masks]
    columns = {"image": "picture", "mask": "truth", "prompt": "box"}
    path = table("jsonl", data, tmp_path, {"boxes": boxes})
    own = SegmentationFitness([{"task": "x", "images": str(path), "prompts": "boxes", **columns}])
    made = SegmentationFitness([{"task": "x", "images": str(data), "prompt": "box"}])
    assert dict(scores(own, loaded(sam, SamModel)).metrics) == dict(scores(made, loaded(sam, SamModel)).metrics)
    for wrong, message in (([0, 0, 99, 5], "outside of the image"), ([1, 2], "left, top, right, bottom")):
        path = table("jsonl", data, tmp_path, {"boxes": [dict.fromkeys("12", wrong)] * 5})
        with pytest.raises(FitnessError, match=message):
            SegmentationFitness([{"task": "x", "images": str(path), "prompts": "boxes", **columns}]).check()


def test_points_of_unlike_number_are_filled_up(data: Path, sam: Path, tmp_path: Path) -> None:
    """A thing with one point scores the same beside one with two."""
    columns = {"image": "picture", "mask": "truth", "prompt": "point", "prompts": "points"}
    lone = table("jsonl", data, tmp_path, {"points": [{"1": [[3, 4]], "2": [[5, 6]]}] * 5})
    found = scores(SegmentationFitness([{"task": "x", "images": str(lone), **columns}]), loaded(sam, SamModel))
    both = table("jsonl", data, tmp_path, {"points": [{"1": [[3, 4]], "2": [[5, 6], [7, 8]]}] * 5})
    other = scores(SegmentationFitness([{"task": "x", "images": str(both), **columns}]), loaded(sam, SamModel))
    one, two = ([text.split(", ")[0] for text in own.responses["x"]] for own in (found, other))
    assert one == two
    assert found.metrics["x/dice"] != other.metrics["x/dice"]


def test_numbers_are_the_models_classes_as_labels_say(data: Path, segmenter: Path, tmp_path: Path) -> None:
    """Numbers 10, 20 and 30 for 0, 1 and 2 by name and number; as a palette image, and 16 bits."""
    moved = tmp_path / "moved"
    shutil.copytree(data / "images", moved / "images")
    (moved / "masks").mkdir()
    for file in sorted((data / "masks").iterdir()):
        mask = 10 + 10 * np.asarray(Image.open(file)).astype(np.uint16)
        image = Image.fromarray(mask.astype(np.uint8), "L") if file.name < "2" else Image.fromarray(mask)
        image.save(moved / "masks" / file.name)
    labels = {10: "cat", 20: 1, 30: "Owl"}
    found = scores(SegmentationFitness([{"task": "x", "images": str(moved), "labels": labels}]), loaded(segmenter))
    expected = scores(SegmentationFitness([{"task": "x", "images": str(data)}]), loaded(segmenter))
    assert dict(found.metrics) == dict(expected.metrics)
    with pytest.raises(FitnessError, match=r"the mask of .*0\.png has 10, and the model no class 10"):
        scores(SegmentationFitness([{"task": "x", "images": str(moved)}]), loaded(segmenter))


def test_masks_of_0_and_255_are_no_masks_of_one_class(data: Path, segmenter: Path, tmp_path: Path) -> None:
    """255 is ignored where nothing is said: all that is left would be the background."""
    for name, largest in (("bits", 255), ("none", 0)):
        shutil.copytree(data / "images", tmp_path / name / "images")
        (tmp_path / name / "masks").mkdir()
        for file in sorted((data / "masks").iterdir()):
            mask = largest * (np.asarray(Image.open(file)) > 0).astype(np.uint8)
            Image.fromarray(mask).save(tmp_path / name / "masks" / file.name)

    def checked(name: str, **more: Any) -> SegmentationFitness:
        fitness = SegmentationFitness([{"task": "x", "images": str(tmp_path / name), **more}])
        fitness.check()
        fitness.check_model(loaded(segmenter).module.config, str(segmenter))
        return fitness

    said = r"tasks\[0\]: without 255, which is ignored, no mask has a class but 'cat'; .*labels=\{255: NAME OR NUMBER\}"
    for more in ({}, {"background": 0}, {"ignore": [255]}):
        with pytest.raises(FitnessError, match=said):
            checked("bits", **more)
    assert checked("bits", labels={255: "dog"}, background=0).cautions() == []
    alone = "tasks.x: all masks have 0 alone, and nothing to be told from it; see images, labels and ignore"
    assert checked("none").cautions() == [alone]


def test_masks_are_reduced_where_the_processor_says_so(data: Path, segmenter: Path, tmp_path: Path) -> None:
    shutil.copytree(segmenter, tmp_path / "reduced")
    path = tmp_path / "reduced" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_reduce_labels": True}))
    own = SegmentationFitness([{"task": "x", "images": str(data)}])
    found = scores(own, loaded(tmp_path / "reduced"))
    same = {"task": "x", "images": str(data), "ignore": 0, "labels": {1: 0, 2: 1}}
    assert dict(found.metrics) == dict(scores(SegmentationFitness([same]), loaded(segmenter)).metrics)
    assert own.cautions() == ["tasks.x: 0 in masks is no class and 1 the first: do_reduce_labels is set"]


def test_images_with_nothing_to_ask_for_are_left_out(data: Path, sam: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "some")
    empty = tmp_path / "some" / "masks" / "1.png"
    Image.fromarray(np.zeros_like(np.asarray(Image.open(empty)))).save(empty)
    fitness = SegmentationFitness([{"task": "x", "images": str(tmp_path / "some"), "prompt": "box"}])
    found = scores(fitness, loaded(sam, SamModel))
    assert (fitness.items(), len(found.items["x/dice"])) == ({"x": 4}, 4)
    assert fitness.cautions() == ["tasks.x: images that have nothing but background, and are left out: 1"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"promt": "box"}, "tasks\\[0\\] has no key 'promt'; did you mean 'prompt'"),
        ({"prompt": "boxes"}, "tasks\\[0\\].prompt is 'boxes'; did you mean 'box'"),
        ({"prompts": "boxes"}, "prompts is given without a prompt"),
        ({"metrics": "dise"}, "tasks\\[0\\].metrics has 'dise'; did you mean 'dice'"),
        ({"ignore": "void"}, "tasks\\[0\\].ignore is 'void'"),
        ({"background": -1}, "tasks\\[0\\].background is -1"),
        ({"labels": {"a": 1}}, "a key of tasks\\[0\\].labels is 'a'"),
        ({"labels": {1: 1}, "prompt": "box"}, "labels and prompt"),
        ({"mask": 3}, "tasks\\[0\\].mask is 3"),
        ({"mask": "image"}, "tasks\\[0\\].mask is 'image', which is the column of image"),
    ],
)
def test_what_tasks_may_not_say(task: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SegmentationFitness([{"task": "x", "images": "data", **task}])


def test_files_that_do_not_fit_are_named(data: Path, segmenter: Path, sam: Path, tmp_path: Path) -> None:
    def check(**task: Any) -> SegmentationFitness:
        fitness = SegmentationFitness([{"task": "x", "images": str(tmp_path / "some"), **task}])
        fitness.check_files()
        fitness.check()
        return fitness

    with pytest.raises(FitnessError, match="which is not there"):
        check()
    shutil.copytree(data, tmp_path / "some")
    config, other = loaded(segmenter).module.config, loaded(sam, SamModel).module.config
    with pytest.raises(FitnessError, match=r"tasks\[0\].prompt is box, and a segformer reads no prompts"):
        check(prompt="box").check_model(config, str(segmenter))
    with pytest.raises(FitnessError, match=r"has no prompt, which a sam needs.*prompt=box"):
        check().check_model(other, str(sam))
    with pytest.raises(FitnessError, match="background is 7; classes 0 to 2"):
        check(background=7).check_model(config, str(segmenter))
    first = tmp_path / "some" / "masks" / "0.png"
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(first)
    with pytest.raises(FitnessError, match=r"0\.png is of size \(3, 3\), .* of \(20, 28\)"):
        check()
    Image.fromarray(np.arange(20 * 28 * 3, dtype=np.uint8).reshape(20, 28, 3)).save(first)
    with pytest.raises(FitnessError, match="a number of a class for each pixel"):
        check()
    image = tmp_path / "some" / "images" / "1.png"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FitnessError, match=r"1\.png is no whole image"):
        check()
    image.write_bytes(whole)
    first.unlink()
    with pytest.raises(FitnessError, match=r"has no mask for 0\.png"):
        check()


def test_a_processor_that_crops_is_refused(data: Path, segmenter: Path, tmp_path: Path) -> None:
    shutil.copytree(segmenter, tmp_path / "crops")
    path = tmp_path / "crops" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_center_crop": True}))
    with pytest.raises(FitnessError, match="crops images"):
        scores(SegmentationFitness([{"task": "x", "images": str(data)}]), loaded(tmp_path / "crops"))
