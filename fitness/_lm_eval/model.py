"""lm-eval's Hugging Face model around a resident module, with everything that does not change kept."""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import LogitsProcessorList

from evomerge.errors import FitnessError
from evomerge.models.memory import Retries, out_of_memory
from fitness._lm_eval.arguments import ModelArguments
from fitness._lm_eval.continuous import Call, ContinuousGeneration
from fitness._lm_eval.document_errors import no_prompt, no_target, not_finite, tokenising
from fitness._lm_eval.encoded_ahead import encoded_ahead
from fitness._lm_eval.finite_scores import FiniteScores, NotFinite
from fitness._lm_eval.greedy_calls import no_call

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel

_log = logging.getLogger(__name__)
_SAMPLING_SEED = 1234  # what simple_evaluate gives torch


class TokenRequest(NamedTuple):
    """A context and the continuation whose log-likelihood is asked, as token ids."""

    key: Any
    context: list[int]
    continuation: list[int]

    def read(self, max_length: int) -> list[int]:
        """What a model of so many positions reads: all but the last token; longer inputs lose tokens on the left."""
        return (self.context + self.continuation)[-(max_length + 1) :][:-1]


class Prefill(Protocol):
    """Computes keys and values of prompts before generation does: see `shared_prefill.SharedPrefill`."""

    run: int
    stock: int

    def begin(self) -> None:
        """The model is another one from now on."""

    def end(self) -> None:
        """Let go of what is kept for the next prompts."""

    def __call__(self, module: Any, prompts: torch.Tensor, mask: torch.Tensor) -> Any:
        """The cache to begin with; ``None`` where generation is to read the prompts itself."""


@dataclass
class _Calls:
    """What stock generation asks of `generate`, batch by batch, and the answers; ``None``: left to it."""

    asked: list[Call | None] = field(default_factory=list)
    answers: deque[torch.Tensor | None] | None = None


class ResidentLM(HFLM):
    """`HFLM` around a module whose weights change in place.

    Tokenisation is stock code run once: `token_requests` and `token_windows` let it run up to the point where
    it would call the model and keep what it would ask. Generation is stock code run every time, with
    tokenisation remembered; what it asks of `generate` may be written continuously.

    Args:
        model: the resident model; its tokenizer is copied, since lm-eval may add a padding token.
        arguments: as for ``lm_eval --model hf``.
        softmax_dtype: None for that of the logits; `more` is for a class of lm-eval's that this is mixed with.
    """

    def __init__(self, model: LoadedModel, arguments: ModelArguments, softmax_dtype: Any, **more: Any) -> None:
        tokenizer = copy.deepcopy(model.tokenizer)
        if arguments.add_bos_token is not None and hasattr(tokenizer, "add_bos_token"):
            tokenizer.add_bos_token = arguments.add_bos_token  # stock passes it to from_pretrained
        super().__init__(
            pretrained=model.module,
            tokenizer=tokenizer,
            batch_size=arguments.batch_size,
            max_length=arguments.max_length,
            softmax_dtype=softmax_dtype,
            mixed_precision_dtype=arguments.mixed_precision_dtype,
            add_bos_token=arguments.add_bos_token,
            prefix_token_id=arguments.prefix_token_id,
            truncation=arguments.truncation,
            logits_cache=arguments.logits_cache,
            think_end_token=arguments.think_end_token,
            enable_thinking=arguments.enable_thinking,
            chat_template_args=dict(arguments.chat_template_args),
            **more,
        )
        self._captured: list[Any] = []
        self._encoded: dict[Any, list[int]] = {}
        self._batches: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
        self._instances: Sequence[Any] = ()
        self._prompts: Sequence[str] = ()
        self._seconds = 0.0
        self.spare, self.states = model.spare, model.states
        self.prefill: Prefill | None = None
        self.continuous: ContinuousGeneration | None = None  # writes greedy texts instead of `generate`
        self._calls: _Calls | None = None
        self._left: set[str] = set()  # reasons why texts were left to `generate`, said once
        self.halved = 0  # how often sequences that are generated at a time became half as many

    def rebind(self, model: LoadedModel) -> None:
        """Score another module of the same tokenizer, dtype and device from now on."""
        self._model, self.spare, self.states = model.module, model.spare, model.states
        self._config = model.module.config
        if model.module.training:  # dropout would make scores random
            model.module.eval()

    def token_requests(self, instances: Sequence[Any]) -> list[TokenRequest]:
        """What stock `loglikelihood` would ask of the model for `instances`, in their order.

        Raises:
            FitnessError: a tokenizer that makes nothing of one, naming the task and document.
        """
        self._captured, self._encoded = [], encoded_ahead(self, instances)
        for instance in instances:
            with tokenising(instance):
                context, continuation = instance.args
                if context == "" and not self.tok_encode(continuation, add_special_tokens=False):
                    raise no_target(instance)  # stock code asks for its first token
                self.loglikelihood([instance], disable_tqdm=True)
        self._encoded.clear()
        return [TokenRequest(*request) for request in self._captured]

    def token_windows(self, instance: Any) -> list[TokenRequest]:
        """The windows that stock `loglikelihood_rolling` would ask for one instance; none for an empty text."""
        self._captured = []
        with tokenising(instance):
            self.loglikelihood_rolling([instance], disable_tqdm=True)
        self._encoded.clear()
        return [TokenRequest(*request) for request in self._captured]

    def generate(self, instances: Sequence[Any]) -> tuple[list[str], float]:
        """Stock generation: the texts, and the seconds spent inside the model.

        Sampling draws from torch's generators seeded anew, which are put back afterwards.

        Raises:
            FitnessError: a score of a next token is not finite, naming the task and document.
        """
        self._seconds, self._instances = 0.0, instances
        if self.prefill is None:
            return self._texts(instances), self._seconds
        self.prefill.begin()
        try:
            return self._texts(instances), self._seconds
        finally:
            self.prefill.end()

    def _texts(self, instances: Sequence[Any]) -> list[str]:
        devices = [self.device] if self.device.type == "cuda" else []
        texts: list[str] | None = None
        retries = Retries(self.spare)
        while texts is None:
            try:
                with torch.random.fork_rng(devices):
                    torch.manual_seed(_SAMPLING_SEED)
                    texts = self._all_texts(list(instances))
            except Exception as error:
                if not out_of_memory(error):
                    raise
                failed = error.with_traceback(None)
            if texts is None:  # out of the handler, which holds on to the frames of the error
                if retries.again():
                    continue
                if self.batch_size_per_gpu == 1:
                    raise failed
                self._batches.clear()
                self.batch_size_per_gpu //= 2
                self.halved += 1
                _log.warning(
                    "not enough memory: %d sequences are generated at a time from now on; texts may differ from those "
                    "of larger batches",
                    self.batch_size_per_gpu,
                )
        return texts

    def _all_texts(self, instances: list[Any]) -> list[str]:
        """What stock `generate_until` returns; where texts are written continuously, it is run twice.

        Once to see what it asks of `generate`, in all of its batches, and once to be given the answers.
        """
        if self.continuous is None:
            return self.generate_until(instances, disable_tqdm=True)  # type: ignore[no-any-return]
        self._calls = _Calls()
        try:
            self.generate_until(instances, disable_tqdm=True)
            self._calls.answers = deque(self._continuously(self.continuous, self._calls.asked))
            return self.generate_until(instances, disable_tqdm=True)  # type: ignore[no-any-return]
        finally:
            self._calls = None

    def _continuously(
        self, engine: ContinuousGeneration, asked: Sequence[Call | None]
    ) -> Iterator[torch.Tensor | None]:
        """For each batch its tokens; ``None`` where it is left to `generate`."""
        calls = [call for call in asked if call is not None]
        start = time.perf_counter()
        engine.slots = self.batch_size
        try:
            with self._autocast():
                found = iter(engine.write(self.model, calls, self.prefill))
        except NotFinite as error:
            raise self._not_finite(error, calls[error.call].names) from None
        self._seconds += time.perf_counter() - start
        return iter([None if call is None else next(found) for call in asked])

    def require_room(self, instance: Any) -> None:
        """Raise `FitnessError` when an instance asks for more tokens than the model has positions, or has no prompt."""
        try:
            asked = normalize_gen_kwargs(instance.args[1], self.max_gen_toks)["max_gen_toks"]
        except (TypeError, ValueError, OverflowError) as error:
            raise FitnessError(
                f"task {instance.task_name!r} has generation_kwargs {str(instance.args[1])[:200]}",
                f"lm-eval cannot read them: {' '.join(str(error).split())[:200]}",
                "mend the task's generation_kwargs, or gen_kwargs",
            ) from error
        if asked >= self.max_length:
            raise FitnessError(
                f"task {instance.task_name!r} generates up to {asked} tokens",
                f"fewer than the model's {self.max_length} positions",
                f"set gen_kwargs.max_gen_toks below {self.max_length}",
            )
        prompt = str(instance.args[0])
        with tokenising(instance):
            if not self.tok_encode(prompt) and not super().tok_batch_encode([prompt])[1].any():
                raise no_prompt(instance)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **kwargs: Any
    ) -> list[int]:
        """Stock encoding, remembered."""
        key = (string, add_special_tokens, left_truncate_len, tuple(sorted(kwargs.items())))
        if key not in self._encoded:
            self._encoded[key] = super().tok_encode(string, add_special_tokens, left_truncate_len, **kwargs)
        return self._encoded[key]

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stock encoding of a padded batch, remembered on the device."""
        self._prompts = strings
        key = (tuple(strings), padding_side, left_truncate_len, truncation)
        if key not in self._batches:
            ids, mask = super().tok_batch_encode(list(strings), padding_side, left_truncate_len, truncation)
            self._batches[key] = (ids.to(self.device), mask.to(self.device))
        return self._batches[key]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        self._captured.extend(requests)
        return [(0.0, False)] * len(requests)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **kwargs: Any) -> torch.Tensor:
        if self._calls is not None and self._calls.answers is None:
            most = max_length - context.shape[1]
            reason = no_call(self.model, most, kwargs)
            if reason and reason not in self._left:
                self._left.add(reason)
                _log.warning("texts are written in lm-eval's batches, not continuously: %s", reason)
            call = None if reason else Call(context, kwargs["attention_mask"], tuple(stop), most, self._prompts)
            self._calls.asked.append(call)
            return context
        answer = self._calls.answers.popleft() if self._calls is not None and self._calls.answers else None
        if answer is not None:
            return answer
        check = FiniteScores(at_once=bool(kwargs.get("do_sample")))
        start = time.perf_counter()
        cache = self._prefilled(context, kwargs)
        if cache is not None:
            kwargs["past_key_values"] = cache
        try:
            tokens: torch.Tensor = super()._model_generate(
                context=context,
                max_length=max_length,
                stop=stop,
                logits_processor=LogitsProcessorList([check]),
                **kwargs,
            )
            check.require_finite()
        except NotFinite as error:
            raise self._not_finite(error, self._prompts) from None
        self._seconds += time.perf_counter() - start
        return tokens

    def _not_finite(self, error: NotFinite, prompts: Sequence[str]) -> FitnessError:
        row = error.row * len(prompts) // error.rows  # a prompt may have several beams
        instance = next(i for i in self._instances if i.args[0] == prompts[row])
        return not_finite(instance, "a next-token score")

    def _autocast(self) -> torch.autocast:
        dtype = self.mixed_precision_dtype
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def _prefilled(self, context: torch.Tensor, kwargs: Mapping[str, Any]) -> Any:
        """A cache of keys and values that greedy generation begins with; ``None`` to leave the prompts to it."""
        settings = self.model.generation_config
        beams = kwargs.get("num_beams") or getattr(settings, "num_beams", None) or 1
        greedy = not kwargs.get("do_sample") and not kwargs.get("temperature") and beams == 1
        if self.prefill is None or not greedy or kwargs.get("cache_implementation") or settings.cache_implementation:
            return None
        with self._autocast():
            return self.prefill(self.model, context, kwargs["attention_mask"])
