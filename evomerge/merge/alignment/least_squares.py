"""The weights of a merged model by least squares, layer by layer (PLeaS, arXiv 2407.02447, section 3.2).

Each linear layer of the merged model is to give, for the merged inputs, the merged outputs of the two aligned models:
``min_W sum ||W z - t||^2`` over tokens, where ``z`` has the mean of what both models' layers read, or either where
units are apart, and ``t`` so what they give. A ridge holds weights to those merged as they are, most of all where texts
say little: the authors' code goes down a gradient from these in a few hundred steps, which does alike. Without it
weights follow chance, and the merge forgets what does not occur in the texts. All that is needed of the data is the
Gram matrix of both models' inputs, side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from evomerge.errors import PoolError
from evomerge.merge.alignment.zipping import Zip

RIDGE = 1e-2
"""How strongly weights hold to those merged as they are, in units of what inputs say on average."""
Inputs = Any
Forward = Callable[[nn.Module, Inputs], object]


def joint_grams(
    modules: tuple[nn.Module, nn.Module],
    names: Sequence[str],
    inputs: Iterable[Inputs],
    forward: Forward,
) -> dict[str, torch.Tensor]:
    """Sums over tokens of ``x x^T`` with ``x`` what a layer reads in the first model and in the second, in float64.

    Args:
        modules: of one architecture, the second aligned to the first.
        names: of the layers' weights.
        inputs: read by both.
        forward: runs a module on one of them.

    Returns:
        By name, of shape ``(2 n, 2 n)``; a layer that is not reached is left out.
    """
    seen: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
    hooks = []
    for module, into in zip(modules, seen, strict=True):
        layers = dict(module.named_modules())
        hooks += [layers[n.rpartition(".")[0]].register_forward_pre_hook(_noting(into, n)) for n in names]
    found: dict[str, torch.Tensor] = {}
    try:
        for own in inputs:
            for module, into in zip(modules, seen, strict=True):
                into.clear()
                with torch.no_grad():
                    forward(module, own)
            for name in seen[0].keys() & seen[1].keys():
                rows = torch.cat([seen[0][name], seen[1][name]], dim=1)
                products = rows.T @ rows
                found[name] = found[name].add_(products) if name in found else products
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _noting(into: dict[str, torch.Tensor], name: str) -> Any:
    def hook(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        rows = given[0].detach().reshape(-1, given[0].shape[-1]).double()
        into[name] = torch.cat([into[name], rows]) if name in into else rows

    return hook


def solved(
    zip_: Zip, name: str, first: torch.Tensor, second: torch.Tensor, gram: torch.Tensor, ridge: float = RIDGE
) -> torch.Tensor:
    """The weight of a merged layer.

    ``W = W_0 + (M J S^T - W_0 G) (G + r I)^-1`` with ``G = S J S^T``: ``S`` makes the merged inputs of both models',
    ``M`` is what both models' weights give of their inputs as merged outputs, ``W_0`` the weights merged as they are,
    which stay where no input says otherwise.

    Args:
        zip_: of the models.
        name: of the weight.
        first, second: both models' own, the second in the order of the first.
        gram: ``J``, by `joint_grams`.
        ridge: ``r``, above 0, in units of the mean of the diagonal of ``G``.

    Raises:
        PoolError: the inputs are no numbers.
    """
    reads = zip_.reads[name]
    turned = [own.double() if reads == 1 else own.double().T for own in (first, second)]
    start = zip_.merged(name, first, second).double()
    start = start if reads == 1 else start.T
    inputs = zip_.side(name, reads, first.shape[reads]).matrix
    outputs = zip_.side(name, 1 - reads, first.shape[1 - reads]).matrix
    both = outputs @ torch.block_diag(*turned)  # merged outputs of both models' inputs
    square = inputs @ gram @ inputs.T
    level = float(square.diagonal().mean())
    if not torch.isfinite(square).all():
        raise PoolError(f"what {name!r} reads holds NaN or infinity", "finite activations", "choose other texts")
    if level <= 0:
        return (start if reads == 1 else start.T).float()
    rest = both @ gram @ inputs.T - start @ square
    square = square + ridge * level * torch.eye(len(square), dtype=torch.float64)
    found: torch.Tensor = start + torch.linalg.solve(square, rest.T).T
    found = found if reads == 1 else found.T
    return found.float().contiguous()


def solvable(zip_: Zip, module: nn.Module) -> list[str]:
    """The weights that are found by least squares: those of linear layers that no other module shares."""
    owners: dict[int, int] = {}
    for own in module.modules():
        for parameter in own.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return [name for name in zip_.reads if name in parameters and owners[id(parameters[name])] == 1]
