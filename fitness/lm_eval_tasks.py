"""The lm-evaluation-harness as a persistent fitness: everything but the model's own work is done once."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evomerge.errors import ConfigError, FitnessError
from evomerge.objectives import MetricShare, Objective
from evomerge.protocols import Block, Scores, Stop
from fitness._lm_eval.response_length import generates, response_lengths
from fitness._lm_eval.terms import RESPONSE_LENGTH, check_fewshot, check_limit, check_timeout, parse_terms, plain

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel
    from fitness._lm_eval.loading import TaskSet
    from fitness._lm_eval.objective import WeighedTerm
    from fitness._lm_eval.scoring import RawValues, TaskScorer
    from fitness._lm_eval.session import Session


@dataclass
class _Prepared:
    """What is built once for a model."""

    session: Session
    scorers: Mapping[str, TaskScorer]
    blocks: Sequence[Block]
    places: Sequence[Mapping[str, Sequence[int]]]  # documents of each block, by task
    fingerprint: str


class LmEvalFitness:
    """Scores a model on lm-eval tasks, equal to ``lm_eval --model hf`` to the last digit.

    The objective ``score``, to be maximised, is the mean over tasks, by their weights, of the weighted sum of
    their metrics; metrics for which lower is better count negative. Tasks that name an ``objective`` make one of that
    name instead. With `response_length`, an objective of that name is minimised beside it: the mean number of tokens of
    a generated response, over the items of all generative tasks.

    Tasks are loaded, prompts built and tokenised, and batches formed once; a candidate costs its forwards and the
    arithmetic of its scores. The scores equal the stock command's for the same tasks in the same order, dtype, batch
    size and attention implementation. In half precision the softmax is taken in float32 (``softmax_dtype``), and so
    must the command's be: ``--model_args pretrained=...,dtype=bfloat16,softmax_dtype=float32``. Per-task ``limit`` and
    ``gen_kwargs`` have no counterpart in one stock command.

    Blocks hold documents drawn once, each block with its share of every task, in batches of their own. A run over
    blocks can differ from the whole set's by rounding, since batches are padded differently; a run without blocks and
    without ``stop`` uses the stock batches.

    Per-item values are in the metric's own direction: 0/1 for accuracies, negative log-likelihoods in nats for
    ``perplexity``, bits per word or byte for the rolling metrics.

    Args:
        tasks: task names, paths to task YAMLs, or mappings with the keys ``task`` (a name, a path or a whole task
            configuration), ``metrics`` (name -> weight, or name -> {weight, transform}, where ``transform: log`` takes
            the logarithm; the default is the first metric that the task reports; a filter follows a comma, as in
            ``exact_match,strict-match``), ``weight``, ``objective``, ``num_fewshot``, ``limit`` and ``gen_kwargs``.
        include_path: folder or folders with task YAMLs.
        num_fewshot: examples in the prompt, for tasks that do not fix them at 0; None leaves each task's own.
        limit: documents of each task: the first so many, or a share below 1.
        apply_chat_template: wrap prompts in the tokenizer's chat template.
        fewshot_as_multiturn: with a chat template, examples as turns of a conversation.
        system_instruction: put before every prompt.
        gen_kwargs: added to the generation arguments of generative tasks.
        batch_size: sequences in a forward.
        max_length: positions; None takes the model's.
        fewshot_seed: chooses the examples.
        softmax_dtype: ``auto`` is float32 for half precision and the model's own dtype otherwise.
        block_size: documents in a block; None for one block.
        add_bos_token: whether prompts begin with the BOS token; None leaves it to the tokenizer.
        response_length: measure the tokens of generated responses, as scored: cut at the task's stop strings and
            before its filters.
        task_timeout: seconds of a processor's time that templates, filters and regular expressions of a task may take
            to load it, to build its items and to score a candidate, beyond 0.05 for each use; None for no limit.

    Raises:
        ConfigError: an argument out of its range, naming it.
    """

    def __init__(
        self,
        tasks: list[str | dict[str, Any]],
        *,
        include_path: str | list[str] | None = None,
        num_fewshot: int | None = None,
        limit: int | float | None = None,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = True,
        system_instruction: str | None = None,
        gen_kwargs: dict[str, Any] | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        fewshot_seed: int = 1234,
        softmax_dtype: Literal["auto", "model", "float32"] = "auto",
        block_size: int | None = None,
        add_bos_token: bool | None = None,
        response_length: bool = False,
        task_timeout: float | None = 30.0,
    ) -> None:
        self._terms = parse_terms(tasks)
        check_timeout(task_timeout, "task_timeout")
        check_limit(limit, "limit")
        check_fewshot(num_fewshot, "num_fewshot")
        for name, count in {"batch_size": batch_size, "max_length": max_length, "block_size": block_size}.items():
            if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
                raise ConfigError(f"{name} is {count!r}", "a whole number, 1 or more")
        paths = plain(include_path) or []
        self._include_path: list[str] = [paths] if isinstance(paths, str) else paths
        self._prompts: dict[str, Any] = {
            "num_fewshot": num_fewshot,
            "limit": limit,
            "apply_chat_template": apply_chat_template,
            "fewshot_as_multiturn": fewshot_as_multiturn,
            "system_instruction": system_instruction,
            "gen_kwargs": plain(gen_kwargs or {}),
            "fewshot_seed": fewshot_seed,
        }
        self._batch_size = batch_size
        self._max_length = max_length
        self._softmax_dtype = softmax_dtype
        self._block_size = block_size
        self._add_bos_token = add_bos_token
        self._response_length = response_length
        self._task_timeout = task_timeout
        self._generators: Any = None
        self._tasks: TaskSet | None = None
        self._terms_weighed: list[WeighedTerm] = []
        self._prepared: _Prepared | None = None

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Those that tasks name, ``score`` for those that name none, and ``response_length`` when it is asked for."""
        length = (Objective(RESPONSE_LENGTH, "minimize"),) if self._response_length else ()
        names = dict.fromkeys(term.objective for term in self._terms)
        return (*(Objective(name, "maximize") for name in names), *length)

    def check(self) -> None:
        """Load the tasks and their documents, once.

        Raises:
            FitnessError: an unknown task or metric, or a YAML or data file that is missing or cannot be read; no task
            that generates, where the length of responses is asked for.
        """
        tasks = self._loaded().tasks
        if self._response_length and not any(generates(task) for task in tasks.values()):
            raise FitnessError(
                f"{RESPONSE_LENGTH} is asked for, and no task generates responses: {', '.join(tasks)}",
                "tasks with output_type generate_until have a length",
                "leave fitness.response_length out",
            )

    def work(self) -> dict[str, int]:
        """What a candidate asks of a model: ``documents``, ``texts`` read, tokens ``written`` at most."""
        from fitness._lm_eval.work import count_work

        return count_work(self._loaded(), self._prompts["limit"], self._prompts["gen_kwargs"])

    def shares(self) -> list[MetricShare]:
        """What every metric counts in the objectives, as the tasks say; `check` comes before."""
        from fitness._lm_eval.objective import shares

        return shares(self._terms_weighed if self._loaded() else [])

    def cautions(self) -> list[str]:
        """A line for everything that makes a search on these tasks hard to trust."""
        from fitness._lm_eval.cautions import cautions
        from fitness._lm_eval.loading import said

        with said("the tasks' few-shot examples cannot be looked at"):
            return cautions(self._loaded(), self._prompts["num_fewshot"])

    def prepare(self, model: LoadedModel) -> None:
        """Build, tokenise and batch everything for a model's tokenizer, dtype and device.

        Raises:
            FitnessError: what `check` finds; prompts that cannot be built; targets that do not fit the model.
        """
        from fitness._lm_eval.blocks import spread
        from fitness._lm_eval.building import BuildSettings, build_requests, fingerprint
        from fitness._lm_eval.model import resident_lm
        from fitness._lm_eval.scoring import TaskScorer
        from fitness._lm_eval.session import Session

        tasks = self._loaded()
        lm = resident_lm(
            model,
            batch_size=self._batch_size,
            max_length=self._max_length,
            softmax_dtype=self._softmax_dtype,
            add_bos_token=self._add_bos_token,
        )
        with copy.copy(self._generators):  # as loading left them, however often this is called
            build_requests(tasks, lm, BuildSettings(**self._prompts))
        scorers = {name: TaskScorer(name, task, tasks.timeout) for name, task in tasks.tasks.items()}
        session = Session(lm, scorers)
        places = spread(
            {n: len(s.documents) for n, s in scorers.items()}, self._block_size, self._prompts["fewshot_seed"]
        )
        settings = {
            "terms": [(t.name, t.tasks, t.term.weight, t.term.objective, t.metrics) for t in self._terms_weighed],
            "prompts": self._prompts,
            "chat_template": getattr(lm.tokenizer, "chat_template", None)
            if self._prompts["apply_chat_template"]
            else None,
            "dtype": str(model.dtype),
            "softmax_dtype": str(lm.softmax_dtype),
            "batch_size": self._batch_size,
            "max_length": lm.max_length,
            "add_bos_token": self._add_bos_token,
            "grouped": session.grouped,
            "block_size": self._block_size,
        } | ({RESPONSE_LENGTH: True} if self._response_length else {})
        self._prepared = _Prepared(
            session,
            scorers,
            [Block(index, sum(map(len, of_block.values()))) for index, of_block in enumerate(places)],
            places,
            fingerprint(tasks, session.requests, settings),
        )

    def blocks(self) -> Sequence[Block]:
        """The fixed blocks of documents; `prepare` comes before."""
        return self._ready().blocks

    def run(self, model: LoadedModel, blocks: Sequence[Block] | None = None, *, stop: Stop | None = None) -> Scores:
        """Score a model: one like the prepared, in tokenizer, dtype and device.

        Raises:
            FitnessError: a score that is not finite, naming the task and document.
        """
        from fitness._lm_eval.objective import group_metrics, objectives
        from fitness._lm_eval.scoring import all_items, all_metrics

        start = time.perf_counter()
        ready = self._ready()
        raw: dict[str, RawValues] = {}
        seconds = 0.0
        if len(ready.blocks) == 1 or (blocks is None and stop is None):
            seconds = ready.session.score(model, ready.session.whole, raw, None)
            done = {block.index for block in ready.blocks}
            if stop is not None:
                stop(all_items(ready.scorers, raw))
        else:
            done = set()
            for block in ready.blocks if blocks is None else blocks:
                seconds += ready.session.score(model, ready.places[block.index], raw, block.index)
                done.add(block.index)
                if stop is not None and stop(all_items(ready.scorers, raw)):
                    break
        items = all_items(ready.scorers, raw)
        metrics: dict[str, float] = {}
        found: dict[str, float] = {}
        if len(done) == len(ready.blocks):
            metrics = all_metrics(ready.scorers, raw)
            if self._loaded().groups:
                with self._generators:
                    metrics |= group_metrics(self._loaded(), ready.scorers, metrics)
            found = objectives(self._terms_weighed, ready.scorers, raw, metrics)
            metrics = {name: metrics[name] for name in self._weighed_names() if name in metrics} | metrics
            if self._response_length:
                lengths = response_lengths(ready.scorers, ready.session.count_tokens)
                items |= lengths
                metrics |= {name: float(values.mean()) for name, values in lengths.items()}
                found[RESPONSE_LENGTH] = float(np.concatenate(list(lengths.values())).mean())
        return Scores(found, metrics, items, {"model": seconds, "other": time.perf_counter() - start - seconds})

    def texts(self, most: int) -> dict[str, list[Mapping[str, str]]]:
        """What the first documents of every task ask, and the right answers: for reports."""
        from fitness._lm_eval.texts import texts

        tasks = self._loaded()
        with copy.copy(self._generators):
            return texts(tasks, self._prompts["limit"], most)

    def documents(self) -> frozenset[str]:
        """A hash of the content of each item; `check` comes before."""
        from fitness._lm_eval.texts import documents

        return documents(self._loaded(), self._prompts["limit"])

    def fingerprint(self) -> str:
        """``sha256:`` over documents, prompts, tokens, metrics, dtype, batch size and versions; not over places."""
        return self._ready().fingerprint

    def _weighed_names(self) -> list[str]:
        """The metrics of the objective as ``task/metric``: they come first wherever metrics are listed."""
        return [share.metric for share in self.shares()]

    def _loaded(self) -> TaskSet:
        if self._tasks is None:
            from fitness._lm_eval.isolation import StockGenerators
            from fitness._lm_eval.loading import load_tasks, said
            from fitness._lm_eval.objective import weigh

            self._generators = StockGenerators()
            with self._generators:
                tasks = load_tasks(self._terms, self._include_path, self._task_timeout)
            with said("the metrics of the tasks cannot be weighed"):
                self._terms_weighed = [weigh(term, tasks.tasks) for term in tasks.terms]
            self._tasks = tasks
        return self._tasks

    def _ready(self) -> _Prepared:
        if self._prepared is None:
            raise FitnessError("the fitness has no items yet", "prepare(model) comes first")
        return self._prepared
