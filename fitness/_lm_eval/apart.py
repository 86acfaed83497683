"""How far shared forwards and lm-eval's own are apart on one model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from evomerge.protocols import Scores
from fitness._lm_eval.prepared import Prepared


def apart(ready: Prepared, score: Callable[[], Scores]) -> dict[str, float]:
    """Score a model in both ways, on all items.

    Args:
        ready: what was built for the model.
        score: scores it.

    Returns:
        ``nats``: the largest difference of a log-likelihood; ``turned``: items of ``items`` that are right in one way
        and wrong in the other, by metrics that say so; ``texts``: answers of ``generated`` that differ; and by name,
        after ``objective/``, how much larger the objectives are with shared forwards. Empty where none are shared.
    """
    if not ready.session.shares:
        return {}
    shared, mine = score(), _responses(ready)
    with ready.session.exactly():
        exact, theirs = score(), _responses(ready)
    nats, texts, generated = 0.0, 0, 0
    for one, other in zip(mine, theirs, strict=True):
        if isinstance(one, str):
            generated += 1
            texts += one != other
        else:
            found, expected = (float(each[0] if isinstance(each, tuple) else each) for each in (one, other))
            nats = max(nats, abs(found - expected))
    turned = items = 0
    for name, values in exact.items.items():
        if np.isin(values, (0.0, 1.0)).all():
            items += len(values)
            turned += int((shared.items[name] != values).sum())
    counts = {"turned": turned, "items": items, "texts": texts, "generated": generated}
    objectives = {f"objective/{name}": shared.objectives[name] - value for name, value in exact.objectives.items()}
    return {"nats": nats, **counts, **{name: value for name, value in objectives.items() if math.isfinite(value)}}


def _responses(ready: Prepared) -> list[Any]:
    """What was answered last, instance by instance."""
    documents = [own for scorer in ready.scorers.values() for own in scorer.documents]
    return [response for own in documents for instance in own for response in instance.resps]
