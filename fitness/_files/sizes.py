"""What writing takes of memory beside the model, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.models.loaded import ModelOutline
from evomerge.utils.memory import MemoryPart, Place
from fitness._files.answers import check_lengths, tokenised
from fitness._files.terms import Prompts

_FLOAT64 = 3  # copies of a batch's last logits: themselves, probabilities, their sums


def memory(
    prompts: Mapping[str, Prompts], model: ModelOutline, written: int, batch_tokens: int, special: bool, chat: bool
) -> list[MemoryPart]:
    """Logits of the prompts of a batch, and the keys and values of all of its tokens.

    Nothing where the model has no tokenizer, which scoring refuses.

    Raises:
        FitnessError: a prompt that leaves the model no room for what it is to write.
    """
    if model.tokenizer is None:
        return []
    place: Place = "host" if model.on_host else "device"
    tokens = tokenised(prompts, model.tokenizer, special, chat)
    check_lengths(tokens, written, model.config)
    lengths = [len(prompt) for own in tokens.values() for prompt in own]
    config = model.config.get_text_config()
    batch = max(batch_tokens, max(lengths) + written)
    rows = max(1, batch // (min(lengths) + written))
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kept = 2 * config.num_hidden_layers * heads * width * batch * model.dtype.itemsize
    logits = batch * config.vocab_size * model.dtype.itemsize + _FLOAT64 * 8 * rows * config.vocab_size
    text = f"{batch:,} tokens: logits of {config.vocab_size:,} words, keys and values"
    return [MemoryPart("forwards", kept + logits, text, "batch_tokens", place=place, during="scoring")]
