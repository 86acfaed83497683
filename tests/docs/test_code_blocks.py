"""Everything in the README and in docs that one can type in is run, on models that take the place of larger ones.

``evomerge search`` becomes ``evomerge validate`` with the same words; the searches of docs/extending.md are run. What
is not run is listed here with the reason.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from fences import ROOT, Command, Fence, commands, fences
from stand_ins import SMALL, TASKS, TEMPLATE, Made, Place, make_classifiers, make_mixtures, make_retrieval

from evomerge.cli.main import main
from evomerge.demo.adapters import make_adapters
from evomerge.demo.checkpoints import make_checkpoints
from evomerge.demo.pool import make_demo_pool
from evomerge.mergekit.mixture_recipe import read_mixture

pytestmark = pytest.mark.slow

ELSEWHERE = {
    "cd": "a folder of the reader's",
    "git": "the network",
    "hf": "the network",
    "pip": "the network",
    "mergekit-yaml": "tests/mergekit runs it",
    "lm_eval": "tests/cli/test_end_to_end.py compares with it",
    "vllm": "a server; tests/cli/test_server_search.py searches with one of its own",
    "pytest": "a test; its file must be there",
    **dict.fromkeys(
        ("sbatch", "srun", "scancel", "squeue", "ray", "kubectl", "helm", "ssh"),
        "a cluster; tests/project/test_launchers.py runs the scripts",
    ),
}
"""Programs that are not evomerge's, and why they are not run here."""

NOT_RUN = {
    ("demo",): "takes minutes; tests/cli/test_end_to_end.py makes the pool and searches",
    ("resume", "evaluator=ray"): "starts Ray; tests/durability resumes on it",
    ("export", "svg"): "asks for the run of a path; tests/report/test_path.py draws one",
    ("export", "landscape"): "asks for 30 evaluations; tests/session/test_landscape_of_run.py fits one",
    ("experiment=landscape",): "asks for a landscape; tests/fitness/test_surrogate.py searches on one",
    ("evaluator.engine=server",): "asks for a server; tests/cli/test_server_search.py searches with one",
    ("evaluator.engine=vllm",): "asks for vLLM; tests/fitness/test_vllm_parity.py searches with it",
    ("fitness=animals",): "asks for images; tests/fitness/test_images.py scores some",
    ("fitness=images",): "asks for images; tests/cli/test_image_runs.py searches on some",
    ("fitness=fewer_experts",): "takes a while; tests/fitness/test_fewer_experts_fitness.py searches with it",
    ("merge", "runs/choice"): "of that search; tests/fitness/test_fewer_experts_fitness.py writes one",
    ("experts", "--equal"): "of what it wrote, likewise",
    ("experiment=demo_segmentation",): "asks for its pool; tests/demo/test_segmentation_pool.py makes one",
    ("fitness=organs",): "asks for images; tests/fitness/test_segmentation.py scores some",
    ("fitness=segmentation",): "asks for images; tests/cli/test_segmentation_runs.py searches on some",
    ("fitness=drawn",): "asks for pipelines; tests/cli/test_pipeline_search.py searches on some",
    ("fitness=answers",): "asks for corpora; tests/fitness/test_retrieval.py scores some",
    ("search_space=zipped",): "asks for what align --ratio 0 writes; tests/cli/test_zipped_search.py searches on it",
    ("rate",): "asks for scores; tests/cli/test_human_search.py gives some",
    ("dashboard",): "serves until it is interrupted; tests/cli opens it",
}
"""Words of evomerge commands that are not run here, and why."""

NOT_BUILT: dict[str, str] = {}
"""YAML blocks that are no configuration of evomerge's, by page, and why."""

OUTPUTS = {"", "text", "console", "diff"}
"""Languages of blocks that show something."""

COMMANDS = [c for c in commands() if c.words[0] not in ELSEWHERE]
PYTHON = [f for f in fences() if f.language == "python"]
YAML = [f for f in fences() if f.language in ("yaml", "yml") and f.page not in NOT_BUILT]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("stand-ins")
    pool = make_demo_pool(root / "pool", 0, quick=True, progress=False)
    for config in pool.glob("*/tokenizer_config.json"):
        config.with_name("chat_template.jinja").write_text(TEMPLATE)
    make_checkpoints(pool, 0, 3, quick=True)
    make_adapters(pool, 0, 3, quick=True)
    run, model = root / "run", root / "model"
    assert (
        main(["search", "experiment=demo", f"pool.root='{pool}'", "fitness.limit=2", *SMALL, f"run_dir='{run}'"]) == 0
    )
    assert main(["merge", str(run), str(model)]) == 0
    classifiers, mixtures = make_classifiers(root / "classifiers"), make_mixtures(pool, root / "mixtures")
    return Made(pool, run, model, classifiers, mixtures, make_retrieval(root / "retrieval"))


@pytest.fixture(scope="module")
def places(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Place]:
    """The folder of a page, made once: with the files that the page's own blocks are."""
    known: dict[str, Place] = {}

    def of(place: str) -> Place:
        page = place.partition(":")[0]
        if page not in known:
            known[page] = here = Place(tmp_path_factory.mktemp("page") / "here", made)
            here.furnish()
            for fence in fences():
                if fence.page == page and fence.file:
                    here.write(fence.file, fence.text)
        return known[page]

    return of


@pytest.fixture(autouse=True)
def own_modules_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from evomerge.merge.methods import registry

    monkeypatch.setattr(sys, "path", list(sys.path))
    modules, methods = set(sys.modules), set(registry._METHODS)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("my_"):
            del sys.modules[name]
    for name in set(registry._METHODS) - methods:
        del registry._METHODS[name]


def run(words: list[str]) -> None:
    """One evomerge command; whoever prints help leaves as programs do."""
    try:
        status = main(words)
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 0
    assert status == 0, f"evomerge {' '.join(words)}"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.place} {' '.join(command.words)}"[:100])
def test_a_command(command: Command, places: Callable[[str], Place], monkeypatch: pytest.MonkeyPatch) -> None:
    place = places(command.place)
    monkeypatch.chdir(place.folder)
    program, *words = command.words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words) <= set(targets)
    elif program.startswith("python"):
        _script(words)
    elif program in ("bash", "sh") or program.startswith(("scripts/", "./scripts/")):
        _script([program, *words] if "scripts/" in program else words)
    else:
        assert program == "evomerge", f"{program} is neither run nor listed in ELSEWHERE"
        _evomerge(words, place)


def _script(words: list[str]) -> None:
    """A script of the repository: it is there, and knows these options."""
    if words[0] == "-m":
        assert find_spec(words[1].partition(".")[0]) is not None
        return
    text = (ROOT / words[0]).read_text()
    if words[0].endswith("scripts/benchmark.py"):
        text += "".join(path.read_text() for path in sorted((ROOT / "scripts").glob("benchmark_*.py")))
        assert f'"{words[1]}"' in text
    for option in (word.partition("=")[0] for word in words[1:] if word.startswith("--")):
        assert option in text, f"{words[0]} has no {option}"


def _evomerge(words: list[str], place: Place) -> None:
    verb, rest = words[0], words[1:]
    if any(all(word in words for word in listed) for listed in NOT_RUN):
        return
    runs = list(place.runs_of(words))
    if verb in ("search", "validate") and _is_elsewhere(rest):
        run(["search", *rest, "--cfg", "job"])  # composed only: its models are not here
    elif verb == "search" and not {"--help", "--cfg"} & set(rest):
        chosen = any(re.match(r"(experiment|pool|pool\.models)=", word) for word in rest)
        rest = place.words(rest if chosen else ["experiment=demo", *rest])
        if "-m" in rest:  # of a sweep its first job
            rest = [re.sub(r"^([\w.]+=[^,\[{]*),.*", r"\1", word) for word in rest if word != "-m"]
        run(["validate", *rest])
        if place.folder == _folder_of("docs/extending.md", place):
            held_out = [] if any(word.startswith("fitness=") for word in rest) else [SMALL[1]]
            run(["search", *rest, SMALL[0], *held_out, f"run_dir='{place.output()}'"])
    elif verb == "resume":
        changed = [re.sub(r"^search\.evaluations=\d+", "search.evaluations=3", word) for word in rest]
        run([verb, *changed])
        assert runs
    elif verb == "merge":
        positional = [number for number, word in enumerate(rest) if not word.startswith("-")]
        if before := place.parts_of(rest):
            run(before)
        out = place.output()
        run([verb, *rest[: positional[1]], out, *rest[positional[1] + 1 :]])
        assert list(Path(out).rglob("adapter_config.json" if "lora" in rest else "config.json"))
    elif verb == "learn":
        run([verb, *place.words(rest), "learning.steps=2", f"learning.out='{place.output()}'"])
    elif verb == "align":
        run([verb, *rest[:2], place.output(), *rest[3:]])
    elif verb in ("experts", "mixture"):
        run([verb, rest[0], place.output(), *rest[2:]])
    elif verb == "import":
        run([verb, *rest, "--include-path", str(place.made.pool / "tasks")])
    else:
        run([verb, *(place.words(rest) if verb in ("evaluate", "validate") else rest)])


def _is_elsewhere(words: list[str]) -> bool:
    """Whether it is an experiment of evomerge's with models from the hub, which tests/cli checks on other models."""
    names = [word.partition("=")[2] for word in words if word.startswith("experiment=")]
    while names:
        file = ROOT / "conf" / "experiment" / f"{names.pop()}.yaml"
        if file.is_file():
            content = yaml.safe_load(file.read_text())
            if any("/" in location for location in (content.get("pool", {}).get("models") or {}).values()):
                return True
            names += [name for name in content.get("defaults", []) if isinstance(name, str) and name != "_self_"]
    return False


def _folder_of(page: str, place: Place) -> Path | None:
    """The folder, when it is that page's."""
    own = [fence.file for fence in fences() if fence.page == page and fence.file]
    return place.folder if own and all((place.folder / str(file)).is_file() for file in own) else None


@pytest.mark.parametrize("fence", PYTHON, ids=lambda fence: fence.place)
def test_python(fence: Fence, places: Callable[[str], Place], monkeypatch: pytest.MonkeyPatch) -> None:
    place = places(fence.place)
    monkeypatch.chdir(place.folder)
    before = "\n".join(f.text for f in PYTHON if f.page == fence.page and f.line < fence.line and not f.file)
    text = fence.text if fence.file else before + fence.text  # the blocks of a page go on from each other
    assert [run for run in place.runs_of([text.replace('"', " ")]) if not run.is_dir()] == []
    written = [place.folder / name for name in re.findall(r'\.(?:merge|save)\("([^"]+)"\)', text)]
    for folder in written:
        folder.unlink(missing_ok=True)  # what stands in for a model that an earlier page has made
    try:
        exec(compile(text, fence.place, "exec"), {"__name__": Path(fence.file or "block").stem})
        assert all((folder / "model.safetensors").is_file() for folder in written)
    finally:
        for folder in written:
            shutil.rmtree(folder, ignore_errors=True)
        if not (place.folder / "my-model").exists():
            (place.folder / "my-model").symlink_to(place.made.model)


@pytest.mark.parametrize("fence", YAML, ids=lambda fence: fence.place)
def test_yaml(fence: Fence, places: Callable[[str], Place], monkeypatch: pytest.MonkeyPatch) -> None:
    place = places(fence.place)
    monkeypatch.chdir(place.folder)
    content = yaml.safe_load(fence.text)
    keys = set(content)
    if "_target_" in keys:
        option = Path(str(fence.file))
        used = f"{option.parent.name}={option.stem}"
        assert any(used in command.words for command in commands() if command.place.startswith(fence.page))
    elif "dataset_path" in keys:  # a task, which the page's own commands read
        assert any(content["task"] in word for c in commands() for word in c.words if c.place.startswith(fence.page))
    elif "evomerge_recipe" in keys:
        from evomerge.recipes.yaml_reader import load_recipe

        assert load_recipe(fence.text).slices
    elif "merge_method" in keys or "slices" in keys:
        (place.folder / "block.yaml").write_text(fence.text)
        run(["export", "block.yaml"])
    elif {"base_model", "experts"} <= keys:
        assert read_mixture(fence.text).experts
    elif {"genome", "tasks"} <= keys:
        (place.folder / "block.yml").write_text(fence.text)
        run(["import", "block.yml"])
    else:
        file = place.folder / "blocks" / "experiment" / "block.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(place.experiment(fence.text))
        base = ["pool=demo"] if not content.get("pool") else []
        tasks = [] if content.get("fitness") else ["fitness.tasks=[demo_e_maths]"]
        run(["validate", "--config-dir", "blocks", *base, "experiment=block", *place.words(tasks)])


def test_other_languages_are_read() -> None:
    readers: dict[str, Callable[[str], Any]] = {"json": json.loads, "toml": tomllib.loads}
    for fence in fences():
        if fence.language in readers:
            readers[fence.language](fence.text)
        else:
            assert fence.language in {"bash", "python", "yaml", "yml"} | OUTPUTS, fence.place


def test_what_is_listed_is_used() -> None:
    """The lists of what is not run hold nothing else."""
    programs = {command.words[0] for command in commands()}
    assert {command.words[0] for command in commands() if command.words[0] == "pytest"} <= programs
    for command in commands():
        if command.words[0] == "pytest":
            assert all((ROOT / word).exists() for word in command.words[1:] if word.startswith("tests/"))
    assert {"evomerge", "make", "python"} <= programs


def test_the_tasks_that_pages_name_are_the_harness_s() -> None:
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "tasks"
    assert [file for file, _ in TASKS.values() if not (folder / file).is_file()] == []


def test_links_of_the_readme_lead_somewhere() -> None:
    """Sphinx checks those of the pages."""
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text)
    local = [link for pair in links for link in pair if link and not link.startswith(("http://", "https://"))]
    assert len(local) > 5
    for link in local:
        file, _, anchor = link.partition("#")
        target = ROOT / file if file else ROOT / "README.md"
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target.read_text()), link


def _anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and Sphinx make them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
