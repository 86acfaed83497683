"""lm-eval's model of OpenAI-compatible servers (``local-completions``), whose requests go through one that runs."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import mock

from lm_eval.models import api_models, openai_completions

from evomerge.errors import FitnessError
from fitness._lm_eval.arguments import ModelArguments
from fitness._lm_eval.captured_requests import CapturesRequests
from fitness._lm_eval.document_errors import no_prompt, tokenising
from fitness._lm_eval.model import TokenRequest

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel, Served

T = TypeVar("T")
_SEED = 1234
"""What lm-eval sends with every request."""


class ServerLM(CapturesRequests, openai_completions.LocalCompletionsAPI):
    """lm-eval's model, given a server that runs instead of an address.

    Requests and what is made of answers are stock code's; the server is asked by `Served.complete`, which has time-outs
    and retries of its own, several requests at a time.

    Args:
        model: with a `served`, and the pool's tokenizer.
        arguments: as for ``lm_eval --model local-completions``, as far as it takes them.

    Raises:
        FitnessError: more positions are asked for than the server has.
    """

    def __init__(self, model: LoadedModel, arguments: ModelArguments) -> None:
        served = _served(model)
        if (arguments.max_length or 0) > served.positions:
            raise FitnessError(
                f"fitness.max_length is {arguments.max_length}",
                f"at most {served.positions}, the positions of the server's model",
                "leave max_length out",
            )
        with mock.patch("transformers.AutoTokenizer.from_pretrained", return_value=model.tokenizer):
            super().__init__(
                base_url=served.url,
                tokenizer_backend="huggingface",
                pretrained=served.name,
                tokenizer=model.name_or_path,
                max_length=arguments.max_length or served.positions,
                add_bos_token=bool(arguments.add_bos_token),
                custom_prefix_token_id=arguments.prefix_token_id,
                batch_size=arguments.batch_size,
                seed=_SEED,
                max_retries=1,  # the server is asked again below this
            )
        self._served = served
        self._encoded: dict[Any, Any] = {}

    @property
    def header(self) -> dict[str, str]:
        """None here: a key stays with who asks."""
        return {}

    def rebind(self, model: LoadedModel) -> None:
        """Score another of the server's models from now on."""
        self._served = _served(model)
        self.model = self._served.name

    def require_room(self, instance: Any) -> None:
        """Raise `FitnessError` when an instance asks for more tokens than there are positions, or has no prompt."""
        with tokenising(instance):
            if not self.tok_encode(str(instance.args[0])):
                raise no_prompt(instance)
        asked = int(instance.args[1].get("max_gen_toks", self._max_gen_toks))
        if asked >= self.max_length:
            raise FitnessError(
                f"task {instance.task_name!r} generates up to {asked} tokens",
                f"fewer than the {self.max_length} positions of the server's model",
                f"set gen_kwargs.max_gen_toks below {self.max_length}",
            )

    def answer(
        self, kind: str, instances: Sequence[Any], requests: Mapping[int, Sequence[TokenRequest]]
    ) -> tuple[list[Any], float]:
        """What stock code makes of the server's answers, and the seconds that they took.

        Args:
            kind: a request type of lm-eval.
            instances: all of a candidate's requests of this type.
            requests: by identity of the instance its tokens, of log-likelihoods.

        Raises:
            EvomergeError: the server gives no answer, or another one than was asked for.
        """
        start = time.perf_counter()
        with mock.patch.object(api_models, "tqdm", _no_bar):
            answers: list[Any]
            if kind == "generate_until":
                answers = list(self._written(instances))
            else:
                asked = [request for instance in instances for request in requests[id(instance)]]
                scores = iter(self._scored(asked))
                own = [[next(scores) for _ in requests[id(instance)]] for instance in instances]
                rolling = kind == "loglikelihood_rolling"
                answers = [sum(score for score, _ in each) if rolling else each[0] for each in own]
        return answers, time.perf_counter() - start

    def _scored(self, asked: Sequence[TokenRequest]) -> list[tuple[float, bool]]:
        """Log-likelihoods, and whether each target is the likeliest; in order. The longest are asked first."""
        order = sorted(range(len(asked)), key=lambda i: -len(asked[i].context) - len(asked[i].continuation))
        chunks = [order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)]
        stock = super()._loglikelihood_tokens
        found = self._at_once(lambda chunk: stock([tuple(asked[i]) for i in chunk]), chunks)
        return _in_order(chunks, found)

    def _written(self, instances: Sequence[Any]) -> list[str]:
        """Texts in order; those of one request have the same settings."""
        groups: dict[str, list[int]] = {}
        for place in sorted(range(len(instances)), key=lambda i: -len(instances[i].args[0])):
            groups.setdefault(repr(instances[place].args[1]), []).append(place)
        size = self._batch_size
        chunks = [of[start : start + size] for of in groups.values() for start in range(0, len(of), size)]
        stock = super().generate_until
        found = self._at_once(lambda chunk: stock([instances[i] for i in chunk], disable_tqdm=True), chunks)
        return _in_order(chunks, found)

    def _at_once(self, work: Callable[[list[int]], T], chunks: Sequence[list[int]]) -> list[T]:
        """What some work returns for every chunk, so many at a time as the server may be asked."""
        if not chunks:
            return []
        pool = ThreadPoolExecutor(min(self._served.concurrency, len(chunks)), "evomerge-server")
        try:
            return list(pool.map(work, chunks))
        finally:  # the rest is of no use once one has failed
            pool.shutdown(wait=False, cancel_futures=True)

    def model_call(
        self, messages: Any, *, generate: bool = True, gen_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The server's answer to stock code's request.

        Raises:
            EvomergeError: there is none, or not one for every prompt and token.
        """
        payload = self._create_payload(
            self.create_message(messages),
            generate=generate,
            gen_kwargs=copy.deepcopy(gen_kwargs),
            seed=self._seed,
            eos=self.eos_string,
            **kwargs,
        )
        answer = self._served.complete(payload)
        choices = sorted(answer["choices"], key=lambda choice: choice.get("index", -1))
        if [choice.get("index") for choice in choices] != list(range(len(messages))):
            raise self._odd(f"{len(choices)} answers for {len(messages)} prompts", "one for each, with its index")
        for choice, tokens in zip(choices, messages, strict=True):
            if generate:
                continue
            scores = choice.get("logprobs") or {}
            lengths = {len(scores.get(name) or ()) for name in ("token_logprobs", "top_logprobs")}
            if lengths != {len(tokens) + 1}:
                raise self._odd(
                    f"log-likelihoods of {max(lengths)} tokens for a prompt of {len(tokens)} and one token after it",
                    "one for every token: the server must take echo and logprobs with tokens as prompts",
                )
        return answer

    def _odd(self, came: str, allowed: str) -> FitnessError:
        return FitnessError(f"POST {self._served.url} gave {came}", allowed, "vLLM's server does")

    def tok_encode(self, string: Any, *args: Any, **kwargs: Any) -> Any:
        """Stock encoding, remembered."""
        key = (string if isinstance(string, str) else tuple(string), args, tuple(sorted(kwargs.items())))
        if key not in self._encoded:
            self._encoded[key] = super().tok_encode(string, *args, **kwargs)
        return self._encoded[key]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        if self.captured is None:
            raise AssertionError("requests are captured, then scored by `answer`")
        self.captured.extend(requests)
        return [(0.0, False)] * len(requests)


def _in_order(chunks: Sequence[Sequence[int]], found: Sequence[Sequence[T]]) -> list[T]:
    """What was found of the places that chunks name, by place."""
    by_place: dict[int, T] = {}
    for chunk, of in zip(chunks, found, strict=True):
        by_place |= zip(chunk, of, strict=True)
    return [by_place[place] for place in range(len(by_place))]


class _no_bar:
    """In the place of tqdm."""

    def __init__(self, given: Any = (), **_: Any) -> None:
        self._given = given

    def __iter__(self) -> Any:
        return iter(self._given)

    def update(self, _: int) -> None:
        """Nothing."""


def _served(model: LoadedModel) -> Served:
    assert model.served is not None, "a session of a server is built for its models"
    return model.served
