"""The two toy languages of the demo pool, E and J, and their tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

E_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
J_DIGITS = ("rei", "ichi", "ni", "san", "yon", "go", "roku", "nana", "hachi", "kyuu")
E_OBJECTS = ("cat", "dog", "bird", "fish", "tree", "stone", "river", "house", "book", "star")
J_OBJECTS = ("neko", "inu", "tori", "sakana", "ki", "ishi", "kawa", "ie", "hon", "hoshi")
E_VERBS = ("repeat", "first", "last", "sort")
J_VERBS = ("kurikaeshi", "saisho", "saigo", "narabe")

COLON, STOP, TO_E, TO_J, IS, WA = ":", ".", "to-e", "to-j", "is", "wa"
"""A colon opens an E question, a full stop ends an answer; `is` closes an E question, `wa` a J question."""

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"

E_NAMES = E_DIGITS + E_OBJECTS
"""The E words that a question may ask about."""

E_OF_J: Mapping[str, str] = dict(zip(J_DIGITS + J_OBJECTS + J_VERBS, E_NAMES + E_VERBS, strict=True))
J_OF_E: Mapping[str, str] = {english: word for word, english in E_OF_J.items()}

VOCABULARY = (PAD, BOS, EOS, UNK, COLON, STOP, TO_E, TO_J, IS, WA, *J_OF_E, *E_OF_J)
ID_OF: Mapping[str, int] = {word: number for number, word in enumerate(VOCABULARY)}


def to_j(words: Sequence[str]) -> tuple[str, ...]:
    """Translate E words to J, word by word."""
    return tuple(J_OF_E[word] for word in words)


def make_tokenizer(longest: int) -> Any:
    """A fast tokenizer (`PreTrainedTokenizerFast`): words split at white space, `<bos>` in front of every text.

    `longest` is the number of tokens that the models can read.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(dict(ID_OF), unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, ID_OF[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
    )
