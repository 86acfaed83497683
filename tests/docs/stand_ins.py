"""A folder in which the commands of a page can be run: small models, runs and tasks under the names it uses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from tiny_classifiers import rows, save, write_rows
from tiny_encoders import save_encoder, write_corpus

from evomerge.demo.docstrings import LABELS
from evomerge.demo.retrieval import PACKAGES

# Tasks of the harness that the pages name, where the package has them: their data are not here, the demo's stand in.
TASKS = {
    "gsm8k": ("gsm8k/gsm8k.yaml", "demo_e_maths"),
    "arc_easy": ("arc/arc_easy.yaml", "demo_j_language"),
    "mgsm_direct_ja": ("mgsm/direct/mgsm_direct_ja.yaml", "demo_j_maths"),
}
SMALL = ("search.evaluations=2", "held_out.limit=2")
LAYERS = 6
MODELS = ("base", "math", "lang")
TEMPLATE = (
    "{% if enable_thinking is defined %}{% endif %}"
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
)
EVOLVE = """genome:
  models: [org/math-7b, org/code-7b]
  merge_method: task_arithmetic
  base_model: org/base-7b
tasks: [{name: demo_e_maths, metric: "acc,none"}]
"""
MERGE = """merge_method: linear
models:
- {model: org/math-7b, parameters: {weight: 0.5}}
- {model: org/code-7b, parameters: {weight: 0.5}}
dtype: float32
"""


MIXTURE = """base_model: org/base-7b
gate_mode: random
experts: [{source_model: org/math-7b}, {source_model: org/code-7b}, {source_model: org/base-7b}]
experts_per_token: 1
"""


def make_mixtures(pool: Path, folder: Path) -> Path:
    """Two mixtures, ``one`` and ``two``, of eight experts each of a demo pool's models, with routers of their own."""
    from evomerge.export.dense_mixture import dense_mixture
    from evomerge.mergekit.mixture_recipe import read_mixture

    experts = ", ".join(f"{{source_model: '{pool / MODELS[number % 3]}'}}" for number in range(8))
    recipe = read_mixture(f"base_model: '{pool / MODELS[0]}'\ngate_mode: random\nexperts: [{experts}]\n")
    for seed, name in enumerate(("one", "two")):
        dense_mixture(recipe, folder / name, seed=seed)
    return folder


def give_switch(file: Path) -> None:
    """Make a recipe one with a switch, a task for each of its sources."""
    from evomerge.recipes.switches import with_switch
    from evomerge.recipes.yaml_reader import dump_recipe, read_recipe_file

    tasks: dict[str, dict[str, float]] = {name: {} for name in MODELS[1:]}
    file.write_text(dump_recipe(with_switch(read_recipe_file(file), "tall_switch", tasks, MODELS[0])))


def make_classifiers(folder: Path) -> Path:
    """A pool and data under the names of the demo's classifiers."""
    for seed, (task, labels) in enumerate(LABELS.items(), 1):
        save(folder / task, seed, labels)
        (folder / "data").mkdir(exist_ok=True)
        for part, first in (("search", seed), ("held_out", 10 + seed)):
            write_rows(folder / "data" / f"{task}-{part}.jsonl", rows(labels, 12, first))
    save(folder / "base", 0)
    return folder


def make_retrieval(folder: Path) -> Path:
    """A pool and corpora under the names of the demo's embedding models."""
    for seed, name in enumerate(("base", *PACKAGES)):
        save_encoder(folder / name, seed)
    for seed, task in enumerate(PACKAGES):
        data = write_corpus(folder / "data" / task, seed=seed)
        header, *lines = (data / "qrels" / "test.tsv").read_text().splitlines(keepends=True)
        for part, own in (("search", lines[:5]), ("held_out", lines[5:])):
            (data / "qrels" / f"{part}.tsv").write_text("".join([header, *own]))
    return folder


def give_heads(file: Path, pool: Path) -> None:
    """Make a recipe one of the classifiers, each with its own head."""
    from evomerge.models.opening import open_pool
    from evomerge.recipes.yaml_reader import dump_recipe

    opened = open_pool({name: name for name in ("base", *LABELS)}, "base", pool)
    file.write_text(dump_recipe(opened.info.linear(dict.fromkeys(LABELS, 0.5))))


@dataclass(frozen=True)
class Made:
    """What stands in, made once: a pool of the demo's shape, a run, its winner, classifiers, mixtures, encoders."""

    pool: Path
    run: Path
    model: Path
    classifiers: Path
    mixtures: Path
    retrieval: Path


@dataclass
class Place:
    """The folder of one page.

    Attributes:
        folder: what the page calls the current one.
        made: what stands in.
    """

    folder: Path
    made: Made
    outputs: int = 0

    def furnish(self) -> None:
        """Put there what every page may take for granted."""
        (self.folder / "demo_pool").mkdir(parents=True)
        for name in ("demo_pool/seed0", "MODELS"):
            (self.folder / name).symlink_to(self.made.pool)
        (self.folder / "my-model").symlink_to(self.made.model)
        (self.folder / "demo_pool" / "classifiers-seed0").symlink_to(self.made.classifiers)
        (self.folder / "demo_pool" / "retrieval-seed0").symlink_to(self.made.retrieval)
        (self.folder / "runs").mkdir(exist_ok=True)
        (self.folder / "runs" / "out").symlink_to(self.made.pool / "training")
        for name in ("recipe.yaml", "learned.yaml"):
            shutil.copy(self.made.run / "best" / "recipe.yaml", self.folder / name)
        texts = {"evolve.yml": EVOLVE, "merge.yaml": MERGE, "mergekit.yaml": MERGE, "moe.yml": MIXTURE}
        for name, text in texts.items():
            (self.folder / name).write_text(text)
        for name in ("base", "math", "code"):
            self.stand_in(f"org/{name}-7b", name)
        for name in ("org/mixture", "org/mixture-a", "org/mixture-b", "b-aligned", "six", "three"):
            own = "one" if name in ("org/mixture", "org/mixture-a") else "two"
            (self.folder / name).symlink_to(self.made.mixtures / own)
        for name in ("tasks/invoices", "tasks/invoices_held_out"):
            (self.folder / name).parent.mkdir(exist_ok=True)
            rows = [{"text": f"item {number}", "total": str(number)} for number in range(4)]
            (self.folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        (self.folder / "texts.txt").write_text("some words\nmore words\n")
        for experiment in ("experiment/mine.yaml", "my/experiment/mine.yaml", "my/experiment/NAME.yaml"):
            target = self.folder / experiment
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("# @package _global_\ndefaults:\n  - demo\n  - _self_\nname: mine\n")

    def write(self, name: str, text: str) -> None:
        """Put the file there that a block is; of an experiment what can be run here, of a task a second one."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.experiment(text) if file.parent.name == "experiment" else text)
        if file.parent.name == "tasks" and file.suffix == ".yaml":
            file.with_stem(f"{file.stem}_held_out").write_text(text.replace(file.stem, f"{file.stem}_held_out"))

    def stand_in(self, location: str, name: str) -> str:
        """Put a small model where a page has a large one; the location as it is to be given.

        Absolute folders are moved below this one, hub ids become folders of that name.
        """
        given = Path(location).expanduser()
        relative = location.lstrip("/~") if given.is_absolute() or location.startswith("~") else location
        target = self.folder / relative
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(self.made.pool / (name if name in MODELS else ("math", "lang")[len(name) % 2]))
        return str(target)

    def words(self, words: Sequence[str]) -> list[str]:
        """The words of a search or of an evaluation, with what is not here replaced."""
        found: list[str] = []
        folders = f"['{self.made.pool / 'tasks'}',tasks]"
        keys = {f"{word.partition('=')[0]}=" for word in words}
        for word in words:
            key, assigned, value = word.partition("=")
            if key.lstrip("+") == "pool.models" and value.startswith("{"):
                found.append(f"{key}={self._models(yaml.safe_load(value))}")
            elif assigned and key.lstrip("+").endswith(".tasks") and not key.startswith("strategy."):
                names = re.findall(r"[A-Za-z]\w*", value)
                for name in names:
                    if name in TASKS:
                        value = re.sub(rf"\b{name}\b", TASKS[name][1], value)
                found += [f"{key}={value}", f"{key.removesuffix('tasks')}include_path={folders}"]
            elif assigned and key.endswith(".include_path") and f"{key.removesuffix('include_path')}tasks=" in keys:
                continue  # given with the tasks
            else:
                found.append(word)
        return found

    def _models(self, models: dict[str, str]) -> str:
        named = {name: self._model(name, location) for name, location in models.items()}
        return "{" + ", ".join(f"{name}: '{location}'" for name, location in named.items()) + "}"

    def _model(self, name: str, location: str) -> str:
        return location if (self.made.pool / location).is_dir() else self.stand_in(location, name)

    def experiment(self, text: str) -> str:
        """An experiment of a page, with models and tasks replaced as in commands."""
        content = yaml.safe_load(text)
        models = content.get("pool", {}).get("models")
        if models:
            content["pool"]["models"] = {name: self._model(name, location) for name, location in models.items()}
        for key in ("fitness", "held_out"):
            node = content.get(key) or {}
            for number, task in enumerate(node.get("tasks", [])):
                name = task["task"] if isinstance(task, dict) else task
                if name in TASKS:
                    own = {**task, "task": TASKS[name][1]} if isinstance(task, dict) else TASKS[name][1]
                    node["tasks"][number] = own
                    if isinstance(own, dict):
                        own.pop("metrics", None)  # the harness's own, which the demo's task has not
                    node["include_path"] = [str(self.made.pool / "tasks"), "tasks"]
        if content.get(
            "held_out"
        ):  # what stands for the user's own tasks, and for those they are judged by, is the same
            content["search"] = {**(content.get("search") or {}), "allow_overlap": True}
        group = (content.get("search_space") or {}).get("layer_group")
        if isinstance(group, int) and group > LAYERS:
            content["search_space"]["layer_group"] = 2
        return "# @package _global_\n" + yaml.safe_dump(content, sort_keys=False)

    def output(self) -> str:
        """A new name for what a command writes."""
        self.outputs += 1
        return str(self.folder / f"written-{self.outputs}")

    def runs_of(self, words: Sequence[str]) -> Iterator[Path]:
        """Copies of the finished run where a command reads one that is not there."""
        for word in words:
            for name in re.findall(r"runs/[^\s,\]\[=/]+", word):
                run = self.folder / name
                if not run.exists():
                    shutil.copytree(self.made.run, run)
                    if "switch" in name:
                        give_switch(run / "best" / "recipe.yaml")
                    if "classifiers" in name:
                        give_heads(run / "best" / "recipe.yaml", self.made.classifiers)
                yield run

    def parts_of(self, words: Sequence[str]) -> list[str]:
        """Write the folder of all tasks that a merge reads where an earlier command of the page would have."""
        folder = self.folder / words[0]
        if words[0] != "all-tasks" or folder.exists():
            return []
        (run,) = self.runs_of(["runs/demo-switch-x"])
        return ["merge", str(run), str(folder), "--all-tasks"]
