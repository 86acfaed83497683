"""Merges of models from different starts: in part, wider, and by least squares."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from export.test_aligned_model import shuffled
from models.architectures import inputs, load, save_pool
from safetensors.torch import load_file
from tiny_models import TinyModel
from torch import nn

from evomerge.cli.align import ratio_of
from evomerge.cli.main import main
from evomerge.errors import ConfigError
from evomerge.export.aligned_model import align
from evomerge.export.writer import write_model
from evomerge.export.zipped_model import ZIP_FILE, read_texts, zip_models
from evomerge.merge.alignment.finding import perceptron_symmetries
from evomerge.merge.alignment.least_squares import joint_grams, solvable, solved
from evomerge.merge.alignment.matching import match
from evomerge.merge.alignment.zipping import reading_axes, zipped
from evomerge.merge.methods import specs
from evomerge.models.opening import open_pool
from evomerge.protocols import CalibrationItem
from evomerge.recipes.yaml_reader import dump_recipe
from search_spaces.zipped import ZippedSpace


def perceptron(*widths: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [own for taken, given in pairwise(widths) for own in (nn.Linear(taken, given), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


KINDS = ("llama", "gpt2", "phi3", "opt", "roberta_masked")


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_and_its_shuffled_copy_zip_to_the_same_function(kind: str, tmp_path: Path) -> None:
    own = save_pool(kind, tmp_path, ("own",))["own"]
    other = shuffled(own, tmp_path / "other")
    found = zip_models(str(own), str(other), tmp_path / "out", ratio=0.5, starts=1)
    assert found.after == pytest.approx(1)
    assert found.width[1] == found.width[0] * 3 // 2
    module = load(tmp_path / "out")
    given = inputs(kind)
    with torch.no_grad():
        wide, narrow = module(**given)[0], load(own)(**given)[0]
    torch.testing.assert_close(wide, narrow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_shares_as_genes_are_the_shares_of_the_command(kind: str, tmp_path: Path) -> None:
    """Folded by a search's recipe and written by the command: the same function, once wide and once narrow."""
    one, other = (str(folder) for folder in save_pool(kind, tmp_path, ("one", "other")).values())
    zip_models(one, other, tmp_path / "side", ratio=0.0, starts=1)
    pool = open_pool({"zip": str(tmp_path / "side")})
    space = ZippedSpace(pool.info, specs())
    shares = [0.25, 0.8]
    recipe = space.decode(space.spec.genome(shares))
    write_model(recipe, pool, tmp_path / "folded")
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert ratio_of(str(tmp_path / "recipe.yaml")) == shares
    found = zip_models(one, other, tmp_path / "narrow", ratio=shares, starts=1)
    units = found.width[0]
    assert found.widths == (2 * units - round(0.25 * units), 2 * units - round(0.8 * units))
    assert found.width[1] == found.widths[0]  # of the widest
    given = inputs(kind)
    with torch.no_grad():
        side, folded, narrow = (load(tmp_path / name)(**given)[0] for name in ("side", "folded", "narrow"))
    torch.testing.assert_close(folded, narrow, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(folded, side, atol=1e-4)


def feed_forward(folder: Path, rows: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = load(folder).model.layers[1].mlp(rows)
    return found


def test_side_by_side_hidden_units_give_the_mean_of_both_layers(tiny_model: TinyModel, tmp_path: Path) -> None:
    one, other = (tiny_model(name, seed=seed) for name, seed in (("one", 1), ("other", 2)))
    align(str(one), str(other), tmp_path / "aligned", starts=1)
    found = zip_models(str(one), str(other), tmp_path / "zip", ratio=0.0, starts=1)
    assert found.width == (24, 48)
    assert json.loads((tmp_path / "zip" / "config.json").read_text())["intermediate_size"] == 48
    assert json.loads((tmp_path / "zip" / ZIP_FILE).read_text())["width"] == [24, 48]
    rows = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    mean = (feed_forward(one, rows) + feed_forward(tmp_path / "aligned", rows)) / 2
    torch.testing.assert_close(feed_forward(tmp_path / "zip", rows), mean)

    zip_models(str(one), str(other), tmp_path / "whole", ratio=1.0, starts=1)
    merged, first, second = (
        load_file(f / "model.safetensors") for f in (tmp_path / "whole", one, tmp_path / "aligned")
    )
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2)


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_least_squares_of_a_perceptron(ratio: float) -> None:
    """Against NumPy's, on merged inputs and outputs that are made anew."""
    first, second = perceptron(6, 8, 8, 3, seed=1), perceptron(6, 8, 8, 3, seed=2)
    symmetries = perceptron_symmetries(first)
    ours, theirs = (own.state_dict() for own in (first, second))
    order = match(symmetries, ours.__getitem__, theirs.__getitem__, starts=1).order
    aligned = {name: symmetries.apply(name, tensor, order) for name, tensor in theirs.items()}
    second.load_state_dict(aligned)
    zip_ = zipped(symmetries, ours.__getitem__, aligned.__getitem__, ratio, reading_axes(first))
    rows = [torch.randn(20, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(10)]
    names = solvable(zip_, first)
    grams = joint_grams((first, second), names, rows, lambda module, given: module(given))
    assert names == [name for name in ours if name.endswith("weight")]

    data = torch.cat(rows)
    layers = [name.rpartition(".")[0] for name in names]
    for place, name in enumerate(names):
        read, gave = [], []
        for module in (first, second):
            number = int(layers[place])
            x = module[:number](data).detach().double().numpy()
            weight = module[number].weight.detach().double().numpy()
            read.append(x)
            gave.append(x @ weight.T)
        z, t = (both(zip_, name, side, own) for side, own in ((1, read), (0, gave)))
        expected = np.linalg.lstsq(z, t, rcond=None)[0].T
        found = solved(zip_, name, ours[name], aligned[name], grams[name], ridge=1e-11)
        assert found.shape == expected.shape == tuple(zip_.merged(name, ours[name], aligned[name]).shape)
        left = np.square(z @ found.double().numpy().T - t).sum()
        assert left == pytest.approx(np.square(z @ expected.T - t).sum(), rel=1e-4, abs=1e-6)
        plain = zip_.merged(name, ours[name], aligned[name]).double().numpy()
        assert left <= np.square(z @ plain.T - t).sum() * (1 + 1e-9) + 1e-9
        # With a ridge, as many rows more that ask for the weights merged as they are.
        root = np.sqrt(0.3 * np.square(z).sum(0).mean())
        held = np.linalg.lstsq(np.vstack([z, root * np.eye(z.shape[1])]), np.vstack([t, root * plain.T]), rcond=None)[0]
        found = solved(zip_, name, ours[name], aligned[name], grams[name], ridge=0.3)
        np.testing.assert_allclose(found.numpy(), held.T, rtol=1e-4, atol=1e-5)


def both(zip_: object, name: str, axis: int, values: list[np.ndarray]) -> np.ndarray:
    """Merged units by hand: means of those that are shared, then either model's."""
    axes = zip_.symmetries.axes.get(name, ())  # type: ignore[attr-defined]
    stretches = axes[axis].stretches if axes else ()
    if not stretches:
        return (values[0] + values[1]) / 2
    shared = zip_.shared[stretches[0][0]]  # type: ignore[attr-defined]
    apart = zip_.apart[stretches[0][0]]  # type: ignore[attr-defined]
    assert sorted([*shared, *apart]) == list(range(values[0].shape[1]))
    return np.concatenate([(values[0] + values[1])[:, shared] / 2, values[0][:, apart], values[1][:, apart]], axis=1)


def test_the_best_matched_units_are_shared() -> None:
    first, second = perceptron(6, 8, 3, seed=1), perceptron(6, 8, 3, seed=2)
    ours, theirs = first.state_dict(), second.state_dict()
    theirs = {name: tensor.clone() for name, tensor in theirs.items()}
    for name in ("0.weight", "0.bias"):
        theirs[name][[2, 5]] = ours[name][[2, 5]]
    theirs["2.weight"][:, [2, 5]] = ours["2.weight"][:, [2, 5]]
    zip_ = zipped(perceptron_symmetries(first), ours.__getitem__, theirs.__getitem__, 0.25, reading_axes(first))
    assert [own.tolist() for own in zip_.shared.values()] == [[2, 5]]


def test_the_command_solves_on_texts(tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (tiny_model(name, seed=seed) for name, seed in (("one", 1), ("other", 2)))
    (tmp_path / "texts.txt").write_text("w5 w9 w12 w30\nw7 w8 w8 w21 w4\n" * 3)
    words = ["align", str(one), str(other), str(tmp_path / "out"), "--ratio", "0.75", "--starts", "1"]
    assert main([*words, "--texts", str(tmp_path / "texts.txt")]) == 0
    shown = capsys.readouterr().out
    assert "hidden units of a feed-forward layer: 24 before, 30 after" in shown
    assert "least squares: 15 weights, on 27 tokens" in shown
    module = load(tmp_path / "out")
    assert module.config.intermediate_size == 30
    plain = zip_models(str(one), str(other), tmp_path / "plain", ratio=0.75, starts=1)
    assert plain.solved == 0
    assert not torch.equal(module.lm_head.weight, load(tmp_path / "plain").lm_head.weight)
    for wrong, said in (
        (["--ratio", "1.5"], "--ratio is 1.5"),
        (["--ratio", "0.5,0.2,0.1"], "--ratio has 3 shares; one, or one for each of 2 layers"),
        (["--ratio", "half"], "--ratio is 'half'; a share from 0 to 1"),
        (["--texts", str(tmp_path / "none.txt")], "none.txt cannot be read"),
        (["--texts", str(tmp_path / "texts.txt"), "--ridge", "0"], "--ridge is 0.0; a number above 0"),
        (["--ridge", "0.1"], "--ridge is given without --texts"),
    ):
        assert main(["align", str(one), str(other), str(tmp_path / "x"), *wrong]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"txt": "w5"}', "line 3 has no key 'text'; did you mean 'txt'"),
        ("{broken", "line 3 is no JSON: .*; lines such as"),
        ('["w5"]', "line 3 is no mapping; lines such as"),
        ('{"text": 5}', "line 3: its text is '5'; a text"),
        ('{"text": "w5", "answer": ["w6"]}', r"line 3: its answer is .*w6.*; a text"),
    ],
)
def test_a_line_of_texts_that_holds_something_else_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "texts.jsonl").write_text(f'{{"text": "w5 w6", "answer": "w7"}}\n\n{line}\n')
    with pytest.raises(ConfigError, match=rf"--texts .*texts.jsonl, {said}"):
        read_texts(tmp_path / "texts.jsonl")
    (tmp_path / "texts.jsonl").write_text('{"text": "w5 w6", "answer": "w7"}\n\n{"text": "w8"}\n')
    assert read_texts(tmp_path / "texts.jsonl") == [CalibrationItem("w5 w6", " w7"), CalibrationItem("w8", "")]


def test_what_cannot_be_is_refused(tmp_path: Path, tiny_model: TinyModel) -> None:
    one = str(tiny_model("one"))
    with pytest.raises(ConfigError, match="--starts is 0"):
        zip_models(one, one, tmp_path / "out", texts=[CalibrationItem("w5 w6", "")], starts=0)
