"""Attention that was rotated to prevent merging: found on every kind of attention, and on no honest pair."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TinyModel
from transformers import AutoModelForCausalLM

from evomerge.cli.main import main
from evomerge.errors import PoolError
from evomerge.models.opening import open_pool
from evomerge.models.rotated import Head, heads, is_rotated, refuse_rotated

TOKENS = torch.arange(3, 23)[None]
SHAPE = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
Gauge = Callable[[torch.Generator], torch.Tensor]


def any_matrix(generator: torch.Generator) -> torch.Tensor:
    """What leaves attention without rotary embeddings, or values and outputs, alone."""
    return torch.randn(8, 8, generator=generator, dtype=torch.float64) + 2 * torch.eye(8, dtype=torch.float64)


def rotary(generator: torch.Generator) -> torch.Tensor:
    """Rotations of the pairs of rows that rotary embeddings turn, and scales: it commutes with them."""
    angles = 6.28 * torch.rand(4, generator=generator, dtype=torch.float64)
    scales = 0.5 + torch.rand(4, generator=generator, dtype=torch.float64)
    cosines, sines = torch.diag(scales * angles.cos()), torch.diag(scales * angles.sin())
    return torch.cat([torch.cat([cosines, -sines], 1), torch.cat([sines, cosines], 1)])


def rotary_normed(generator: torch.Generator) -> torch.Tensor:
    """Of these, half turns: they leave also norms of queries and keys with any weights alone."""
    signs = torch.where(torch.rand(4, generator=generator) < 0.7, -1.0, 1.0).double()
    signs[0] = -1.0
    return torch.diag(torch.cat([signs, signs]))


def protect(folder: Path, queries: Gauge | None, values: Gauge | None, noise: float, seed: int = 0) -> None:
    """Rotate every group of heads of a Llama-like model, after what a fine-tuning would have changed."""
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.dim() == 2:
            change = torch.randn(tensor.shape, generator=generator) * tensor.std() * noise
            tensors[name] = tensor + change
    for layer in range(2):
        place = f"model.layers.{layer}.self_attn."
        q, k, v, o = (tensors[f"{place}{part}_proj.weight"].double() for part in "qkvo")
        for group in range(2):
            shared = slice(8 * group, 8 * group + 8)
            if queries is not None:
                matrix = queries(generator)
                k[shared] = torch.linalg.inv(matrix).T @ k[shared]
            mixing = values(generator) if values is not None else torch.eye(8, dtype=torch.float64)
            v[shared] = mixing @ v[shared]
            for head in (2 * group, 2 * group + 1):
                own = slice(8 * head, 8 * head + 8)
                q[own] = matrix @ q[own] if queries is not None else q[own]
                o[:, own] = o[:, own] @ torch.linalg.inv(mixing)
        for part, tensor in zip("qkvo", (q, k, v, o), strict=True):
            tensors[f"{place}{part}_proj.weight"] = tensor.float().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "queries", "values"),
    [
        ("llama", rotary, any_matrix),
        ("llama", None, any_matrix),
        ("qwen3", rotary_normed, None),
    ],
)
def test_protected_models_are_refused(
    kind: str, queries: Gauge | None, values: Gauge | None, tiny_model: TinyModel, tmp_path: Path
) -> None:
    base, own = (tiny_model(name, kind, **SHAPE) for name in ("base", "own"))
    before = AutoModelForCausalLM.from_pretrained(own)(TOKENS).logits
    protect(own, queries, values, noise=0.0)
    after = AutoModelForCausalLM.from_pretrained(own)(TOKENS).logits
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)  # it is a protection: the model does what it did
    with pytest.raises(PoolError, match=r"model 'own' protects its attention from being merged: .* of 8 heads"):
        refuse_rotated(open_pool({"base": str(base), "own": str(own)}, "base"))
    trained = shutil.copytree(base, tmp_path / "trained")
    protect(trained, queries, values, noise=0.02, seed=1)
    with pytest.raises(PoolError, match=r"MergeLock.*leave it out of the pool"):
        refuse_rotated(open_pool({"first": str(base), "trained": str(trained)}))


@pytest.mark.parametrize("kind", ["llama", "phi3", "gpt_neox", "gpt2"])
def test_heads_are_told_apart(kind: str, tiny_model: TinyModel) -> None:
    """By attention of one token: values and outputs of all heads, added up, are what the layer gives."""
    folder = tiny_model("base", kind)
    pool = open_pool({"base": str(folder), "other": str(tiny_model("other", kind, 1))}, "base")
    model = AutoModelForCausalLM.from_pretrained(folder)
    inner = next(
        module for name, module in model.named_modules() if name.endswith((".0.self_attn", ".0.attention", "h.0.attn"))
    )
    with torch.no_grad():
        for name, parameter in inner.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    given = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(0))
    place = {"position_embeddings": (torch.ones(1, 1, 4), torch.zeros(1, 1, 4)), "attention_mask": None}
    with torch.no_grad():
        expected = inner(given, **({"attention_mask": None} if kind == "gpt2" else place))[0]
        found = sum(own.output @ (own.value @ given[0, 0]) for own in heads(pool, "base", 0))
    assert len(list(heads(pool, "base", 0))) == 4
    torch.testing.assert_close(found, expected[0, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value"), [("num_key_value_heads", [2, 2]), ("num_key_value_heads", 3), ("num_attention_heads", 5)]
)
def test_attention_of_other_shapes_is_not_looked_at(key: str, value: object, tiny_model: TinyModel) -> None:
    pool = open_pool({"base": str(tiny_model("base", "phi3")), "other": str(tiny_model("other", "phi3", 1))}, "base")
    assert len(list(heads(pool, "base", 0))) == 4
    vars(pool.config)[key] = value  # configurations of other classes hold such values
    assert list(heads(pool, "base", 0)) == []


def honest_pairs() -> list[tuple[str, Head, Head]]:
    """Heads that nobody rotated, on bases that are random or of few strong directions, as trained ones are."""
    found = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        decay = torch.exp(-torch.arange(16) / (2.0 if seed % 2 else 50.0))

        def factor(generator: torch.Generator = generator, decay: torch.Tensor = decay) -> torch.Tensor:
            left = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
            right = torch.linalg.qr(torch.randn(64, 16, generator=generator))[0]
            return (left * decay) @ right.T

        def head(factor: Callable[[], torch.Tensor] = factor) -> Head:
            query, value = factor(), factor()
            # queries and keys share their strong directions
            return Head(query, query + 0.3 * factor(), value, (value + 0.3 * factor()).T.contiguous())

        base = head()
        for noise in (0.01, 0.1, 0.5, 2.0):
            parts = [part + noise * part.std() * torch.randn(part.shape, generator=generator) for part in base]
            found.append((f"noise of {noise}", Head(*parts), base))
        found.append(("another seed", head(), base))
        update = [
            0.8
            * part.norm()
            * torch.outer(
                *(torch.nn.functional.normalize(torch.randn(n, generator=generator), dim=0) for n in part.shape)
            )
            for part in base
        ]
        found.append(
            ("a strong update of rank one", Head(*(part + own for part, own in zip(base, update, strict=True))), base)
        )
        found.append(("twice the queries", base._replace(query=2 * base.query), base))
    return found


def test_honest_pairs_are_not_refused() -> None:
    pairs = honest_pairs()
    assert len(pairs) == 28
    assert [what for what, own, base in pairs if is_rotated(own, base)] == []
    generator = torch.Generator().manual_seed(9)
    for _, _, base in pairs:
        matrix = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
        rotated = base._replace(query=matrix @ base.query, key=matrix @ base.key)
        assert is_rotated(rotated, base)


def test_heads_in_another_order_are_honest(tiny_model: TinyModel) -> None:
    base, own = (tiny_model(name, "llama", **SHAPE | {"num_key_value_heads": 4}) for name in ("base", "own"))
    tensors = load_file(own / "model.safetensors")
    for name, tensor in tensors.items():
        if "self_attn" in name:
            tensors[name] = torch.roll(tensor, 8, dims=int(".o_proj" in name))
    save_file(tensors, own / "model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(*(AutoModelForCausalLM.from_pretrained(f)(TOKENS).logits for f in (base, own)))
    refuse_rotated(open_pool({"base": str(base), "own": str(own)}, "base"))


def test_the_command_line_refuses_before_it_merges(
    tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, own = (tiny_model(name, **SHAPE) for name in ("base", "own"))
    protect(own, rotary, any_matrix, noise=0.01)
    file = tmp_path / "merge.yaml"
    models = f"models: [{{model: {base}}}, {{model: {own}, parameters: {{weight: 0.5}}}}]"
    file.write_text(f"{models}\nmerge_method: task_arithmetic\nbase_model: {base}\ndtype: float32\n")
    assert main(["merge", str(file), str(tmp_path / "out")]) == 2
    assert "protects its attention from being merged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
