"""Names of arguments of generation: whose they are, and what a mistyped one was meant to be. Imports nothing heavy."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from evomerge.errors import FitnessError, nearest
from evomerge.utils.installed_source import class_fields
from fitness._lm_eval.terms import TaskTerm

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of how many tokens are written at most; the first that is given counts."""

OF_LM_EVAL = ("until", "do_sample", "temperature", *LENGTHS)
"""What lm-eval reads itself, for every model."""

OF_BOTH = ("repetition_penalty", "top_p", "top_k", "min_p")
"""What goes on to transformers and to vLLM under one name."""

OF_VLLM = (
    *("n", "presence_penalty", "frequency_penalty", "seed", "stop", "stop_token_ids", "ignore_eos", "min_tokens"),
    *("logprobs", "include_stop_str_in_output", "structured_outputs", "logit_bias", "allowed_token_ids", "bad_words"),
)
"""What vLLM's ``SamplingParams`` have and transformers has not, as far as anyone would want it."""


def check_engine_names(engine: str, gen_kwargs: Mapping[str, Any], terms: Iterable[TaskTerm]) -> None:
    """Check names of arguments of generation that stand in a fitness against an engine's.

    Args:
        engine: ``transformers``, or ``vllm``, where that is installed; a server says itself what it does not take.
        gen_kwargs: of all tasks.
        terms: with those of their own.

    Raises:
        FitnessError: one that only the other has, or none.
    """
    fields = class_fields("vllm", ("sampling_params.py",), "SamplingParams") if engine == "vllm" else {}
    taken = {*OF_LM_EVAL, *(name for name in fields if not name.startswith("_"))}
    for where, name, value in _given(gen_kwargs, terms):
        if fields and name not in taken:
            raise FitnessError(
                f"{where} is {repr(value)[:80]} and evaluator.engine is vllm",
                f"what vLLM's SamplingParams take: {nearest(name, taken)}",
                "leave it out, or set evaluator.engine=transformers",
            )
        if engine == "transformers" and name in OF_VLLM:
            raise FitnessError(
                f"{where} is {repr(value)[:80]} and evaluator.engine is transformers",
                "an argument of vLLM's, which transformers has not",
                "leave it out; until ends texts, and max_gen_toks says how long they are",
            )


def mistyped(name: str, of_transformers: Collection[str]) -> str:
    """What a name was meant to be that nothing knows; empty for one that is known, or like none that is.

    A model of its own code may take names that nobody else does: only what is nearly a known one is a mistake.

    Args:
        name: as it is given.
        of_transformers: arguments of its generation.
    """
    known = {*OF_LM_EVAL, *OF_BOTH, *OF_VLLM, *of_transformers}
    if name in known:
        return ""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.8)
    return f"did you mean {close[0]!r}?" if close else ""


def _given(gen_kwargs: Mapping[str, Any], terms: Iterable[TaskTerm]) -> Iterator[tuple[str, str, Any]]:
    """Where each stands, its name and its value."""
    for name, value in gen_kwargs.items():
        yield f"gen_kwargs.{name}", str(name), value
    for term in terms:
        for name, value in term.gen_kwargs.items():
            yield f"{name} in the gen_kwargs of task {term.label!r}", str(name), value
