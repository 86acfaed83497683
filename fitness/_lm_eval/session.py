"""The requests of all tasks for one model: built, tokenised and batched once, scored for every candidate."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.candidate import Part
from evomerge.errors import FitnessError
from fitness._lm_eval.batches import Batch, TooLarge, mixed_lengths, plan_batches, score_batches
from fitness._lm_eval.continuous import ContinuousGeneration
from fitness._lm_eval.document_errors import require_finite
from fitness._lm_eval.model import ResidentLM, TokenRequest
from fitness._lm_eval.plan import Plan
from fitness._lm_eval.scoring import RawValues, TaskScorer
from fitness._lm_eval.shared_forwards import BatchLimits, SharedForwards
from fitness._lm_eval.shared_prefill import SharedPrefill
from fitness._lm_eval.task_requests import KINDS, TaskRequests

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel, Several

_log = logging.getLogger(__name__)

_Key = tuple[tuple[str, tuple[int, ...]], ...] | None  # of a plan; None for all documents
_MOST_PARTS = 32


class Session(TaskRequests):
    """Scores a resident model on built tasks.

    Args:
        lm: around the resident model.
        scorers: by task, in lm-eval's order; their requests are built.
    """

    _lm: ResidentLM

    def __init__(self, lm: ResidentLM, scorers: Mapping[str, TaskScorer]) -> None:
        super().__init__(lm, scorers)
        self._limits: BatchLimits | None = None  # of shared forwards; of exact ones lm-eval's batches
        self._too_large = {kind: TooLarge() for kind in KINDS}  # rolling ones score more rows of a batch
        self._keeps_states = False
        self._plans: dict[_Key, Plan] = {}
        by_type = self._tokenised()
        self._require_sound(by_type.get("loglikelihood", []), lm.max_length + 1)  # the last is not read
        self._require_rows(by_type, lm.model.get_input_embeddings().weight.shape[0])
        self.grouped = lm.logits_cache and not self._mixed(by_type)

    def score(self, model: LoadedModel, places: Part, raw: dict[str, RawValues]) -> tuple[float, dict[str, float]]:
        """Score the documents at `places` into `raw`; returns the seconds spent in model calls, and the tokens.

        The same places are scored in the same batches every time.

        Raises:
            FitnessError: a score that is not finite, naming the task and document.
        """
        self._lm.rebind(model)
        plan = self._plan(places)
        seconds, answers = 0.0, {}
        for kind, instances in plan.instances.items():
            answers[kind], spent = self._respond(kind, instances, plan)
            seconds += spent
        self._collect(plan, answers, raw)
        return seconds, self._tokens(plan)

    def _collect(self, plan: Plan, answers: Mapping[str, Sequence[Any]], raw: dict[str, RawValues]) -> None:
        """What a model's responses, by request type, come to for each document."""
        for instances in plan.instances.values():
            for instance in instances:  # else lm-eval would score the first candidate's responses again
                instance.resps, instance.filtered_resps = [], {}
        for kind, instances in plan.instances.items():
            for instance, response in zip(instances, answers[kind], strict=True):
                instance.resps.append(response)
        for name, of_task in plan.places.items():
            if of_task:
                self._scorers[name].collect(of_task, raw.setdefault(name, {}))

    def score_several(
        self, model: LoadedModel, several: Several, places: Part
    ) -> Iterator[tuple[dict[str, RawValues] | FitnessError, float, dict[str, float]]]:
        """`score` of several models in one module; of each, in turn, the values or why it has none.

        Log-likelihoods that share tokens are computed of several models in one forward; lm-eval's own batches, and
        texts, of one model after the other. Each is to be used before the next is asked for.
        """
        self._lm.rebind(model)
        plan = self._plan(places)
        answers: list[dict[str, Any] | FitnessError] = [{} for _ in range(several.count)]
        seconds = 0.0
        for kind, instances in plan.instances.items():
            spent = self._respond_several(kind, instances, plan, several, answers)
            seconds += spent / several.count
        for answer in answers:
            raw: dict[str, RawValues] = {}
            try:
                if isinstance(answer, FitnessError):
                    raise answer
                self._collect(plan, answer, raw)
            except FitnessError as error:
                yield error, seconds, {}
            else:
                yield raw, seconds, self._tokens(plan)

    def _respond_several(
        self,
        kind: str,
        instances: list[Any],
        plan: Plan,
        several: Several,
        answers: list[dict[str, Any] | FitnessError],
    ) -> float:
        """Add the responses of each model that had no error; returns the seconds in model calls."""
        forwards = plan.loglikelihood if kind == "loglikelihood" else plan.rolling
        lm, seconds = self._lm, 0.0
        together = kind != "generate_until" and isinstance(forwards, SharedForwards)
        if together:
            assert isinstance(forwards, SharedForwards)
            start = time.perf_counter()
            values, greedy = forwards.score_several(lm.model, several, lm.spare)
            seconds = time.perf_counter() - start
        for number, answer in enumerate(answers):
            if isinstance(answer, FitnessError):
                continue
            try:
                if together:
                    answer[kind] = self._answers(kind, instances, plan, values[number], greedy[number])
                else:
                    with several.only(number):
                        answer[kind], spent = self._respond(kind, instances, plan)
                    seconds += spent
            except FitnessError as error:
                answers[number] = error
        return seconds

    @property
    def generates(self) -> bool:
        """Whether texts are generated."""
        scorers = self._scorers.values()
        return any(i.request_type == "generate_until" for s in scorers for own in s.documents for i in own)

    @property
    def longest(self) -> int:
        """Tokens of the longest text whose log-likelihood is asked, as the model reads it."""
        most = self._lm.max_length
        return max((len(r.read(most)) for requests in self.requests.values() for r in requests), default=0)

    def share(self, batch_tokens: int, keep_states: bool = True, prefill: bool = True) -> None:
        """Run log-likelihoods and prompts over the tree of tokens that requests share, from the next candidate on.

        Args:
            batch_tokens: of a forward.
            keep_states: whether a model may begin above the layers that an earlier one had too.
            prefill: whether generation takes keys and values that were computed before.
        """
        self._limits, self._keeps_states = BatchLimits(batch_tokens), keep_states
        self._lm.prefill = SharedPrefill(self._lm.model, batch_tokens) if prefill else None
        self._plans.clear()

    def write_continuously(self) -> None:
        """Write greedy texts in a batch that stays full, from the next candidate on."""
        self._lm.continuous = ContinuousGeneration(self._lm.tokenizer, self._lm.batch_size)

    @property
    def shares(self) -> bool:
        """Whether tokens are shared or texts written continuously: answers then equal lm-eval's to rounding."""
        return self._limits is not None or self._lm.continuous is not None

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """Score as lm-eval does within this."""
        lm = self._lm
        kept = self._limits, self._plans, lm.prefill, lm.continuous
        self._limits, self._plans, lm.prefill, lm.continuous = None, {}, None, None
        try:
            yield
        finally:
            self._limits, self._plans, lm.prefill, lm.continuous = kept

    def _tokens(self, plan: Plan) -> dict[str, float]:
        """Tokens of the log-likelihoods, and of prompts that may share theirs, that were scored last; without padding.

        ``run``; what ``stock`` lm-eval would run; of those run what ``hidden`` states saved, as whole passes; and how
        often batches of this plan were ``halved`` since memory had no room for them, where they were.
        """
        prefill = self._lm.prefill
        shared = [f for f in (plan.loglikelihood, plan.rolling) if isinstance(f, SharedForwards)]
        halved = plan.halved(self._too_large, self._lm.halved)
        if not shared:
            return {"run": plan.stock_tokens, "stock": plan.stock_tokens} | halved
        found: dict[str, float] = {"run": sum(forwards.tokens for forwards in shared), "stock": plan.stock_tokens}
        if prefill is not None and "generate_until" in plan.instances:
            found = {"run": found["run"] + prefill.run, "stock": found["stock"] + prefill.stock}
        hidden = sum(forwards.hidden for forwards in shared)
        return found | ({"hidden": round(hidden, 1)} if hidden else {}) | halved

    def _respond(self, kind: str, instances: list[Any], plan: Plan) -> tuple[list[Any], float]:
        if kind == "generate_until":
            return self._lm.generate(instances)
        start = time.perf_counter()
        if kind == "loglikelihood":
            values, greedy, plan.loglikelihood = self._run(kind, plan.loglikelihood, len(instances))
        else:
            values, greedy, plan.rolling = self._run(kind, plan.rolling, sum(plan.windows))
        seconds = time.perf_counter() - start
        return self._answers(kind, instances, plan, values, greedy), seconds

    @staticmethod
    def _answers(
        kind: str, instances: list[Any], plan: Plan, values: NDArray[np.float64], greedy: NDArray[np.bool_]
    ) -> list[Any]:
        """Responses as lm-eval gives them, from log-likelihoods; `FitnessError` for one that is not finite."""
        if kind == "loglikelihood":
            require_finite(values, instances)
            return list(zip(values.tolist(), greedy.tolist(), strict=True))
        require_finite(values, [i for i, count in zip(instances, plan.windows, strict=True) for _ in range(count)])
        numbers = iter(values.tolist())
        return [sum(next(numbers) for _ in range(count)) for count in plan.windows]

    def _run(
        self, kind: str, batches: list[Batch] | SharedForwards, count: int
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], list[Batch] | SharedForwards]:
        """Values, whether they are the greedy ones, and the batches to use from now on: smaller where memory ends."""
        lm = self._lm
        if isinstance(batches, SharedForwards):
            return *batches.score(lm.model, lm.spare, lm.states if self._keeps_states else None), batches
        known = self._too_large[kind]
        found = score_batches(lm.model, batches, lm.softmax_dtype, count, lm.mixed_precision_dtype, lm.spare, known)
        if len(found[2]) > len(batches):
            _log.warning(
                "batches of %d sequences do not fit into memory: %d became %d; scores may differ in their last digits",
                self._lm.batch_size,
                len(batches),
                len(found[2]),
            )
        return found

    def _plan(self, places: Part) -> Plan:
        """The plan of some documents, kept for the next candidate; of parts those that were used last."""
        key = None if places is self.whole else tuple((name, tuple(of_task)) for name, of_task in places.items())
        if key in self._plans:
            self._plans[key] = self._plans.pop(key)  # the last to go
        else:
            for oldest in [each for each in self._plans if each is not None][: len(self._plans) - _MOST_PARTS]:
                del self._plans[oldest]
            by_type = self._by_type(places)
            loglikelihood = [self.requests[id(instance)][0] for instance in by_type.get("loglikelihood", [])]
            windows = [self.requests[id(instance)] for instance in by_type.get("loglikelihood_rolling", [])]
            rolling = [window for of_instance in windows for window in of_instance]
            shared = self._limits is not None
            self._plans[key] = Plan(
                places,
                by_type,
                self._shared(loglikelihood) if shared else self._batches(loglikelihood),
                self._shared(rolling) if shared else self._rolling(rolling),
                [len(of_instance) for of_instance in windows],
                self._stock_tokens(loglikelihood) + sum(self._stock_tokens(call) for _, call in self._calls(rolling)),
            )
        return self._plans[key]

    def _shared(self, requests: Sequence[TokenRequest]) -> SharedForwards:
        assert self._limits is not None
        return SharedForwards(
            requests,
            self._lm.model,
            max_length=self._lm.max_length,
            limits=self._limits,
            softmax_dtype=self._lm.softmax_dtype,
            autocast=self._lm.mixed_precision_dtype,
        )

    def _stock_tokens(self, requests: Sequence[TokenRequest]) -> int:
        """Tokens of the forwards that lm-eval makes: of requests that differ in their last token, one."""
        inputs = [request.read(self._lm.max_length) for request in requests]
        return sum(map(len, {tuple(tokens) for tokens in inputs} if self.grouped else inputs))

    def _batches(self, requests: Sequence[TokenRequest], first: int = 0) -> list[Batch]:
        return plan_batches(
            requests,
            batch_size=self._lm.batch_size,
            max_length=self._lm.max_length,
            device=torch.device(self._lm.device),
            grouped=self.grouped,
            first=first,
        )

    def _rolling(self, windows: Sequence[TokenRequest]) -> list[Batch]:
        """Stock code passes windows on in batches as they come, and sorts only within each."""
        return [batch for first, call in self._calls(windows) for batch in self._batches(call, first)]

    def _calls(self, windows: Sequence[TokenRequest]) -> list[tuple[int, Sequence[TokenRequest]]]:
        size = self._lm.batch_size
        return [(first, windows[first : first + size]) for first in range(0, len(windows), size)]

    def _mixed(self, by_type: Mapping[str, list[Any]]) -> bool:
        """Whether stock code would score some requests at wrong positions; warns if so."""
        loglikelihood = by_type.get("loglikelihood", [])
        found = [loglikelihood[i] for i in mixed_lengths([self.requests[id(i)][0] for i in loglikelihood])]
        rolling = [(i, window) for i in by_type.get("loglikelihood_rolling", []) for window in self.requests[id(i)]]
        for first, call in self._calls([window for _, window in rolling]):
            found += [rolling[first + index][0] for index in mixed_lengths(call)]
        if found:
            _log.warning(
                "task %r, document %s and %d more requests share their tokens but the last with a longer continuation; "
                "lm_eval scores such requests at wrong positions unless it is given logits_cache=False, which is what "
                "these scores equal",
                found[0].task_name,
                found[0].doc_id,
                len(found) - 1,
            )
        return bool(found)
