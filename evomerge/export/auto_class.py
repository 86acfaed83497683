"""Which of transformers' Auto classes loads a model, and which what prepares its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evomerge.errors import PoolError
from evomerge.models.checkpoints.headers import read_json
from evomerge.models.tokenizer_files import has_tokenizer

_CAUSAL = "AutoModelForCausalLM"


def auto_class(config: Any) -> str:
    """The Auto class that finds the class which a configuration names, by transformers' own mappings.

    A class that none of them has is named itself; `AutoModelForCausalLM` where the configuration names none or the
    model brings its own code.

    Args:
        config: a transformers configuration.
    """
    import transformers

    named = next(iter(getattr(config, "architectures", None) or ()), None)
    if named is None or not hasattr(transformers, named):
        return _CAUSAL
    return next(_finding(config.model_type, named), named)


def _finding(model_type: str, named: str) -> Iterator[str]:
    """The Auto classes that load `named` for a model type, those that say most about it first."""
    from transformers.models.auto import modeling_auto

    found = set()
    for auto in (name for name in dir(modeling_auto) if name.startswith("AutoModel")):
        mapping = getattr(getattr(modeling_auto, auto), "_model_mapping", None)
        names = getattr(mapping, "_model_mapping", {}).get(model_type, ())
        if named in ((names,) if isinstance(names, str) else names):
            found.add(auto)
    yield from sorted(found, key=lambda auto: (auto != _CAUSAL, auto in _VAGUE, auto))


# Every model has one of these beside the class of its task.
_VAGUE = ("AutoModelForPreTraining", "AutoModelForTextEncoding")


def processor_class(folder: Path) -> str | None:
    """The Auto class for the inputs of the model in a folder; ``None`` where the folder has nothing for them."""
    has_words, path = has_tokenizer(folder), folder / "preprocessor_config.json"
    if (folder / "processor_config.json").is_file() or (has_words and path.is_file()):
        return "AutoProcessor"
    if has_words:
        return "AutoTokenizer"
    try:
        content = read_json(path, "how inputs are prepared")
    except PoolError:
        return None
    return "AutoFeatureExtractor" if "feature_extractor_type" in content else "AutoImageProcessor"
