"""The hash of a recipe: over its canonical content, whatever the names, places and spelling of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring_ascii as quote
from operator import itemgetter

from evomerge.recipes.calibration import CalibrationRef
from evomerge.recipes.heads import Heads
from evomerge.recipes.method_spec import ByTensor, Scalar, Value
from evomerge.recipes.network import Network
from evomerge.recipes.slices import Input, Parameters, SliceRecipe
from evomerge.recipes.tokenizer_spec import TokenizerSpec


def canonical_text(
    slices: Sequence[SliceRecipe],
    identities: Mapping[str, str],
    *,
    dtype: str,
    seed: int,
    config_from: str,
    tokenizer_from: str | None,
    calibration: CalibrationRef | None = None,
    tokenizer: TokenizerSpec | None = None,
    models: Sequence[str] = (),
    heads: Heads | None = None,
    kept: Sequence[str] = (),
    dense: str | None = None,
    network: Network | None = None,
) -> str:
    """The content that is hashed, as JSON without spaces, keys sorted.

    Written piece by piece and not by ``json``: a search hashes every candidate, and most of a recipe's pieces, those
    of the slices of a group, are alike.

    Args:
        slices: in model order.
        identities: what every input's name stands for: a model's content, an intermediate's own hash.
        dtype, seed, config_from, tokenizer_from, calibration, tokenizer, heads, kept, dense, network: of
            the recipe.
        models: of the recipe, in order: with a `tokenizer`, all of them give rows.
    """
    identity = {name: quote(text) for name, text in identities.items()}

    pieces: dict[int, str] = {}  # by identity: slices of a group share their inputs and parameters

    def values(of: Parameters) -> str:
        found = pieces.get(id(of))
        if found is None:
            found = pieces[id(of)] = _parameters(of)
        return found

    def source(entry: Input, layer: int | None) -> str:
        number = layer if entry.layer is None else entry.layer
        return f"[{identity[entry.model]},{'null' if number is None else number},{values(entry.parameters)}]"

    lines, alike = [], dict[tuple[object, ...], str]()
    for entry in slices:
        layer = entry.slice.layer
        group = layer, entry.method, id(entry.inputs), id(entry.parameters), id(entry.base), entry.scale
        text = alike.get(group)
        if text is None:
            inputs = ",".join([source(each, layer) for each in entry.inputs])
            base = "null" if entry.base is None else source(entry.base, layer)
            scale = "null" if entry.scale is None else _scalar(entry.scale)
            text = f"{quote(entry.method)},[{inputs}],{values(entry.parameters)},{base},{scale}]"
            alike[group] = text
        lines.append(f'["{entry.slice}",{text}')
    vocabulary = "" if tokenizer is None else f',"tokenizer":{tokenizer.canonical_text(identity, models)}'
    giver = ""
    if tokenizer_from is not None and tokenizer_from != config_from:
        giver = f',"tokenizer_from":{identity[tokenizer_from]}'
    measured = ""
    if calibration is not None:
        known = sorted(f"[{identity[name]},{quote(kind)},{quote(key)}]" for name, kind, key in calibration.statistics)
        measured = f'"calibration":[{",".join(known)}],'
    carried = ""
    if heads is not None:
        whose, what = sorted(identity[name] for name in heads.tasks), sorted(map(quote, heads.tensors))
        carried = f'"heads":[[{",".join(whose)}],[{",".join(what)}]],'
    rest = f'"kept":[{",".join(sorted(map(quote, kept)))}],' if kept else ""
    layers = "" if dense is None else f'"dense":{quote(dense)},'
    if network is not None:
        carried += f'"network":[{quote(network.name)},{identity.get(network.others, quote(""))}],'
    first = f'"config_from":{identity[config_from]},"dtype":{quote(dtype)},"seed":{seed}'
    return f'{{{measured}{carried}{rest}{layers}{first},"slices":[{",".join(lines)}]{vocabulary}{giver}}}'


def _scalar(value: Scalar) -> str:
    """One spelling of equal numbers: 1, 1.0 and -0.0, 0.0 are the same weight and must hash alike."""
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) > 2**53:
        return int.__repr__(value)
    return float.__repr__(float(value) + 0.0)


def _value(value: Value) -> str:
    """A value as JSON; values by tensor without the entries that say what the last one says."""
    if not isinstance(value, ByTensor):
        return _scalar(value)
    entries = [(quote(part) if part is not None else "null", _scalar(scalar)) for part, scalar in value.entries]
    rest = entries.pop()
    while entries and entries[-1][1] == rest[1]:
        entries.pop()
    return "[" + ",".join(f"[{part},{text}]" for part, text in [*entries, rest]) + "]" if entries else rest[1]


def _parameters(values: Parameters) -> str:
    ordered = sorted(values, key=itemgetter(0)) if len(values) > 1 else values
    return "[" + ",".join([f"[{quote(name)},{_value(value)}]" for name, value in ordered]) + "]"
