"""Files beside a model's weights that transformers or sentence-transformers reads, and what they may be."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from evomerge.errors import PoolError

INPUTS = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.model",
    "bpe.codes",
    "*.tiktoken",
    "*preprocessor_config.json",
    "processor_config.json",
)
"""What prepares inputs."""
INPUT_FOLDERS = ("additional_chat_templates",)
CODE = "*.py"
"""What config.json or a tokenizer refers to."""
SENTENCE = ("modules.json", "sentence_*_config.json", "config_sentence_transformers.json")
"""What sentence-transformers reads beside transformers' files."""
SETTINGS = ("config.json", "generation_config.json", "adapter_config.json")


def matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The entries of a folder whose names match one of the patterns, in order."""
    return [file for file in sorted(folder.iterdir()) if any(fnmatch(file.name, pattern) for pattern in patterns)]


def check_side_files(folder: Path) -> None:
    """Refuse what lies under the name of such a file and is none: a pipe, a device, a link that leads out.

    Raises:
        PoolError: names the file.
    """
    for file in matching(folder, (*INPUTS, *SENTENCE, *SETTINGS)):
        try:
            mode = os.stat(file).st_mode
        except OSError as error:
            raise PoolError(f"{file} cannot be read ({error.strerror})", "a file", "download it again") from error
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            raise PoolError(f"{file} is not a regular file", "a file of the model", "remove it, or download it again")
        check_inside(file, folder)


def check_inside(file: Path, folder: Path) -> None:
    """Refuse a link to a file outside the model's folder, which would be published with the result.

    Raises:
        PoolError: names the file.
    """
    # The hub's cache keeps files beside its snapshots: models--org--name/{snapshots/COMMIT,blobs}.
    hub = folder.parent.name == "snapshots" and (folder.parent.parent / "blobs").is_dir()
    root = (folder.parent.parent if hub else folder).resolve()
    if not file.resolve().is_relative_to(root):
        raise PoolError(
            f"{file} is a link to {file.resolve()}",
            f"files within {root}: they are copied to the merged model",
            "put the file itself in the place of the link",
        )
