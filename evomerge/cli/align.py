"""``evomerge align``: a model with its units in the order of another's."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from evomerge.cli.verbs import verb_parser
from evomerge.errors import ConfigError
from evomerge.utils.imports import without_collector
from evomerge.utils.sizes import byte_count


def run(arguments: Sequence[str]) -> int:
    """Write the aligned model and say what has moved."""
    parser = verb_parser(
        "align",
        epilog="Models that were trained from different starts have like units in different places, and a merge "
        "averages unlike ones. The copy computes what MODEL does and can be merged with REFERENCE.",
    )
    parser.add_argument("reference", metavar="REFERENCE", help="folder or hub id of the model whose order counts")
    parser.add_argument("model", metavar="MODEL", help="folder or hub id of the model to align")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must be new or empty")
    parser.add_argument(
        "--starts", metavar="N", type=int, default=3, help="searches for the order, the best is kept; default: 3"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the searches; default: 0")
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="do not compare the outputs of MODEL and OUT, which takes memory for 8 bytes per parameter",
    )
    parser.add_argument(
        "--ratio",
        metavar="SHARE[,...]",
        help="write a merge of both instead, in which this share of the hidden units of feed-forward layers is merged, "
        "the best matched, and the others are side by side: below 1 layers get wider; with commas a share for each "
        "layer, or RUN or RECIPE of search_space=zipped, whose shares are taken",
    )
    parser.add_argument(
        "--texts",
        metavar="FILE",
        type=Path,
        help="of a merge: find the weights of linear layers by least squares on these, a text a line or JSON lines",
    )
    parser.add_argument(
        "--ridge",
        metavar="R",
        type=float,
        help="with --texts: how strongly weights hold to those merged as they are, in units of what layers read on "
        "average; default: 0.01",
    )
    parser.add_argument(
        "--widths",
        action="store_true",
        help="experimental: give the copy REFERENCE's widths: zeros where MODEL is narrower, the units that match "
        "least left out where it is wider",
    )
    parser.add_argument("--max-shard-size", default="5GB", help="default: 5GB")
    options = parser.parse_intermixed_args(list(arguments))
    shard = byte_count(options.max_shard_size, "--max-shard-size")
    if options.ridge is not None and options.texts is None:
        raise ConfigError("--ridge is given without --texts", "both, or neither", "add --texts FILE")
    if options.widths:
        return _fit(options, shard)
    if options.ratio is not None or options.texts is not None:
        return _zip(options, shard)
    with without_collector():
        from evomerge.cli.console import merge_progress
        from evomerge.export.aligned_model import align
        from evomerge.merge.alignment.orders import KINDS

    with merge_progress("aligning") as progress:
        found = align(
            options.reference,
            options.model,
            options.out,
            starts=options.starts,
            seed=options.seed,
            check=not options.no_check,
            max_shard_bytes=shard,
            progress=progress,
        )
    if found.moved:
        print(f"aligned: cosine of the weights {found.before:.4f} before, {found.after:.4f} after")
        print(f"in order: {'; '.join(KINDS[kind] for kind in KINDS if kind in found.free)}")
    else:
        print(f"nothing to align: in no other order are they nearer; cosine of the weights {found.before:.4f}")
    if found.difference is not None:
        print(f"outputs: the same but for {found.difference:.1e} of the largest, in float32")
    print(f"wrote {options.out}")
    return 0


def ratio_of(text: str) -> float | list[float]:
    """What ``--ratio`` says: a share, one for each layer, or those of a recipe of ``search_space=zipped``.

    Raises:
        ConfigError: none of these.
        RecipeError: a recipe that says nothing of shares.
    """
    try:
        shares = [float(word) for word in text.split(",")]
        return shares if "," in text else shares[0]
    except ValueError:
        pass
    from evomerge.cli.sources import read_recipe
    from evomerge.errors import ConfigError, RecipeError

    if not Path(text).exists():
        do = "--ratio 0.5, --ratio 0.2,0.5,0.8 or --ratio runs/zipped"
        raise ConfigError(f"--ratio is {text!r}", "a share from 0 to 1, one for each layer, a run or a recipe", do)
    entries = [own for own in read_recipe(text).slices if own.method == "fold"]
    found = {own.slice.layer: dict(own.parameters).get("ratio") for own in entries}
    known = {layer: value for layer, value in found.items() if layer is not None and isinstance(value, int | float)}
    if not known or sorted(known) != list(range(len(known))):
        raise RecipeError(f"--ratio {text}: it says no shares", "a run or a recipe of search_space=zipped")
    return [float(known[layer]) for layer in sorted(known)]


def _fit(options: argparse.Namespace, shard: int) -> int:
    """Write the copy in the reference's widths, and say what they are."""
    if options.ratio is not None or options.texts is not None:
        raise ConfigError("--widths is given with --ratio or --texts", "a copy, or a merge", "leave one of them out")
    with without_collector():
        from evomerge.export.fitted_widths import fit_widths

    found = fit_widths(options.reference, options.model, options.out, max_shard_bytes=shard)
    print("; ".join(f"{key}: {before} before, {after} after" for key, (before, after) in found.widths.items()))
    said = "the copy computes what the model does" if found.narrower else "units were left out: score it before merging"
    print(f"experimental: {said}")
    print(f"wrote {options.out}")
    return 0


def _zip(options: argparse.Namespace, shard: int) -> int:
    """Write a merge of both, and say how wide it is."""
    with without_collector():
        from evomerge.cli.console import merge_progress
        from evomerge.export.zipped_model import read_texts, zip_models

    ratio = 1.0 if options.ratio is None else ratio_of(options.ratio)
    texts = read_texts(options.texts) if options.texts is not None else ()
    given = {} if options.ridge is None else {"ridge": options.ridge}
    with merge_progress("aligning") as progress:
        found = zip_models(
            options.reference,
            options.model,
            options.out,
            ratio=ratio,
            texts=texts,
            **given,
            starts=options.starts,
            seed=options.seed,
            max_shard_bytes=shard,
            progress=progress,
        )
    print(f"aligned: cosine of the weights {found.before:.4f} before, {found.after:.4f} after")
    print(f"hidden units of a feed-forward layer: {found.width[0]:,} before, {found.width[1]:,} after")
    if len(set(found.widths)) > 1:
        print(f"by layer, without those that are zero: {', '.join(f'{width:,}' for width in found.widths)}")
    if found.tokens:
        print(f"least squares: {found.solved} weights, on {found.tokens:,} tokens")
    print(f"wrote {options.out}")
    return 0
