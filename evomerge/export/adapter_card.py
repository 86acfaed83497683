"""What the card of an adapter says beyond that of a model, and how both are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evomerge.recipes.slices import ModelRef

PIPELINE = "DiffusionPipeline"
"""The class of diffusers that loads a pipeline of any kind."""


def library_of(loads: str) -> str:
    """The library that has the class which loads a model."""
    return "diffusers" if loads == PIPELINE else "transformers"


@dataclass(frozen=True)
class AdapterCard:
    """What a card says of an adapter.

    Attributes:
        base: the model that it is added to.
        loss: how exact it is.
        whole: modules that it holds whole.
    """

    base: ModelRef
    loss: str
    whole: tuple[str, ...]

    @property
    def metadata(self) -> dict[str, Any]:
        """For the front matter; the base is named where it is on the hub."""
        named = {"base_model": self.base.location, "base_model_relation": "adapter"} if self.base.revision else {}
        return {"library_name": "peft", **named}

    def section(self, base: str) -> str:
        """The section about the adapter; `base` is the published name of the model that it is added to."""
        held = f" It holds whole: {', '.join(f'`{path}`' for path in self.whole)}." if self.whole else ""
        kept = " `evomerge_adapter.json` has rank and error of every module."
        return f"A LoRA adapter of {base}: {self.loss}.{kept}{held}"


def loading_code(name: str, model: str, processor: str | None, adapted: str | None = None) -> str:
    """Python that loads a model, what prepares its inputs and, where it is one, an adapter.

    Args:
        name: of what was written.
        model: the Auto class, or class, of transformers.
        processor: of the inputs; ``None`` for none.
        adapted: the published name of an adapter's base; ``None`` for a model.
    """
    if model == PIPELINE:
        load = f'pipeline = {model}.from_pretrained("{name}", torch_dtype="auto")'
        return "\n".join(["```python", f"from diffusers import {model}", "", load, "```"])
    lines = [f"from transformers import {', '.join(sorted(filter(None, (model, processor))))}", ""]
    source = name if adapted is None else adapted
    lines.append(f'model = {model}.from_pretrained("{source}", dtype="auto")')
    if adapted is not None:
        lines.insert(0, "from peft import PeftModel")
        lines.append(f'model = PeftModel.from_pretrained(model, "{name}")')
    if processor is not None:
        variable = "tokenizer" if processor == "AutoTokenizer" else "processor"
        lines.append(f'{variable} = {processor}.from_pretrained("{source}")')
    return "\n".join(["```python", *lines, "```"])
