"""Benchmarks that print ratios measured in one run: ``python scripts/benchmark.py merge``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    one = benchmarks.add_parser("overhead", help="what a candidate of the demo costs beyond its model calls")
    one.add_argument("--folder", type=Path, default=Path("demo_pool"), help="of the demo's models")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--candidates", type=int, default=30)
    one.add_argument("--threads", type=int)
    one.add_argument("overrides", nargs="*", help="of the demo's configuration: search_space=ties")
    two = benchmarks.add_parser("merge", help="bytes moved per second against a plain copy; seconds against mergekit")
    two.add_argument("--sizes", nargs="+", default=["40M", "500M"], choices=("40M", "500M"))
    two.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16", "float16"))
    two.add_argument("--device", default="cpu")
    two.add_argument("--threads", type=int)
    two.add_argument("--repeats", type=int, default=15)
    two.add_argument("--mergekit", action="store_true", help="also run mergekit-yaml, where it is installed")
    three = benchmarks.add_parser("cache", help="seconds per candidate with and without each tier of the layer cache")
    three.add_argument("--candidates", type=int, default=40)
    three.add_argument("--threads", type=int)
    three.add_argument("--method", default="ties")
    four = benchmarks.add_parser("loop", help="candidates per second around a fitness that costs nothing")
    four.add_argument("--evaluations", type=int, default=5000)
    four.add_argument("--layers", type=int, default=6)
    four.add_argument("--items", type=int, default=0, help="per-item scores of each evaluation")
    four.add_argument("--sync", choices=("every", "interval"), default="interval", help="of the ledger")
    four.add_argument("--repeats", type=int, default=3)
    four.add_argument("--evaluator", choices=("local", "ray"), default="local", help="ray: two workers")
    four.add_argument("--events", type=int, default=0, help="also append so many events to a ledger and open it")
    five = benchmarks.add_parser("paths", help="seconds and bytes to move to another data flow path")
    five.add_argument("--layers", type=int, default=64)
    five.add_argument("--switches", type=int, default=50)
    five.add_argument("--threads", type=int)
    six = benchmarks.add_parser("folding", help="what folding the scales of paths changes on the demo's models")
    six.add_argument("--folder", type=Path, default=Path("demo_pool"), help="of the demo's models")
    six.add_argument("--seed", type=int, default=0)
    six.add_argument("--paths", type=int, default=20)
    six.add_argument("--threads", type=int)
    six.add_argument("overrides", nargs="*", help="of the configuration: search_space.negative_scales=true")
    seven = benchmarks.add_parser("forwards", help="log-likelihoods with shared tokens, exact, and plain forwards")
    seven.add_argument("--cases", nargs="+", default=["peer", "preamble", "vocabulary"])
    seven.add_argument("--dtypes", nargs="+", default=["float32"], choices=("float32", "bfloat16"))
    seven.add_argument("--threads", type=int)
    seven.add_argument("--repeats", type=int, default=3)
    seven.add_argument(
        "--states",
        choices=("depth", "searches"),
        help="what hidden states save: by depth, or of searches over the demo's",
    )
    seven.add_argument("--folder", type=Path, help="of the demo's models, for searches; trained quickly otherwise")
    seven.add_argument("--evaluations", type=int, default=150, help="of each search")
    seven.add_argument("--limit", type=int, default=50, help="items of a task, for searches")
    seven.add_argument("overrides", nargs="*", help="of the searches' configuration")
    eight = benchmarks.add_parser("generation", help="greedy texts in batches, after shared prompts, and continuously")
    eight.add_argument("--cases", nargs="+", default=["small", "peer"])
    eight.add_argument("--prompts", type=int, default=64)
    eight.add_argument("--batch-size", type=int, default=16)
    eight.add_argument("--threads", type=int)
    eight.add_argument("--repeats", type=int, default=3)
    nine = benchmarks.add_parser("adapters", help="vLLM: candidates that are adapters at once, against merged ones")
    nine.add_argument("--cases", nargs="+", default=["small", "peer"])
    nine.add_argument("--prompts", type=int, nargs="+", default=[2, 16], help="that a candidate goes on with")
    nine.add_argument("--tokens", type=int, default=16)
    nine.add_argument("--threads", type=int)
    nine.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.benchmark == "overhead":
        from scripts.benchmark_overhead import overhead

        overhead(options.folder, options.seed, options.candidates, options.threads, options.overrides)
    elif options.benchmark == "merge":
        from scripts.benchmark_merge import merge

        merge(options.sizes, options.dtypes, options.device, options.threads, options.repeats, options.mergekit)
    elif options.benchmark == "loop":
        from scripts.benchmark_loop import ledger, loop

        loop(options.evaluations, options.layers, options.items, options.sync, options.repeats, options.evaluator)
        if options.events:
            ledger(options.events)
    elif options.benchmark == "folding":
        from scripts.benchmark_folding import folding

        folding(options.folder, options.seed, options.paths, options.threads, options.overrides)
    elif options.benchmark == "paths":
        from scripts.benchmark_paths import paths

        paths(options.layers, options.switches, options.threads)
    elif options.benchmark == "forwards" and options.states == "depth":
        from scripts.benchmark_states import depths

        depths(options.cases, options.dtypes, options.threads, options.repeats)
    elif options.benchmark == "forwards" and options.states == "searches":
        from scripts.benchmark_states import searches

        searches(options.evaluations, options.limit, options.folder, options.overrides)
    elif options.benchmark == "generation":
        from scripts.benchmark_generation import generation

        generation(options.cases, options.prompts, options.batch_size, options.threads, options.repeats)
    elif options.benchmark == "adapters":
        from scripts.benchmark_together import together

        together(options.cases, options.prompts, options.tokens, options.threads, options.repeats)
    elif options.benchmark == "forwards":
        from scripts.benchmark_forwards import forwards

        forwards(options.cases, options.dtypes, options.threads, options.repeats)
    else:
        from scripts.benchmark_cache import cache

        cache(options.candidates, options.threads, options.method)


if __name__ == "__main__":
    main()
