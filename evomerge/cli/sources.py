"""What a verb's RUN, RECIPE or MODEL argument means."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.comparison.folder import is_protocol
from evomerge.errors import PoolError, RecipeError
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.yaml_reader import load_recipe
from evomerge.run.inside import LEDGER, instead_of_part
from evomerge.session.best_recipe import best_recipe
from evomerge.utils.plain_text import printable
from evomerge.utils.safe_yaml import read_text

if TYPE_CHECKING:
    from evomerge.export.model_card import ScoreRow
    from evomerge.models.pool import Pool


def run_folder(path: str | Path) -> Path | None:
    """The run folder that `path` is, or whose winner or front the recipe `path` is of; ``None`` when it is neither."""
    folder = Path(path)
    above = folder.parent.parent
    for candidate in (folder, above.parent if folder.parent.name == "pareto" else above):
        if (candidate / LEDGER).is_file():
            return candidate
    return None


def open_recipe(path: str, *, root: str | None = None, trust: bool = False) -> tuple[Recipe, Pool]:
    """Read a recipe file, evomerge's or mergekit's, or the best recipe of a run folder, and open its models.

    What a mergekit file says in vain is noted on standard error.

    Args:
        path: RUN or RECIPE.
        root: the folder that relative model folders are looked up in first.
        trust: run code that models bring along; what was asked for before, by a search, is run anyway.

    Raises:
        RecipeError, PoolError: there is no such file, it is malformed, or its models cannot be merged.
    """
    from evomerge.mergekit.document import looks_like_mergekit
    from evomerge.models.trusted_code import asked_before

    file = _recipe_file(path)
    text = _read(file)
    if not looks_like_mergekit(text):
        recipe = load_recipe(text, str(file))
        _check_recipe(recipe, root)
        from evomerge.models.opening import pool_of_recipe

        return recipe, pool_of_recipe(recipe, root, trust or asked_before((ref for _, ref in recipe.models), root))

    from evomerge.mergekit.reader import read_mergekit
    from evomerge.models.opening import open_pool

    read = read_mergekit(text, str(file), file.parent)
    for note in read.notes:
        print(printable(f"note: {file}: {note}"), file=sys.stderr)
    trusted = trust or asked_before(read.models.values(), root)
    pool = open_pool(read.models, read.base, root, read.dtype, trusted, tokenizer=read.tokenizer, kept=None)
    recipe = read.recipe(pool)
    return recipe, replace(pool, tokenizer_from=recipe.tokenizer_from)


def _check_recipe(recipe: Recipe, root: str | None) -> None:
    """Check what needs no file of a model: that the models are there, merge methods and parameters."""
    from evomerge.models.pool_settings import check_places

    check_places(dict(recipe.models), root, files=recipe.network is not None)
    from evomerge.merge.methods import specs

    recipe.check(specs())


def read_recipe(path: str, *, trust: bool = False) -> Recipe:
    """As `open_recipe`; the models of an evomerge recipe need not be there."""
    from evomerge.mergekit.document import looks_like_mergekit

    file = _recipe_file(path)
    text = _read(file)
    return open_recipe(path, trust=trust)[0] if looks_like_mergekit(text) else load_recipe(text, str(file))


def _read(file: Path) -> str:
    return read_text(file)


def _recipe_file(path: str) -> Path:
    """The file that RUN or RECIPE means.

    Raises:
        RecipeError: there is none, or the run has no best recipe.
    """
    file = Path(path)
    require_no_part(path)
    if file.is_dir():
        if not (file / LEDGER).is_file():
            own = file / "evomerge_recipe.yaml"
            do = f"the recipe that this folder was made by is {own}" if own.is_file() else ""
            raise RecipeError(f"{path} is not a run folder (it has no {LEDGER})", "a run folder or a recipe file", do)
        return best_recipe(file)
    if file.exists() and not file.is_file():
        raise RecipeError(f"{path} is no regular file", "a run folder or a recipe file")
    if not file.is_file():
        raise RecipeError(f"there is no file or folder {path}", "a run folder or a recipe file", hint(file))
    return file


def require_no_part(path: str) -> None:
    """`RecipeError` for a part of a run that is no recipe, with the run that was meant, and for a protocol's run."""
    if is_protocol(path):
        own = sorted(str(inner.parent) for inner in Path(path).glob(f"search-*/{LEDGER}"))
        allowed = f"a part of it that searched: {', '.join(own)}" if own else "none of its searches has begun"
        raise RecipeError(f"{path} is the run of a protocol", allowed, f"give {own[0]}, say" if own else "")
    part, give = instead_of_part(path)
    if part:
        raise RecipeError(part, "a run folder or a recipe file", give)


def held_out_scores(path: str, recipe: Recipe) -> list[ScoreRow]:
    """The rows of a model card's table, when `path` belongs to a run whose winner is this very recipe.

    None where the run has no held-out scores, or its ledger cannot be read to the end: a recipe can always be merged.
    """
    folder = run_folder(path)
    if folder is None:
        return []
    from evomerge.run.folder import RunFolder
    from evomerge.session import card_scores

    return card_scores.held_out_scores(RunFolder(folder), recipe)


def near_run(name: Path) -> str:
    """The run beside which a name was given that is most like it, here or among the runs; empty where there is none."""
    here = [run.parent for runs in (Path(), Path("runs")) for run in sorted(runs.glob(f"*/{LEDGER}")) if run.is_file()]
    alike = {folder.name: str(folder) for folder in here}
    close = difflib.get_close_matches(name.name, alike, n=1, cutoff=0.75)
    return alike[close[0]] if close else ""


def hint(file: Path, *, beside: bool = False) -> str:
    """The runs that are there, the nearest first, for who named one that is not; empty where there are none.

    Args:
        file: what was named.
        beside: only those of the folder in which it would lie.
    """
    folder = file.parent if file.parent.is_dir() else Path()
    runs = folder if beside or folder.name == "runs" else folder / "runs"
    if beside and (folder != file.parent or not file.parent.name):
        return ""
    names = sorted(str(run.parent) for run in runs.glob(f"*/{LEDGER}") if run.is_file())
    if not names:
        return ""
    alike = {Path(name).name: name for name in names}
    close = difflib.get_close_matches(file.name, alike, n=1, cutoff=0.5)
    meant = f"did you mean {alike[close[0]]!r}? " if close else ""
    return f"{meant}runs here: {', '.join(names[-5:])}"


@contextmanager
def one_model(name: str) -> Iterator[None]:
    """Leave the name out of errors with a pool's only model, which nobody has given it."""
    try:
        yield
    except PoolError as error:
        raise PoolError(error.given.removeprefix(f"model {name!r}: "), error.allowed, error.do) from error
