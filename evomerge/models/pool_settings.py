"""What can be said of a pool before any of its files is read. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, PoolError, RecipeError, nearest
from evomerge.models.checkpoints.location import check_place, siblings
from evomerge.recipes.dense import KEPT, MERGED
from evomerge.recipes.slices import DTYPES, ModelRef
from evomerge.recipes.tokenizer_spec import TokenizerSpec, read_tokenizer

_DENSE = ("auto", MERGED, KEPT)
_MOST_LISTED = 5
_LONGEST = 800


_LIST = "list models under pool.models as name: folder or hub id, or give a folder of them (pool.adapters)"


def check_pool_settings(
    models: Mapping[str, str] | Mapping[str, ModelRef],
    base: str | None,
    dtype: str,
    tokenizer_from: str | None,
    tokenizer: TokenizerSpec | str | Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """Check what a pool is asked to be; returns the names of its source models, the base not among them.

    Args:
        models, base, dtype, tokenizer_from, tokenizer: as for `opening.open_pool`.

    Raises:
        ConfigError: `base`, `dtype`, `tokenizer_from` or `tokenizer` is none of those possible.
        PoolError: no source models, or an entry that is no name with a location.
    """
    check_names(models)
    if not models:
        raise PoolError("the pool has no models", "at least one source model", _LIST)
    if base is not None and base not in models:
        raise ConfigError(f"pool.base is {base!r}", nearest(base, models), "name one of pool.models")
    if tokenizer_from is not None and tokenizer_from not in models:
        raise ConfigError(
            f"pool.tokenizer_from is {tokenizer_from!r}", nearest(tokenizer_from, models), "name one of pool.models"
        )
    spec = tokenizer_spec(tokenizer, base, models)
    if spec is not None:
        if tokenizer_from is not None:
            raise ConfigError("pool.tokenizer and pool.tokenizer_from are given", "one of the two")
        try:
            spec.check_models(models, "pool.tokenizer")
        except RecipeError as error:
            raise ConfigError(error.given, error.allowed, error.do) from None
    if dtype != "auto" and dtype not in DTYPES:
        raise ConfigError(f"pool.dtype is {dtype!r}", nearest(dtype, ("auto", *DTYPES)))
    sources = tuple(name for name in models if name != base)
    if not sources:
        raise PoolError(
            f"the pool has no model besides its base {base!r}",
            "at least one source model",
            _LIST,
        )
    return sources


def tokenizer_spec(
    tokenizer: TokenizerSpec | str | Mapping[str, Any] | None, base: str | None, models: Iterable[str]
) -> TokenizerSpec | None:
    """The vocabulary that ``pool.tokenizer`` asks for; its base is the pool's, or the first model.

    Raises:
        ConfigError: it is none; names the key.
    """
    if tokenizer is None or isinstance(tokenizer, TokenizerSpec):
        return tokenizer
    try:
        content = dict(tokenizer) if isinstance(tokenizer, Mapping) else tokenizer
        return read_tokenizer(content, "pool.tokenizer", base=base, usual=next(iter(models), None))
    except RecipeError as error:
        raise ConfigError(error.given, error.allowed, error.do) from None


def check_heads(setting: Any) -> None:
    """`ConfigError` for a `pool.heads` that is none."""
    _check_patterns("pool.heads", setting, "classifier*")


def check_kept(setting: Any, model: str | None, models: Mapping[str, Any]) -> None:
    """`ConfigError` for a `pool.kept` that is none, or a `pool.kept_from` that is none of the models."""
    _check_patterns("pool.kept", setting, "model.vision_tower.*")
    if model is not None and model not in models:
        raise ConfigError(f"pool.kept_from is {model!r}", nearest(str(model), models), "name one of pool.models")


def _check_patterns(key: str, setting: Any, example: str) -> None:
    given = [setting] if isinstance(setting, str) else setting
    listed = isinstance(given, Sequence) and bool(given) and all(isinstance(own, str) and own.strip() for own in given)
    if given is not None and not listed:
        raise ConfigError(
            f"{key} is {str(setting)[:200]!r}", f"auto, null, or patterns of tensor names such as {example!r}"
        )


def check_dense(setting: Any) -> None:
    """`ConfigError` for a `pool.dense` that is none."""
    if setting not in _DENSE:
        raise ConfigError(f"pool.dense is {str(setting)[:80]!r}", nearest(str(setting), _DENSE))


def check_network(network: Any, others: Any, tokenizer: Any = None, tokenizer_from: Any = None) -> None:
    """`ConfigError` for a `pool.network` or `pool.others` that is none, or is given beside what is of texts."""
    if network is None:
        if others is not None:
            raise ConfigError(
                f"pool.others is {str(others)[:200]!r} and pool.network is not set",
                "the other parts of pipelines, of which one is merged",
                "set pool.network=auto",
            )
        return
    if not isinstance(network, str) or not network.isidentifier():
        raise ConfigError(f"pool.network is {str(network)[:80]!r}", "auto, unet, transformer, or another part's name")
    for key, value in (("tokenizer", tokenizer), ("tokenizer_from", tokenizer_from)):
        if value is not None:
            raise ConfigError(f"pool.{key} and pool.network are given", "tokenizers are of pipelines' other parts")


def check_places(
    models: Mapping[str, str] | Mapping[str, ModelRef], root: str | Path | None, *, files: bool = False
) -> None:
    """`PoolError` naming all models that lie in no folder and can be no hub's; what a hub has is not asked.

    Where `root` is no folder, that is what is wrong with all of them. With `files`, single ``.safetensors`` files are
    models too.
    """
    problems = []
    for name, location in models.items():
        try:
            check_place(location, root, files=files)
        except PoolError as error:
            problems.append(of_model(name, error))
    if problems and root is not None and not Path(root).expanduser().is_dir():
        raise PoolError(
            f"pool.root is {root}, and there is no such folder",
            siblings(Path(root).expanduser().absolute()),
            "give the folder in which the models lie, or null for places of their own",
        )
    raise_all(problems)


def check_names(models: Mapping[Any, Any]) -> None:
    """Refuse what YAML has made of a name or location that was not quoted.

    Raises:
        PoolError: names the entry.
    """
    for name, location in models.items():
        if not isinstance(name, str) or not name or not isinstance(location, str | ModelRef):
            raise PoolError(
                f"pool.models has {str(name)[:80]!r}: {str(location)[:200]!r}",
                "names with a folder or a hub id each",
                "quote a name or folder that YAML takes for something else, such as null or 7",
            )


def of_model(name: str, error: PoolError) -> PoolError:
    """The error, with the name of the model that it is of."""
    named = PoolError(f"model {name!r}: {error.given}", error.allowed, error.do)
    named.__cause__ = error.__cause__
    return named


def raise_all(problems: list[PoolError]) -> None:
    """Raise one error for all problems, the first in front: a line of bounded length."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        listed = [str(problem) for problem in problems[:_MOST_LISTED]]
        listed = [text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..." for text in listed]
        cut = f" | and {len(problems) - _MOST_LISTED} more" if len(problems) > _MOST_LISTED else ""
        causes = (problem.__cause__ for problem in problems)
        cause = next(filter(None, causes), None)
        raise PoolError(f"{len(problems)} problems with the pool: {' | '.join(listed)}{cut}") from cause
