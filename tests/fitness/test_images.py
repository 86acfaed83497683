"""Image classification beside plain transformers, Pillow and scikit-learn; tables, splits, classes, zero-shot heads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from contracts.fitness_contract import FitnessContract, Load, Make
from PIL import Image
from pyarrow import parquet
from sklearn.metrics import accuracy_score, f1_score, log_loss
from tiny_images import CLASSES, CONFIGS, save_classifier, save_clip, save_images, save_processor
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoTokenizer, CLIPVisionModel

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, FitnessError
from evomerge.evaluation.worker import Worker
from evomerge.models.loaded import LoadedModel
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.session.builders import check_fitnesses
from fitness._classification.scored import score_classes
from fitness.images import ImagesFitness

ALL = {"accuracy": 1.0, "f1": 0.5, "loss": 0.1}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("images") / "train")


@pytest.fixture(scope="module")
def vits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vits")
    for seed, name in enumerate("ab"):
        save_classifier(folder / name, "ViT", seed)
    return folder


def pool_of(folder: Path) -> Pool:
    return open_pool({name: str(folder / name) for name in "ab"}, base="a")


def loaded(folder: Path) -> LoadedModel:
    module: Any = AutoModelForImageClassification.from_pretrained(folder).eval()
    return LoadedModel(module, None, torch.float32, torch.device("cpu"), str(folder))


def evaluated(pool: Pool, fitness: ImagesFitness, weights: dict[str, float]) -> Evaluation:
    fitness.check()
    fitness.check_model(pool.config, str(pool.folder("a")))
    found = Worker(pool, {"search": fitness}, device="cpu").evaluate(Candidate(0, pool.info.linear(weights)))
    assert found.ok, found.error
    return found


class TestImagesContract(FitnessContract):
    @pytest.fixture
    def make(self, images: Path) -> Make:
        other = {"task": "some", "images": str(images), "limit": 5, "among": "task", "metrics": {"loss": 1.0}}
        tasks = [{"task": "all", "images": str(images)}, other]
        return lambda: ImagesFitness(tasks, metrics={"accuracy": 1, "loss": 0.1})

    @pytest.fixture
    def load(self, vits: Path) -> Load:
        return lambda: loaded(vits / "a")


def plain_logits(module: Any, folder: Path, files: list[Path]) -> torch.Tensor:
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor([Image.open(file).convert("RGB") for file in files], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return module(pixels).logits


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_scores_are_those_of_plain_transformers_and_scikit_learn(kind: str, images: Path, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        save_classifier(tmp_path / name, kind, seed)
    fitness = ImagesFitness([{"task": "animals", "images": str(images)}], metrics=ALL, batch_size=5, batch_norm=False)
    found = evaluated(pool_of(tmp_path), fitness, {"a": 0.3, "b": 0.7})

    modules = [AutoModelForImageClassification.from_pretrained(tmp_path / name).eval() for name in "ab"]
    states = [module.state_dict() for module in modules]
    modules[0].load_state_dict(
        {k: 0.3 * v + 0.7 * states[1][k] if v.is_floating_point() else v for k, v in states[0].items()}
    )
    files = [images / name / f"{number}.png" for name in CLASSES for number in range(4)]
    logits = plain_logits(modules[0], tmp_path / "a", files).double().numpy()
    truth, told = np.repeat(np.arange(3), 4), logits.argmax(1)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = {
        "animals/accuracy": accuracy_score(truth, told),
        "animals/f1": f1_score(truth, told, average="macro"),
        "animals/loss": log_loss(truth, probabilities, labels=[0, 1, 2]),
    }
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert found.items["animals/accuracy"].tolist() == (truth == told).tolist()
    assert {name: float(found.items[name].mean()) for name in expected} == pytest.approx(expected, rel=1e-4)
    score = expected["animals/accuracy"] + 0.5 * expected["animals/f1"] - 0.1 * expected["animals/loss"]
    assert found.objectives["score"] == pytest.approx(score, rel=1e-4)


def test_the_f1_of_each_class_is_told_of_tasks_that_ask_for_it(images: Path, vits: Path) -> None:
    tasks = [{"task": "one", "images": str(images), "per_class": True}, {"task": "two", "images": str(images)}]
    found = evaluated(pool_of(vits), ImagesFitness(tasks), {"a": 1.0})
    files = [images / name / f"{number}.png" for name in CLASSES for number in range(4)]
    told = plain_logits(loaded(vits / "a").module, vits / "a", files).argmax(1)
    wanted = f1_score(np.repeat(np.arange(3), 4), told, average=None, labels=range(3))
    by_class = {f"one/f1 {name}": value for name, value in zip(CLASSES, wanted, strict=True)}
    assert {name: value for name, value in found.metrics.items() if "/f1" in name} == pytest.approx(by_class)


@pytest.mark.parametrize(
    ("given", "of_task", "key"),
    [
        ({"clip": "clip"}, {}, "clip"),
        ({"templates": "a {}."}, {}, "templates"),
        ({}, {"templates": "a {}."}, r"tasks\[0\].templates"),
        ({}, {"names": {"cat": "a cat"}}, r"tasks\[0\].names"),
    ],
)
def test_what_is_of_prompts_is_refused_where_models_have_heads(
    given: dict[str, Any], of_task: dict[str, Any], key: str, images: Path, vits: Path
) -> None:
    fitness = ImagesFitness([{"task": "x", "images": str(images), **of_task}], **given)
    fitness.check()
    pool = pool_of(vits)
    with pytest.raises(FitnessError, match=rf"^{key} is set, and the pool's models have heads .*ViTForImage.*leave it"):
        fitness.check_model(pool.config, str(pool.folder("a")))


def test_a_tasks_own_classes_compete_alone(vits: Path, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "two", 3, classes=("cat", "owl"))
    logits = plain_logits(loaded(vits / "a").module, vits / "a", sorted(folder.rglob("*.png"))).numpy()
    for among, columns in (("all", [0, 1, 2]), ("task", [0, 2])):
        fitness = ImagesFitness([{"task": "two", "images": str(folder), "among": among}])
        found = evaluated(pool_of(vits), fitness, {"a": 1.0})
        told = np.array(columns)[logits[:, columns].argmax(1)]
        assert found.items["two/accuracy"].tolist() == (told == np.repeat([0, 2], 4)).tolist()


def table(kind: str, images: Path, folder: Path) -> Path:
    """The same images as a table, in the order of the folders."""
    rows = [(str(file.relative_to(images)), file.parent.name) for file in sorted(images.rglob("*.png"))]
    path = folder / f"table.{kind}"
    if kind == "csv":
        path.write_text("picture,kind\n" + "".join(f"{images / name},{label}\n" for name, label in rows))
    elif kind == "jsonl":
        shutil.copytree(images, folder, dirs_exist_ok=True)
        path.write_text("".join(json.dumps({"picture": name, "kind": label}) + "\n" for name, label in rows))
    else:
        column = [{"bytes": (images / name).read_bytes(), "path": None} for name, _ in rows]
        made = pyarrow.table({"picture": column, "kind": [CLASSES.index(label) for _, label in rows]})
        features = {"kind": {"names": list(CLASSES), "_type": "ClassLabel"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        parquet.write_table(made, path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_tables_give_what_folders_give(kind: str, images: Path, vits: Path, tmp_path: Path) -> None:
    term = {"task": "x", "images": str(table(kind, images, tmp_path)), "image": "picture", "label": "kind"}
    found, expected = ImagesFitness([term]), ImagesFitness([{"task": "x", "images": str(images)}])
    for fitness in (found, expected):
        fitness.check()
        fitness.prepare(loaded(vits / "a"))
    assert found.fingerprint() == expected.fingerprint()
    assert found.documents() == expected.documents()


def test_a_split_by_content_parts_equal_images_never(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "many", each=20)
    for name in CLASSES:  # every image twice
        for file in sorted((folder / name).iterdir()):
            shutil.copy(file, file.with_stem(f"again{file.stem}"))
    parts = {}
    for part in (None, "search", "held_out"):
        split = {"held_out": 0.4} if part else None
        fitness = ImagesFitness([{"task": "x", "images": str(folder)}], part=part, split=split)
        fitness.check()
        parts[part or "all"] = [content for _, content in fitness.documents()]
    assert len(parts["all"]) == 120
    assert sorted(parts["search"] + parts["held_out"]) == sorted(parts["all"])
    assert not set(parts["search"]) & set(parts["held_out"])
    assert 30 < len(parts["held_out"]) < 66
    assert all(parts["held_out"].count(content) == 2 for content in parts["held_out"])


def test_a_limit_takes_of_every_class(images: Path) -> None:
    fitness = ImagesFitness([{"task": "x", "images": str(images), "limit": 7}])
    fitness.check()
    assert fitness.items() == {"x": 7}
    labels = [text["target"] for text in fitness.texts(7)["x"]]
    assert sorted(labels.count(name) for name in CLASSES) == [2, 2, 3]


def test_a_draw_is_the_same_in_every_process() -> None:
    """Sets of texts have another order in each."""
    code = "from fitness._images.sources import evenly; print(evenly(list('abcdefgh') * 9, 20, 0))"
    drawn = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(drawn) == 1


def test_images_in_a_file_are_those_in_memory(images: Path, vits: Path, tmp_path: Path) -> None:
    prints = []
    for more in ({}, {"cache_size": 1}, {"cache_size": 1, "cache": str(tmp_path / "cache")}):
        fitness = ImagesFitness([{"task": "x", "images": str(images)}], **more)
        fitness.check()
        fitness.prepare(loaded(vits / "a"))
        prints.append(fitness.fingerprint())
    assert len(set(prints)) == 1
    (kept,) = (tmp_path / "cache").iterdir()
    before = kept.stat().st_mtime_ns
    fitness.prepare(loaded(vits / "a"))
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, r"tasks\[0\]: the model has no class 'katze'; .*; set tasks\[0\].labels={katze: NAME OR NUMBER}"),
        ({"katze": 7}, "the model has no class 7"),
        ({"katze": "dog", "Dog ": "dog"}, "'Dog ' and 'katze' are both 'dog' to the model"),
        ({"kats": 0}, "labels has 'kats', a class of no image; did you mean 'katze'"),
    ],
)
def test_classes_are_checked_against_the_models(
    labels: dict[str, Any], message: str, vits: Path, tmp_path: Path
) -> None:
    folder = save_images(tmp_path / "x", classes=("katze", "Dog ", "2"))
    fitness = ImagesFitness([{"task": "x", "images": str(folder), "labels": labels}])
    fitness.check()
    with pytest.raises(FitnessError, match=message):
        fitness.check_model(pool_of(vits).config, str(vits / "a"))


def test_classes_by_number_and_by_another_name(vits: Path, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "x", classes=("2", "DOG", "katze"))
    fitness = ImagesFitness([{"task": "x", "images": str(folder), "labels": {"katze": "cat"}}])
    found = evaluated(pool_of(vits), fitness, {"a": 1.0})
    told = plain_logits(loaded(vits / "a").module, vits / "a", sorted(folder.rglob("*.png"))).argmax(1).numpy()
    assert found.items["x/accuracy"].tolist() == (told == np.repeat([2, 1, 0], 4)).tolist()


def _bad_image(folder: Path) -> None:
    (folder / "x" / "cat" / "1.png").write_bytes(b"no image")


def _cut_image(folder: Path) -> None:
    image = folder / "x" / "cat" / "1.png"
    image.write_bytes(image.read_bytes()[:60])


def _no_processor(folder: Path) -> None:
    (folder / "a" / "preprocessor_config.json").unlink()


def _odd_sizes(folder: Path) -> None:
    config = folder / "a" / "preprocessor_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "do_resize": False}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_processor, r"has no image processor; preprocessor_config.json"),
        (_odd_sizes, r"processed to shape .*; a processor that makes all images of one size"),
    ],
)
def test_what_cannot_be_read_is_said(spoil: Callable[[Path], None], message: str, vits: Path, tmp_path: Path) -> None:
    shutil.copytree(vits, tmp_path, dirs_exist_ok=True)
    fitness = ImagesFitness([{"task": "x", "images": str(save_images(tmp_path / "x"))}])
    fitness.check()
    spoil(tmp_path)  # behind the back of what was checked
    with pytest.raises(FitnessError, match=message):
        fitness.prepare(loaded(tmp_path / "a"))


def test_files_that_are_no_images_are_named_before_a_model_is_loaded(tmp_path: Path) -> None:
    task = {"task": "x", "images": str(save_images(tmp_path / "x"))}
    _cut_image(tmp_path)  # whose head says nothing of it
    with pytest.raises(FitnessError, match=r"cat/1.png is no whole image \(.*\); .*; write or download it again$"):
        ImagesFitness([task]).check()
    _bad_image(tmp_path)
    for part in ({}, {"part": "search", "split": {"held_out": 0.5}}):
        with pytest.raises(FitnessError, match=r"cat/1.png is no image that Pillow reads; an image$"):
            ImagesFitness([task], **part).check()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,labl\na.png,cat\n", r"row 1 has no 'label'; did you mean 'labl'\? .*; set tasks\[0\].label"),
        ("image,label\nb.png,cat\n", r"there is no file .*b.png; paths from the table's folder on"),
        ("image,label\n", "has no rows"),
    ],
)
def test_tables_that_lack_something(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(FitnessError, match=message):
        ImagesFitness([{"task": "x", "images": str(tmp_path / "t.csv")}]).check()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": []}, r"tasks is '\[\]'"),
        ({"tasks": [{"task": "x"}]}, r"tasks\[0\].images is None"),
        ({"tasks": [{"task": "x", "images": "a", "lables": {}}]}, r"tasks\[0\] has no key 'lables'; .* 'labels'"),
        ({"tasks": [{"task": "x", "images": "a", "metrics": {"acuracy": 1}}]}, r"metrics has 'acuracy'; .* 'accuracy'"),
        ({"tasks": [{"task": "x", "images": "a", "metrics": {"loss": -1}}]}, r"tasks\[0\].metrics.loss is -1"),
        ({"tasks": [{"task": "x", "images": "a", "among": "tasks"}]}, r"tasks\[0\].among is 'tasks'; .* 'task'"),
        ({"tasks": [{"task": "x", "images": "a", "templates": ["a photo"]}]}, r"tasks\[0\].templates has 'a photo'"),
        ({"tasks": [{"task": "x", "images": "a", "per_class": 1}]}, r"tasks\[0\].per_class is 1; true or false"),
        ({"tasks": [{"task": "x", "images": "a", "metrics": "per_class"}]}, "has 'per_class'.*per_class: true beside"),
        ({"tasks": [{"task": "x", "images": "a", "clip": "b"}]}, r"tasks\[0\] has the key 'clip', which holds for all"),
        ({"tasks": [{"task": "x", "images": "a"}] * 2}, "tasks has 'x' twice"),
        ({"tasks": [{"task": "x", "images": "a"}], "batch_norm": {"image": 3}}, "batch_norm has no key 'image'"),
        ({"tasks": [{"task": "x", "images": "a"}], "part": "held_out"}, "part is 'held_out', of which split says"),
        ({"tasks": [{"task": "x", "images": "a"}], "batch_size": 0}, "batch_size is 0"),
    ],
)
def test_what_a_user_mistypes(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImagesFitness(**given)


def test_a_folder_that_is_not_there_has_a_neighbour(images: Path) -> None:
    with pytest.raises(FitnessError, match=r"tasks\[0\].images names .*, which is not there; did you mean 'train'"):
        ImagesFitness([{"task": "x", "images": str(images.with_name("trian"))}]).check_files()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole models, and image towers alone."""
    folder = tmp_path_factory.mktemp("clips")
    for seed, name in enumerate("ab"):
        save_clip(folder / "whole" / name, seed)
        towers = folder / "towers" / name
        CLIPVisionModel.from_pretrained(folder / "whole" / name).save_pretrained(towers)
        save_processor(towers)
    return folder


def test_zero_shot_heads_are_mean_directions_of_prompts(clips: Path, tmp_path: Path) -> None:
    """Both ways: whole models whose image tower counts, and image towers with the text tower of another folder."""
    folder = save_images(tmp_path / "x", classes=("w5", "w6_w7"))
    templates = ["w8 w9 {}", "{} w10"]
    term = {"task": "x", "images": str(folder), "templates": templates, "metrics": ALL}
    base = clips / "whole" / "a"

    model: Any = AutoModel.from_pretrained(base).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    directions = []
    for name in ("w5", "w6 w7"):
        rows = []
        for template in templates:
            tokens = tokenizer(template.replace("{}", name), return_tensors="pt")
            row = model.get_text_features(**tokens).pooler_output[0].detach()
            rows.append(row / row.norm())
        mean = sum(rows) / len(rows)
        directions.append(mean / mean.norm())
    other = AutoModel.from_pretrained(clips / "whole" / "b").vision_model.state_dict()
    own = model.vision_model.state_dict()
    model.vision_model.load_state_dict({k: (v + other[k]) / 2 if v.is_floating_point() else v for k, v in own.items()})
    processor = AutoImageProcessor.from_pretrained(base)
    pictures = [Image.open(file).convert("RGB") for file in sorted(folder.rglob("*.png"))]
    features = model.get_image_features(**processor(pictures, return_tensors="pt")).pooler_output.detach()
    cosines = (features / features.norm(dim=1, keepdim=True)) @ torch.stack(directions).T
    logits = (model.logit_scale.exp() * cosines).detach().numpy()
    expected = score_classes(np.repeat([0, 1], 4), logits.astype(np.float64))[1]

    towers = evaluated(pool_of(clips / "towers"), ImagesFitness([term], clip=str(base)), {"a": 0.5, "b": 0.5})
    for name, values in ((name, expected[name]) for name in ALL):
        np.testing.assert_allclose(towers.items[f"x/{name}"], values, rtol=1e-4, atol=1e-5)
    pool = pool_of(clips / "whole")  # of which all is merged, the projection too
    assert pool.info.layers == 3, "layers are those of the image tower"
    whole = evaluated(pool, ImagesFitness([term]), {"a": 1.0})
    alone = evaluated(pool_of(clips / "towers"), ImagesFitness([term], clip=str(base)), {"a": 1.0})
    np.testing.assert_allclose(whole.items["x/loss"], alone.items["x/loss"], rtol=1e-4, atol=1e-5)


def test_an_image_tower_needs_a_text_tower(clips: Path, tmp_path: Path) -> None:
    fitness = ImagesFitness([{"task": "x", "images": str(save_images(tmp_path / "x", classes=("w5", "w6")))}])
    fitness.check()
    towers = clips / "towers" / "a"
    module: Any = CLIPVisionModel.from_pretrained(towers)
    told = r"fitness\.clip: .*a is a model of kind clip_vision_model, without a text tower; .*; set fitness.clip"
    with pytest.raises(FitnessError, match=told):  # before a model is loaded
        fitness.check_model(module.config, str(towers))
    (tmp_path / "speechless").mkdir()
    (tmp_path / "speechless" / "config.json").write_text('{"model_type": "clip", "text_config": {}}')
    for clip, told in (("nowhere/at/all", "fitness.clip: no folder"), ("speechless", "speechless has no tokenizer")):
        other = ImagesFitness([{"task": "x", "images": str(tmp_path / "x")}], clip=str(tmp_path / clip))
        other.check()
        with pytest.raises(FitnessError, match=told):
            other.check_model(module.config, str(towers))
    with pytest.raises(FitnessError, match=r"is a CLIPVisionModel, without a text tower; .*; set fitness.clip"):
        fitness.prepare(LoadedModel(module, None, torch.float32, torch.device("cpu"), str(towers)))


def test_vits_with_heads_of_their_own(tmp_path: Path) -> None:
    """One encoder, merged, and each task's own head: 3 classes and 2."""
    classes = {"a": CLASSES, "b": ("bee", "ant")}
    for seed, name in enumerate("ab"):
        save_classifier(tmp_path / name, "ViT", seed, classes[name])
    pool = open_pool({name: str(tmp_path / name) for name in "ab"})
    assert pool.info.heads is not None
    assert pool.info.heads.tasks == ("a", "b")
    tasks = [
        {"task": name, "images": str(save_images(tmp_path / f"of_{name}", seed, classes=own)), "head": name}
        for seed, (name, own) in enumerate(classes.items())
    ]
    fitness = ImagesFitness(tasks, metrics=["accuracy", "loss"])
    check_fitnesses(fitness, pool=pool)
    found = Worker(pool, {"search": fitness}, device="cpu").evaluate(
        Candidate(0, pool.info.linear({"a": 0.5, "b": 0.5}))
    )
    assert found.ok, found.error
    modules = {name: loaded(tmp_path / name).module for name in "ab"}
    states = [modules[name].vit.state_dict() for name in "ab"]
    merged = {key: (states[0][key] + states[1][key]) / 2 for key in states[0]}
    for name, own in classes.items():
        modules[name].vit.load_state_dict(merged)
        files = [tmp_path / f"of_{name}" / kind / f"{number}.png" for kind in sorted(own) for number in range(4)]
        logits = plain_logits(modules[name], tmp_path / name, files)
        gold = torch.tensor([own.index(file.parent.name) for file in files])
        expected = torch.nn.functional.cross_entropy(logits, gold, reduction="none")
        np.testing.assert_allclose(found.items[f"{name}/loss"], expected, rtol=1e-4, atol=1e-5)
    tasks[1]["head"] = "a"
    with pytest.raises(FitnessError, match="the head of a has no class 'ant'"):
        check_fitnesses(ImagesFitness(tasks), pool=pool)


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "bmp", "webp", "tif"])
def test_a_file_that_breaks_off_is_named_before_a_model_is_loaded(kind: str, images: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("whole", "cut"):
        (tmp_path / name / "cat").mkdir(parents=True)
    file = tmp_path / "whole" / "cat" / f"0.{kind}"
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(file)
    data = file.read_bytes()
    (tmp_path / "cut" / "cat" / file.name).write_bytes(data[: 2 * len(data) // 3])
    own = ImagesFitness([{"task": "x", "images": str(tmp_path / "whole")}])
    own.check()
    for given in (
        ImagesFitness([{"task": "x", "images": str(tmp_path / "cut")}]),
        ImagesFitness([{"task": "x", "images": str(images)}], batch_norm={"folder": str(tmp_path / "cut")}),
    ):
        with pytest.raises(FitnessError, match=rf"0\.{kind} is no (whole )?image"):
            given.check()


def test_of_one_class_matthews_coefficient_is_0_whatever_a_model_does(images: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "one", classes=("cat",))
    for place, refused in ((tmp_path / "one", True), (images, False)):
        fitness = ImagesFitness([{"task": "x", "images": str(place), "metrics": "matthews"}])
        if refused:
            with pytest.raises(FitnessError, match=r"tasks\[0\]\.images: all of the images of .* of class 'cat'; two"):
                fitness.check()
        else:
            fitness.check()


def test_a_processor_that_is_named_and_not_there(images: Path, vits: Path, tmp_path: Path) -> None:
    config = loaded(vits / "a").module.config
    for name, said in (("nowhere", "which is no folder"), (str(tmp_path), "which has no image processor")):
        fitness = ImagesFitness([{"task": "x", "images": str(images)}], processor=name)
        fitness.check()
        with pytest.raises(FitnessError, match=f"processor names '{name}', {said}; .*; name another folder, or leave"):
            fitness.check_model(config, str(vits / "a"))


def test_no_metrics_are_shown_as_they_were_given() -> None:
    with pytest.raises(ConfigError, match=r"metrics is \[\]; names of metrics"):
        ImagesFitness([{"task": "x", "images": "x", "metrics": []}])
