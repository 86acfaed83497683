"""What lm-eval's ``--model_args`` take and a model in memory has a use for. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from evomerge.errors import ConfigError, nearest
from fitness._lm_eval.image_arguments import check_image_arguments

SoftmaxDtype = Literal["auto", "model", "float16", "bfloat16", "float32", "float64"]
AutocastDtype = Literal["float16", "bfloat16"]

_FROM_LM_EVAL = ("tokenize", "add_generation_prompt", "continue_final_message", "conversation")
_SINCE_THE_FIRST = ("batch_size", "max_length", "softmax_dtype", "add_bos_token")


@dataclass(frozen=True)
class ModelArguments:
    """Arguments of lm-eval's Hugging Face model, named and meant as there. ``model_args`` are any of them in one.

    Attributes:
        batch_size: sequences in a forward.
        max_length: positions; None takes the model's.
        softmax_dtype: ``auto`` is float32 where logits are in half precision and the model's own dtype otherwise;
            ``model`` is always the latter.
        add_bos_token: whether prompts begin with the BOS token; None leaves it to the tokenizer.
        prefix_token_id: what a text without a context is scored after; None for BOS, or EOS where there is none.
        truncation: cut prompts of generative tasks at the tokenizer's ``model_max_length``.
        logits_cache: score requests that differ in their last token only with one forward.
        mixed_precision_dtype: of forwards, by autocast; None for the model's own.
        enable_thinking: given to the chat template; None leaves it to the template.
        think_end_token: text or id of a token; of a response, what comes after it counts.
        chat_template_args: given to the chat template.
        image_args: of ``hf-multimodal``, for tasks with images: `image_arguments.IMAGE_ARGUMENTS`.
    """

    batch_size: int = 16
    max_length: int | None = None
    softmax_dtype: SoftmaxDtype = "auto"
    add_bos_token: bool | None = None
    prefix_token_id: int | None = None
    truncation: bool = False
    logits_cache: bool = True
    mixed_precision_dtype: AutocastDtype | None = None
    enable_thinking: bool | None = None
    think_end_token: str | int | None = None
    chat_template_args: Mapping[str, Any] = field(default_factory=dict)
    image_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise `ConfigError` for a value that no model could be given, naming the argument."""
        for name in ("batch_size", "max_length"):
            count = getattr(self, name)
            if count is None and name == "max_length":
                continue
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ConfigError(f"{name} is {count!r}", "a whole number, 1 or more")
        for name, kind in (("softmax_dtype", SoftmaxDtype), ("mixed_precision_dtype", AutocastDtype)):
            value, known = getattr(self, name), get_args(kind)
            if value not in (*known, None) or (value is None and name == "softmax_dtype"):
                raise ConfigError(f"{name} is {value!r}", nearest(str(value), known))
        for name in ("truncation", "logits_cache", "add_bos_token", "enable_thinking"):
            value, optional = getattr(self, name), name in ("add_bos_token", "enable_thinking")
            if not isinstance(value, bool) and not (optional and value is None):
                raise ConfigError(f"{name} is {value!r}", f"true or false{', or null' if optional else ''}")
        _check_token_id(self.prefix_token_id, "prefix_token_id", None)
        _check_token_id(self.think_end_token, "think_end_token", str)
        check_template_arguments(self.chat_template_args, "chat_template_args")
        check_image_arguments(self.image_args, "image_args")
        if self.enable_thinking and self.think_end_token is None:
            raise ConfigError(
                "enable_thinking is true and think_end_token is not given",
                "the token that ends the thinking: what comes after it is the answer",
                "for example think_end_token='</think>'",
            )
        if self.enable_thinking is not None and "enable_thinking" in self.chat_template_args:
            raise ConfigError("enable_thinking is given twice, also in chat_template_args", "", "leave one of them out")

    @property
    def template_arguments(self) -> dict[str, Any]:
        """What the chat template is given."""
        thinking = {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}
        return {**self.chat_template_args, **thinking}

    def changed(self) -> dict[str, Any]:
        """The arguments that came later than the first, where they are not as they were before they came.

        A run that knew nothing of them is thereby the same as one that leaves them out.
        """
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in _SINCE_THE_FIRST and getattr(self, f.name) != self.default(f)
        }

    @staticmethod
    def default(of: dataclasses.Field[Any]) -> Any:
        """What an argument is where nothing is said of it."""
        return of.default if of.default is not dataclasses.MISSING else {}

    def as_asked(self, model: str) -> dict[str, Any]:
        """How lm-eval's results note a command with these arguments."""
        return {
            "model": "hf",
            "model_args": {"pretrained": model, **self.changed()},
            "batch_size": self.batch_size,
        }


def check_template_arguments(value: Any, key: str) -> None:
    """Raise `ConfigError` unless `value` is a mapping that a chat template can be given."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{key} is {value!r}", "a mapping such as {enable_thinking: false}")
    for name in value:
        if name in _FROM_LM_EVAL:
            raise ConfigError(f"{key}.{name} is given", "lm-eval sets it for every prompt", "leave it out")


def _check_token_id(value: Any, key: str, other: type | None) -> None:
    if value is None or (other is not None and isinstance(value, other) and value):
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        what = "the id of a token, 0 or more" + (", or its text" if other is str else "")
        raise ConfigError(f"{key} is {value!r}", what)
