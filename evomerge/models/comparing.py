"""One model of a pool compared with the model that gives its configuration."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from evomerge.errors import EvomergeWarning, PoolError
from evomerge.models import compatibility
from evomerge.models.architecture.layout import Layout
from evomerge.models.checkpoints.reader import Checkpoint
from evomerge.models.vocabularies.vocabulary import Vocabulary
from evomerge.models.vocabulary import vocabulary_problem


def comparison(
    name: str,
    reference: str,
    checkpoints: Mapping[str, Checkpoint],
    configs: Mapping[str, Any],
    stored: Mapping[str, Mapping[str, str]],
    layout: Layout,
    ignored: frozenset[str],
    tokenizer_from: str | None,
    vocabulary: Vocabulary | None,
) -> list[PoolError]:
    """All that keeps a model from being merged with the reference.

    Args:
        name, reference: the models.
        checkpoints, configs, stored: of all models, by name.
        layout: of the model.
        ignored: configuration keys that may differ; ``id2label`` for labels.
        tokenizer_from: the model whose tokenizer results take; tokenizers may then differ.
        vocabulary: what rows are brought to; ``None`` where they are merged as they are.
    """
    problems: list[PoolError] = []
    own, wanted = configs[name].get_text_config(), configs[reference].get_text_config()
    sizes = getattr(own, "vocab_size", None), getattr(wanted, "vocab_size", None)
    tensors = list(compatibility.tensor_problems(name, checkpoints[name], stored[name], reference, layout))
    if sizes[0] != sizes[1] and vocabulary is None:
        problems.append(
            PoolError(
                f"model {name!r} has a vocabulary of {sizes[0]}, {reference!r} of {sizes[1]}",
                "all models of a pool share one vocabulary",
                "set pool.tokenizer=union, or a model, to bring them to one by their tokens",
            )
        )
        # Embeddings and head have another shape for that reason; saying so twice does not help.
        embeddings = {n for s, names in layout.tensors.items() if s.component in ("embed", "head") for n in names}
        inner = {k: v for k, v in stored[name].items() if k not in embeddings}
        tensors = list(compatibility.tensor_problems(name, checkpoints[name], inner, reference, layout))
    if name != reference:
        problems += compatibility.config_problems(name, configs[name], reference, configs[reference], ignored)
        labels = compatibility.label_problem(name, configs[name], reference, configs[reference])
        problems += [labels] if labels and "id2label" not in ignored else []
        folders = checkpoints[name].folder, checkpoints[reference].folder
        try:
            difference = None if vocabulary else vocabulary_problem(name, folders[0], reference, folders[1])
            if difference is not None and tokenizer_from is None:
                problems.append(difference)
            elif difference is not None:
                warnings.warn(
                    f"{difference.given}; results take the tokenizer of {tokenizer_from!r}",
                    EvomergeWarning,
                    stacklevel=2,
                )
        except PoolError as error:
            problems.append(error)
    return [*problems, *tensors]  # what config.json says is mostly the reason for the tensors
