"""What a fitness builds once for a model: requests, batches, blocks, and the fingerprint of all that."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.protocols import Block, Stop
from fitness._lm_eval.arguments import ModelArguments
from fitness._lm_eval.blocks import spread
from fitness._lm_eval.building import build_requests, changed_prompts, fingerprint
from fitness._lm_eval.forwards import Forwards
from fitness._lm_eval.loading import TaskSet
from fitness._lm_eval.model import resident_lm
from fitness._lm_eval.objective import WeighedTerm
from fitness._lm_eval.scoring import RawValues, TaskScorer, all_items
from fitness._lm_eval.session import Session
from fitness._lm_eval.settings import BuildSettings
from fitness._lm_eval.shared_forwards import default_tokens
from fitness._lm_eval.shared_probe import no_prefill, no_states, unsupported
from fitness._lm_eval.terms import RESPONSE_LENGTH

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel

_log = logging.getLogger(__name__)


@dataclass
class Prepared:
    """What is built once for a model."""

    session: Session
    scorers: Mapping[str, TaskScorer]
    blocks: Sequence[Block]
    places: Sequence[Mapping[str, Sequence[int]]]  # documents of each block, by task
    fingerprint: str

    def score(
        self, model: LoadedModel, blocks: Sequence[Block] | None, stop: Stop | None
    ) -> tuple[dict[str, RawValues], float, dict[str, float], bool]:
        """What all blocks or some gave, the seconds in model calls, the tokens, and whether no block is missing."""
        raw: dict[str, RawValues] = {}
        if len(self.blocks) == 1 or (blocks is None and stop is None):
            seconds = self.session.score(model, self.session.whole, raw, None)
            if stop is not None:
                stop(all_items(self.scorers, raw))
            return raw, seconds, self.session.tokens(None), True
        seconds, tokens, done = 0.0, Counter[str](), set[int]()
        for block in self.blocks if blocks is None else blocks:
            seconds += self.session.score(model, self.places[block.index], raw, block.index)
            tokens.update(self.session.tokens(block.index))
            done.add(block.index)
            if stop is not None and stop(all_items(self.scorers, raw)):
                break
        return raw, seconds, dict(tokens), len(done) == len(self.blocks)


def prepare(
    model: LoadedModel,
    tasks: TaskSet,
    terms: Sequence[WeighedTerm],
    generators: Any,
    settings: BuildSettings,
    arguments: ModelArguments,
    forwards: Forwards,
    block_size: int | None,
    response_length: bool,
) -> Prepared:
    """Build, tokenise and batch everything for a model's tokenizer, dtype and device.

    Args:
        model: the first to be scored.
        tasks: loaded.
        terms: of the objectives.
        generators: the global ones of the stock tool, as loading the tasks left them; they stay so.
        settings, arguments: those of the fitness.
        forwards: how log-likelihoods are run, where the model allows it.
        block_size: documents in a block; None for one block.
        response_length: whether the length of responses is an objective.

    Raises:
        FitnessError: prompts that cannot be built; targets that do not fit the model.
    """
    lm = resident_lm(model, arguments)
    with copy.copy(generators):
        build_requests(tasks, lm.tokenizer, settings)
    scorers = {name: TaskScorer(name, task, tasks.timeout) for name, task in tasks.tasks.items()}
    session = Session(lm, scorers)
    if forwards.mode == "shared" and _can_share(lm.model, session.longest):
        tokens = forwards.batch_tokens or default_tokens(model.device)
        session.share(tokens, _can_keep_states(model), session.generates and _can_prefill(lm.model))
    else:
        forwards = Forwards()
    places = spread({n: len(s.documents) for n, s in scorers.items()}, block_size, settings.fewshot_seed)
    decides = {
        "terms": [(t.name, t.tasks, t.term.weight, t.term.objective, t.metrics) for t in terms],
        "prompts": settings.flags(),
        "chat_template": getattr(lm.tokenizer, "chat_template", None) if settings.apply_chat_template else None,
        "dtype": str(model.dtype),
        "softmax_dtype": str(lm.softmax_dtype),
        "batch_size": arguments.batch_size,
        "max_length": lm.max_length,
        "add_bos_token": arguments.add_bos_token,
        "grouped": session.grouped,
        "block_size": block_size,
        **({RESPONSE_LENGTH: True} if response_length else {}),
        # What came later is named only where it is said: folders of earlier runs keep their fingerprint.
        **arguments.changed(),
        **forwards.decides(),
        **changed_prompts(tasks, lm.tokenizer, settings),
    }
    return Prepared(
        session,
        scorers,
        [Block(index, sum(map(len, of_block.values()))) for index, of_block in enumerate(places)],
        places,
        fingerprint(tasks, session.requests, decides),
    )


def _can_share(module: Any, longest: int) -> bool:
    """Whether a model computes a tree of tokens as it does one text; a line in the log where it does not."""
    reason = unsupported(module, longest)
    if reason:
        _log.warning("fitness.forwards=shared is not for this model: %s; its forwards are lm-eval's own", reason)
    return not reason


def _can_keep_states(model: LoadedModel) -> bool:
    """Whether a model can begin above its first layers; a line in the log where it cannot and was meant to."""
    if model.states is None:
        return False
    reason = no_states(model.module)
    if reason:
        _log.warning("no hidden states are kept of this model: %s; all layers run for every candidate", reason)
    return not reason


def _can_prefill(module: Any) -> bool:
    """Whether generation can begin with keys and values that were computed before; a line in the log where not."""
    reason = no_prefill(module)
    if reason:
        _log.warning("prompts of generation are not shared by this model: %s; it reads each of them whole", reason)
    return not reason
