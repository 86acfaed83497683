from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.architectures import load, save_pool
from models.merges import assert_close, computed, different, opened, task_arithmetic, tensor_names

from evomerge.errors import PoolError
from evomerge.export.writer import write_model
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.architecture.conversion import Join


def test_experts_are_views_of_what_the_module_holds(tmp_path: Path) -> None:
    pool = opened(save_pool("mixtral", tmp_path, names=("base", "a")))
    module = load(pool.folder("base"))
    state = dict(module.named_parameters())
    assert len(pool.layout.joins) == 4
    for join in pool.layout.joins:
        target = state[join.place].detach()
        views = join.views(target, module)
        assert views is not None
        for name, view in views.items():
            assert view.untyped_storage().data_ptr() == target.untyped_storage().data_ptr()
            assert view.is_contiguous()
            assert torch.equal(view, pool.read("base", name))
        assert torch.equal(join.join(views, module)[join.place], target)
        prefix = join.names[0].partition(".experts.")[0]
        if (w3 := views.get(f"{prefix}.experts.2.w3.weight")) is not None:
            w3.fill_(3)
            assert torch.equal(target[2, 24:], torch.full((24, 16), 3.0))
            assert not (target[2, :24] == 3).any()


def test_experts_that_cannot_be_written_in_place_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = save_pool("mixtral", tmp_path)
    pool = opened(folders)
    plan = make_plan(task_arithmetic(pool), pool)
    direct = Resident(pool)
    direct.apply(plan)
    for views in (lambda *_: None, lambda self, target, module: dict.fromkeys(self.names, target[0, :24])):
        monkeypatch.setattr(Join, "views", views)
        joined = Resident(pool)
        joined.apply(plan)
        assert different(joined.model.module, direct.model.module.state_dict()) == set()


def test_checkpoints_with_experts_joined(tmp_path: Path) -> None:
    folders = save_pool("mixtral", tmp_path, save={"save_original_format": False})
    expected = computed(folders)
    assert "model.layers.0.mlp.experts.gate_up_proj" in tensor_names(folders["a"])
    pool = opened(folders)
    assert pool.layout.joins == ()
    out = write_model(task_arithmetic(pool), pool, tmp_path / "merged")
    assert_close(load(out).state_dict(), expected, rtol=2e-6, atol=2e-7)


def test_experts_joined_in_some_models_only(tmp_path: Path) -> None:
    one_by_one = save_pool("mixtral", tmp_path / "one", names=("base", "a"))
    joined = save_pool("mixtral", tmp_path / "joined", names=("b",), save={"save_original_format": False})
    with pytest.raises(
        PoolError, match=r"'b' has no tensor for '.*experts\.0\.w1\.weight' of 'base', it stores '.*gate"
    ):
        opened(one_by_one | joined)
    with pytest.raises(PoolError, match=r"'a' has no tensor for '.*gate_up_proj' of 'base', it stores '.*w1\.weight'"):
        opened({"base": joined["b"], "a": one_by_one["a"]})
    load(one_by_one["a"]).save_pretrained(tmp_path / "again", save_original_format=False)  # what the error advises
    assert opened({"base": joined["b"], "a": tmp_path / "again"}).layout.joins == ()


def test_other_experts(tmp_path: Path) -> None:
    folders = save_pool("mixtral", tmp_path / "three", names=("base", "a"))
    whole = (Path(folders["base"]) / "config.json").read_text()
    widths = (2, "num_local_experts", 2, "experts"), (3, "intermediate_size", 32, "align --widths")
    for count, key, value, do in widths:
        other = save_pool("mixtral", tmp_path / key, names=("b",), **{key: value})
        with pytest.raises(PoolError, match=rf"^model 'b' has {key} {value} in config.json, 'base' .*evomerge {do}$"):
            opened(folders | other)
        (Path(other["b"]) / "config.json").write_text(whole)  # which then says nothing of it
        made = rf"\({count}, {2 * (value if count == 3 else 24)}, 16\)"
        with pytest.raises(PoolError, match=rf"model 'b': .*they make {made}, MixtralForCausalLM has \(3, 48, 16\)"):
            opened(folders | other)


def test_one_tensor_that_fills_two_places(tmp_path: Path) -> None:
    layout = opened(save_pool("dinov2", tmp_path, names=("base", "a"))).layout
    join = next(join for join in layout.joins if join.names == ("dinov2.encoder.layer.1.mlp.weights_in.weight",))
    assert [".".join(place.split(".")[-3:]) for place in join.places] == ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
    assert layout.parameters[join.names[0]] == join.place == join.places[0]
    assert layout.shapes[join.names[0]] == join.shapes[0] == (48, 16)
