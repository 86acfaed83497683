"""The models and items that stand in for those of a published protocol: tiny, of the same shapes, made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, nearest

Maker = Callable[..., Path]


def _glue(folder: Path, seed: int, quick: bool, each_step: Callable[[str], None]) -> Path:
    from evomerge.demo.glue import make_glue

    return make_glue(folder, seed, quick=quick, each_step=each_step)


def _languages(folder: Path, seed: int, quick: bool, each_step: Callable[[str], None]) -> Path:
    from evomerge.demo.pool import make_demo_pool

    return make_demo_pool(folder, seed, quick=quick, progress=False)


def _lengths(folder: Path, seed: int, quick: bool, each_step: Callable[[str], None]) -> Path:
    from evomerge.demo.lengths import make_lengths

    return make_lengths(folder, seed, quick=quick, each_step=each_step)


def _clips(folder: Path, seed: int, quick: bool, each_step: Callable[[str], None]) -> Path:
    from evomerge.demo.clip_pool import make_clips

    return make_clips(folder, seed, quick=quick, each_step=each_step)


def _large_clips(folder: Path, seed: int, quick: bool, each_step: Callable[[str], None]) -> Path:
    from evomerge.demo.clip_pool import LARGE, QUICK_LARGE, make_clips

    return make_clips(folder, seed, sizes=QUICK_LARGE if quick else LARGE, each_step=each_step)


def _skills(sources: Mapping[str, str], **sizes: float) -> Maker:
    """What makes experts with these skills; sizes are those of `SkillSizes` that are others than its own."""

    def make(folder: Path, seed: int, quick: bool, each_step: Callable[[str], None]) -> Path:
        from evomerge.demo.skills import SkillSizes, make_skills

        chosen = None if quick else SkillSizes(**sizes)  # type: ignore[arg-type]
        return make_skills(folder, sources, seed, quick=quick, sizes=chosen, each_step=each_step)

    return make


_DOMAINS = {
    "instruction": "repeat_e",
    "math": "sort_e",
    "coding": "last_e",
    "multilingual": "repeat_j",
    "safety": "first_e",
}
_EIGHT = ("repeat_e", "first_e", "last_e", "sort_e", "repeat_j", "first_j", "last_j", "sort_j")

MAKERS: dict[str, Maker] = {
    "glue": _glue,
    "languages": _languages,
    "lengths": _lengths,
    "clips": _clips,
    "large_clips": _large_clips,
    "domains": _skills(_DOMAINS),
    "agents": _skills({"wizard": "sort_e", "agent": "repeat_j"}, search=150, start_steps=60, steps=100, rate=1.6e-3),
    "alignment": _skills({"helpful": "repeat_e", "honest": "sort_e", "harmless": "first_e"}),
    "experts": _skills({f"expert{number}": skill for number, skill in enumerate(_EIGHT, 1)}, search=120),
}
"""What makes a pool, by the word that ``protocol.stand_in`` is."""


def make_stand_in(
    kind: str, folder: Path, seed: int, *, quick: bool = False, say: Callable[[str], None] = print
) -> Path:
    """Make a pool in `folder`, unless it is there.

    Args:
        kind: one of `MAKERS`.
        folder: where it goes.
        seed: of all that is drawn.
        quick: hardly train: models of the right shape that can do next to nothing.
        say: told which model is trained.

    Raises:
        ConfigError: there is no such maker.
        OutputError: `folder` holds something else.
    """
    if kind not in MAKERS:
        raise ConfigError(f"protocol.stand_in is {kind!r}", nearest(kind, MAKERS))
    named: list[Any] = [None]

    def each_step(name: str) -> None:
        if named[0] != name:
            named[0] = name
            say(f"training {name}")

    return MAKERS[kind](folder, seed, quick, each_step)


def require_made(kind: str, folder: str | None) -> None:
    """`ConfigError` where a pool is not there yet: what only looks makes none."""
    if folder is None or not Path(folder).is_dir():
        do = "`evomerge protocol NAME --stand-in` makes it"
        raise ConfigError(f"the stand-in's models ({kind}) are not in {folder}", "a folder that it made", do)
