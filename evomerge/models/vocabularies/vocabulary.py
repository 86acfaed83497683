"""The vocabulary that the models of a pool are brought to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.models.vocabularies.axes import resized
from evomerge.models.vocabularies.row_map import RowMap
from evomerge.recipes.tokenizer_spec import TokenizerSpec

_TOKEN_ID = re.compile(r".+_token_(id|index|ids)")


@dataclass(frozen=True)
class Vocabulary:
    """One vocabulary for all models of a pool.

    Attributes:
        spec: what was asked for.
        rows: where every model's rows come from.
        giver: the model whose tokenizer it is, or that it begins with.
        folder: of the tokenizer: the giver's, or one in the cache.
        ids: of tokens of the model that gives the configuration, where they are others now: old id -> new; ``None``
            where the token is gone.
        given: the giver's own ids by the names of its configuration, in the new vocabulary.
        digest: of all that rows are made by.
        note: what is to be warned of; empty for nothing.
    """

    spec: TokenizerSpec
    rows: RowMap
    giver: str
    folder: Path
    ids: Mapping[int, int | None]
    given: Mapping[str, Any]
    digest: str
    note: str = ""

    def config(self, config: Any) -> Any:
        """A copy of a transformers configuration with this number of rows and these ids."""
        result = resized(config, self.rows.count)
        for part in {id(part): part for part in (result, result.get_text_config())}.values():
            self.set_ids(part)
        return result

    def set_ids(self, settings: Any) -> None:
        """Give an object of settings, a configuration of generation say, these ids in the place of its own."""
        for key, value in list(vars(settings).items()):
            if _TOKEN_ID.fullmatch(key) and _is_ids(value):
                setattr(settings, key, self._id(key, value))

    def json(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """The content of a config.json or generation_config.json with this number of rows and these ids."""
        found: dict[str, Any] = {}
        for key, value in content.items():
            if isinstance(value, Mapping) and key.endswith("config"):
                found[key] = self.json(value)
            elif key == "vocab_size":
                found[key] = self.rows.count
            else:
                found[key] = self._id(key, value) if _TOKEN_ID.fullmatch(key) and _is_ids(value) else value
        return found

    def _id(self, key: str, value: Any) -> Any:
        several = value if isinstance(value, list) else [value]
        found = [new for new in (self.ids.get(old, old) for old in several) if new is not None]
        if not found:
            return self.given.get(key)
        return found if isinstance(value, list) else found[0]


def _is_ids(value: Any) -> bool:
    several = value if isinstance(value, list) and value else [value]
    return all(type(each) is int for each in several)
