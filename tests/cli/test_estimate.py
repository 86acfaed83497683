"""What `evomerge validate` says a search takes, against the pool's files and items counted by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from evomerge.cli.estimate import Estimate, estimate, rows
from evomerge.cli.main import main
from evomerge.config.compose import compose_config
from evomerge.models import arithmetic
from evomerge.session.memory import MemoryEstimate, estimate_memory, memory_caution
from evomerge.session.parts import build_parts
from evomerge.utils.memory import MemoryPart
from evomerge.utils.sizes import size_text


def found(quick_search: list[str], *overrides: str) -> Estimate:
    config: Any = compose_config([*quick_search, *overrides])
    parts = build_parts(config)
    memory = estimate_memory(config, parts)
    assert memory is not None
    return estimate(config, parts, memory)


def part(own: Estimate, name: str) -> MemoryPart:
    return next(each for each in own.memory.parts if each.name == name)


def test_memory_and_disk_are_those_of_the_files(quick_search: list[str], quick_pool: Path) -> None:
    from safetensors import safe_open

    own = found(quick_search, "evaluator.device=cpu")
    files = [quick_pool / name / "model.safetensors" for name in ("base", "math", "lang")]
    with safe_open(files[0], "np") as tensors:
        numbers = sum(tensors.get_tensor(name).size for name in tensors.keys())  # noqa: SIM118 - not a mapping
    assert part(own, "sources").nbytes == sum(file.stat().st_size for file in files)
    assert part(own, "model").nbytes == own.written == 4 * numbers
    assert part(own, "cache").nbytes == numbers
    assert part(own, "process").nbytes > 1e8
    assert own.memory.machine() - own.memory.machine(mapped=False) == part(own, "sources").nbytes
    there = found(quick_search, "evaluator.device=cuda", "evaluator.gpu=24GB").memory
    assert {each.name for each in there.at("device")} >= {"model", "cache", "sources", "forwards"}
    assert {each.name for each in there.at("host")} >= {"process", "sources"}
    half = found(quick_search, "pool.dtype=bfloat16", "evaluator.device=cpu")
    assert part(half, "model").nbytes == 2 * numbers


def test_what_is_noted_of_the_sources_is_that_of_the_methods(quick_search: list[str]) -> None:
    own = found(quick_search, "search_space=ties", "evaluator.device=cpu")
    numbers = part(own, "model").nbytes // 4
    orders = part(own, "statistics")
    assert 4 * 2 * numbers <= orders.nbytes <= 4 * 2 * numbers + 2 * 24_000 * 100  # two task vectors, and histograms
    assert "for ties" in orders.text
    assert "statistics" not in {each.name for each in found(quick_search, "search_space=linear").memory.parts}
    assert "statistics" not in {each.name for each in found(quick_search, "search_space=dare_ties").memory.parts}
    whole = found(quick_search, "search_space=ties", "search_space.method=della", "evaluator.device=cpu")
    assert part(whole, "scratch").nbytes > 4 * 4 * 1000
    assert part(whole, "scratch").during == "merging"


def test_what_methods_make_of_the_sources_is_kept(quick_search: list[str]) -> None:
    words = ["search_space=parameter", "evaluator.device=cpu"]
    one = found(quick_search, *words, "search_space.method=iso_c")
    made = part(one, "derived")
    assert made.nbytes == part(one, "model").nbytes  # both are float32
    assert "for iso_c" in made.text
    assert part(one, "scratch").nbytes >= 8 * 8 * 58 * 96  # the embeddings, while they are decomposed
    # Of two models, each by itself, and their sum for candidates of equal weights, as the first is.
    two = found(quick_search, *words, "search_space.method=tsv_m")
    assert part(two, "derived").nbytes == 3 * made.nbytes


def test_logits_grow_with_the_batch(quick_search: list[str]) -> None:
    one, many = (
        part(found(quick_search, f"fitness.batch_size={size}", "held_out=null"), "forwards") for size in (1, 8)
    )
    assert many.nbytes == 8 * one.nbytes
    assert many.key == "fitness.batch_size"


def test_workers_share_the_sources_and_nothing_else(quick_search: list[str]) -> None:
    one = found(quick_search, "evaluator.device=cpu").memory
    sources, process = (next(p.nbytes for p in one.parts if p.name == name) for name in ("sources", "process"))
    each = one.worker() - sources
    assert one.machine() == each + sources
    assert replace(one, workers=3, apart=True).machine() == 3 * each + sources + process


@pytest.mark.parametrize(
    ("parts", "workers", "says"),
    [
        ([MemoryPart("forwards", 90, "", "fitness.batch_size", during="scoring")], 1, "forwards take 90 B, lower fit"),
        ([MemoryPart("model", 40, "")], 3, "each of 3 workers takes 40 B, lower evaluator.workers"),
        (
            [MemoryPart("cache", 10, "", "evaluator.cache", most=200)],
            1,
            "what cache may grow to, the search takes 200 B",
        ),
        ([MemoryPart("model", 40, ""), MemoryPart("sources", 70, "", per_machine=True)], 1, "read from the disk again"),
        ([MemoryPart("model", 40, ""), MemoryPart("sources", 30, "", per_machine=True)], 1, ""),
        ([MemoryPart("forwards", 60, "", during="scoring"), MemoryPart("scratch", 60, "", during="merging")], 1, ""),
    ],
)
def test_too_little_memory_is_said_with_what_to_change(parts: list[MemoryPart], workers: int, says: str) -> None:
    said = memory_caution(MemoryEstimate(tuple(parts), workers, on_host=True, host=80))
    assert says in said
    assert bool(says) == bool(said)


def test_work_is_that_of_the_items(quick_search: list[str], quick_pool: Path) -> None:
    own = found(quick_search)
    files = [quick_pool / "tasks" / f"demo_{name}.jsonl" for name in ("e_maths", "j_language", "j_maths")]
    items = sum(len(file.read_text().splitlines()) for file in files)
    assert own.work == {"documents": items, "texts": items, "written": 0}
    assert own.batch == 64
    assert own.forwards == -(-items // 64)
    assert own.evaluations == 12
    assert (own.compared, own.held_out) == (4, 5)  # three models and their average; then the winner too
    limited = found(quick_search, "fitness.limit=10", "search.baselines=false", "held_out=null")
    assert limited.work == {"documents": 30, "texts": 30, "written": 0}
    assert limited.forwards == 1
    assert (limited.compared, limited.finalists, limited.held_out) == (0, 0, 0)


def test_generated_tokens_and_choices_are_counted(quick_search: list[str], quick_pool: Path) -> None:
    data = f"dataset_path: json, dataset_kwargs: {{data_files: {{test: {quick_pool}/tasks/demo_e_maths.jsonl}}}}"
    common = f"{data}, test_split: test, doc_to_text: '{{{{text}}}}'"
    writes = f"{{task: writes, {common}, output_type: generate_until, doc_to_target: a}}"
    chooses = f"{{task: chooses, {common}, output_type: multiple_choice, doc_to_target: 0, doc_to_choice: [a, b, c]}}"
    tasks = f"fitness.tasks=[{{task: {writes}, limit: 7}}, {{task: {chooses}}}]"
    own = found(quick_search, tasks, "fitness.limit=5", "fitness.gen_kwargs={max_gen_toks: 100}")
    assert own.work == {"documents": 7 + 5, "texts": 7 + 3 * 5, "written": 700}
    assert own.forwards == 1 + 11  # 22 texts and 700 tokens, 64 at a time


def test_the_rows_say_it(quick_search: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", *quick_search, "evaluator.device=cpu", "fitness.limit=10"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "30 items, 30 texts read: up to 1 forwards of 64" in text
    assert "12 times that, 12 forwards, by 1 worker; and once for each of 4 models to compare with; " in text
    assert "; 5 models on held-out items" in text
    assert "weights, and slices being replaced" in text
    assert "on a machine with 1 worker" in text
    own = found(quick_search)
    assert [what for what, _ in rows(own)] == ["memory", "disk", "a candidate", "time"]
    half = found(quick_search, "pool.dtype=bfloat16", "evaluator.device=cpu")
    assert half.arithmetic in (arithmetic.NATIVE, arithmetic.FLOAT32)
    assert ("arithmetic", half.arithmetic) in rows(half)


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (14.5e9, "14.5 GB"), (2e12, "2 TB")]
)
def test_sizes(nbytes: float, text: str) -> None:
    assert size_text(nbytes) == text


MANY = "genes for {} evaluations, and strategies learn little from fewer than 10 a gene"


def said(words: list[str], capsys: pytest.CaptureFixture[str], *changes: str) -> str:
    """What `validate` warns of, of a search without its own strategy and budget."""
    kept = [word for word in words if not word.startswith(("search.evaluations", "strategy"))]
    assert main(["validate", *kept, *changes]) == 0
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("budget", "warned"), [(60, True), (200, True), (799, True), (800, False), (49, False)])
def test_more_genes_than_can_be_learned_are_said(
    quick_search: list[str], capsys: pytest.CaptureFixture[str], budget: int, warned: bool
) -> None:
    """Twenty slices of the demo's models, with a weight and a density of two sources each."""
    fine = ["search_space=ties", "search_space.layer_group=layer", "search_space.components=each"]
    text = said(quick_search, capsys, *fine, f"search.evaluations={budget}")
    assert (f"80 {MANY.format(budget)}" in text) == warned
    assert ("or search.evaluations=800" in text) == warned


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (["data_flow", "search_space.repeats=9"], "set search_space.block=4 or search_space.scales=none, or search.ev"),
        (["ties", "search_space.layer_group=1"], "set search_space.layer_group=all, or search.evaluations=2"),
        (["joint"], "set search_space.layer_group=all or search_space.scales=none, or search.ev"),
        (["by_layer"], "set search_space.layer_group=all or search_space.components=all, or search.evaluations=160"),
    ],
)
def test_fewer_genes_are_advised_by_keys_that_the_space_has(
    quick_search: list[str], capsys: pytest.CaptureFixture[str], space: list[str], says: str
) -> None:
    strategy = "strategy=catcma"
    text = said(quick_search, capsys, f"search_space={space[0]}", *space[1:], strategy, "search.evaluations=50")
    assert says in text


@pytest.mark.parametrize("strategy", ["random", "qmc"])
def test_strategies_that_learn_nothing_need_no_evaluations_for_it(
    quick_search: list[str], capsys: pytest.CaptureFixture[str], strategy: str
) -> None:
    assert "genes for" not in said(quick_search, capsys, f"strategy={strategy}", "search.evaluations=50")
    assert "genes for" in said(quick_search, capsys, "strategy=de", "search.evaluations=50")


def test_phases_are_counted_by_themselves(quick_search: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=demo_hybrid", *quick_search[1:]]
    text = said(words, capsys, "search.evaluations=400", "phases.path.evaluations=100")
    assert "phase path has 33 genes for 100 evaluations" in text
    assert "set phases.path.search_space.block=4" in text
    assert "phases.path.evaluations=330" in text
    assert "phase merge" not in text


def test_a_space_that_fits_the_budget_is_shown_and_kept(
    quick_search: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [word for word in quick_search if not word.startswith(("search.evaluations", "strategy"))]
    words += ["search_space=ties", "search.evaluations=240"]
    assert main(["validate", *words]) == 0
    out, err = capsys.readouterr()
    text = " ".join(out.replace("│", " ").split())
    assert "chosen by the evaluations: search_space.layer_group=2, search_space.components=all" in text
    assert "genes for" not in err
    run = tmp_path / "run"
    small = ["search.evaluations=8", "search.baselines=false", "fitness.limit=4", "held_out.limit=4"]
    assert main(["search", *words, *small, f"run_dir='{run}'"]) == 0
    for more in (0, 4):  # as it was, also with a budget that would allow for more genes
        kept: Any = OmegaConf.load(run / "config.yaml")
        assert (kept.search_space.layer_group, kept.search_space.components) == ("all", "all")
        assert main(["resume", str(run), f"search.evaluations={8 + more}", "-q"]) == 0
