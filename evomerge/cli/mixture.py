"""``evomerge mixture``: a mixture of experts, made of dense models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evomerge.cli.verbs import verb_parser
from evomerge.utils.imports import without_collector
from evomerge.utils.sizes import byte_count


def run(arguments: Sequence[str]) -> int:
    """Write the mixture of a recipe and say what it is."""
    parser = verb_parser(
        "mixture",
        epilog="RECIPE is mergekit-moe's: base_model, experts with source_model and positive_prompts, gate_mode. "
        "The base gives all but the feed-forward layers; those of the experts stand side by side.",
    )
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="file of mergekit-moe")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must be new or empty")
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of a random router and of noise on experts; default: 0"
    )
    parser.add_argument(
        "--allow-equal", action="store_true", help="let all experts be one model, to be trained on as a mixture"
    )
    parser.add_argument("--max-shard-size", default="5GB", help="default: 5GB")
    options = parser.parse_intermixed_args(list(arguments))
    shard = byte_count(options.max_shard_size, "--max-shard-size")
    from evomerge.mergekit.mixture_recipe import read_mixture
    from evomerge.utils.safe_yaml import read_text

    recipe = read_mixture(read_text(options.recipe), options.allow_equal)
    with without_collector():
        from evomerge.export.dense_mixture import dense_mixture

    found = dense_mixture(
        recipe, options.out, folder=options.recipe.absolute().parent, seed=options.seed, max_shard_bytes=shard
    )
    print(f"{found.kind}: {found.experts} experts in each of {found.layers} layers, {found.parameters:,} parameters")
    print(f"wrote {options.out}")
    return 0
