"""What reads files of others, each with valid files to begin from."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import numpy as safetensors

from evomerge.candidate import Candidate, Evaluation
from evomerge.config.task_code import task_code
from evomerge.errors import EvomergeError
from evomerge.genomes.genome import Genome
from evomerge.mergekit.evolve import read_evolve
from evomerge.mergekit.reader import read_mergekit
from evomerge.models.checkpoints.adapter import Adapter
from evomerge.models.checkpoints.headers import read_header
from evomerge.models.checkpoints.reader import Checkpoint as Model
from evomerge.objectives import Objective
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import ModelRef, SliceId
from evomerge.recipes.yaml_reader import dump_recipe, load_recipe
from evomerge.report.history import read_history
from evomerge.report.optuna_storage import journal_of
from evomerge.report.status import read_status
from evomerge.report.summary import summarize
from evomerge.report.table import render
from evomerge.run.checkpoint import Checkpoint, read_checkpoints
from evomerge.run.folder import RunFolder
from evomerge.run.items import read_items
from evomerge.run.ledger import Ledger, canonical_events, evaluation_of, read_ledger
from evomerge.run.ledger_file import encode
from evomerge.run.ratings.folder import RatingFolder
from evomerge.run.ratings.rules import RatingRules
from evomerge.run.ratings.sheets import read_sheets
from evomerge.run.ratings.waiting import read_waiting
from evomerge.run.record import Record
from evomerge.run.state_files import to_bytes
from evomerge.search.warm_start import WarmStartSources
from evomerge.session.replay import check_started
from evomerge.session.resume import open_run

SLICES = ("embed", "layers.0.attn", "layers.0.mlp", "layers.0.norm", "layers.1.attn", "layers.1.mlp", "final_norm")
INFO = PoolInfo(
    tuple((name, ModelRef(f"models/{name}", None, f"sha256:{name}")) for name in ("math", "code", "base")),
    ("math", "code"),
    "base",
    tuple(map(SliceId.parse, SLICES)),
    2,
    "float32",
)


@dataclass(frozen=True)
class Parser:
    """One reader of files.

    Attributes:
        seeds: valid files.
        run: reads a file's content, in a folder of its own; raises what the reader raises.
        load, dump: between a file and JSON values, for changes of the values.
    """

    name: str
    seeds: tuple[bytes, ...]
    run: Callable[[bytes, Path], Any]
    load: Callable[[bytes], Any]
    dump: Callable[[Any], bytes]


def _yaml_out(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


def _json_out(value: Any) -> bytes:
    return json.dumps(value).encode()


def _put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# Recipes and mergekit's files

RECIPE = b"""\
evomerge_recipe: 1
dtype: bfloat16
config_from: base
seed: 3
tokenizer_from: math
models:
  base: {location: pool/base, fingerprint: 'sha256:ab'}
  math: {location: org/math, revision: 1a2b}
  code: {location: pool/base, fingerprint: 'sha256:cd', adapter: {location: org/code-lora, revision: 3c4d}}
intermediates:
  both:
    slices:
    - {slices: 'layers.0-1.attn+mlp+norm', method: linear, inputs: [math, {model: code, parameters: {weight: 0.5}}]}
slices:
- slices: [embed, layers.0-1.attn+mlp]
  method: task_arithmetic
  base: base
  parameters: {lambda: 1.0, normalize: false, weight: [{filter: q_proj, value: 0.3}, {value: 0.5}]}
  inputs:
  - {model: both, layer: 1, parameters: {weight: 0.5}}
  scale: -1.5
- {slices: final_norm, method: passthrough, inputs: [math]}
"""
MERGEKIT = (
    b"""\
merge_method: ties
base_model: org/base
slices:
- sources:
  - {model: org/a+org/lora, layer_range: [0, 2], parameters: {weight: [0.1, 0.9], density: 0.5}}
  - {model: org/b@main, layer_range: [0, 2], parameters: {weight: [{filter: self_attn, value: [0, 1]}, {value: 0.5}]}}
parameters: {normalize: true, int8_mask: true, lambda: 0.7}
dtype: bfloat16
out_dtype: float16
tokenizer_source: base
""",
    b"name: first\nmerge_method: slerp\nbase_model: org/a\nmodels: [{model: org/a}, {model: org/b}]\n"
    b"parameters: {t: [{filter: mlp, value: 0.2}, {value: 0.5}]}\ndtype: float32\n---\n"
    b"merge_method: linear\nmodels:\n- {model: first, parameters: {weight: 1}}\n- {model: org/c}\n",
)
EVOLVE = b"""\
genome:
  models: [org/a, org/b, org/c]
  merge_method: dare_ties
  base_model: org/base
  tokenizer_source: base
  layer_granularity: 8
  normalize: false
  allow_negative_weights: true
  filters: [self_attn, mlp]
  smooth: false
tasks:
- {name: gsm8k, weight: 1.0, metric: 'exact_match,strict-match'}
- wikitext
limit: 100
num_fewshot: 4
apply_chat_template: false
"""


def _recipe(data: bytes, folder: Path) -> None:
    """What is taken is written and read again the same, and has a hash."""
    recipe = load_recipe(data.decode("utf-8", "replace"))
    assert load_recipe(dump_recipe(recipe)) == recipe
    assert len(recipe.hash) == 64


def _mergekit(data: bytes, folder: Path) -> None:
    read_mergekit(data.decode("utf-8", "replace"))


def _evolve(data: bytes, folder: Path) -> None:
    read_evolve(_put(folder, "evolve.yaml", data))


# A run folder

CONFIG = b"""\
name: theirs
run_dir: runs/theirs
imports: []
pool: {models: {a: org/a, base: org/base}, base: base, root: null, dtype: auto, trust_remote_code: false}
search: {evaluations: 8, seed: 0, baselines: true, ordered: true, warm_start: [], sync: every}
search_space:
  _target_: search_spaces.parameter.ParameterSpace
  method: ties
  parameters: {weight: {low: 0}}
strategy: {_target_: evomerge.strategies.random_search.RandomSearch}
fitness:
  _target_: fitness.lm_eval_tasks.LmEvalFitness
  tasks: [{task: gsm8k, metrics: {acc: 1.0}}]
  include_path: tasks
held_out: null
evaluator: {_target_: evomerge.evaluation.local.LocalEvaluator, device: auto, cache: auto}
phases: null
"""


@cache
def _events() -> tuple[bytes, dict[str, bytes]]:
    """A ledger in which everything happens that can, and the files of its per-item scores."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder.create(Path(place) / "run")
        with Ledger(folder, sync="interval") as ledger:
            ledger.append(
                "started", seed=0, evaluations=4, objectives={"score": "maximize"}, fitness="sha256:f", genes=["w"]
            )
            ledger.append(
                "phase", phase="search", number=1, phases=1, evaluations=4, genes=["w"], ordered=True, winner=None
            )
            for number, name in enumerate(("math", "code", "base", "uniform average", None, None, None, None)):
                genome = None if name else Genome((0.1 * number,))
                ledger.log_asked(Candidate(number, INFO.linear({"math": 1.0}), genome, (), name))
                items = {"task/acc": rng.integers(0, 2, 5).astype(float)}
                told = Evaluation(number, "failed", seconds={"merge": 0.1}, error="it failed")
                if number != 5:
                    score = {"score": float(items["task/acc"].mean())}
                    seconds, merge = {"merge": 0.1, "model": 1.0}, {"hits": 3.0, "bytes": 10.0}
                    told = Evaluation(number, "ok", "search", score, {"task/acc": 0.5}, items, seconds, merge)
                ledger.log_told(told)
            ledger.append("improved", candidate=6, objective=0.5, recipe_hash="ab", front=1, hypervolume=0.5)
            for number, name in enumerate(("math", "code", "base", "best"), 8):
                ledger.log_asked(Candidate(number, INFO.linear({"math": 1.0}), None, (), name), "held_out")
                items = {"task/acc": rng.integers(0, 2, 5).astype(float)}
                ledger.log_told(Evaluation(number, "ok", "held_out", {"score": 0.5}, {"task/acc": 0.5}, items))
            ledger.append("interrupted", reason="SIGINT")
            ledger.append("resumed", events=3, evaluations=4, changes=["numpy was 1, is 2"])
            ledger.append("stopped", reason="budget", evaluations=4, candidates=9)
        return folder.ledger.read_bytes(), {file.name: file.read_bytes() for file in folder.items.iterdir()}


def _pool_file() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        run = RunFolder(Path(place))
        run.write_pool(INFO)
        return run.pool.read_bytes()


def _run_folder(folder: Path) -> RunFolder:
    """A whole run; made once, its files are then written over."""
    run = RunFolder(folder / "run")
    if not run.path.exists():
        RunFolder.create(run.path)
        run.config.write_bytes(CONFIG)
        run.write_pool(INFO)
        run.best_recipe.write_text(dump_recipe(INFO.linear({"math": 0.5, "code": 0.5})))
        ledger, items = _events()
        run.ledger.write_bytes(ledger)
        for name, data in items.items():
            _put(run.items, name, data)
    return run


def _config(data: bytes, folder: Path) -> None:
    run = _run_folder(folder)
    run.config.write_bytes(data)
    open_run(run.path, [])


def _pool(data: bytes, folder: Path) -> None:
    run = _run_folder(folder)
    run.pool.write_bytes(data)
    info = run.read_pool()
    info.linear(dict.fromkeys(info.sources, 1.0))


def _ledger_load(data: bytes) -> Any:
    return [json.loads(line) for line in data.splitlines()]


def _ledger_dump(value: Any) -> bytes:
    """Lines with the numbers and checksums that belong to them: what is in them is to be looked at."""
    lines = []
    for number, event in enumerate(value):
        event = event if isinstance(event, dict) else {"event": event}
        fields = {key: entry for key, entry in event.items() if key not in ("seq", "crc32")}
        lines.append(encode({"seq": number, **fields}))
    return b"".join(lines)


def _ledger(data: bytes, folder: Path) -> None:
    """Every reader of a ledger in turn; those that follow are asked even when one refuses."""
    run = _run_folder(folder)
    run.ledger.write_bytes(data)
    refused: EvomergeError | None = None
    readers = _told, Record, summarize, _status, _history, _warm, canonical_events, _resumed, journal_of
    for read in readers:
        try:
            found = read(run)
            if isinstance(found, Record):
                found.close()
            elif read is summarize:
                render(found)  # type: ignore[arg-type]
        except EvomergeError as error:
            refused = error
    if refused is not None:
        raise refused


def _told(run: RunFolder) -> None:
    for event in read_ledger(run, on_torn=lambda torn: None):
        if event["event"] == "told":
            evaluation_of(event)


def _status(run: RunFolder) -> None:
    read_status(run.path)


def _history(run: RunFolder) -> None:
    read_history(run)


def _warm(run: RunFolder) -> None:
    WarmStartSources([str(run.path)], 4, (Objective("score", "maximize"),))


def _resumed(run: RunFolder) -> None:
    _, resumed = open_run(run.path, [])
    try:
        assert resumed.budget >= 0
        check_started(resumed.record, "sha256:f", None, {"numpy": "1"})
        resumed.check_pool(INFO)
    finally:
        resumed.record.close()


def _items(data: bytes, folder: Path) -> None:
    run = _run_folder(folder)
    run.items_file(0, "search").write_bytes(data)
    for values in read_items(run, 0).values():
        assert values.dtype == np.float64
        assert values.ndim == 1


def _safetensors_load(data: bytes) -> Any:
    length = int.from_bytes(data[:8], "little")
    return {"header": json.loads(data[8 : 8 + length]), "data": data[8 + length :].hex()}


def _safetensors_dump(value: Any) -> bytes:
    header = json.dumps(value["header"]).encode()
    return len(header).to_bytes(8, "little") + header + bytes.fromhex(value["data"])


def _checkpoint(data: bytes, folder: Path) -> None:
    """The state and its arrays, one after the other, with the manifest that belongs to them."""
    run = _run_folder(folder)
    place = run.checkpoint / "000000003"
    shutil.rmtree(run.checkpoint, ignore_errors=True)
    place.mkdir(parents=True)
    text, _, arrays = data.partition(b"\n")
    files = {"state.json": text, "arrays.safetensors": arrays}
    if data.startswith(b"MANIFEST"):
        files, manifest = {}, data.removeprefix(b"MANIFEST")
    else:
        manifest = _manifest(run, files)
    for name, content in {**files, "manifest.json": manifest}.items():
        _put(place, name, content)
    for found in read_checkpoints(run):
        if not isinstance(found, Checkpoint):
            raise found


def _manifest(run: RunFolder, files: dict[str, bytes]) -> bytes:
    ledger = run.ledger.read_bytes()
    content = {
        "evomerge_checkpoint": 1,
        "ledger": {"lines": 3, "bytes": len(ledger), "sha256": hashlib.sha256(ledger).hexdigest()},
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        },
    }
    return json.dumps(content).encode()


def _checkpoint_load(data: bytes) -> Any:
    text, _, arrays = data.partition(b"\n")
    return {"text": json.loads(text), "arrays": _safetensors_load(arrays)}


def _checkpoint_dump(value: Any) -> bytes:
    return json.dumps(value["text"]).encode() + b"\n" + _safetensors_dump(value["arrays"])


# Models, adapters and tasks

MODEL_CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 4, "rope_scaling": {"type": "linear"}}
ADAPTER = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "rank_pattern": {r"layers\.\d+\.q": 4},
    "alpha_pattern": {"v_proj": 8.0}, "use_rslora": False, "modules_to_save": None, "init_lora_weights": True,
}  # fmt: skip
TASK = b"""\
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
output_type: generate_until
doc_to_text: '{{question}}'
metric_list:
- {metric: exact_match, aggregation: mean, higher_is_better: true}
filter_list: [{name: strict, filter: [{function: regex, regex_pattern: '(\\d+)'}]}]
metadata: &m {version: 1.0}
other: *m
"""


def _header(data: bytes, folder: Path) -> None:
    read_header(_put(folder, "model.safetensors", data))


def _model(data: bytes, folder: Path) -> None:
    _put(folder, "config.json", data)
    _put(folder, "model.safetensors", _TENSORS)
    Model(folder).fingerprint()


def _index(data: bytes, folder: Path) -> None:
    _put(folder, "config.json", _json_out(MODEL_CONFIG))
    _put(folder, "one.safetensors", _TENSORS)
    _put(folder, "model.safetensors.index.json", data)
    Model(folder)


def _adapter(data: bytes, folder: Path) -> None:
    _put(folder, "adapter_config.json", data)
    _put(folder, "adapter_model.safetensors", _FACTORS)
    assert len(Adapter(folder).changes) == 1


def _task(data: bytes, folder: Path) -> None:
    _put(folder, "mine.yaml", data)
    task_code(["mine"], [str(folder)])


def _scores(data: bytes, folder: Path) -> None:
    """As both kinds of files of scores; what is wrong with both is no score."""
    rules = RatingRules(counts={"a": 2}, prompts={"a": ("p", "q")})
    found = []
    for suffix in ("csv", "jsonl"):
        path = _put(folder, f"scores-x.{suffix}", data)
        found += read_sheets(folder, rules)
        path.unlink()
    if any("\n" in sheet.problem for sheet in found):
        raise AssertionError("more than a line")
    if all(sheet.problem for sheet in found):
        raise EvomergeError(found[0].problem)


def _rating(data: bytes, folder: Path) -> None:
    """As what is asked of raters, as their texts, and as what was counted."""
    ratings = RatingFolder(folder / "rating")
    inner = folder / "rating" / "abc"
    inner.mkdir(parents=True, exist_ok=True)
    for path in (ratings.path / "rating.json", inner / "outputs.jsonl", inner / "accepted.json"):
        _put(path.parent, path.name, data)
    rules = ratings.rules()
    waiting = read_waiting(ratings.path)
    candidate = ratings.candidate("abc")
    texts, known = candidate.texts(), candidate.read_accepted(RatingRules(counts={"a": 1}))
    if waiting is not None:
        waiting.lines()
    if not (rules or texts or known):
        raise EvomergeError("nothing that was written")


_TENSORS = safetensors.save({"a": np.ones((2, 3), np.float32), "b.weight": np.zeros(4, np.float16)})
_FACTORS = safetensors.save(
    {
        f"base_model.model.model.layers.0.q_proj.lora_{part}.weight": np.ones(shape, np.float32)
        for part, shape in (("A", (2, 4)), ("B", (4, 2)))
    }
)
_STATE = {"version": 1, "rng": {"state": 2**100}, "mean": np.arange(3.0), "history": [{"x": np.ones((2, 2))}, None]}

_YAML = yaml.safe_load, _yaml_out
_JSON = json.loads, _json_out
_SAFE = _safetensors_load, _safetensors_dump
_INDEX = _json_out({"weight_map": {"a": "one.safetensors", "b.weight": "one.safetensors"}})
_RULES = {"evomerge_rating": 1, "splits": {"search": RatingRules(counts={"a": 2}, names=("x",)).to_json()}}
_SCORES = safetensors.save({"t/acc": np.ones(9, np.uint8), "t/ll": np.zeros(3)})

_ALL = (
    Parser("recipe", (RECIPE, dump_recipe(INFO.linear({"math": 0.5})).encode()), _recipe, *_YAML),
    Parser("config", (CONFIG,), _config, *_YAML),
    Parser("mergekit", MERGEKIT, _mergekit, lambda data: next(yaml.safe_load_all(data)), _yaml_out),
    Parser("evolve", (EVOLVE,), _evolve, *_YAML),
    Parser("ledger", (_events()[0],), _ledger, _ledger_load, _ledger_dump),
    Parser("items", (_SCORES,), _items, *_SAFE),
    Parser("pool", (_pool_file(),), _pool, *_JSON),
    Parser("checkpoint", (b"\n".join(to_bytes(_STATE)),), _checkpoint, _checkpoint_load, _checkpoint_dump),
    Parser("header", (_TENSORS, _FACTORS), _header, *_SAFE),
    Parser("model", (_json_out(MODEL_CONFIG),), _model, *_JSON),
    Parser("index", (_INDEX,), _index, *_JSON),
    Parser("adapter", (_json_out(ADAPTER),), _adapter, *_JSON),
    Parser("task", (TASK,), _task, *_YAML),
    Parser("scores", (b"item,text,score\n0,a,3\n1,b,4.5\n",), _scores, bytes.hex, bytes.fromhex),
    Parser("rating", (_json_out(_RULES),), _rating, *_JSON),
)
PARSERS = {parser.name: parser for parser in _ALL}
