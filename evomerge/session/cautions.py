"""Settings that make a result hard to trust, or a search slower than it need be: said before it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from evomerge.config.construct import to_builtin
from evomerge.config.schema import Config
from evomerge.errors import ConfigError
from evomerge.evaluation.worker_builder import workers_of
from evomerge.genomes.arrays import ArraySpec
from evomerge.genomes.lineages import LineageSpec
from evomerge.genomes.perturbations import PerturbationSpec
from evomerge.objectives import MetricShare
from evomerge.protocols import Evaluator, Fitness
from evomerge.report.plain_console import errors
from evomerge.session.builders import phase_node
from evomerge.session.gene_budget import PER_GENE, free_genes
from evomerge.session.parts import Parts
from evomerge.session.refining import settled

if TYPE_CHECKING:
    from evomerge.session.memory import MemoryEstimate

_BOLD = "bold yellow"
_TRIAL = 50
"""Evaluations below which a search only shows that everything works."""


def _warn_of_validation(parts: Parts) -> None:
    """Finalists' scores stand beside those of the search, and of its baselines: they should count the same."""
    counted = [_counted(fitness) for fitness in (parts.fitness, parts.validation)]
    if all(counted) and counted[0] != counted[1]:
        own, others = (", ".join(sorted(each)) for each in counted)
        _warn(
            f"the search counts {own} and validation {others}: scores of finalists cannot be compared with those of "
            "the search and its baselines; give validation.tasks the metrics of fitness.tasks",
            _BOLD,
        )


def _counted(fitness: Fitness | None) -> set[str]:
    """The metrics that a fitness counts, whatever the task; none where it does not say."""
    shares: Callable[[], Sequence[MetricShare]] = getattr(fitness, "shares", lambda: ())
    return {f"{share.transform} {share.metric.rpartition('/')[2]}".strip() for share in shares()}


def warn_settings(
    config: Config, parts: Parts, memory: MemoryEstimate | None = None, *, tested_apart: bool = False
) -> None:
    """Warn of settings that make the result hard to trust, or that this machine has too little memory for.

    Args:
        config: what is asked.
        parts: built from it.
        memory: what the workers take, where that was estimated.
        tested_apart: whether another run tests the winner, on items of their own.

    Raises:
        ConfigError: all held-out items are items of the search, and nobody has said that this is meant.
    """
    for caution in parts.fitness.cautions():
        _warn(caution, _BOLD)
    for caution in parts.cheap.cautions() if parts.cheap is not None else ():
        _warn(f"cheap: {caution}", _BOLD)
    if parts.pool is not None:
        from evomerge.models.chat_templates import template_caution

        if template := template_caution(parts.pool):
            _warn(template)
    _check_overlap(config, parts)
    known = {document[0] for document in _documents(parts.fitness)} if parts.validation is not None else set()
    again = [document[0] in known for document in _documents(parts.validation)]
    if any(again):
        _warn(f"{sum(again) / len(again):.0%} of the validation items are items of the search too", _BOLD)
    _warn_of_validation(parts)
    if memory is not None:
        from evomerge.session.memory import memory_caution

        caution = memory_caution(memory)
        if caution:
            _warn(caution, _BOLD)
    _warn_of_forwards(config, parts)
    _warn_of_genes(config, parts)
    _warn_of_refining(config, parts)
    slots, ordered = parts.evaluator.slots, config.search.ordered
    places = "workers" if slots == workers_of(parts.evaluator) else "places at workers"
    if ordered and config.search.in_flight is None and slots > 1 and getattr(parts.strategy, "asynchronous", False):
        _warn(
            f"in order, the strategy's own batch is evaluated at a time, which may leave some of "
            f"{slots} {places} idle; set search.in_flight={slots}, or search.ordered=false"
        )
    popsize = getattr(getattr(parts.strategy, "inner", parts.strategy), "popsize", slots)
    if not ordered and popsize < slots:
        _warn(
            f"{slots} {places} and a generation of {popsize}: most of what arrives was drawn {slots // popsize} moves "
            f"before; set strategy.popsize={slots}"
        )
    if config.held_out is None and not tested_apart:
        _warn(
            "there is no held-out fitness: the best score will be that of the items it was "
            f"chosen on; set one with {_held_out_words(config)}"
        )


def _warn_of_forwards(config: Config, parts: Parts) -> None:
    """Ways of running tasks that were asked for and are for decoders."""
    if parts.pool is None or not parts.pool.layout.encoder:
        return
    for place in ("fitness", "cheap", "validation", "held_out"):
        for key, node in _nodes(to_builtin(getattr(config, place)), place):
            for name, mode in (("forwards", "shared"), ("generation", "continuous")):
                if node.get(name) == mode:
                    _warn(f"{key}.{name}={mode} is for decoders: the pool's encoder-decoders run in lm-eval's batches")


def _nodes(node: object, key: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    """A fitness of the configuration, or those in its parts, with their keys."""
    if not isinstance(node, Mapping):
        return
    yield key, node
    within = node.get("parts")
    for name, part in within.items() if isinstance(within, Mapping) else ():
        yield from _nodes(part, f"{key}.parts.{name}")


_WORDS = {
    "text_to_image": "fitness@held_out=text_to_image, with held_out.prompts, and a held_out.seed that no image has yet",
    "files": "fitness@held_out=files held_out.prompts=FILE",
    "unlabelled": "fitness@held_out=lm_eval held_out.tasks=[...]",
    "several": "fitness@held_out=NAME, with keys of its own under held_out",
}


def _held_out_words(config: Config) -> str:
    """What makes a held-out fitness of the kind that the search has."""
    target = str((to_builtin(config.fitness) or {}).get("_target_", ""))
    module = target.split(".")[1] if target.startswith("fitness.") else "lm_eval"
    name = "lm_eval" if module == "lm_eval_tasks" else module
    return _WORDS.get(name, f"fitness@held_out={name} held_out.tasks=[...]")


def warn_of_places(evaluator: Evaluator) -> None:
    """Warn where workers have no place: a cluster is asked, which may take seconds; a search would wait for nodes."""
    unplaced: Callable[[], str] = getattr(evaluator, "unplaced", str)
    if caution := unplaced():
        _warn(caution, _BOLD)


def _warn_of_refining(config: Config, parts: Parts) -> None:
    """Say that no phase is long enough for the Gaussian process that is to end it."""
    after = settled(config)
    longest = max(phase.evaluations // max(1, len(phase.preferences)) for phase in parts.phases)
    if after is not None and after >= longest:
        within = "there are" if len(parts.phases) == 1 else "the longest phase has"
        _warn(
            f"search.refine.after is {after}, and {within} {longest:,} evaluations: no Gaussian process proposes any; "
            "set search.refine.after lower, or null"
        )


def _warn_of_genes(config: Config, parts: Parts) -> None:
    """Say of every phase that it has more genes than its strategy can learn, unless it learns none or is a trial."""
    for phase, space, strategy in zip(parts.phases, parts.spaces, parts.strategies, strict=True):
        genes, times = free_genes(space.spec), max(1, len(phase.preferences))
        budget = phase.evaluations // times
        # Together, rather than learned one by one.
        inherited = isinstance(space.spec, ArraySpec | LineageSpec | PerturbationSpec)
        if inherited or budget < _TRIAL or genes * PER_GENE <= budget or not getattr(strategy, "learns", True):
            continue
        several = len(parts.phases) > 1
        fewer = _fewer_genes(config, phase.name, parts.pool.info.layers if parts.pool is not None else 0)
        more = f"phases.{phase.name}.evaluations" if several else "search.evaluations"
        who = f"phase {phase.name} has " if several else ""
        each = f" of each of {times} preferences" if times > 1 else ""
        _warn(
            f"{who}{genes:,} genes for {budget:,} evaluations{each}, and strategies learn little from fewer than "
            f"{PER_GENE} a gene; set {fewer}{more}={genes * PER_GENE * times}"
        )


def _fewer_genes(config: Config, phase: str, layers: int) -> str:
    """What of the search space's own keys makes fewer genes; empty where it has none of these."""
    node, key = phase_node(config, phase, "search_space")
    space = to_builtin(node)
    if not isinstance(space, Mapping):
        return ""
    found = []
    group, block = space.get("layer_group"), space.get("block")
    whole = space.get("interpolation", "none") != "none"  # then layers have no groups
    if group is not None and group != "all" and not whole and (isinstance(group, str) or group < 8):
        found.append(f"{key}.layer_group={8 if layers > 8 else 'all'}")
    if space.get("components", "all") not in ("all", None):
        found.append(f"{key}.components=all")
    if isinstance(block, int) and block < 4 <= layers:
        found.append(f"{key}.block=4")
    if space.get("scales", "none") != "none":
        found.append(f"{key}.scales=none")
    return f"{' or '.join(found)}, or " if found else ""


def _check_overlap(config: Config, parts: Parts) -> None:
    """Compare the items of both fitnesses by their content, where both can name it, and keep the share."""
    held_out = _documents(parts.held_out)
    chosen_by = parts.fitness, parts.validation, parts.cheap
    search = [document for fitness in chosen_by for document in _documents(fitness)] if held_out else []
    if not search or not held_out:
        return
    asked, contents = ({document[of] for document in search} for of in (0, 1))
    same = [document[0] in asked for document in held_out]
    same_content = [document[1] in contents for document in held_out]
    parts.overlap = sum(map(any, zip(same, same_content, strict=True))) / len(held_out)
    if all(same) and not config.search.allow_overlap:
        raise ConfigError(
            f"all {len(held_out):,} held-out items are items of the search",
            "others: on these the winner is the luckiest",
            "choose other tasks, or other documents with limit; search.allow_overlap=true if it is meant",
        )
    if any(same):
        share = sum(same) / len(held_out)
        _warn(f"{share:.0%} of the held-out items are items of the search too: the winner was chosen by them", _BOLD)
    rewritten = sum(content and not equal for content, equal in zip(same_content, same, strict=True)) / len(held_out)
    if rewritten:
        _warn(f"{rewritten:.0%} of the held-out items are documents of the search, asked in other words", _BOLD)


def _documents(fitness: object) -> Sequence[tuple[str, str]]:
    """Of each item the hash of what is asked and scored, and that of its document; none where a fitness cannot say."""
    documents: Callable[[], Sequence[tuple[str, str]]] | None = getattr(fitness, "documents", None)
    return documents() if documents is not None else ()


def _warn(text: str, style: str = "yellow") -> None:
    errors.print(Text.assemble(("warning:", style), f" {text}"))
