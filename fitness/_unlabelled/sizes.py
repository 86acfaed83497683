"""What reading texts takes of memory beside the model, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evomerge.models.loaded import ModelOutline
from evomerge.utils.memory import MemoryPart, Place
from evomerge.utils.sizes import size_text
from fitness._unlabelled.domain import MOST_NUMBERS
from fitness._unlabelled.judge import JudgeFolder
from fitness._unlabelled.prepared import How, precision_for, tokenised
from fitness._unlabelled.sources import Source
from fitness._unlabelled.terms import TextTerm

_COPIES = 4  # of a piece of logits in float32: logarithms, probabilities, what they are compared with, the product
_FORMS = {"float32": "in float32", "float16": "in float16"}


def memory(
    terms: Sequence[TextTerm],
    sources: Mapping[str, Source],
    model: ModelOutline,
    how: How,
    judges: Mapping[str, JudgeFolder],
) -> list[MemoryPart]:
    """The forwards, by the logits of the largest batch, what other models said of the texts, and classifiers.

    Nothing where the model has no tokenizer, which scoring refuses.
    """
    if model.tokenizer is None:
        return []
    place: Place = "host" if model.on_host else "device"
    longest = how.longest(model.config)
    tokens = tokenised(terms, sources, model.tokenizer, longest, how.special)
    written = {term.name: term.write.tokens for term in terms if term.write is not None}
    written |= {term.name: term.reward.tokens for term in terms if term.reward is not None}
    most = max((len(text) + written.get(name, 0) for name, texts in tokens.items() for text in texts), default=1)
    own = model.config.get_text_config()
    batch = max(how.batch_tokens, most)
    logits = batch * own.vocab_size * model.dtype.itemsize + _COPIES * 4 * max(MOST_NUMBERS, own.vocab_size)
    text = f"{batch:,} tokens: logits of {own.vocab_size:,} words"
    found = [MemoryPart("forwards", logits, text, "batch_tokens", place=place, during="scoring")]
    precision, nbytes = precision_for(terms, tokens, how, model.config, model.dtype)
    if nbytes:
        form = _FORMS.get(precision.form, f"their {precision.kept:,} likeliest tokens")
        text = f"what other models said of the texts, {form} ({size_text(how.reference_size)} at most)"
        found.append(MemoryPart("references", nbytes, text, "reference_size", place=place))
    held = {judge.checkpoint.folder: judge.checkpoint.nbytes for judge in judges.values()}
    if held:
        found.append(MemoryPart("reward", sum(held.values()), "classifiers of what candidates write", place=place))
    return found
