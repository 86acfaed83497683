"""What statistics of data are made on: the items of every source as it reads them, with what is odd about them said."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from evomerge.config.construct import arguments_of, build, to_builtin
from evomerge.config.placing import placed
from evomerge.config.schema import Config
from evomerge.errors import ConfigError, EvomergeWarning, nearest
from evomerge.models.unknown_tokens import UnknownTokens
from evomerge.protocols import CalibrationItems

if TYPE_CHECKING:
    from evomerge.calibration.encoding import Item
    from evomerge.models.pool import Pool

_OF_MODELS = ("files", "tasks")
"""Keys of calibration items that may say something else for every source."""

_MOST_TOKENS = 1 << 20


def plan_items(config: Config, pool: Pool) -> tuple[dict[str, Sequence[Item]], Sequence[tuple[str, str]]]:
    """By source its calibration items as it reads them, and the documents that they are.

    Warns of files of which many tokens are unknown to a source's tokenizer.

    Raises:
        ConfigError, FitnessError: keys or items that cannot be used.
    """
    length = config.statistics.max_length
    if not 2 <= length <= _MOST_TOKENS:
        raise ConfigError(f"statistics.max_length is {length}", f"2 to {_MOST_TOKENS:,} tokens")
    for key, value in to_builtin(config.calibration).items():
        for name in value if key in _OF_MODELS and isinstance(value, Mapping) else ():
            if name not in pool.info.sources:
                raise ConfigError(f"calibration.{key} has {name!r}", nearest(str(name), pool.info.sources))
    source = cast(CalibrationItems, build(config.calibration, "calibration"))
    with placed("calibration", arguments_of(source)):
        source.check()
        unknown = UnknownTokens()
        found = {model: _encoded(source, model, pool, length, unknown) for model in pool.info.sources}
        for line in unknown.lines("calibration.files"):
            warnings.warn(line, EvomergeWarning, stacklevel=2)
        return found, source.documents()


def _encoded(
    source: CalibrationItems, model: str, pool: Pool, max_length: int, unknown: UnknownTokens
) -> Sequence[Item]:
    """The items of one model as it reads them; `unknown` counts the tokens of those from files."""
    from evomerge.calibration.encoding import encode, encode_tensors
    from evomerge.models.tokenizers import load_tokenizer
    from evomerge.protocols import CalibrationItem, CalibrationTensors

    items = source.items(model)
    tensors = [item for item in items if isinstance(item, CalibrationTensors)]
    if tensors:
        return encode_tensors(tensors)
    if pool.layout.encoder:
        raise ConfigError(
            "statistics of texts are asked of encoder-decoders",
            "decoders, whose texts have a likelihood by themselves",
            "choose methods that read no statistics of data",
        )
    tokenizer = load_tokenizer(pool.tokenizer_of(model), pool.trust_remote_code)
    if tokenizer is None:
        raise ConfigError(
            f"texts are to be read by model {model!r}, which has no tokenizer",
            "models with tokenizers; of models that read no texts, safetensors files",
            "copy its tokenizer into its folder, or set calibration=tensors",
        )
    texts = [item for item in items if isinstance(item, CalibrationItem)]

    def seen(item: CalibrationItem, ids: Sequence[int]) -> None:
        if item.file:
            unknown.add(item.file, ids, tokenizer, model)

    return encode(texts, tokenizer, max_length, seen)
