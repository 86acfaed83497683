"""``evomerge experts``: the experts of a mixture, merged into fewer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from evomerge.cli.verbs import verb_parser
from evomerge.errors import ConfigError
from evomerge.merge.experts.settings import METHODS, ROUTERS, SCOPES, check_settings
from evomerge.utils.imports import without_collector
from evomerge.utils.sizes import byte_count


def run(arguments: Sequence[str]) -> int:
    """Write the model with fewer experts, and say how many were sent what."""
    parser = verb_parser(
        "experts",
        epilog="M-SMoE (arXiv 2310.01334) and Sub-MoE (arXiv 2506.23266). OUT is a model like any other, with "
        "num_experts of its configuration changed: in a pool it goes with models of as many experts.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder or hub id of a mixture of experts")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must be new or empty")
    parser.add_argument(
        "--experts",
        metavar="N",
        type=float,
        help="experts of a layer that are left; on average, with --scope model",
    )
    parser.add_argument(
        "--texts",
        metavar="FILE",
        type=Path,
        help="texts that the experts are seen at work on, a text a line or JSON lines",
    )
    parser.add_argument(
        "--equal",
        metavar="FILE",
        type=Path,
        help="in place of --experts and --texts: experts that are equal become one, weighed by the counts in the "
        "evomerge_experts.json of a variant; what fitness=fewer_experts scores",
    )
    parser.add_argument(
        "--method", choices=tuple(METHODS), default="m_smoe", help="default: m_smoe; drop merges nothing"
    )
    parser.add_argument(
        "--router",
        choices=ROUTERS,
        default="mean",
        help="rows of the router: means by use (default), the most used expert's, or all of them as they are: then "
        "OUT has as many experts as before, some of them equal",
    )
    parser.add_argument(
        "--scope",
        choices=SCOPES,
        default="layer",
        help="the same number in each layer (default), or one threshold on use for the model, with --router kept",
    )
    parser.add_argument(
        "--align",
        action=argparse.BooleanOptionalAction,
        help="bring hidden units of a group into the order of its most used expert's first; default: with m_smoe",
    )
    parser.add_argument(
        "--rank", metavar="SHARE", type=float, default=1.0, help="of sub_moe, singular values kept; default: 1"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of sub_moe's k-means; default: 0")
    parser.add_argument("--max-shard-size", default="5GB", help="default: 5GB")
    options = parser.parse_intermixed_args(list(arguments))
    shard = byte_count(options.max_shard_size, "--max-shard-size")
    _check(options)
    with without_collector():
        from evomerge.export.fewer_experts import equal_once, fewer_experts
        from evomerge.export.zipped_model import read_texts

    if options.equal is not None:
        found = equal_once(options.model, options.out, options.equal, router=options.router, max_shard_bytes=shard)
    else:
        found = fewer_experts(
            options.model,
            options.out,
            options.experts,
            texts=read_texts(options.texts),
            method=options.method,
            router=options.router,
            scope=options.scope,
            align=options.align,
            rank=options.rank,
            seed=options.seed,
            max_shard_bytes=shard,
        )
    after = f"{found.after[0]}" if len(set(found.after)) == 1 else ", ".join(map(str, found.after))
    print(f"experts of a layer: {found.before} before, {after} after, seen on {found.tokens:,} tokens")
    for layer, groups in found.groups.items():
        total = max(sum(found.counts[layer]), 1)
        shown = (
            f"{'+'.join(map(str, own))} ({sum(found.counts[layer][e] for e in own) / total:.0%})" for own in groups
        )
        print(f"layer {layer}: {', '.join(shown)}")
    if options.router == "kept":
        print("the router is kept: experts of a group are equal, and the folder is as large as before")
    else:
        before, after_ = found.parameters
        print(f"parameters: {before:,} before, {after_:,} after")
    print(f"wrote {options.out}")
    return 0


_DEFAULTS = {"method": "m_smoe", "scope": "layer", "rank": 1.0, "seed": 0}


def _check(options: argparse.Namespace) -> None:
    """`ConfigError` for what can be said without a model, before torch is imported."""
    if options.equal is not None:
        given = [name for name in ("experts", "texts", "align") if getattr(options, name) is not None]
        given += [name for name, own in _DEFAULTS.items() if getattr(options, name) != own]
        if given:
            raise ConfigError(f"--equal and --{given[0]}", "one of them: equal experts are counted, not merged anew")
        if options.router == "kept":
            raise ConfigError("--equal and --router kept", "mean or dominant: then the folder is smaller")
        if not options.equal.exists():
            raise ConfigError(f"--equal {options.equal} is not there", "evomerge_experts.json of a variant")
        return
    for name in ("experts", "texts"):
        if getattr(options, name) is None:
            raise ConfigError(f"--{name} is not given", "--experts N and --texts FILE, or --equal FILE")
    if not options.texts.is_file():
        raise ConfigError(f"--texts {options.texts} is no file", "texts, or JSON lines with text")
    if options.align and options.method == "drop":
        raise ConfigError("--align is given with --method drop", "m_smoe or sub_moe: drop merges nothing")
    check_settings(options.experts, options.method, options.router, options.scope, options.rank, options.seed)
