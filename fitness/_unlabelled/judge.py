"""A classifier of the user's that scores what candidates write."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import FitnessError, PoolError, nearest, reason_of
from evomerge.models.checkpoints.reader import Checkpoint
from evomerge.models.loaded import LoadedModel
from evomerge.models.tokenizers import load_tokenizer
from fitness._unlabelled.reward_term import RewardTerm
from fitness._unlabelled.terms import TextTerm
from fitness._unlabelled.writing import Tokens, write_greedily

_ROLE = "ForSequenceClassification"


@dataclass(frozen=True)
class JudgeFolder:
    """A classifier that was looked at and not loaded.

    Attributes:
        term: what is asked of it.
        key: of the term, for messages.
        checkpoint: its files.
        config: the transformers configuration.
        place: of the output that counts.
    """

    term: RewardTerm
    key: str
    checkpoint: Checkpoint
    config: Any
    place: int

    @classmethod
    def open(cls, term: RewardTerm, key: str) -> JudgeFolder:
        """Look at the folder: configuration, headers of the weights, the label; no code of its own is run.

        Raises:
            FitnessError: it holds no sequence classifier with such a label.
        """
        from transformers import AutoConfig

        folder = Path(term.model).expanduser()
        if not folder.is_dir():
            raise FitnessError(f"{key}.model is {term.model!r}, which is no folder", "that of a sequence classifier")
        try:
            checkpoint = Checkpoint(folder)
            config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        except PoolError as error:
            raise FitnessError(f"{key}.model: {error.given}", error.allowed, error.do) from error
        except Exception as error:  # configurations raise what they like
            raise FitnessError(
                f"{key}.model: the configuration in {folder} cannot be read ({reason_of(error)})",
                "a sequence classifier that transformers loads without code of its own",
            ) from error
        classes = checkpoint.config.get("architectures") or []
        if not any(str(name).endswith(_ROLE) for name in classes):
            what = ", ".join(map(str, classes)) or "nothing that its config.json names"
            raise FitnessError(f"{key}.model {term.model} is {what}", f"a model of a class ...{_ROLE}")
        return cls(term, key, checkpoint, config, _place(term, key, config))

    def identity(self) -> str:
        """A hash of weights, configuration and tokenizer files."""
        digest = hashlib.sha256(self.checkpoint.fingerprint().encode())
        for path in sorted(self.checkpoint.folder.glob("*token*")) + sorted(self.checkpoint.folder.glob("vocab*")):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def load(self, device: torch.device) -> Judge:
        """The classifier in memory, in the dtype that it is stored in.

        Raises:
            FitnessError: it cannot be loaded, or lacks weights; there is no tokenizer.
        """
        from transformers import AutoModelForSequenceClassification

        folder = self.checkpoint.folder
        try:
            tokenizer = load_tokenizer(folder)
            module, told = AutoModelForSequenceClassification.from_pretrained(
                str(folder),
                dtype="auto",
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
        except PoolError as error:
            raise FitnessError(f"{self.key}.model: {error.given}", error.allowed, error.do) from error
        except Exception as error:  # model classes raise what they like
            raise FitnessError(f"{self.key}.model: {folder} cannot be loaded ({reason_of(error)})") from error
        if told["missing_keys"]:
            missing = min(map(str, told["missing_keys"]))
            raise FitnessError(f"{self.key}.model: {folder} has no weights of {missing}", "those of a whole classifier")
        if tokenizer is None:
            raise FitnessError(f"{self.key}.model: {folder} has no tokenizer", "the files beside its weights")
        tokenizer.truncation_side = "left"  # what was written is at the end
        return Judge(self, module.to(device).eval(), tokenizer)


@dataclass(frozen=True)
class Judge:
    """A classifier in memory."""

    folder: JudgeFolder
    module: Any
    tokenizer: Any

    def rewards(
        self, model: LoadedModel, prompts: Sequence[Tokens], batch_tokens: int, where: str
    ) -> NDArray[np.float64]:
        """Let a candidate go on with every prompt, the likeliest token each time, and score what it wrote.

        Args:
            model: the candidate.
            prompts: tokens, of at least one each.
            batch_tokens: of a batch that it writes.
            where: the texts' name, for messages.

        Returns:
            Shape ``(prompts,)``: the probability of the label, or the classifier's only output.

        Raises:
            FitnessError: a reward that is not finite, or nothing to read.
        """
        term = self.folder.term
        written = write_greedily(model, prompts, term.tokens, batch_tokens)
        answers = [own[len(prompt) :] for own, prompt in zip(written, prompts, strict=True)]
        read = written if term.reads == "all" else answers
        texts = [model.tokenizer.decode(list(own), skip_special_tokens=True) for own in read]
        found = np.empty(len(texts))
        size = term.batch_size if self.tokenizer.pad_token is not None else 1
        for begin in range(0, len(texts), size):
            found[begin : begin + size] = self.scores(texts[begin : begin + size])
        bad = np.flatnonzero(~np.isfinite(found))
        if len(bad):
            raise FitnessError(
                f"text {bad[0]} of {where}: its reward is not finite",
                "finite numbers",
                f"the candidate wrote {texts[bad[0]][:60]!r}",
            )
        return found

    @torch.inference_mode()
    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """What the classifier makes of some texts; NaN for one without a token. Shape ``(texts,)``."""
        most = getattr(self.module.config.get_text_config(), "max_position_embeddings", None)
        cut = {"truncation": True, "max_length": most} if isinstance(most, int) and most > 1 else {}
        padding = self.tokenizer.pad_token is not None
        given = self.tokenizer(list(texts), padding=padding, return_tensors="pt", **cut).to(self.module.device)
        if not given["input_ids"].numel():
            return np.full(len(texts), np.nan)
        names = {name: given[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in given}
        logits = self.module(**names).logits.float()
        if logits.shape[1] == 1:
            chosen = logits[:, 0]
        elif self.module.config.problem_type == "multi_label_classification":
            chosen = logits.sigmoid()[:, self.folder.place]
        else:
            chosen = logits.softmax(dim=1)[:, self.folder.place]
        found: NDArray[np.float64] = chosen.double().cpu().numpy()
        return found


def open_judges(terms: Sequence[TextTerm]) -> dict[str, JudgeFolder]:
    """The classifiers of all domains that have one, by the domain's name.

    Raises:
        FitnessError: as for `JudgeFolder.open`.
    """
    return {t.name: JudgeFolder.open(t.reward, f"texts.{t.name}.reward") for t in terms if t.reward is not None}


def _place(term: RewardTerm, key: str, config: Any) -> int:
    """Of the label among the classifier's outputs."""
    labels = {int(place): str(name) for place, name in (config.id2label or {}).items()}
    known = [labels[place] for place in sorted(labels)]
    if not term.label:
        if config.num_labels != 1:
            raise FitnessError(f"{key}.label is not set", f"one of: {', '.join(known)}", f"set {key}.label=NAME")
        return 0
    if term.label in known:
        return sorted(labels)[known.index(term.label)]
    if term.label.isdigit() and int(term.label) in labels:
        return int(term.label)
    raise FitnessError(f"{key}.label is {term.label!r}", nearest(term.label, known))
