"""Requests of tasks for an encoder-decoder: tokenised once, scored by lm-eval's own forwards."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.models.huggingface import HFLM
from numpy.typing import NDArray

from evomerge.candidate import Part
from evomerge.errors import FitnessError
from evomerge.models.memory import Retries, out_of_memory
from fitness._lm_eval.document_errors import place_of, require_tokens
from fitness._lm_eval.model import ResidentLM, TokenRequest
from fitness._lm_eval.plan import Plan
from fitness._lm_eval.session import Session

_log = logging.getLogger(__name__)


class StockForwards:
    """Log-likelihoods as lm-eval's ``backend=seq2seq`` computes them: contexts are encoded, continuations decoded.

    Args:
        calls: requests of each call that lm-eval makes of its model.
        lm: around the resident model.
    """

    def __init__(self, calls: Sequence[Sequence[TokenRequest]], lm: ResidentLM) -> None:
        self._calls, self._lm = calls, lm

    def score(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The log-likelihood of every request, and whether it is what the model would write.

        Where memory has no room for a batch, all are made half as large.
        """
        retries = Retries(self._lm.spare)
        while True:
            try:
                found = [answer for call in self._calls for answer in self._stock(call)]
                values = np.array([value for value, _ in found], np.float64)
                return values, np.array([greedy for _, greedy in found], bool)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                failed = error.with_traceback(None)
            if retries.again():  # out of the handler, which holds on to the frames of the error
                continue
            if self._lm.batch_size_per_gpu == 1:
                raise failed
            self._lm.batch_size_per_gpu //= 2
            _log.warning("not enough memory: %d texts are scored at a time from now on", self._lm.batch_size_per_gpu)

    def _stock(self, requests: Sequence[TokenRequest]) -> list[tuple[float, bool]]:
        given = [(None, request.context, request.continuation) for request in requests]
        return HFLM._loglikelihood_tokens(self._lm, given, disable_tqdm=True) if given else []


class Seq2SeqSession(Session):
    """`Session` of an encoder-decoder."""

    def _require_sound(self, loglikelihood: Sequence[Any], room: int) -> None:
        """Raise unless every target can be decoded; warn of contexts that lose their beginning."""
        most, cut = self._lm.max_length, 0
        for instance in loglikelihood:
            (request,) = self.requests[id(instance)]
            require_tokens(instance, request.context, request.continuation)
            if len(request.continuation) > most:
                raise FitnessError(
                    f"{place_of(instance)} has a target of {len(request.continuation)} tokens",
                    f"at most {most}, what the model takes",
                )
            cut += len(request.context) > most
        if cut:
            _log.warning(
                "%d contexts have more than the %d tokens that the encoder takes: their end is read", cut, most
            )

    def _mixed(self, by_type: Any) -> bool:
        """No requests are grouped: each is decoded by itself."""
        return True

    def _stock_tokens(self, requests: Sequence[TokenRequest]) -> int:
        """Tokens that are encoded and decoded."""
        most = self._lm.max_length
        return sum(len(request.context[-most:]) + len(request.continuation) for request in requests)

    def _plan(self, places: Part) -> Plan:
        plan = super()._plan(places)
        if not isinstance(plan.loglikelihood, StockForwards):
            requests = [self.requests[id(instance)][0] for instance in plan.instances.get("loglikelihood", [])]
            windows = [w for i in plan.instances.get("loglikelihood_rolling", []) for w in self.requests[id(i)]]
            plan.loglikelihood = StockForwards([requests], self._lm)
            plan.rolling = StockForwards([call for _, call in self._calls(windows)], self._lm)
        return plan

    def _batches(self, requests: Sequence[TokenRequest], first: int = 0) -> list[Any]:
        return []

    def _run(self, kind: str, batches: Any, count: int) -> tuple[NDArray[np.float64], NDArray[np.bool_], Any]:
        return *batches.score(), batches
