"""Mixtures with fewer experts: folders that plain transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.architectures import load, save_pool
from safetensors.torch import load_file
from tiny_models import write_tokenizer

from evomerge.calibration.encoding import Encoded
from evomerge.calibration.expert_usage import Usage, expert_usage
from evomerge.cli.main import main
from evomerge.errors import ConfigError, PoolError
from evomerge.export.fewer_experts import EXPERTS_FILE, fewer_experts
from evomerge.models.architecture.mixtures import mixtures_of
from evomerge.models.opening import open_pool
from evomerge.protocols import CalibrationItem

TEXTS = [CalibrationItem(" ".join(f"w{(i * j) % 30 + 4}" for j in range(1, 12)), "") for i in range(1, 6)]


def model(tmp_path: Path, kind: str = "mixtral", save: dict[str, Any] | None = None, **overrides: Any) -> Path:
    folder = save_pool(kind, tmp_path, ("own",), save=save, **overrides)["own"]
    write_tokenizer(folder)
    return folder


def four(kind: str) -> dict[str, int]:
    return {"num_local_experts" if kind == "mixtral" else "num_experts": 4}


@pytest.mark.parametrize(
    ("kind", "save"),
    [
        ("mixtral", {}),
        ("mixtral", {"save_original_format": False}),
        ("qwen2_moe", {}),
        ("qwen3_moe", {"save_original_format": False}),
    ],
)
def test_dropped_experts_are_gone_and_the_others_as_they_were(kind: str, save: dict[str, bool], tmp_path: Path) -> None:
    own = model(tmp_path, kind, save, **four(kind))
    before = load(own)
    counts = np.array([5.0, 1.0, 7.0, 2.0])  # 0 and 2 stay
    usage = lambda module, mixtures, items, outputs: {m.layer: Usage(counts, np.eye(4)) for m in mixtures}  # noqa: E731
    found = fewer_experts(str(own), tmp_path / "out", 2, texts=TEXTS, method="drop", router="dominant", usage=usage)
    after = load(tmp_path / "out")
    assert found.before == 4
    assert set(found.groups.values()) == {((0,), (2,))}
    for mixture in mixtures_of(before):
        for place in (mixture.router, mixture.gate_up, mixture.down):
            assert torch.equal(after.state_dict()[place], before.state_dict()[place][[0, 2]]), place
    rest = {key for own in mixtures_of(before) for key in (own.router, own.gate_up, own.down)}
    for name, tensor in before.state_dict().items():
        if name not in rest:
            assert torch.equal(after.state_dict()[name], tensor), name
    saved, written = (load_file(folder / "model.safetensors") for folder in (own, tmp_path / "out"))
    assert (len(written) < len(saved)) == (save == {})
    assert found.parameters == (sum(t.numel() for t in saved.values()), sum(t.numel() for t in written.values()))
    record = json.loads((tmp_path / "out" / EXPERTS_FILE).read_text())
    assert record["method"] == "drop"
    open_pool({"again": str(tmp_path / "out")})


def test_tokens_and_what_is_alike_are_those_of_the_model(tmp_path: Path) -> None:
    """Counted by hand from the hidden states that go into each mixture."""
    module = load(model(tmp_path, num_local_experts=4))
    items = [Encoded(tuple(range(4, 15)), 1), Encoded(tuple(range(20, 33)), 1)]
    mixtures = mixtures_of(module)
    found = expert_usage(module, mixtures, items, outputs=True)
    states: dict[int, list[torch.Tensor]] = {own.layer: [] for own in mixtures}
    handles = [
        module.get_submodule(own.experts.rpartition(".")[0]).register_forward_pre_hook(
            lambda _, given, layer=own.layer: states[layer].append(given[0].flatten(0, 1))
        )
        for own in mixtures
    ]
    with torch.no_grad():
        for item in items:
            module(torch.tensor([item.ids]))
    for handle in handles:
        handle.remove()
    for own in mixtures:
        x, state = torch.cat(states[own.layer]), module.state_dict()
        logits = x @ state[own.router].T
        chosen = logits.topk(2).indices
        assert found[own.layer].counts.tolist() == [int((chosen == e).sum()) for e in range(4)]
        columns = torch.nn.functional.normalize(logits, dim=0)
        np.testing.assert_allclose(found[own.layer].routed, (columns.T @ columns).numpy(), atol=1e-5)
        outputs = []
        for e in range(4):
            gate, up = (x @ state[own.gate_up][e].T).chunk(2, dim=-1)
            made = (torch.nn.functional.silu(gate) * up) @ state[own.down][e].T
            outputs.append(torch.nn.functional.normalize(made, dim=-1))
        alike = torch.einsum("itd,jtd->ij", torch.stack(outputs), torch.stack(outputs)) / len(x)
        np.testing.assert_allclose(found[own.layer].outputs, alike.numpy(), atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["m_smoe", "sub_moe"])
def test_equal_experts_merge_without_loss(method: Any, tmp_path: Path) -> None:
    """Experts 1 and 3 are copies of 0 and 2, with all tokens' second choice on them: two are left that do the same."""
    folder = model(tmp_path, num_local_experts=4, num_experts_per_tok=2)
    module = load(folder)
    with torch.no_grad():
        for own in mixtures_of(module):
            state = module.state_dict()
            for place in (own.gate_up, own.down):
                state[place][[1, 3]] = state[place][[0, 2]]
    module.save_pretrained(folder)
    found = fewer_experts(str(folder), tmp_path / "out", 2, texts=TEXTS, method=method, router="kept")
    if method == "sub_moe":
        assert all(
            {frozenset(g) for g in own} == {frozenset({0, 1}), frozenset({2, 3})} for own in found.groups.values()
        )
        ids = torch.arange(4, 16)[None]
        with torch.no_grad():
            torch.testing.assert_close(load(tmp_path / "out")(ids).logits, module(ids).logits, atol=1e-5, rtol=1e-5)
    assert load(tmp_path / "out").config.num_local_experts == 4  # as many rows as tokens are sent by
    assert found.parameters[0] == found.parameters[1]


def test_numbers_that_differ_by_layer_take_a_router_that_is_kept(tmp_path: Path) -> None:
    folder = model(tmp_path, num_local_experts=4, num_hidden_layers=3)
    usage = lambda module, mixtures, items, outputs: {  # noqa: E731
        m.layer: Usage(np.array([[97.0, 1, 1, 1], [30, 30, 20, 20], [25, 25, 25, 25]][m.layer]), np.eye(4))
        for m in mixtures
    }
    options: Any = {"texts": TEXTS, "usage": usage, "scope": "model"}
    found = fewer_experts(str(folder), tmp_path / "out", 2, router="kept", **options)
    assert found.after == (1, 2, 3)
    state = load(tmp_path / "out").state_dict()
    distinct = [len(torch.unique(state[f"model.layers.{i}.mlp.experts.down_proj"], dim=0)) for i in range(3)]
    assert distinct == [1, 2, 3]
    with pytest.raises(ConfigError, match="--router kept"):
        fewer_experts(str(folder), tmp_path / "other", 2, **options)


def test_what_cannot_be(tmp_path: Path) -> None:
    folder = str(model(tmp_path, num_local_experts=4))
    for number, options, says in (
        (4, {}, "less than 4"),
        (1, {}, "takes 2 experts"),
        (2.5, {}, "whole number"),
        (2, {"method": "m_smeo"}, "m_smoe"),
        (2, {"rank": 0.5}, "sub_moe"),
        (2, {"method": "drop", "router": "kept"}, "mean or dominant"),
    ):
        with pytest.raises((ConfigError, PoolError), match=says):
            fewer_experts(folder, tmp_path / "out", number, texts=TEXTS, **options)  # type: ignore[arg-type]
    for kind, says in (("llama", "no experts"), ("gpt_oss", "experts of gate_up_proj and down_proj")):
        other = save_pool(kind, tmp_path / kind, ("own",))["own"]
        with pytest.raises(PoolError, match=says):
            fewer_experts(str(other), tmp_path / "out", 2, texts=TEXTS)
    assert not (tmp_path / "out").exists()


def test_the_verb_of_experts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model(tmp_path, num_local_experts=4)
    (tmp_path / "texts.txt").write_text("\n".join(item.text for item in TEXTS))
    words = ["experts", str(folder), str(tmp_path / "out"), "--experts", "3", "--texts", str(tmp_path / "texts.txt")]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "experts of a layer: 4 before, 3 after, seen on" in text
    assert "layer 1: " in text
    assert f"wrote {tmp_path / 'out'}" in text
    said = r"^model 'few' has num_local_experts 3 in config.json, 'all' has 4; .* into fewer: evomerge experts$"
    with pytest.raises(PoolError, match=said):
        open_pool({"all": str(folder), "few": str(tmp_path / "out")})
    assert main([*words[:-1], str(tmp_path / "none.txt")]) == 2
    assert "none.txt is no file" in capsys.readouterr().err
    assert main([*words, "--method", "drop", "--align"]) == 2
    assert "--align is given with --method drop; m_smoe or sub_moe" in capsys.readouterr().err
