"""Whether a model of a pool can be merged with the one that gives the configuration: all that says no."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from evomerge.errors import EvomergeWarning, PoolError
from evomerge.models import compatibility
from evomerge.models.architecture.layout import Layout
from evomerge.models.checkpoints.reader import Checkpoint
from evomerge.models.keeping import compared_parts
from evomerge.models.tokenizer_files import has_tokenizer
from evomerge.models.vocabularies.comparing import vocabulary_problem
from evomerge.models.vocabularies.vocabulary import Vocabulary
from evomerge.recipes.kept import Kept


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
    kept: Kept | None = None,
) -> list[PoolError]:
    """All that keeps a model from being merged with the reference.

    Args:
        name: of the model.
        reference: name of the model that it is compared with; perhaps the same.
        checkpoints, configs, stored: by model.
        layout: of the model.
        ignored: configuration keys that may differ.
        tokenizer_from: the model whose tokenizer results take, where that is said; tokenizers may then differ.
        vocabulary: what all are brought to, if anything.
        kept: what is not merged, if anything.
    """
    problems: list[PoolError] = []
    widths: list[PoolError] = []  # what shapes follow from
    own, wanted = configs[name].get_text_config(), configs[reference].get_text_config()
    sizes = getattr(own, "vocab_size", None), getattr(wanted, "vocab_size", None)
    tensors = list(compatibility.tensor_problems(name, checkpoints[name], stored[name], reference, layout))
    if sizes[0] != sizes[1] and vocabulary is None:
        mute = [own for own in (name, reference) if not has_tokenizer(checkpoints[own].folder)]
        do = "set pool.tokenizer=union, or a model, to bring them to one by their tokens"
        if mute:
            do = f"copy the tokenizer of {mute[0]!r} into {checkpoints[mute[0]].folder}; then {do}"
        problems.append(
            PoolError(
                f"model {name!r} has a vocabulary of {sizes[0]}, {reference!r} of {sizes[1]}",
                "all models of a pool share one vocabulary",
                do,
            )
        )
        # Embeddings and head have another shape for that reason; saying so twice does not help.
        embeddings = {n for s, names in layout.tensors.items() if s.component in ("embed", "head") for n in names}
        inner = {k: v for k, v in stored[name].items() if k not in embeddings}
        tensors = list(compatibility.tensor_problems(name, checkpoints[name], inner, reference, layout))
    if name != reference:
        pair = configs[name], configs[reference]
        if kept is not None:
            pair = compared_parts(*pair, layout)
        found = list(compatibility.config_problems(name, pair[0], reference, pair[1], ignored))
        problems += found
        widths = compatibility.of_widths(found)
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
                    stacklevel=3,
                )
        except PoolError as error:
            problems.append(error)
    if widths:
        tensors = []  # they have other shapes for that reason
    return [*problems, *tensors]  # what config.json says is mostly the reason for the tensors
