"""A model in memory with its tokenizer: what a fitness scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class KeptStates(Protocol):
    """Hidden states that models before the present one gave on the same tokens.

    Attributes:
        keys: of the present model: before its first layer, before its second, ..., after its last; equal keys, equal
            hidden states. Empty while it is not known what the model is.
        seen: how many of its layers a model before it had too, from the first one on.
    """

    keys: tuple[str, ...]
    seen: int

    @property
    def likely(self) -> bool:
        """Whether models begin like others often enough to keep what none has asked for yet."""

    @property
    def budget(self) -> int:
        """Bytes that all hidden states may take."""

    def get(self, key: str) -> tuple[torch.Tensor, ...] | None:
        """What was put under a key; ``None`` where it is not there. Not to be written to."""

    def put(self, key: str, tensors: Sequence[torch.Tensor], cost: float) -> None:
        """Hand hidden states over that cost so much to compute again, in any unit."""


class Several(Protocol):
    """Several models in one module, the rows of a batch those of the first, then those of the second, and so on.

    Attributes:
        count: how many.
    """

    count: int

    def only(self, first: int, last: int | None = None) -> AbstractContextManager[None]:
        """Let rows be those of models `first` to `last` (not included), or of `first` alone, within this."""


class Served(Protocol):
    """A model that a server has: what lm-eval's model of servers needs of it.

    Attributes:
        name: of the model there, or of the adapter on it.
        url: of its completions, for results.
        positions: tokens of a request and its answer, at most.
        rows: of its embeddings.
        concurrency: requests that may be under way at a time.
    """

    name: str
    url: str
    positions: int
    rows: int
    concurrency: int

    def complete(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request for completions, in OpenAI's words; threads may ask at the same time.

        Raises:
            EvomergeError: there is none.
        """


@dataclass
class LoadedModel:
    """A transformers model on a device.

    Attributes:
        module: in evaluation mode; its weights change in place from candidate to candidate.
        tokenizer: the transformers tokenizer, or ``None`` where the pool has none.
        dtype: dtype of the weights.
        device: where the weights are.
        name_or_path: folder that configuration and tokenizer come from.
        spare: lets go of what is only kept to save time, when memory has run out; says whether there was anything, and
            may be called until there is not.
        states: hidden states to begin with; ``None`` where none are kept.
        engine: what has the weights and generates, a ``vllm.LLM``; `module` is then ``None``.
        served: where the model is on a server; `module` is then ``None``.
        rest: what the network is a part of, where it is one: the other parts of a pipeline, say; ``None`` for a model.
        adapter: with which the engine is asked, vLLM's ``LoRARequest``; ``None`` for the engine's own weights.
        encoder_folder: the source with sentence-transformers' files, which say how texts become embeddings and go with
            the results; empty where no source has any.
    """

    module: PreTrainedModel
    tokenizer: Any
    dtype: torch.dtype
    device: torch.device
    name_or_path: str
    spare: Callable[[], bool] = field(default=bool, repr=False, compare=False)
    states: KeptStates | None = field(default=None, repr=False, compare=False)
    engine: Any = field(default=None, repr=False, compare=False)
    served: Served | None = field(default=None, repr=False, compare=False)
    adapter: Any = field(default=None, repr=False, compare=False)
    encoder_folder: str = ""
    rest: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class ModelOutline:
    """What is known of a model before it is loaded: enough to say what its forwards will take.

    Attributes:
        config: the transformers configuration.
        tokenizer: as of `LoadedModel`.
        dtype: dtype of the weights.
        layers: how many a merged model may have.
        on_host: whether it will compute on the processor.
    """

    config: Any
    tokenizer: Any
    dtype: torch.dtype
    layers: int
    on_host: bool
