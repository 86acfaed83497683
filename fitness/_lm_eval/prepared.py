"""What a fitness builds once for a model: requests, batches, and the fingerprint of all that."""

from __future__ import annotations

import copy
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.candidate import Part
from evomerge.errors import FitnessError, nearest
from fitness._lm_eval.arguments import ModelArguments
from fitness._lm_eval.building import build_requests, changed_prompts, fingerprint
from fitness._lm_eval.continuous_probe import no_continuous
from fitness._lm_eval.forwards import Forwards
from fitness._lm_eval.loading import TaskSet, has_images
from fitness._lm_eval.model import ResidentLM
from fitness._lm_eval.objective import WeighedTerm
from fitness._lm_eval.resident_model import resident_lm
from fitness._lm_eval.scoring import RawValues, TaskScorer
from fitness._lm_eval.seeing_model import seeing_lm
from fitness._lm_eval.seq2seq_session import Seq2SeqSession
from fitness._lm_eval.session import Session
from fitness._lm_eval.settings import BuildSettings
from fitness._lm_eval.shared_forwards import default_tokens
from fitness._lm_eval.shared_probe import no_prefill, no_states, unsupported
from fitness._lm_eval.terms import RESPONSE_LENGTH

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel, Several
    from fitness._lm_eval.answered_requests import Answers
    from fitness._lm_eval.engine_session import EngineSession
    from fitness._lm_eval.server_session import ServerSession

_log = logging.getLogger(__name__)


@dataclass
class Prepared:
    """What is built once for a model."""

    session: Session | EngineSession | ServerSession
    scorers: Mapping[str, TaskScorer]
    fingerprint: str

    def score(self, model: LoadedModel, part: Part | None) -> tuple[dict[str, RawValues], float, dict[str, float]]:
        """What some documents gave, or all, the seconds in model calls, and the tokens.

        Raises:
            FitnessError: a score that is not finite; a part without documents of some task, or with others.
        """
        places = self.session.whole if part is None else self._places(part)
        raw: dict[str, RawValues] = {}
        seconds, tokens = self.session.score(model, places, raw)
        return raw, seconds, tokens

    def score_several(
        self, model: LoadedModel, several: Several, part: Part | None
    ) -> Iterator[tuple[dict[str, RawValues] | FitnessError, float, dict[str, float]]]:
        """`score` of each of several models in one module, in turn; of one without a score, why."""
        assert isinstance(self.session, Session), "an engine's model has no module"
        yield from self.session.score_several(
            model, several, self.session.whole if part is None else self._places(part)
        )

    def ask_together(
        self, models: Sequence[LoadedModel], parts: Sequence[Part | None]
    ) -> list[Callable[[Prepared], tuple[dict[str, RawValues], float, dict[str, float]]]]:
        """`score` for several candidates of one engine, in two steps: all of them are asked now, in one batch; what is
        given back scores one of them, and raises what its answers did.

        Args:
            models: the candidates', with an adapter each.
            parts: each candidate's documents.

        Raises:
            FitnessError: a part without documents of some task, or with others.
        """
        session: Any = self.session  # an engine's: no other model has an adapter
        places = [session.whole if part is None else self._places(part) for part in parts]
        return [
            functools.partial(_taken, session, own, answered)
            for own, answered in zip(places, session.ask_together(models, places), strict=True)
        ]

    def score_switched(
        self, switch: Callable[[str], LoadedModel], terms: Sequence[WeighedTerm], part: Part | None
    ) -> tuple[dict[str, RawValues], float, dict[str, float]]:
        """`score`, each task with the model that ``switch(source)`` gives for the source that its term names.

        Scores are those of lm-eval on the tasks of one switch alone: batches are theirs.
        """
        places = self.session.whole if part is None else self._places(part)
        sources: dict[str, set[str]] = {}
        for term in terms:
            assert term.term.switch is not None, "checked before anything is loaded"
            sources.setdefault(term.term.switch, set()).update(term.tasks)
        raw: dict[str, RawValues] = {}
        seconds, tokens = 0.0, Counter[str]()
        for source, names in sources.items():
            own = {name: of_task for name, of_task in places.items() if name in names}
            spent, taken = self.session.score(switch(source), own, raw)
            seconds += spent
            tokens.update(taken)  # they are added up
        return {name: raw[name] for name in places if name in raw}, seconds, dict(tokens)

    def _places(self, part: Part) -> Mapping[str, Sequence[int]]:
        """A part as the tasks and documents come; an aggregate needs documents of every task."""
        counts = {name: len(scorer.documents) for name, scorer in self.scorers.items()}
        for name in sorted({*part, *counts}):
            places = part.get(name, ())
            if name not in counts or not places or not 0 <= min(places) <= max(places) < counts[name]:
                allowed = (
                    f"some of the {counts[name]} documents of {name!r}" if name in counts else nearest(name, counts)
                )
                raise FitnessError(f"a part has {len(places)} documents of task {name!r}", allowed)
        return {name: sorted(set(part[name])) for name in counts}


def _taken(
    session: EngineSession, places: Part, answered: Answers | Exception, ready: Prepared
) -> tuple[dict[str, RawValues], float, dict[str, float]]:
    """What `Prepared.score` gives, of what was answered."""
    if isinstance(answered, Exception):
        raise answered
    raw: dict[str, RawValues] = {}
    return raw, *session.take(places, answered, raw)


def prepare(
    model: LoadedModel,
    tasks: TaskSet,
    terms: Sequence[WeighedTerm],
    generators: Any,
    settings: BuildSettings,
    arguments: ModelArguments,
    forwards: Forwards,
    response_length: bool,
) -> Prepared:
    """Build, tokenise and batch everything for a model's tokenizer, dtype and device.

    Args:
        model: the first to be scored.
        tasks: loaded.
        terms: of the objectives.
        generators: the global ones of the stock tool, as loading the tasks left them; they stay so.
        settings, arguments: those of the fitness.
        forwards: how log-likelihoods and generation are run, where the model allows it.
        response_length: whether the length of responses is an objective.

    Raises:
        FitnessError: prompts that cannot be built; targets that do not fit the model.
    """
    session: Session | EngineSession | ServerSession
    images = has_images(tasks)
    if images and (model.engine is not None or model.served is not None):
        raise FitnessError(
            f"tasks have images ({', '.join(n for n, t in tasks.tasks.items() if t.MULTIMODAL)})",
            "evaluator.engine=transformers: other engines are sent texts",
            "leave evaluator.engine out",
        )
    if model.engine is not None:
        from fitness._lm_eval.engine_session import EngineSession, engine_lm

        lm: Any = engine_lm(model, arguments)
        scorers = _built(tasks, lm, generators, settings)
        session = EngineSession(lm, scorers)
        how = session.decides()
    elif model.served is not None:
        from fitness._lm_eval.server_session import ServerSession, server_lm

        lm = server_lm(model, arguments)
        scorers = _built(tasks, lm, generators, settings)
        session = ServerSession(lm, scorers, model.served.rows, arguments.batch_size)
        how = session.decides()
    else:
        lm = seeing_lm(model, arguments) if images else resident_lm(model, arguments)
        scorers = _built(tasks, lm, generators, settings)
        seq2seq = lm.backend == "seq2seq"
        session = Seq2SeqSession(lm, scorers) if seq2seq else Session(lm, scorers)
        how = {
            "softmax_dtype": str(lm.softmax_dtype),
            "batch_size": arguments.batch_size,
            "grouped": session.grouped,
            **(
                {"backend": lm.backend}
                if seq2seq
                else {"images": lm.decides()}
                if images
                else _share(session, lm, model, forwards)
            ),
        }
    decides = {
        "terms": [(t.name, t.tasks, t.term.weight, t.term.objective, t.metrics) for t in terms],
        "prompts": settings.flags(),
        "chat_template": getattr(lm.tokenizer, "chat_template", None) if settings.apply_chat_template else None,
        "dtype": str(model.dtype),
        "max_length": lm.max_length,
        "add_bos_token": arguments.add_bos_token,
        "block_size": None,  # of earlier versions: folders of their runs keep their fingerprint
        **({RESPONSE_LENGTH: True} if response_length else {}),
        # What came later is named only where it is said: folders of earlier runs keep their fingerprint.
        **arguments.changed(),
        **how,
        **changed_prompts(tasks, lm.tokenizer, settings),
        **({"switches": [t.term.switch for t in terms]} if any(t.term.switch for t in terms) else {}),
    }
    return Prepared(session, scorers, fingerprint(tasks, session.requests, decides))


def _built(tasks: TaskSet, lm: Any, generators: Any, settings: BuildSettings) -> dict[str, TaskScorer]:
    """Build the requests of tasks for lm-eval's model; what scores them, by task."""
    with copy.copy(generators):
        build_requests(tasks, lm.tokenizer, settings, seeing=lm if has_images(tasks) else None)
    return {name: TaskScorer(name, task, tasks.timeout) for name, task in tasks.tasks.items()}


def _share(session: Session, lm: ResidentLM, model: LoadedModel, forwards: Forwards) -> dict[str, Any]:
    """Let a session compute less than lm-eval does, where asked and possible; gives what a fingerprint says."""
    continuous = forwards.generation == "continuous" and session.generates and _can_continue(lm)
    if continuous:
        session.write_continuously()
    if forwards.mode == "shared" and _can_share(lm.model, session.longest):
        tokens = forwards.batch_tokens or default_tokens(model.device, lm.model.config.get_text_config().hidden_size)
        session.share(tokens, _can_keep_states(model), session.generates and _can_prefill(lm.model))
    else:
        forwards = Forwards()
    return forwards.decides() | ({"generation": "continuous"} if continuous else {})


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


def _can_continue(lm: ResidentLM) -> bool:
    """Whether texts can begin while others are being written; a line in the log where not."""
    reason = no_continuous(lm.model)
    if lm.think_end_token is not None:
        reason = "with think_end_token lm-eval writes on after a stop string"
    if reason:
        _log.warning("texts are written in lm-eval's batches, not continuously: %s", reason)
    return not reason
