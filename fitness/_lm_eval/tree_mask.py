"""Which tokens of a batch attend to which, in the form that a transformers model takes."""

from __future__ import annotations

from typing import Any

import torch

KINDS = ("full_attention", "sliding_attention", "chunked_attention")
"""Layer types of transformers that are known here."""


class TreeMasks:
    """Makes the attention masks of token batches for one model.

    A layer sees the trunk, a token's ancestors in the batch and the token itself; a sliding or chunked layer of these
    the ones that it would see had the tokens stood in one text.

    Args:
        module: a transformers decoder with attention ``sdpa`` or ``eager``.
    """

    def __init__(self, module: Any) -> None:
        config = module.config.get_text_config()
        self._additive = config._attn_implementation == "eager"
        self._dtype = module.dtype
        self._window = getattr(config, "sliding_window", None)
        self._chunk = getattr(config, "attention_chunk_size", None)
        types = getattr(config, "layer_types", None)
        default = "sliding_attention" if self._window else "full_attention"
        self._kinds = tuple(dict.fromkeys(types)) if types else (default,)

    @property
    def unknown(self) -> list[str]:
        """Kinds of layers whose masks are not known."""
        return [kind for kind in self._kinds if kind not in KINDS]

    def __call__(self, positions: torch.Tensor, ends: torch.Tensor, trunk: int) -> Any:
        """The mask of a batch after so many tokens of a trunk.

        Args:
            positions: [lines, length] counted from the root; the trunk's are 0, 1, 2, ...
            ends: [lines, length] as in `TokenBatch`.
            trunk: its tokens.

        Returns:
            [lines, 1, length, trunk + length], boolean or to be added; by kind of layer where a model has several.
        """
        lines, length = ends.shape
        place = torch.arange(length, device=ends.device)
        seen = (place[None, :] <= place[:, None]) & (place[:, None] < ends[:, None, :])  # [line, query, key]
        if trunk:
            before = torch.ones(lines, length, trunk, dtype=torch.bool, device=ends.device)
            seen = torch.cat([before, seen], dim=2)
        places = positions.to(torch.int32)  # of tokens by tokens, half the bytes count
        query = places[:, :, None]
        of_trunk = torch.arange(trunk, device=ends.device, dtype=torch.int32).expand(lines, trunk)
        key = torch.cat([of_trunk, places], dim=1)[:, None, :]
        masks = {kind: self._form(self._narrowed(kind, seen, query, key)) for kind in self._kinds}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _narrowed(self, kind: str, seen: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        if kind == "sliding_attention" and self._window:
            near: torch.Tensor = query - key < self._window
            return seen & near
        if kind == "chunked_attention" and self._chunk:
            together: torch.Tensor = query // self._chunk == key // self._chunk
            return seen & together
        return seen

    def _form(self, seen: torch.Tensor) -> torch.Tensor:
        if not self._additive:
            return seen[:, None]
        lowest = torch.finfo(self._dtype).min
        return torch.zeros(seen.shape, dtype=self._dtype, device=seen.device).masked_fill_(~seen, lowest)[:, None]
