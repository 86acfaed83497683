"""The structured schema of what evomerge owns in a configuration.

Groups that users extend (search space, strategy, fitness, evaluator) are open here: their keys are checked
against the signature of their `_target_` by `evomerge.session.parts`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING, DictConfig, OmegaConf


@dataclass
class PoolConfig:
    """The source models.

    Attributes:
        models: name -> local folder or hub id (``org/name@revision``), the base included.
        base: the name of the base model, if there is one; with `checkpoints` and without a name, the first of them.
        checkpoints: the folder of a training run, whose checkpoints come after `models`; or a mapping with ``folder``
            and which of them: from step ``first`` to step ``last``, ``every`` so manieth, so many at ``most``.
        adapters: a folder of LoRA adapters, or a pattern of their folders: all that are there come after `models`, each
            folded into the base.
        root: folder that relative locations start from.
        dtype: dtype of the merged models; ``auto`` takes the base's (or the first source's).
        trust_remote_code: run code that a checkpoint brings along.
        tokenizer_from: the model whose tokenizer the results take, where models' tokenizers differ and that is meant;
            ``None`` refuses models whose tokenizers differ.
        tokenizer: the vocabulary that all models are brought to, row by row: ``union``, ``base`` or a model, or a
            mapping with ``source``, ``tokens`` and ``pad_to_multiple_of`` as in mergekit's files; ``None`` for the ids
            that the models agree on: padding is trimmed or added, and tokens that one adds are kept.
        heads: tensors that belong to a source's task and are carried from there, not merged: ``auto`` finds them where
            sources have other labels or the base has no head; a pattern of names, ``classifier*``, or a list of them;
            ``None`` merges all.
        kept: tensors that results have from one model as they are: ``auto`` keeps what looks at images, of models that
            see, and merges language models, and projectors where all have one; patterns of names; ``None`` merges all.
        kept_from: the model that they are of, which gives the configuration too; ``None`` for the base, or else the
            first source, that sees.
        dense: of sentence-transformers' dense layers behind the models: ``auto`` merges them where they differ,
            ``merged`` does anyhow, ``kept`` takes those of the model that gives the configuration.
        network: of pipelines that draw images, the part that is merged: ``unet``, ``transformer``, or ``auto`` for
            whichever there is; ``None`` for models that are merged whole.
        others: the model whose other parts the results take, text encoders say; or a folder or hub id of a pipeline.
            ``None`` for the base, or the first that is a folder.
    """

    models: dict[str, str] = field(default_factory=dict)
    base: str | None = None
    checkpoints: Any = None
    adapters: str | None = None
    root: str | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False
    tokenizer_from: str | None = None
    tokenizer: Any = None
    heads: Any = "auto"
    kept: Any = None  # what runs of before did; conf/pool says auto
    kept_from: str | None = None
    dense: Any = "auto"
    network: str | None = None
    others: str | None = None


@dataclass
class CheckpointConfig:
    """How often the state of the search is written beside the ledger, so that `evomerge resume` begins from there.

    Attributes:
        every: seconds between two; ``None`` for no such rule. Longer where taking a state costs more than a fiftieth of
            the time.
        evaluations: evaluations between two; ``None`` for no such rule.
        keep: how many of the latest stay; 0 for no checkpoints.
    """

    every: float | None = 60.0
    evaluations: int | None = None
    keep: int = 3


@dataclass
class RacingConfig:
    """On how many of the fitness's items candidates are scored (`evomerge.search.racing.settings.Racing`).

    Attributes:
        first: items that every candidate is scored on first: a number, or a share below 1; ``None`` for all: no race.
            ``auto`` is a race where strategy, fitness and the number of items and evaluations allow one, with 24 items
            or a share of 0.032, and says what it is.
        against: whom a candidate has to beat to be scored on more: its ``generation``, the ``incumbent``, a
            ``pruner``, or ``none``: nobody is.
        keep: share of a generation that goes on to more items.
        most: items that the best are scored on: a number, or a share; 1.0 for all. ``auto`` is 3.75 times `first`
            where that is ``auto``, else all.
        rotate: each generation begins behind the items that the last one began with.
        confidence: with which a candidate must be worse than the incumbent to be pruned.
        keep_cheap: share of a generation that goes on from the cheap rung, where `cheap` is set.
        pruner: of Optuna's, where `against` is ``pruner``: ``hyperband``, ``median``, ``percentile``, ``threshold``,
            ``successive_halving``, ``wilcoxon``, a mapping with ``name`` and its arguments, or one with ``_target_``.
    """

    first: float | Literal["auto"] | None = None
    against: str = "generation"
    keep: float = 0.5
    keep_cheap: float = 0.5
    most: float | Literal["auto"] = 1.0
    rotate: bool = True
    confidence: float = 0.95
    pruner: Any = None


@dataclass
class RefineConfig:
    """From where on a Gaussian process proposes (`evomerge.strategies.bases.refined.Refined`).

    Attributes:
        after: candidates of a phase that its strategy proposes, before the process does; ``None`` for all of them.
            ``auto`` is a number where `racing.first` is ``auto`` and comes to a race, and genes are numbers and not
            too many for the candidates that there are.
        batch: candidates that it proposes after each fit.
    """

    after: int | Literal["auto"] | None = None
    batch: int = 4


@dataclass
class SearchConfig:
    """The budget and the order of a search.

    Attributes:
        evaluations: how many candidates are evaluated, baselines not counted.
        seed: of the strategy.
        baselines: score every source, the base and the uniform average first.
        ordered: tell evaluations in the order asked, so that the result does not depend on the number of workers;
            otherwise as they arrive, which keeps every worker busy.
        in_flight: how many candidates are asked and not told at the same time. ``None``: ordered, a generation of the
            strategy; otherwise the workers and an eighth more.
        best: with several objectives, which one of the Pareto front wins: an objective's name (the first by
            default), ``knee``, ``weighted`` or ``tchebycheff``.
        scalarise: with several objectives, show strategies one number: ``weighted`` or ``tchebycheff``.
        weights: of the objectives in that number.
        warm_start: run folders and recipe files to begin with.
        warm_start_evaluations: how many of the earlier runs' best genomes are evaluated again where their scores do
            not count here.
        sync: when the ledger reaches the disk: ``every`` event, or once a second (``interval``).
        checkpoint: how often the state is written.
        give_up: failures in a row, all for the same reason, after which the search ends; ``None`` for never.
        racing: on how many items candidates are scored.
        refine: from where on a Gaussian process proposes candidates.
        finalists: so many of the best are scored on all items in the end, and the winner is chosen there; ``None`` for
            8 in a race or with quantised scores, else 0.
        hours: of search, over all sessions, after which it ends: what is being evaluated is told, then come the
            held-out items; ``None`` for no such rule.
        patience: evaluations without a better winner (of several objectives: with the same front) after which the
            search ends, or the phase of several; ``None`` for no such rule.
        target: ends the search when a candidate reaches it: a value of the objective; of several, a mapping of names to
            values, of which one candidate must reach all.
        penalty: what a mean magnitude of one over a phase's genes costs: strategies are told scores less by it; winners
            and finalists go by the scores themselves.
        allow_overlap: whether the held-out items may be the items of the search, by which the winner was chosen.
    """

    evaluations: int = 200
    seed: int = 0
    baselines: bool = True
    ordered: bool = True
    in_flight: int | None = None
    best: str | None = None
    scalarise: str | None = None
    weights: dict[str, float] = field(default_factory=dict)
    warm_start: list[str] = field(default_factory=list)
    warm_start_evaluations: int = 10
    sync: str = "every"
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    give_up: int | None = 20
    racing: RacingConfig = field(default_factory=RacingConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    finalists: int | None = None
    hours: float | None = None
    patience: int | None = None
    target: Any = None
    penalty: float = 0.0
    allow_overlap: bool = False


@dataclass
class StatisticsConfig:
    """How statistics of data are made (`evomerge calibrate`).

    Attributes:
        kinds: some of ``fisher``, ``gram``, ``curvature``, ``sensitivity``, ``hessian``, ``activation``, ``routing``
            and ``expert_outputs``; ``None`` for those that the search space's methods read.
        learned: the recipe that ``evomerge learn`` wrote, for methods that read what was learnt (``masked``,
            ``columns``).
        labels: whose likelihood ``fisher`` is of: ``text``, the items' own; ``sampled``, drawn by the model itself.
        optimizer: whether ``curvature`` is Adam's second moments where ``optimizer.pt`` lies beside a model's weights.
        grams: ``full``, or ``diagonal`` for squares of inputs alone, which take a model's size and not a square.
        max_length: tokens of an item at most.
        dtype: that models compute in.
        seed: of the labels that are sampled, and of the signs of ``hessian``.
        device: where models compute; ``auto`` for the first GPU there is, else the processor.
        memory: for sums, as ``8GB``; what finds no room takes another pass. ``None`` for a quarter of what is free.
    """

    kinds: list[str] | None = None
    learned: str | None = None
    labels: str = "text"
    optimizer: bool = True
    grams: str = "full"
    max_length: int = 512
    dtype: str = "float32"
    seed: int = 0
    device: str = "auto"
    memory: str | None = None


@dataclass
class LearningConfig:
    """What `evomerge learn` learns by gradients on calibration items, and how; ``None``: as the method's source has it.

    Attributes:
        method: ``expert_merging``, ``adamerging``: the search space's genes, weights of task vectors; ``concrete``: a
            mask of all of these; ``dam``: factors of their columns.
        out: the recipe to write.
        loss: ``experts`` or ``entropy``.
        steps: of Adam.
        batch: items of each model in a step.
        rate: size of a step.
        init: of coefficients.
        temperature: that logits are divided by.
        hidden: weight of the distance of hidden states to the expert's.
        pull: weight of the distance of coefficients to where they began.
        similarity: weight of the cosine of two models' factors.
        mask_temperature: of relaxed masks.
        seed: of the order of items, and of masks.
        checkpoint: steps between two states that an interrupted one goes on from.
    """

    method: str = "expert_merging"
    out: str = "learned.yaml"
    loss: str | None = None
    steps: int = 200
    batch: int = 16
    rate: float | None = None
    init: float | None = None
    temperature: float | None = None
    hidden: float | None = None
    pull: float | None = None
    similarity: float | None = None
    mask_temperature: float = 0.5
    seed: int = 0
    checkpoint: int = 25


@dataclass
class Config:
    """A whole experiment.

    Attributes:
        name: of the run.
        run_dir: the run folder.
        imports: modules with merge methods of one's own, imported before anything is built.
        pool, search: the source models; the budget and the order of the search.
        search_space, strategy, fitness, held_out, evaluator: nodes with a `_target_`.
        validation: likewise, a fitness of items of their own that finalists are scored on, where the winner is chosen;
            ``None`` for those of the search.
        cheap: likewise, a fitness that costs little: a race's cheap rung, by which the candidates of a generation are
            scored first; ``None`` for no such rung.
        calibration: a node with a `_target_`: the items that statistics of data are made on; ``None`` for none.
        statistics: how they are made.
        learning: what ``evomerge learn`` learns, and how.
        phases: name -> search_space, strategy, evaluations and preferences of a part of the search, one after the
            other; what a phase leaves out is that of all. With `preferences`, how many at most or a list of weights by
            objective, it is searched once for each. ``None`` for one phase.
        from_run: the run that this one began with: its configuration, and its evaluations where the same are needed.
        display: what a running search shows: ``live``, a panel; ``plain``, a line now and then; ``quiet``, nothing;
            ``auto`` is live on a terminal and plain elsewhere.
        trackers: tools that are told while it runs: names (``tensorboard``, ``mlflow``, ``wandb``), or mappings with
            a name and options.
        protocol: what `evomerge protocol` compares, and with which published numbers; ``None`` for a search alone.
    """

    name: str = MISSING
    run_dir: str = MISSING
    imports: list[str] = field(default_factory=list)
    pool: PoolConfig = field(default_factory=PoolConfig)
    search_space: Any = MISSING
    strategy: Any = MISSING
    fitness: Any = None
    cheap: Any = None
    validation: Any = None
    held_out: Any = None
    evaluator: Any = MISSING
    calibration: Any = None
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    phases: Any = None
    from_run: str | None = None
    display: str = "auto"
    trackers: Any = field(default_factory=list)
    protocol: Any = None


def to_yaml(config: DictConfig) -> str:
    """The resolved configuration as YAML, as it is kept in a run folder."""
    return OmegaConf.to_yaml(config, resolve=True)
