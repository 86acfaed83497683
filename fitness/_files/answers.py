"""What a model writes after prompts, for people to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import FitnessError, reason_of
from evomerge.models.loaded import LoadedModel
from fitness._files.terms import Prompts
from fitness._unlabelled.terms import WriteTerm
from fitness._unlabelled.writing import Tokens, write

_POSITIONS = 2048  # of a text, where the model's configuration does not say


def tokenised(prompts: Mapping[str, Prompts], tokenizer: Any, special: bool, chat: bool) -> dict[str, list[Tokens]]:
    """By name the tokens of every prompt.

    Args:
        prompts: by name.
        tokenizer: of the pool.
        special: whether it adds tokens of its own, such as BOS.
        chat: whether its chat template is put around every prompt, as what a user says.

    Raises:
        FitnessError: there is no tokenizer or no template, or a prompt has no token.
    """
    if tokenizer is None:
        raise FitnessError("the pool has no tokenizer", "prompts are read as tokens")
    if chat and not getattr(tokenizer, "chat_template", None):
        raise FitnessError("chat_template is true, and the tokenizer has none", "false, for prompts as they are")
    found: dict[str, list[Tokens]] = {}
    for name, own in prompts.items():
        try:
            texts = [_chat(tokenizer, text) for text in own.texts] if chat else list(own.texts)
            ids = tokenizer(texts, add_special_tokens=special and not chat)["input_ids"]
        except Exception as error:  # templates raise what they like
            raise FitnessError(f"the prompts of {name} cannot be read as tokens ({reason_of(error)})") from error
        for number, tokens in enumerate(ids):
            if not tokens:
                raise FitnessError(f"prompt {number} of {name} has no token", "one at least, to go on from")
        found[name] = [tuple(tokens) for tokens in ids]
    return found


def _chat(tokenizer: Any, text: str) -> str:
    message = {"role": "user", "content": text}
    return str(tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))


def check_lengths(tokens: Mapping[str, Sequence[Tokens]], written: int, config: Any) -> None:
    """`FitnessError` for a prompt that leaves the model no room for what it is to write."""
    own = config.get_text_config()
    known = (getattr(own, name, None) for name in ("n_positions", "max_position_embeddings", "n_ctx"))
    most = next((value for value in known if isinstance(value, int) and value > 1), _POSITIONS)
    for name, prompts in tokens.items():
        for number, prompt in enumerate(prompts):
            if len(prompt) + written > most:
                given = f"prompt {number} of {name} has {len(prompt):,} tokens, and tokens is {written:,}"
                raise FitnessError(given, f"together the model's {most:,} positions at most", "set tokens lower")


def answers(
    model: LoadedModel, tokens: Mapping[str, Sequence[Tokens]], how: WriteTerm, batch_tokens: int, until: Sequence[str]
) -> dict[str, list[str]]:
    """By name what the model writes after every prompt, without the prompt.

    Args:
        model: the candidate.
        tokens: of the prompts.
        how: tokens, temperature and seed.
        batch_tokens: of a batch.
        until: texts that end an answer, and are no part of it.

    Raises:
        FitnessError: the model predicts nothing that is finite.
    """
    found: dict[str, list[str]] = {}
    for name, prompts in tokens.items():
        written = write(model, prompts, how, batch_tokens)
        own = [text[len(prompt) :] for text, prompt in zip(written, prompts, strict=True)]
        found[name] = [_ended(model.tokenizer.decode(list(ids), skip_special_tokens=True), until) for ids in own]
    return found


def _ended(text: str, until: Sequence[str]) -> str:
    places = [place for place in (text.find(stop) for stop in until) if place >= 0]
    return text[: min(places, default=len(text))]
