"""lm-eval's vLLM model around an engine that runs already; what does not change is kept."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

from lm_eval.models import vllm_causallms as stock

from evomerge.errors import FitnessError
from fitness._lm_eval.arguments import ModelArguments
from fitness._lm_eval.captured_requests import CapturesRequests
from fitness._lm_eval.document_errors import no_prompt, not_finite, tokenising
from fitness._lm_eval.watched_engine import NotFiniteText, Script, Unanswered, WatchedEngine

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel


_SAMPLING_SEED = 1234


def says_nothing(gen_kwargs: Mapping[str, Any]) -> bool:
    """Whether generation settings leave it open how tokens are chosen."""
    return gen_kwargs.get("do_sample") is None and gen_kwargs.get("temperature") is None


class EngineLM(CapturesRequests, stock.VLLM):
    """lm-eval's model, given an engine instead of the arguments to start one with.

    Args:
        model: whose engine scores; folders of its configuration and tokenizer.
        arguments: as for ``lm_eval --model vllm``, as far as it takes them.

    Raises:
        FitnessError: more positions are asked for than the engine has.
    """

    def __init__(self, model: LoadedModel, arguments: ModelArguments) -> None:
        self.engine = WatchedEngine(model.engine)
        with mock.patch.object(stock, "LLM", return_value=self.engine):
            super().__init__(
                pretrained=model.name_or_path,
                tokenizer=model.tokenizer.name_or_path,
                dtype=str(model.dtype).removeprefix("torch."),
                trust_remote_code=bool(model.engine.llm_engine.model_config.trust_remote_code),
                add_bos_token=arguments.add_bos_token,
                prefix_token_id=arguments.prefix_token_id,
                batch_size="auto",
                max_length=arguments.max_length,
                enable_thinking=arguments.enable_thinking,
                chat_template_args=dict(arguments.chat_template_args),
                think_end_token=arguments.think_end_token,
            )
        positions = model.engine.llm_engine.model_config.max_model_len
        if self.max_length > positions:
            raise FitnessError(
                f"fitness.max_length is {self.max_length}",
                f"at most {positions}, the positions of vLLM's engine",
                "set evaluator.engine_args.max_model_len, or leave max_length out",
            )
        self._encoded: dict[Any, Any] = {}

    def rebind(self, model: LoadedModel) -> None:
        """Score with another engine from now on, one like the first."""
        if self.engine._llm is not model.engine:
            self.engine = self.model = WatchedEngine(model.engine)
        self.engine.adapter = model.adapter

    def require_room(self, instance: Any) -> None:
        """Raise `FitnessError` when an instance asks for more tokens than there are positions, or has no prompt."""
        with tokenising(instance):
            if not self.tok_encode(str(instance.args[0])):
                raise no_prompt(instance)
        _, _, asked = self.modify_gen_kwargs(dict(instance.args[1]), eos="", default_max_gen_toks=self.max_gen_toks)
        if asked >= self.max_length:
            raise FitnessError(
                f"task {instance.task_name!r} generates up to {asked} tokens",
                f"fewer than the {self.max_length} positions of vLLM's engine",
                f"set gen_kwargs.max_gen_toks below {self.max_length}",
            )

    def answer(self, kind: str, instances: Sequence[Any], requests: Any = None) -> tuple[list[Any], float]:
        """What stock code makes of the engine's answers, and the seconds spent in the engine.

        Args:
            kind: a request type of lm-eval, the name of the method for it.
            instances: all of a candidate's requests of this type.
            requests: their tokens, which stock code finds again.

        Raises:
            FitnessError: a text is written from scores that are not finite, naming the task and document.
        """
        before = self.engine.seconds
        try:
            answers = list(getattr(self, kind)(list(instances), disable_tqdm=True)) if instances else []
        except NotFiniteText as error:
            raise not_finite(self._instance_of(error.tokens, instances), "a next-token score") from None
        return answers, self.engine.seconds - before

    def answer_together(
        self, kind: str, instances: Sequence[Sequence[Any]], models: Sequence[LoadedModel]
    ) -> tuple[list[list[Any] | Exception], float]:
        """`answer` for several candidates at once, and the seconds spent in the engine for all of them.

        Stock code is run for each until it asks the engine, what all of them ask goes there in one call, and stock code
        is run again with the answers.

        Args:
            kind: a request type of lm-eval.
            instances: each candidate's requests of this type; they may be the same.
            models: the candidates', on one engine with an adapter each.

        Returns:
            Of each candidate the answers, or what it raised.
        """
        self.rebind(models[0])
        before, found = self.engine.seconds, dict[int, list[Any] | Exception]()
        scripts = [Script() for _ in models]
        try:
            while len(found) < len(models):
                for number in (n for n in range(len(models)) if n not in found):
                    scripts[number].place = 0
                    self.engine.script = scripts[number]
                    try:
                        found[number] = self.answer(kind, instances[number])[0]
                    except Unanswered:
                        continue
                    except Exception as error:
                        found[number] = error
                asking = [number for number in range(len(models)) if number not in found]
                if asking:
                    self.engine.answer([scripts[n] for n in asking], [models[n].adapter for n in asking])
        finally:
            self.engine.script = None
        return [found[number] for number in range(len(models))], self.engine.seconds - before

    def _instance_of(self, tokens: tuple[int, ...], instances: Sequence[Any]) -> Any:
        """The instance of a prompt, which may have lost its beginning."""
        for instance in instances:
            if tuple(self.tok_encode(str(instance.args[0])))[-len(tokens) :] == tokens:
                return instance
        return instances[0]

    def tok_encode(self, string: Any, add_special_tokens: bool | None = None, **kwargs: Any) -> Any:
        """Stock encoding, remembered."""
        text = string if isinstance(string, str) else tuple(string)
        key = (text, add_special_tokens, tuple(sorted(kwargs.items())))
        if key not in self._encoded:
            self._encoded[key] = super().tok_encode(string, add_special_tokens, **kwargs)
        return self._encoded[key]

    @staticmethod
    def modify_gen_kwargs(
        gen_kwargs: dict[str, Any], eos: str | list[str] | None = None, default_max_gen_toks: int = 256
    ) -> tuple[dict[str, Any], list[str], int]:
        """Stock settings, greedy where a task names neither ``do_sample`` nor ``temperature``, and seeded elsewhere.

        Stock code (0.4.13) leaves the temperature to vLLM then, which draws at 1, with a generator that goes on from
        request to request: the same model would get another score every time.
        """
        given = dict(gen_kwargs)
        if says_nothing(given):
            given["temperature"] = 0.0
        kwargs, until, most = stock.VLLM.modify_gen_kwargs(given, eos, default_max_gen_toks)
        if kwargs.get("temperature", 1.0):
            kwargs.setdefault("seed", _SAMPLING_SEED)
        return kwargs, until, most

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        if self.captured is not None:
            self.captured.extend(requests)
            return [(0.0, False)] * len(requests)
        found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm=True)
        return found


def engine_version() -> str:
    """vLLM's version."""
    return importlib.metadata.version("vllm")
