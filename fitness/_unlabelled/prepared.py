"""The texts as tokens, and what the models of the pool said of them: what a fitness scores with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.candidate import Part
from evomerge.errors import FitnessError, nearest
from evomerge.models.loaded import LoadedModel
from evomerge.models.unknown_tokens import UnknownTokens
from fitness._unlabelled.domain import Domain, Text, read_text
from fitness._unlabelled.judge import Judge, JudgeFolder
from fitness._unlabelled.sources import Source
from fitness._unlabelled.store import Precision, choose_precision
from fitness._unlabelled.terms import TextTerm
from fitness._unlabelled.writing import Tokens, begin_token, write

_POSITIONS = 2048  # of a text, where neither a key nor the model's configuration says


@dataclass(frozen=True)
class How:
    """How texts are read.

    Attributes:
        layers: whose hidden states are compared; ``None`` for the middle one.
        batch_tokens: of a forward.
        max_length: tokens of a text; ``None`` for the model's positions.
        special: whether the tokenizer adds tokens of its own.
        reference_size: bytes of what other models said.
    """

    layers: Sequence[int] | None
    batch_tokens: int
    max_length: int | None
    special: bool
    reference_size: int

    def longest(self, config: Any) -> int:
        """Tokens of a text at most."""
        own = config.get_text_config()
        known = (getattr(own, name, None) for name in ("n_positions", "max_position_embeddings", "n_ctx"))
        most = next((value for value in known if isinstance(value, int) and value > 1), _POSITIONS)
        return most if self.max_length is None else min(self.max_length, most)

    def compared(self, config: Any) -> list[int]:
        """Indices of hidden states."""
        return [config.get_text_config().num_hidden_layers // 2] if self.layers is None else list(self.layers)


def tokenised(
    terms: Sequence[TextTerm],
    sources: Mapping[str, Source],
    tokenizer: Any,
    longest: int,
    special: bool,
    unknown: UnknownTokens | None = None,
) -> dict[str, list[Tokens]]:
    """By domain the tokens of each text, cut at `longest`; of texts to be gone on with less by what is written.

    All tokens are counted by `unknown`, where there is one.

    Raises:
        FitnessError: there is no tokenizer, a text has too few tokens, or what is written is too long.
    """
    if tokenizer is None:
        raise FitnessError("the pool has no tokenizer", "texts are read as tokens")
    found: dict[str, list[Tokens]] = {}
    for term in terms:
        source, most = sources[term.name], longest
        if term.write is not None:
            most = longest - term.write.tokens
            if most < 1:
                key = f"texts.{term.name}.write.tokens"
                raise FitnessError(f"{key} is {term.write.tokens}", f"less than {longest}: a text has no more tokens")
            if not source.texts:
                found[term.name] = [(begin_token(tokenizer),)] * source.count
                continue
        elif term.reward is not None:
            most = longest - term.reward.tokens
            if most < 1:
                key = f"texts.{term.name}.reward.tokens"
                raise FitnessError(f"{key} is {term.reward.tokens}", f"less than {longest}: a text has no more tokens")
        ids = tokenizer(list(source.texts), add_special_tokens=special)["input_ids"]
        found[term.name] = [tuple(own[:most]) for own in ids]
        if unknown is not None:
            for own in ids:
                unknown.add(term.file or f"task {term.task}", own, tokenizer)
        for number, tokens in enumerate(found[term.name]):
            if term.write is None:
                read_text(term, number, tokens)
            elif not tokens:
                raise FitnessError(f"text {number} of {term.name} has no token", "one at least, to go on from")
    return found


def count_kept(terms: Sequence[TextTerm], tokens: Mapping[str, Sequence[Tokens]]) -> tuple[int, int, int]:
    """What is kept at most: distributions, positions with hidden states, single numbers of 8 bytes."""
    distributions = states = numbers = 0
    for term in terms:
        if term.write is not None:
            positions = len(tokens[term.name]) * term.write.tokens
        else:
            positions = sum(read_text(term, i, own).positions for i, own in enumerate(tokens[term.name]))
        distributions += positions * (term.has("soft_cross_entropy") + term.has("kl_to_base"))
        states += positions * term.has("hidden_distance")
        numbers += positions * (term.has("agreement") + term.has("forgetting"))
    return distributions, states, numbers


def precision_for(
    terms: Sequence[TextTerm], tokens: Mapping[str, Sequence[Tokens]], how: How, config: Any, dtype: torch.dtype
) -> tuple[Precision, int]:
    """In what form distributions are kept, and bytes of all that is kept.

    Raises:
        FitnessError: the budget is too small.
    """
    own = config.get_text_config()
    distributions, states, numbers = count_kept(terms, tokens)
    other = states * len(how.compared(config)) * own.hidden_size * dtype.itemsize + 8 * numbers
    if not distributions and other <= how.reference_size:
        return Precision("float32"), other
    found = choose_precision(how.reference_size, max(distributions, 1), own.vocab_size, other, "reference_size")
    return found, other + found.nbytes(distributions, own.vocab_size)


@dataclass
class Prepared:
    """All that is ready for candidates.

    Attributes:
        terms: the domains.
        tokens: by domain those of each text, or of what it is written after.
        how: texts are read.
        layers: whose hidden states are compared.
        precision: of distributions.
        dtype: of the model.
        steps: models to be seen, in order.
        writers: by domain who writes.
        base: the pool's base, where it is needed.
        judges: by domain the classifier of what candidates write.
        domains: whose texts are there.
    """

    terms: Sequence[TextTerm]
    tokens: Mapping[str, Sequence[Tokens]]
    how: How
    layers: Sequence[int]
    precision: Precision
    dtype: torch.dtype
    steps: list[str]
    writers: Mapping[str, str]
    base: str
    judges: Mapping[str, Judge] = field(default_factory=dict)
    domains: dict[str, Domain] = field(default_factory=dict)

    def refer(self, model: LoadedModel, name: str) -> None:
        """Let the model that is due write or say.

        Raises:
            FitnessError: it is not due.
        """
        if not self.steps or self.steps[0] != name:
            due = f"{self.steps[0]} is due" if self.steps else "none is due"
            raise FitnessError(f"model {name!r} is not the one to refer to", due)
        open_ = [term for term in self.terms if term.name not in self.domains]
        if open_:
            for term in open_:
                if term.write is not None and self.writers[term.name] == name:
                    texts = write(model, self.tokens[term.name], term.write, self.how.batch_tokens)
                    self.add(term, texts)
        else:
            for term in self.terms:
                expert, base = (
                    "expert" in term.needs and term.expert == name,
                    "base" in term.needs and self.base == name,
                )
                if expert or base:
                    self.domains[term.name].learn(model, self.precision, expert=expert, base=base)
        self.steps.pop(0)

    def add(self, term: TextTerm, texts: Sequence[Tokens]) -> None:
        """Add the whole texts of a domain."""
        prompts = self.tokens[term.name] if term.write is not None else None
        items: list[Text] = []
        for number, own in enumerate(texts):
            items.append(read_text(term, number, own, len(prompts[number]) if prompts is not None else None))
        judge = self.judges.get(term.name)
        self.domains[term.name] = Domain(term, items, self.layers, self.how.batch_tokens, judge=judge)

    def score(self, model: LoadedModel, part: Part | None) -> tuple[dict[str, NDArray[np.float64]], float]:
        """Values by ``text/metric``, and seconds inside model calls.

        Raises:
            FitnessError: as for `UnlabelledFitness.run`.
        """
        if self.steps:
            raise FitnessError(f"{self.steps[0]} was not referred to", "refer(...) comes after prepare(model)")
        places = self._places(part)
        seconds, found = [0.0], {}
        for term in self.terms:
            for name, values in self.domains[term.name].score(model, places[term.name], seconds).items():
                found[f"{term.name}/{name}"] = values
        return found, seconds[0]

    def _places(self, part: Part | None) -> dict[str, list[int]]:
        counts = {term.name: len(self.domains[term.name].texts) for term in self.terms}
        if part is None:
            return {name: list(range(count)) for name, count in counts.items()}
        for name in part:
            if name not in counts:
                raise FitnessError(f"the part has items of {name!r}", nearest(name, counts))
        found = {name: sorted(set(part.get(name, ()))) for name in counts}
        for name, own in found.items():
            if not own or own[0] < 0 or own[-1] >= counts[name]:
                given = f"places {own[:1]} to {own[-1:]} of {name}" if own else f"no item of {name}"
                raise FitnessError(f"the part has {given}", f"places from 0 to {counts[name] - 1}, one at least")
        return found


def prepare(
    model: LoadedModel,
    terms: Sequence[TextTerm],
    sources: Mapping[str, Source],
    how: How,
    steps: Sequence[str],
    writers: Mapping[str, str],
    base: str,
    judges: Mapping[str, JudgeFolder],
) -> Prepared:
    """Make everything ready that needs no other model.

    Raises:
        FitnessError: as for `UnlabelledFitness.prepare`.
    """
    config = model.module.config
    needed = any(term.needs or term.write is not None for term in terms)
    if needed and not steps:
        raise FitnessError("models of the pool are needed and none is known", "references(pool) comes before prepare")
    tokens = tokenised(terms, sources, model.tokenizer, how.longest(config), how.special)
    precision, _ = precision_for(terms, tokens, how, config, model.dtype)
    loaded = {name: judge.load(model.device) for name, judge in judges.items()}
    made = Prepared(
        terms, tokens, how, how.compared(config), precision, model.dtype, list(steps), dict(writers), base, loaded
    )  # fmt: skip
    for term in terms:
        if term.write is None:
            made.add(term, tokens[term.name])
    return made
