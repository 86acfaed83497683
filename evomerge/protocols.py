"""The interfaces between stages. Implementations are found through Hydra's `_target_` or the factory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from evomerge.candidate import Candidate, Evaluation, Items, Part, Responses, Split
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.recipes.recipe import Recipe

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel
from evomerge.objectives import Objective


@dataclass(frozen=True)
class Scores:
    """What a fitness says of one model.

    Attributes:
        objectives: by name; of a part of the items, those of these items alone.
        metrics: ``task/metric`` -> value, exactly what the stock tool prints.
        items: ``task/metric`` -> per-item values in document order; NaN where an item was not run.
        seconds: ``model`` (time inside model calls) and ``other``.
        responses: by task what the model answered to its first items, in document order; empty texts for those that
            were not run.
        tokens: how many log-likelihoods ``run``, how many ``stock`` lm-eval would run for them, what ``hidden`` states
            saved of those run, as whole passes through the model; how often batches were ``halved`` since memory ran
            out, where they were.
    """

    objectives: Mapping[str, float]
    metrics: Mapping[str, float] = field(default_factory=dict)
    items: Items = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    responses: Responses = field(default_factory=dict)
    tokens: Mapping[str, float] = field(default_factory=dict)


class Fitness(Protocol):
    """Scores a model on fixed items. Constructed from its config alone; `prepare` comes before `run`.

    One that has a method ``shares() -> Sequence[MetricShare]`` says what each of its metrics counts in the objectives
    and which of its values are better: reports and paired tests then weigh the metrics as the search does. `check`
    comes before.

    One that gives responses and has an attribute ``keep_responses`` that is true has those of every candidate kept; an
    attribute ``zero_hint`` says what to do where a model scores 0 on every item.

    One that has a method ``items() -> Mapping[str, int]`` says how many items each task has: a search may then score
    candidates on some of them first. `check` comes before.

    One that has a method ``documents() -> frozenset[str]`` gives a hash of the content of every item: held-out items
    that are the search's own are found by them.

    One that has a method ``check_tokenizer(load: Callable[[], Any]) -> None`` raises `FitnessError` where the tokenizer
    that ``load()`` gives lacks what it needs, before a model is loaded.

    One with an attribute ``reads`` (``texts``, ``images`` or their ``masks``) is refused for models of another kind;
    ``check_model(config: Any, folder: str)`` raises `FitnessError` for a configuration that cannot be scored, likewise.

    One that has a method ``batch_norms(model: LoadedModel) -> Mapping[str, torch.Tensor]`` gives, by the names of the
    module's buffers, statistics that its batch norms are to have in place of merged ones; nothing for a model without.
    The search's is asked of every merged model before it is scored, on whatever items, and of the winner when it is
    exported; `prepare` comes before.

    One that has a method ``check_labels(labels: Callable[[str], Mapping[int, str]]) -> None`` raises `FitnessError`
    where its items have labels that a head does not: ``labels(source)`` is a source's ``id2label``, that of the model
    for an empty name.

    One that has a method ``check_encoder(folder: str, config: Any) -> None`` raises `FitnessError` where it cannot use
    what sentence-transformers' files in a folder, empty where there are none, say; `check_tokenizer` comes before. One
    that has a method ``fixed_share() -> float`` says what share of a candidate's forwards any of its items asks for.

    One that scores in another way than its stock tool may have a method ``apart(model: LoadedModel) -> Mapping[str,
    float]`` that scores in both and says how far they are apart: it is asked of the winner. `prepare` comes before.

    One that compares with models of the pool has two methods: ``references(pool: PoolInfo) -> Sequence[str]`` names
    them in the order in which it wants to see them, and raises `FitnessError` for one that the pool does not have;
    after `prepare`, ``refer(model: LoadedModel, name: str) -> None`` is called for each, with the worker's model being
    that one. `references` comes before `prepare`.

    One that scores models with a switch, or heads of their own where its attribute ``switch_key`` is ``head``, has a
    method ``switches() -> Sequence[tuple[str, str | None]]``, of each of its
    tasks the source whose switch is on, and ``run_switched(switch: Callable[[str], LoadedModel], part: Part | None =
    None) -> Scores``: ``switch(source)`` gives the model for a source's tasks, and changes the one given before.

    One whose scores people give has a method ``rating() -> RatingRules`` that says what they are asked, and a `run`
    that gives what the model wrote as responses, by the names in `RatingRules.counts`, and no objective of theirs: a
    search lays that out and waits for their files. `check` comes before.

    One that scores several models in one module at once has a method ``run_several(model: LoadedModel, several:
    Several, part: Part | None = None) -> Sequence[Scores | FitnessError]``: of each its scores, or why it has none.
    Others are asked to `run` one after the other. One that scores several adapters of one engine at once has a method
    ``run_together(models: Sequence[LoadedModel], parts: Sequence[Part | None]) -> Sequence[Scores | Exception]``: what
    `run` gives each of the models, whose `LoadedModel.adapter` differ, or raises for it.

    One that has a method ``memory(model: ModelOutline) -> Sequence[MemoryPart]`` says what its forwards take beside the
    model's weights: `evomerge validate` adds it to the rest. `check` comes before.
    """

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What a search optimises, in order."""

    def check(self) -> None:
        """Raise `FitnessError` for all that can be seen without a model: unknown tasks and metrics."""

    def cautions(self) -> Sequence[str]:
        """What makes a search on these items hard to trust, a line each; `check` comes before."""

    def prepare(self, model: LoadedModel) -> None:
        """Build and tokenise the items once, for this model's tokenizer, dtype and device."""

    def run(self, model: LoadedModel, part: Part | None = None) -> Scores:
        """Score the model on some items, or on all. `FitnessError` on non-finite scores."""

    def fingerprint(self) -> str:
        """Hash of items, prompts, tokens, dtype, batch size and versions; `prepare` comes before."""


@dataclass(frozen=True)
class Estimate:
    """What all items of a fitness would give a model, told from some of them.

    Attributes:
        value: of an objective, in the user's own direction.
        error: its standard error; 0 where all items were scored.
    """

    value: float
    error: float


class Estimator(Protocol):
    """Tells from the values of some items what all would give. Deterministic: the same knowledge, the same estimates.

    Constructed as ``Estimator(shares, objectives, **config)``: what each metric counts, and the objectives.

    One that has a method ``estimate_each(several: Sequence[Items]) -> Sequence[Mapping[str, Estimate]]`` says of
    several models at once what `estimate` says of each.
    """

    def fit(self, known: Sequence[Items]) -> None:
        """Learn what the items are like from the values of models: the pool's own first, then candidates as they were
        told; NaN where an item was not run. Each call replaces what was learnt before."""

    def order(self, counts: Mapping[str, int]) -> Mapping[str, Sequence[int]] | None:
        """By task its places (all of `counts`), those that tell most first; ``None`` for no preference. `fit` to the
        pool's models comes before; half of a candidate's items are the first of these from then on, half are drawn."""

    def estimate(self, items: Items) -> Mapping[str, Estimate]:
        """By objective; every item has a value or NaN. `fit` comes before."""

    def difference(self, items: Items, other: Items) -> Mapping[str, Estimate]:
        """By objective how much more the first gets than the other, from the items that both have, item by item.

        It knows nothing but these, whatever was fitted.
        """

    def by_item(self, items: Items, at: Items) -> Mapping[str, Items]:
        """By objective what each item adds: by task (or metric) values, NaN where an item was not run, of which the
        means, summed, are the objective of the items that were run.

        Where the logarithm of a mean counts, its tangent at the mean that the metric has in `at`. It knows nothing but
        these, whatever was fitted.
        """


@dataclass(frozen=True)
class CalibrationItem:
    """A text that statistics of data are made on.

    Attributes:
        text: what a model reads.
        answer: what follows it, whose likelihood counts; empty where that of the whole text does.
        file: that it is from, for messages; empty where it is from none.
    """

    text: str
    answer: str = ""
    file: str = field(default="", compare=False)


@dataclass(frozen=True)
class CalibrationTensors:
    """What a model that reads no text is given, images say.

    Attributes:
        tensors: one item's arrays, by the names of the arguments that the model is called with.
        label: the right class; ``None`` where it is not known.
    """

    tensors: Mapping[str, NDArray[Any]]
    label: int | None = None


class CalibrationItems(Protocol):
    """Gives the items that the pool's models are calibrated on. Constructed from its config alone."""

    def check(self) -> None:
        """Raise `FitnessError` for all that can be seen without a model."""

    def items(self, model: str) -> Sequence[CalibrationItem] | Sequence[CalibrationTensors]:
        """The items of one model, always the same in the same order; `check` comes before."""

    def documents(self) -> Sequence[tuple[str, str]]:
        """For each item the hashes of what is asked and of its document, as fitnesses have them; likewise."""


class SearchSpace(Protocol):
    """Turns genomes into recipes. Constructed with the pool's info and the method declarations.

    One with an attribute ``starts_as_it_is`` that is true has its start, `spec.initial`, evaluated before a strategy
    proposes anything. An attribute ``left_out`` names genes that it would have, were their slices not equal in all
    models: genomes of runs that had them are read without.

    One with an attribute ``baselines``, recipes by name, has its winners compared with these instead of the pool's
    models and their average. An attribute ``starts``, genomes by name, says where it is good to begin: strategies are
    told of all of them before they propose anything, of those that are baselines what these scored, and those that
    begin at one point begin at the best.

    One that has a method ``active(genome) -> Collection[str]`` names the genes that the genome's recipe depends on, or
    would were there one: strategies then learn from no other.
    """

    @property
    def spec(self) -> GenomeSpec:
        """The genes."""

    def decode(self, genome: Genome) -> Recipe:
        """The genome's recipe: a pure function. `InfeasibleError` with the reason when there is none."""


@dataclass(frozen=True)
class Proposal:
    """A genome that a strategy wants evaluated."""

    genome: Genome
    parents: tuple[int, ...] = ()


class Strategy(Protocol):
    """Proposes genomes and learns from evaluations. Deterministic given its seed and what it was told.

    Constructed as ``Strategy(spec, objectives, *, seed, **config)``.
    """

    def ask(self, n: int | None = None) -> Sequence[Proposal]:
        """Up to `n` proposals; its own natural batch (a generation) for ``None``; none while it must
        wait for evaluations."""

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Learn from one evaluation, whatever its status."""

    def state_dict(self) -> dict[str, Any]:
        """All state as JSON values and numpy arrays, the random generator's included."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""


class StrategyBuilder(Protocol):
    """Builds a strategy that another one is made of: what a nested node of the configuration becomes."""

    def __call__(self, spec: GenomeSpec, objectives: Sequence[Objective], *, seed: int) -> Strategy:
        """Build it for these genes and objectives."""


@dataclass(frozen=True)
class Work:
    """What a worker does.

    Attributes:
        worker: its name.
        candidate: the id of the one that it evaluates, ``None`` while it waits.
        split: on which items.
        since: when it began, in seconds since the epoch.
        stage: what it is at: ``noting`` what is to be known of the sources (the first candidates only), ``merging``,
            ``scoring``; of one without a candidate, ``starting`` and what it waits for; empty where that is not known.
        done, slices: of a merge, slices that are done, of how many.
    """

    worker: str
    candidate: int | None = None
    split: Split = "search"
    since: float = 0.0
    stage: str = ""
    done: int = 0
    slices: int = 0


class Evaluator(Protocol):
    """Evaluates candidates on workers, as many at a time as it has `slots`.

    One that has a method ``withdraw() -> list[int]`` forgets what no worker has begun with, and says what: a search
    that is interrupted waits for the rest. One that has ``work() -> Sequence[Work]`` says what each worker does; it is
    asked from another thread. One whose workers take several candidates at once has an attribute ``together`` that says
    how many: it has so many slots for each worker.
    """

    @property
    def slots(self) -> int:
        """How many candidates are evaluated at once."""

    def submit(self, candidate: Candidate, split: Split = "search") -> None:
        """Queue a candidate."""

    def collect(self) -> Evaluation:
        """Wait for any one queued candidate to finish; never raises for a candidate's own failure."""

    def fingerprint(self, split: Split) -> str:
        """The fingerprint of a split's fitness, as the workers prepared it."""

    def close(self) -> None:
        """Release the workers."""
