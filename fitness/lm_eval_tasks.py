"""The lm-evaluation-harness as a persistent fitness: everything but the model's own work is done once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from evomerge.candidate import Part
from evomerge.errors import FitnessError
from evomerge.objectives import MetricShare, Objective
from evomerge.protocols import Estimator, Scores
from fitness._lm_eval.arguments import AutocastDtype, SoftmaxDtype
from fitness._lm_eval.engine_arguments import TakesEngines
from fitness._lm_eval.foreign_keys import FOREIGN_KEYS
from fitness._lm_eval.forwards import Forwards, Generation, Mode
from fitness._lm_eval.model_args import with_model_args
from fitness._lm_eval.response_length import require_texts
from fitness._lm_eval.settings import BuildSettings, said_of_tasks
from fitness._lm_eval.several import ScoresSeveral
from fitness._lm_eval.task_files import check_files
from fitness._lm_eval.terms import RESPONSE_LENGTH, check_timeout, parse_terms, plain
from fitness.estimators.settings import parse_estimator

if TYPE_CHECKING:
    from pathlib import Path

    from evomerge.models.loaded import LoadedModel, ModelOutline
    from evomerge.utils.memory import MemoryPart
    from fitness._lm_eval.loading import TaskSet
    from fitness._lm_eval.objective import WeighedTerm
    from fitness._lm_eval.prepared import Prepared
    from fitness._lm_eval.scoring import RawValues


class LmEvalFitness(TakesEngines, ScoresSeveral):
    """Scores a model on lm-eval tasks, equal to ``lm_eval --model hf`` (or ``vllm``) to the last digit.

    The objective ``score``, to be maximised, is the mean over tasks, by their weights, of the weighted sum of
    their metrics; metrics for which lower is better count negative. Tasks that name an ``objective`` make one of that
    name instead. With `response_length`, an objective of that name is minimised beside it: the mean number of tokens of
    a generated response, over the items of all generative tasks.

    Tasks are loaded, prompts built and tokenised, and batches formed once; a candidate costs its forwards and the
    arithmetic of its scores. The scores equal the stock command's for the same tasks in the same order, dtype, batch
    size and attention implementation. In half precision the softmax is taken in float32 (``softmax_dtype``), and so
    must the command's be: ``--model_args pretrained=...,dtype=bfloat16,softmax_dtype=float32``. Per-task ``limit`` and
    ``gen_kwargs`` have no counterpart in one stock command.

    Per-item values are in the metric's own direction: 0/1 for accuracies, negative log-likelihoods in nats for
    ``perplexity``, bits per word or byte for the rolling metrics.

    Args:
        tasks: task names, paths to task YAMLs, or mappings with the keys ``task`` (a name, a path or a whole task
            configuration), ``metrics`` (name -> weight, or name -> {weight, transform}, where ``transform: log`` takes
            the logarithm; the default is the first metric that the task reports; a filter follows a comma, as in
            ``exact_match,strict-match``), ``weight``, ``objective``, ``switch`` (the source whose own part is on),
            ``num_fewshot``, ``limit``, ``gen_kwargs``, ``apply_chat_template``, ``system_instruction``,
            ``fewshot_as_multiturn`` and ``chat_template_args``.
        include_path: folder or folders with task YAMLs.
        num_fewshot: examples in the prompt, for tasks that do not fix them at 0; None leaves each task's own.
        limit: documents of each task: the first so many, or a share below 1.
        apply_chat_template: wrap prompts in the tokenizer's chat template, or in the one of this name.
        fewshot_as_multiturn: with a chat template, examples as turns of a conversation.
        system_instruction: put before every prompt.
        gen_kwargs: added to the generation arguments of generative tasks.
        fewshot_seed: chooses the examples.
        batch_size, max_length, softmax_dtype, add_bos_token, prefix_token_id, truncation, logits_cache, model_args,
            mixed_precision_dtype, enable_thinking, think_end_token, chat_template_args, image_args: `ModelArguments`.
        response_length: measure the tokens of generated responses, as scored: cut at stop strings, before filters.
        keep_responses: keep what every candidate answered, in the run's folder; else only what was compared answers
            are kept: the baselines', the best candidates', and all on held-out items.
        task_timeout: seconds of a processor's time that templates, filters and regular expressions of a task may take
            to load it, to build its items and to score a candidate, beyond 0.05 for each use; None for no limit.
        forwards, batch_tokens, compare_forwards, generation: see `Forwards`; in a configuration ``auto`` is ``shared``
            and ``continuous`` for a search's own items, ``exact`` and ``stock`` otherwise.
        estimator: tells of candidates scored on some items what all would give: a name, or a mapping of it (``name``)
            and its arguments, of `estimators.settings`.

    Raises:
        ConfigError: an argument out of its range, naming it.
    """

    foreign_keys: ClassVar[Mapping[str, tuple[str, str]]] = FOREIGN_KEYS

    def __init__(
        self,
        tasks: list[str | dict[str, Any]],
        *,
        include_path: str | list[str] | None = None,
        num_fewshot: int | None = None,
        limit: int | float | None = None,
        apply_chat_template: bool | str = False,
        fewshot_as_multiturn: bool = True,
        system_instruction: str | None = None,
        gen_kwargs: dict[str, Any] | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        fewshot_seed: int = 1234,
        softmax_dtype: SoftmaxDtype = "auto",
        add_bos_token: bool | None = None,
        response_length: bool = False,
        prefix_token_id: int | None = None,
        truncation: bool = False,
        logits_cache: bool = True,
        mixed_precision_dtype: AutocastDtype | None = None,
        enable_thinking: bool | None = None,
        think_end_token: str | int | None = None,
        chat_template_args: dict[str, Any] | None = None,
        keep_responses: bool = False,
        task_timeout: float | None = 30.0,
        forwards: Mode = "exact",
        batch_tokens: int | None = None,
        compare_forwards: bool = True,
        estimator: str | dict[str, Any] | None = "mean",
        generation: Generation = "stock",
        model_args: str | dict[str, Any] | None = None,
        image_args: dict[str, Any] | None = None,
    ) -> None:
        self._terms = parse_terms(tasks)
        self._arguments = with_model_args(
            plain(model_args),
            batch_size=batch_size,
            max_length=max_length,
            softmax_dtype=softmax_dtype,
            add_bos_token=add_bos_token,
            prefix_token_id=prefix_token_id,
            truncation=truncation,
            logits_cache=logits_cache,
            mixed_precision_dtype=mixed_precision_dtype,
            enable_thinking=enable_thinking,
            think_end_token=think_end_token,
            chat_template_args=plain(chat_template_args or {}),
            image_args=plain(image_args or {}),
        )
        check_timeout(task_timeout, "task_timeout")
        self._estimator = parse_estimator(plain(estimator))
        self._forwards = Forwards(forwards, batch_tokens, compare_forwards, generation)
        self._include_path: list[str] = [include_path] if isinstance(include_path, str) else plain(include_path) or []
        self._settings = BuildSettings(
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=fewshot_as_multiturn,
            system_instruction=system_instruction,
            gen_kwargs=plain(gen_kwargs or {}),
            fewshot_seed=fewshot_seed,
            chat_template_args=self._arguments.template_arguments,
        )
        self._settings.check(self._terms)
        self._response_length, self.keep_responses, self._task_timeout = response_length, keep_responses, task_timeout
        self._tokenizer: Any = None  # as the pool has it; of a driver whose workers prepare
        self._generators: Any = None
        self._tasks: TaskSet | None = None
        self._terms_weighed: list[WeighedTerm] = []
        self._prepared: Prepared | None = None
        self._scored: dict[str, RawValues] = {}

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
            that generates, where the length of responses is asked for; one that does not, where thinking is.
        """
        from fitness._lm_eval.generation_arguments import check_generation

        check_generation(self._loaded(), self._settings.gen_kwargs)
        require_texts(self._loaded().tasks, self._arguments.enable_thinking, self._response_length)

    def check_files(self) -> None:
        """Raise `FitnessError` for a folder or a task file that is not there: what needs no task to be loaded."""
        check_files(self._terms, self._include_path)
        self._estimator.check_files()

    def check_tokenizer(self, load: Callable[[], Any]) -> None:
        """Check what is said of the tokenizer that `load` gives: names and arguments of chat templates, ids of tokens.

        Raises:
            FitnessError: it has no such template or token.
        """
        from fitness._lm_eval.tokens import check_tokenizer

        self._tokenizer = check_tokenizer(load, self._loaded(), self._settings, self._arguments)

    def items(self) -> dict[str, int]:
        """How many documents each task has; `check` comes before."""
        from fitness._lm_eval.work import count_documents

        return count_documents(self._loaded(), self._settings.limit)

    def work(self) -> dict[str, int]:
        """What a candidate asks of a model: ``documents``, ``texts`` read, tokens ``written`` at most."""
        from fitness._lm_eval.work import count_work

        return count_work(self._loaded(), self._settings.limit, self._settings.gen_kwargs)

    def memory(self, model: ModelOutline) -> list[MemoryPart]:
        """What the forwards of a model take beside its weights, from the longest texts; `check` comes before."""
        from fitness._lm_eval.memory import forward_memory

        tasks = self._loaded()
        with copy.copy(self._generators):
            return forward_memory(tasks, model, self._settings, self._arguments, self._forwards)

    def shares(self) -> list[MetricShare]:
        """What every metric counts in the objectives, as the tasks say; `check` comes before."""
        from fitness._lm_eval.objective import shares

        return shares(self._terms_weighed if self._loaded() else [])

    def build_estimator(self) -> Estimator:
        """Build what tells of some items what all would give; `FitnessError` for metrics that are no mean of items."""
        from fitness._lm_eval.item_shares import item_shares

        tasks, counts = self._loaded(), self.items()
        with copy.copy(self._generators):
            shares = item_shares(tasks, self._terms_weighed, counts, self._response_length)
        return self._estimator.build(shares, self.objectives, counts)

    def cautions(self) -> list[str]:
        """A line for everything that makes a search on these tasks hard to trust."""
        from fitness._lm_eval.cautions import cautions

        return cautions(self._loaded(), self._settings.num_fewshot, self._settings.gen_kwargs)

    def prepare(self, model: LoadedModel) -> None:
        """Build, tokenise and batch everything for a model's tokenizer, dtype and device.

        Raises:
            FitnessError: what `check` finds; prompts that cannot be built; targets that do not fit the model.
        """
        from fitness._lm_eval.prepared import prepare

        how = self._settings, self._arguments, self._forwards, self._response_length
        self._prepared = prepare(model, self._loaded(), self._terms_weighed, self._generators, *how)

    def run(self, model: LoadedModel, part: Part | None = None) -> Scores:
        """Score a model: one like the prepared, in tokenizer, dtype and device.

        Args:
            part: places of documents by task, some of every task; in batches of their own, equal to rounding.

        Raises:
            FitnessError: a score that is not finite, naming the task and document; a part that is none.
        """
        return self._scores(lambda ready: ready.score(model, part), part)

    def switches(self) -> list[tuple[str, str | None]]:
        """The source that each task names as its switch, by what messages call the task."""
        return [(term.label, term.switch) for term in self._terms]

    def run_switched(self, switch: Callable[[str], LoadedModel], part: Part | None = None) -> Scores:
        """`run`, with the model that ``switch(source)`` gives for the tasks of each switch."""
        return self._scores(lambda ready: ready.score_switched(switch, self._terms_weighed, part), part)

    def _scores(self, score: Callable[[Prepared], Any], part: Part | None) -> Scores:
        from fitness._lm_eval.scored import scores

        found, self._scored = scores(self._ready(), score, part, *self._how())
        return found

    def apart(self, model: LoadedModel) -> Mapping[str, float]:
        """How far shared forwards are from lm-eval's own on a model: see `_lm_eval.apart`; empty where not asked."""
        from fitness._lm_eval.apart import apart

        return apart(self._ready(), lambda: self.run(model)) if self._forwards.compare else {}

    def write_samples(self, folder: Path, model: str) -> list[Path]:
        """Write what ``lm_eval --log_samples`` writes of the model that `run` scored last; returns the files.

        Raises:
            FitnessError: nothing was scored, or the files cannot be written.
        """
        from fitness._lm_eval.responses import stock_results
        from fitness._lm_eval.sample_files import write_sample_files

        settings = self._arguments.as_asked(model) | (flags := self._settings.flags()) | said_of_tasks(self._terms)
        results = stock_results(self._loaded(), self._ready().scorers, self._scored, settings)
        return write_sample_files(folder, model, results, self._ready().session.prompt_settings(flags))

    def texts(self, most: int) -> dict[str, list[Mapping[str, str]]]:
        """What models read of the first documents of every task, and the right answers: for reports.

        `prepare` or, where a chat template is used, `check_tokenizer` comes before.
        """
        from fitness._lm_eval.texts import texts

        written_by = (self._tokenizer, self._settings)
        return texts(self._loaded(), most, self._generators, None if self._prepared else written_by)

    def documents(self) -> Sequence[tuple[str, str]]:
        """For each item the hashes of what is asked and scored, and of its document; `check` comes before."""
        from fitness._lm_eval.texts import documents

        return documents(self._loaded(), self._settings.limit, self._generators)

    def fingerprint(self) -> str:
        """``sha256:`` over documents, prompts, tokens, metrics, dtype, batch size and versions; not over places."""
        return self._ready().fingerprint

    def _loaded(self) -> TaskSet:
        if self._tasks is None:
            from fitness._lm_eval.objective import load_weighed

            loaded = load_weighed(self._terms, self._include_path, self._task_timeout)
            self._generators, self._tasks, self._terms_weighed = loaded
        return self._tasks

    def _ready(self) -> Prepared:
        if self._prepared is None:
            raise FitnessError("the fitness has no items yet", "prepare(model) comes first")
        return self._prepared
