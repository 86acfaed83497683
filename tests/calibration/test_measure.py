"""Statistics against independent readings; killed, continued and shared, they are the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from calibration.dying import DYING
from models.architectures import save_pool
from safetensors.torch import save_file
from tiny_models import TinyModel
from transformers import AutoModelForCausalLM

from evomerge.calibration.encoding import Encoded, encode
from evomerge.calibration.measure import measure
from evomerge.calibration.measurement import Measurement
from evomerge.errors import ConfigError, FitnessError, PoolError
from evomerge.models.opening import open_pool
from evomerge.models.statistics import ModelStatistics
from evomerge.protocols import CalibrationItem
from evomerge.recipes.calibration import OF_EXPERTS

ITEMS = [Encoded((1, 5, 9, 30, 7), 1), Encoded((1, 8, 8, 21), 2), Encoded((4, 12, 17, 33, 6, 10, 39), 4)]
PLENTY = 1 << 30


def made(
    folder: Path, root: Path, kind: str = "fisher", items: list[Encoded] = ITEMS, memory: int = PLENTY, **how: object
) -> ModelStatistics:
    """The statistics of a model."""
    pool = open_pool({"model": str(folder)}, dtype="float32")
    measurement = Measurement(kind, **how)  # type: ignore[arg-type]
    into = ModelStatistics(root, kind, measurement.key(dict(pool.info.refs)["model"].identity, items))
    measure(pool, items, measurement, into, memory=memory)
    return into


def contents(found: ModelStatistics) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(found.folder.iterdir()) if path.name != ".lock"}


def gradients(folder: Path, items: list[Encoded]) -> list[dict[str, torch.Tensor]]:
    """Of each item's log-likelihood, by transformers and autograd alone."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = []
    for item in items:
        model.zero_grad()
        ids = torch.tensor([item.ids])
        chances = model(ids).logits[0].log_softmax(-1)
        loss = sum(chances[t - 1, item.ids[t]] for t in range(item.start, len(item.ids)))
        torch.as_tensor(loss).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    return found


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "gpt2", "phi3"])
def test_squares_of_each_examples_gradient(tiny_model: TinyModel, tmp_path: Path, kind: str) -> None:
    folder = tiny_model("model", kind)
    found = made(folder, tmp_path / "cache")
    each = gradients(folder, ITEMS)
    assert len(found.index["tensors"]) == len(each[0])
    everything = []
    for name, tensor in each[0].items():
        expected = sum(own[name].square() for own in each) / len(ITEMS)
        stored = found.read(name if found.has(name) else name.removeprefix("transformer."))
        assert stored is not None
        scale = float(torch.as_tensor(expected).max())
        torch.testing.assert_close(stored.values.view(tensor.shape), expected, rtol=1e-4, atol=1e-6 * scale)
        everything.append(stored.values.double())
        # The square of the batch's mean gradient is another thing: examples cancel there.
        together = (sum(own[name] for own in each) / len(ITEMS)).square()
        if tensor.dim() == 2:
            assert float((together - expected).abs().max()) > 0.1 * scale
    assert found.index["mean"] == pytest.approx(float(torch.cat(everything).mean()), rel=1e-6)
    assert (found.index["items"], found.index["tokens"]) == (3, 16)


@pytest.mark.parametrize("count", [2, 3])
def test_the_middle_product_of_gradient_and_weight(tiny_model: TinyModel, tmp_path: Path, count: int) -> None:
    folder, items = tiny_model("model", "llama_tied"), ITEMS[:count]
    found = made(folder, tmp_path / "cache", "sensitivity", items)
    each = gradients(folder, items)
    weights = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        # Of a loss, which is minus the log-likelihood; of two the larger, of three the middle one.
        products = torch.stack([-own[name] * weights[name].detach() for own in each]).sort(dim=0).values
        stored = found.read(name)
        assert stored is not None
        torch.testing.assert_close(stored.values.view(products[1].shape), products[1], rtol=1e-3, atol=1e-6)
        votes = (stored.values <= 0).view(products[1].shape)
        assert torch.equal(votes, (products <= 0).sum(0) * 2 > count)


def test_sampled_labels_give_the_fisher_information(tiny_model: TinyModel, tmp_path: Path) -> None:
    """One prediction: that of the head is known, ``p (1 - p) h^2``."""
    folder = tiny_model("model")
    items = [Encoded((1, 5, 9, 30), 3)] * 300
    found = made(folder, tmp_path, items=items, labels="sampled")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        out = model(torch.tensor([[1, 5, 9]]), output_hidden_states=True)
        chances, hidden = out.logits[0, -1].softmax(-1), out.hidden_states[-1][0, -1]
    expected = float((chances * (1 - chances)).sum() * hidden.square().sum())
    head = found.read("lm_head.weight")
    assert head is not None
    assert float(head.values.sum()) == pytest.approx(expected, rel=0.1)
    one, other = (made(folder, tmp_path, items=items[:9], labels="sampled", seed=seed) for seed in (0, 1))
    assert contents(one) != contents(other)
    ours = made(folder, tmp_path, items=items[:1])  # the text's own label: one of 40
    theirs = ours.read("lm_head.weight")
    assert theirs is not None
    chances[30] -= 1
    assert float(theirs.values.sum()) == pytest.approx(float(chances.square().sum() * hidden.square().sum()), rel=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_inner_products_of_what_layers_read(tiny_model: TinyModel, tmp_path: Path, kind: str) -> None:
    folder = tiny_model("model", kind)
    found, diagonal = made(folder, tmp_path, "gram"), made(folder, tmp_path, "gram", grams="diagonal")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    layer = model.model.layers[1] if kind == "llama" else model.transformer.h[1]
    norm = layer.input_layernorm if kind == "llama" else layer.ln_1
    expected = torch.zeros(16, 16, dtype=torch.float64)
    with torch.no_grad():
        for item in ITEMS:
            x = norm(model(torch.tensor([item.ids]), output_hidden_states=True).hidden_states[1])[0].double()
            expected += x.T @ x
    expected /= sum(len(item.ids) for item in ITEMS)
    names = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
    for name in names if kind == "llama" else ["h.1.attn.c_attn.weight"]:
        own = name if found.has(name) else f"transformer.{name}"
        full, short = found.read(own), diagonal.read(own)
        assert full is not None
        assert short is not None
        assert full.axis == short.axis == (1 if kind == "llama" else 0)
        torch.testing.assert_close(full.values.double(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(short.values.double(), expected.diagonal(), rtol=1e-4, atol=1e-5)
        assert found.entry(own) == (names[0] if kind == "llama" else own)  # queries, keys and values read the same
    assert not any("embed" in name or "wte" in name or "norm" in name for name in found.index["tensors"])
    assert found.has("lm_head.weight") == (kind == "llama")  # tied in GPT-2


def test_means_of_what_layers_read_by_hand(tiny_model: TinyModel, tmp_path: Path) -> None:
    """The first layer's norm makes (1, 1, ...) of (1, 1, ...), and (4, 0, ...) of (2, 0, ...), of 16 units."""
    folder = tiny_model("model")
    pool = open_pool({"model": str(folder)})
    tensors = {n: pool.read("model", n).clone() for n in pool.layout.parameters}
    tensors["model.embed_tokens.weight"][1] = 1.0
    tensors["model.embed_tokens.weight"][2] = torch.tensor([2.0] + 15 * [0.0])
    tensors["model.layers.0.input_layernorm.weight"].fill_(1.0)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = made(folder, tmp_path / "cache", "activation", [Encoded((1, 2, 2), 1), Encoded((1, 1), 1)])
    # Of five tokens, whatever their item: (1 + 4 + 4 + 1 + 1) / 5 and (1 + 1 + 1) / 5.
    expected = torch.tensor([2.2] + 15 * [0.6])
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    for name in names:
        stored = found.read(name)
        assert stored is not None
        assert stored.axis == 1
        torch.testing.assert_close(stored.values, expected, rtol=1e-5, atol=1e-6)
        assert found.entry(name) == names[0]
    assert not any("embed" in name or "norm" in name for name in found.index["tensors"])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_mean_inputs_give_mean_outputs(tiny_model: TinyModel, tmp_path: Path, kind: str) -> None:
    """Of every linear layer, the mean of what it gives is what it makes of the mean of what it reads."""
    folder = tiny_model("model", kind)
    found = made(folder, tmp_path / "cache", "activation")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    stored = {name.removeprefix("transformer."): found.read(name) for name in found.index["tensors"]}
    given: dict[str, list[torch.Tensor]] = {}
    for path, layer in model.named_modules():
        if f"{path}.weight".removeprefix("transformer.") in stored:
            layer.register_forward_hook(lambda _, __, out, path=path: given.setdefault(path, []).append(out[0]))
    with torch.no_grad():
        for item in ITEMS:
            model(torch.tensor([item.ids]))
        means = {path: torch.cat(out).mean(0) for path, out in given.items()}
        assert len(means) == len(stored) >= 8
        for path, mean in means.items():
            own = stored[f"{path}.weight".removeprefix("transformer.")]
            assert own is not None
            made_of_means = model.get_submodule(path)(own.values)
            torch.testing.assert_close(made_of_means, mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["fisher", "gram", "sensitivity", "activation"])
def test_little_memory_takes_more_passes_and_gives_the_same_bytes(
    tiny_model: TinyModel, tmp_path: Path, kind: str
) -> None:
    folder = tiny_model("model")
    pool = open_pool({"model": str(folder)})
    found = made(folder, tmp_path / "one", kind)
    shown: list[tuple[int, int]] = []
    again = ModelStatistics(tmp_path / "many", kind, found.key)
    how = Measurement(kind)
    measure(pool, ITEMS, how, again, memory=1, progress=lambda done, total: shown.append((done, total)))
    assert contents(again) == contents(found)
    slices = len(list(found.folder.glob("*.safetensors")))
    assert shown[-1] == (3 * slices, 3 * slices)
    measure(pool, ITEMS, how, again, memory=1, progress=lambda done, total: pytest.fail("made twice"))


KILLED = (
    f"import torch\ntorch.set_num_threads(1)\n{DYING}"
    + """
from evomerge.calibration import measure as module
from evomerge.calibration.encoding import Encoded
from evomerge.calibration.measurement import Measurement
from evomerge.models.opening import open_pool
from evomerge.models.statistics import ModelStatistics

folder, root = sys.argv[1:3]
items = [Encoded((1, 5 + n % 30, 9, 30 - n, 7 + n), 1) for n in range(14)]

pool = open_pool({"model": folder}, dtype="float32")
module.load_on("cpu", pool, None)  # what children would each import

def work(kind, into, left):
    step = dying(left)
    found = ModelStatistics(Path(root), kind, into)
    module.measure(pool, items, Measurement(kind), found, memory=12000, every=0.0, progress=step)

draw = random.Random(3)
for kind in sys.argv[3:]:
    assert child(work, kind, "whole-" + kind, 0) == 0
    print(killed(work, kind, "killed-" + kind, most=200, draw=lambda: draw.randrange(1, 9)))
"""
)


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(("fisher", "gram"), marks=pytest.mark.slow),
        pytest.param(("hessian", "activation"), marks=pytest.mark.nightly),
        pytest.param(OF_EXPERTS, marks=pytest.mark.nightly),
    ],
    ids="-".join,
)
def test_killed_many_times_it_goes_on_and_gives_the_same_bytes(
    tiny_model: TinyModel, tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    mixture = kinds == OF_EXPERTS
    folder = save_pool("mixtral", tmp_path / "pool", ("a",))["a"] if mixture else tiny_model("model")
    command = [sys.executable, "-c", KILLED, str(folder), str(tmp_path), *kinds]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert len(ran.stdout.split()) == len(kinds)
    assert min(int(kills) for kills in ran.stdout.split()) >= 20, ran.stdout
    for kind in kinds:
        whole, killed = (ModelStatistics(tmp_path, kind, f"{name}-{kind}") for name in ("whole", "killed"))
        assert contents(killed) == contents(whole)
        assert "partial.safetensors" not in contents(killed)


def test_a_state_that_is_no_longer_readable_is_not_gone_on_from(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = tiny_model("model")
    found = made(folder, tmp_path / "one")
    other = ModelStatistics(tmp_path / "other", "fisher", found.key)
    other.folder.mkdir(parents=True)
    (other.folder / "partial.safetensors").write_bytes(b"no such thing")
    measure(open_pool({"model": str(folder)}), ITEMS, Measurement("fisher"), other, memory=PLENTY)
    assert contents(other) == contents(found)


def test_numbers_that_are_not_finite_are_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = tiny_model("model")
    pool = open_pool({"model": str(folder)})
    tensors = {n: pool.read("model", n).clone() for n in pool.layout.parameters}
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.inf
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PoolError, match="are not finite"):
        made(folder, tmp_path / "cache")


def test_keys_are_of_the_model_the_tokens_and_what_matters() -> None:
    how = Measurement("fisher")
    key = how.key("model", ITEMS)
    assert key == Measurement("fisher", grams="diagonal", seed=3).key("model", list(ITEMS))
    others = [
        how.key("another", ITEMS),
        how.key("model", ITEMS[:2]),
        how.key("model", [ITEMS[0], Encoded(ITEMS[1].ids, 1), ITEMS[2]]),
        Measurement("fisher", labels="sampled").key("model", ITEMS),
        Measurement("fisher", labels="sampled", seed=3).key("model", ITEMS),
        Measurement("fisher", dtype="bfloat16").key("model", ITEMS),
        Measurement("gram").key("model", ITEMS),
        Measurement("gram", grams="diagonal").key("model", ITEMS),
    ]
    assert len({key, *others}) == 1 + len(others)
    for field, value in (("kind", "hesian"), ("labels", "gold"), ("grams", "half"), ("dtype", "int8")):
        with pytest.raises(ConfigError, match=r"statistics\."):
            Measurement(**{"kind": "fisher", field: value})


class Words:
    """A tokenizer of words that puts a token before each text."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [1, *(int(word) for word in text.split())]}


def test_tokens_that_count_are_those_of_the_answer() -> None:
    items = [CalibrationItem("5 6 7"), CalibrationItem("5 6", " 8 9"), CalibrationItem("")]
    assert encode(items, Words(), 10) == [Encoded((1, 5, 6, 7), 1), Encoded((1, 5, 6, 8, 9), 3)]
    assert encode(items, Words(), 3) == [Encoded((1, 5, 6), 1), Encoded((6, 8, 9), 1)]
    with pytest.raises(FitnessError, match="leave no token to predict"):
        encode(items[2:], Words(), 10)


def test_what_is_kept_is_checked_when_it_is_read(tiny_model: TinyModel, tmp_path: Path) -> None:
    found = made(tiny_model("model"), tmp_path / "cache")
    (found.folder / "embed.safetensors").write_bytes(b"no tensors")
    with pytest.raises(PoolError, match="cannot be read"):
        found.read("model.embed_tokens.weight")
    index = json.loads((found.folder / "statistics.json").read_text())
    (found.folder / "statistics.json").write_text(json.dumps({**index, "evomerge_statistics": 9}))
    with pytest.raises(PoolError, match="format 1"):
        ModelStatistics(tmp_path / "cache", "fisher", found.key).has("x")
