"""Adam's second moments from the file that Trainer leaves, whatever the order of its groups."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import TinyModel
from transformers import AutoModelForCausalLM
from transformers.trainer_pt_utils import get_parameter_names

from evomerge.calibration.encoding import Encoded
from evomerge.calibration.measure import measure
from evomerge.calibration.measurement import Measurement
from evomerge.calibration.optimizer_states import optimizer_state, second_moments
from evomerge.errors import PoolError
from evomerge.models.opening import open_pool
from evomerge.models.statistics import ModelStatistics


def trained(folder: Path, decays: Callable[[str, torch.nn.Parameter], bool] | None) -> dict[str, torch.Tensor]:
    """Write ``optimizer.pt`` of two steps of AdamW, as Trainer does; returns the second moments by parameter."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    named = list(model.named_parameters())
    groups = [{"params": [p for _, p in named]}]
    if decays is not None:
        groups = [{"params": [p for n, p in named if decays(n, p) is same]} for same in (True, False)]
    optimizer = torch.optim.AdamW(groups)
    for ids in ([1, 5, 9, 30], [1, 8, 8, 21]):
        optimizer.zero_grad()
        model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.backward()
        optimizer.step()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return {name: optimizer.state[p]["exp_avg_sq"].clone() for name, p in named}


def trainers(folder: Path) -> Callable[[str, torch.nn.Parameter], bool]:
    """What Trainer of this version of transformers decays."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    patterns = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    kept = set(get_parameter_names(model, [torch.nn.LayerNorm], patterns))
    return lambda name, _: name in kept


@pytest.mark.parametrize("kind", ["llama_tied", "gpt2"])
@pytest.mark.parametrize("rule", ["trainer", "dimensions", "one group"])
def test_second_moments_find_their_parameters(tiny_model: TinyModel, tmp_path: Path, kind: str, rule: str) -> None:
    folder = tiny_model("model", kind)
    decays = {"trainer": trainers(folder), "dimensions": lambda _, p: p.dim() > 1, "one group": None}[rule]
    expected = trained(folder, decays)
    found = second_moments(folder, AutoModelForCausalLM.from_pretrained(folder))
    for name, moments in expected.items():
        assert torch.equal(found[name], moments)
    assert float(torch.stack([m.sum() for m in expected.values()]).min()) > 0


def test_they_are_kept_as_the_curvature_of_a_model(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = tiny_model("model")
    expected = trained(folder, None)
    pool = open_pool({"model": str(folder)}, dtype="float32")
    how = Measurement("curvature", state=optimizer_state(folder) or "")
    found = ModelStatistics(tmp_path / "cache", "curvature", how.key(dict(pool.info.refs)["model"].identity, []))
    measure(pool, [], how, found, memory=1 << 30)
    for name, moments in expected.items():
        stored = found.read(name)
        assert stored is not None
        assert torch.equal(stored.values.view(moments.shape), moments)
    every = torch.cat([moments.double().view(-1) for moments in expected.values()])
    assert found.index["mean"] == pytest.approx(float(every.mean()))


def test_another_state_is_another_key_and_none_is_none(tiny_model: TinyModel) -> None:
    folder = tiny_model("model")
    assert optimizer_state(folder) is None
    trained(folder, None)
    first = optimizer_state(folder)
    trained(folder, lambda _, p: p.dim() > 1)
    assert first != optimizer_state(folder) is not None


def test_what_is_no_state_of_the_model_is_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder, other = tiny_model("model"), tiny_model("other", "gpt2")
    trained(other, None)
    shutil.copy(other / "optimizer.pt", folder / "optimizer.pt")
    module = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(PoolError, match=r"not of this model's .*statistics.optimizer=false"):
        second_moments(folder, module)
    torch.save({"state": {0: {"momentum_buffer": torch.ones(1)}}, "param_groups": []}, folder / "optimizer.pt")
    with pytest.raises(PoolError, match="is no state of Adam"):
        second_moments(folder, module)

    class Runs:
        def __reduce__(self) -> object:
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"state": Runs(), "param_groups": []}, folder / "optimizer.pt")
    with pytest.raises(PoolError, match="is no state of Adam"):
        second_moments(folder, module)
    assert not (tmp_path / "ran").exists()
    (folder / "optimizer.pt").write_bytes(b"no archive")
    with pytest.raises(PoolError, match="cannot be read"):
        optimizer_state(folder)


def test_items_are_for_models_without(tiny_model: TinyModel) -> None:
    """Keys do not depend on items that are not read."""
    how = Measurement("curvature", state="abc")
    assert how.key("model", []) != Measurement("curvature", state="abd").key("model", [])
    assert how.key("model", []) != Measurement("fisher").key("model", [Encoded((1, 2), 1)])
