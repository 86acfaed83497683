"""What a server does wrong, and what is left of a killed run, with a real model and real adapters."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from lora_server import BASE, KEY, LoraServer, running, save_adapters
from tiny_llama import save_llama
from transformers import AutoModelForCausalLM

from evomerge.candidate import Candidate
from evomerge.errors import ConfigError, EngineError, InfeasibleError, RecipeError, ServerError
from evomerge.evaluation import reference_scores, server_check, server_client
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.evaluation.local import LocalEvaluator
from evomerge.evaluation.server_adapters import AdapterFolder
from evomerge.evaluation.server_check import check_server, of_server
from evomerge.evaluation.server_client import ServerClient
from evomerge.evaluation.server_resident import ServerResident
from evomerge.evaluation.server_settings import ServerSettings
from evomerge.evaluation.worker import Worker
from evomerge.merge.adapters.exact import ExactAdapters
from evomerge.merge.planning.plan import make_plan
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.objectives import Objective
from evomerge.protocols import Scores
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceRecipe, parameters

PROMPTS = [[3, 5, 8, 13, 21], [7, 40, 2]]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are made again at once."""
    monkeypatch.setattr(server_client, "_FIRST", 0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("base"), 0, layers=2)


@pytest.fixture(scope="module")
def adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_adapters(folder, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def pool(folder: Path, adapters: dict[str, Path]) -> Pool:
    return open_pool({"base": str(folder)} | {name: f"{folder}+{place}" for name, place in adapters.items()}, "base")


@pytest.fixture
def server(folder: Path) -> Iterator[LoraServer]:
    server = LoraServer(folder)
    with running(server) as url:
        server.url = url  # type: ignore[attr-defined]
        yield server


def settings(server: Any, tmp_path: Path, **given: Any) -> ServerSettings:
    return ServerSettings(server.url, BASE, str(tmp_path / "served"), **{"retries": 2, "timeout": 5, **given})


def method(pool: Pool, name: str, weights: dict[str, float], **values: Any) -> Recipe:
    whole = {"density": 1.0, "gamma": 0.0} if name == "breadcrumbs" else {}
    inputs = tuple(Input(model, None, parameters({"weight": weight} | whole)) for model, weight in weights.items())
    slices = (SliceRecipe(s, name, inputs, parameters(values), Input("base")) for s in pool.info.slices)
    return pool.info.recipe(slices)


class Texts:
    """A fitness that asks for the log-likelihood of two prompts."""

    objectives = (Objective("score", "maximize"),)

    def prepare(self, model: Any) -> None:
        assert model.module is None

    def run(self, model: Any, part: Any = None) -> Scores:
        held: Any = type("Held", (), {"served": model.served})
        return Scores({"score": float(of_server(held, PROMPTS).texts.sum())})


def worker(pool: Pool, given: ServerSettings) -> Any:
    fitness: Any = Texts()
    return Worker(pool, {"search": fitness}, engine=EngineSettings("server", server=given))


# What an adapter is.


@pytest.mark.parametrize(
    ("name", "weights", "values"),
    [
        ("task_arithmetic", {"a": 0.7, "b": -0.4}, {}),
        ("task_arithmetic", {"a": 0.7, "b": 0.4}, {"lambda": 0.5, "normalize": True}),
        ("lora_lego", {"a": 1.0, "b": 1.0}, {"rank": 0.4}),
        ("lora_factors", {"a": 1.1, "b": -0.4}, {"cross": False}),
        ("breadcrumbs", {"a": 0.3, "b": 1.2}, {"rescale": True}),
    ],
)
def test_an_adapter_is_the_merge(name: str, weights: dict[str, float], values: Any, pool: Pool, tmp_path: Path) -> None:
    recipe = method(pool, name, weights, **values)
    plan = make_plan(recipe, pool)
    exact = ExactAdapters(pool)
    target = AdapterFolder(ServerSettings("http://x", BASE, str(tmp_path)))
    target.write("out", exact.of(plan), exact.base, exact.places)
    base: Any = AutoModelForCausalLM.from_pretrained(pool.folder("base"))
    adapted = peft.PeftModel.from_pretrained(base, str(tmp_path / "out")).merge_and_unload().state_dict()
    for entry in plan.slices:
        for tensor, values_ in reference_scores.merge_slice(entry, pool).items():
            torch.testing.assert_close(adapted[tensor], values_, rtol=1e-5, atol=1e-5, msg=tensor)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == {"lora_lego": 1}.get(name, 5)


def test_what_is_no_adapter_is_said(pool: Pool, folder: Path, llamas: Any) -> None:
    exact = ExactAdapters(pool)
    assert exact.refusal(make_plan(pool.info.linear({"a": 0.5, "base": 0.5}), pool)) == ""
    ties = exact.refusal(make_plan(method(pool, "ties", {"a": 1.0, "b": 1.0}), pool))
    assert "ties gives no sum of the adapters' factors here" in ties
    assert ".self_attn.q_proj.weight' is no adapter's" in ties
    assert "do not add up to one" in exact.refusal(make_plan(pool.info.linear({"a": 0.5}), pool))
    whole = open_pool({"base": str(folder), "other": str(llamas(2)["a"])}, "base")
    with pytest.raises(RecipeError, match="model 'other' is a model of its own"):
        ExactAdapters(whole)


# Candidates on a server.


def test_candidates_come_and_go_and_are_what_transformers_computes(
    pool: Pool, server: LoraServer, tmp_path: Path
) -> None:
    held = ServerResident(pool, settings(server, tmp_path))
    check_server(held)
    names = []
    for recipe in (
        method(pool, "task_arithmetic", {"a": 0.5, "b": 1.0}),
        method(pool, "lora_lego", {"a": 1.0, "b": 1.0}),
    ):
        plan = make_plan(recipe, pool)
        held.apply(plan)
        found = of_server(held, PROMPTS)
        expected = reference_scores.of_transformers(pool, plan, 2, PROMPTS, found.tokens)
        assert np.abs(found.texts - expected.texts).max() < 1e-4
        assert list(server.adapters) == [held.served.name]
        assert [path.name for path in (tmp_path / "served").iterdir() if path.is_dir()] == [held.served.name]
        before = len(server.paths)
        assert held.apply(plan).computed == 0
        assert len(server.paths) == before
        names.append(held.served.name)
    assert len(set(names)) == 2
    held.apply(make_plan(pool.info.linear({"base": 1.0}), pool))
    assert held.served.name == BASE
    assert not server.adapters
    with pytest.raises(InfeasibleError, match="it is no adapter"):
        held.apply(make_plan(method(pool, "ties", {"a": 1.0, "b": 1.0}), pool))
    held.close()
    assert not list((tmp_path / "served").iterdir())


def test_retries_what_passes_and_says_what_does_not(pool: Pool, server: LoraServer, tmp_path: Path) -> None:
    own = worker(pool, settings(server, tmp_path, timeout=60))
    http = own._resident.client._http
    recipe = pool.info.linear({"a": 1.0})
    first = own.evaluate(Candidate(0, recipe))
    assert first.ok, first.error
    for faults in ([500, 500], [429, "drop"]):
        server.faults.extend(faults)
        again = own.evaluate(Candidate(1, recipe))
        assert again.objectives == first.objectives, again.error
        assert not server.faults
    for faults, words in (
        ([404], "gave 404 no luck"),
        ([500, 502, 503], "gave 503 no luck"),
        (["hang"] * 3, "gave no answer within evaluator.server.timeout=60 s, 3 times"),
        (["drop"] * 3, ", 3 times; a server that runs; `evomerge resume RUN` goes on once it does"),
    ):
        server.faults.extend(faults)
        http.timeout = 0.1 if "hang" in faults else 60  # where nothing is computed, nobody need wait long
        failed = own.evaluate(Candidate(2, recipe))
        assert failed.status == "failed"
        assert words in failed.error
        assert "\n" not in failed.error
        assert not failed.traceback
        assert not server.faults
    server.dead = True
    for number in (3, 4):
        assert own.evaluate(Candidate(number, pool.info.linear({"b": 1.0}))).status == "failed"
    server.dead = False
    server.unload(next(iter(server.adapters)))  # another one took its place, which has none
    assert own.evaluate(Candidate(5, recipe)).objectives == first.objectives
    own.close()


def test_a_load_that_was_answered_too_late_counts(
    pool: Pool, server: LoraServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = ServerClient(settings(server, tmp_path))
    held = ServerResident(pool, settings(server, tmp_path))
    held.apply(make_plan(pool.info.linear({"a": 1.0}), pool))
    name, place = held.served.name, held.folder.there(held.served.name)
    with pytest.raises(ServerError, match="has already been loaded"):
        client.load(name, place)
    sent = client._http.request
    tries: list[int] = []

    def lose_the_first_answer(*args: Any, **kwargs: Any) -> Any:
        answer = sent(*args, **kwargs)
        tries.append(answer.status_code)
        if len(tries) == 1:
            raise server_client.httpx.ReadTimeout("")
        return answer

    server.unload(name)
    monkeypatch.setattr(client._http, "request", lose_the_first_answer)
    client.load(name, place)
    assert tries == [200, 400]
    held.close()


def test_what_a_killed_session_left_is_gone_at_the_next_start(pool: Pool, server: LoraServer, tmp_path: Path) -> None:
    plan = make_plan(pool.info.linear({"a": 1.0}), pool)
    killed = ServerResident(pool, settings(server, tmp_path, owner=("run1", "s1")))
    other = ServerResident(pool, settings(server, tmp_path, owner=("run2", "s1")))
    beside = ServerResident(pool, settings(server, tmp_path, owner=("run1", "s2")))
    for held in (killed, other, beside):
        held.apply(plan)
    (tmp_path / "served" / f".{killed.served.name}x").mkdir()  # was being written
    assert killed.folder.first()
    fresh = ServerResident(pool, settings(server, tmp_path, owner=("run1", "s2")))
    check_server(fresh)
    assert set(server.adapters) == {other.served.name, beside.served.name, *([fresh._loaded] if fresh._loaded else [])}
    left = {path.name for path in (tmp_path / "served").iterdir()}
    assert {other.served.name, beside.served.name} <= left
    assert not any("run1-s1" in name for name in left)
    for held in (other, beside, fresh):
        held.close()


# What is checked at the start.


def test_the_check_finds_another_base_and_no_adapters(
    pool: Pool, server: LoraServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(server, tmp_path)
    with pytest.raises(ServerError, match=r"gave no 'bass'; one of: served-base; set evaluator.server.model"):
        ServerResident(pool, ServerSettings(given.url, "bass", given.adapters))
    held = ServerResident(pool, given)
    server.bias = 0.01
    with pytest.raises(
        EngineError, match=r"computes something else than transformers with the mean of .* set\s?.*tolerance"
    ):
        check_server(held)
    held.close()
    tolerant = ServerResident(pool, settings(server, tmp_path, tolerance=0.02))
    check_server(tolerant)
    tolerant.close()
    server.bias = 0.0
    with monkeypatch.context() as none:
        none.setattr(server, "load", lambda name, path: server.adapters.update({name: path}))
        none.setattr(server, "unload", lambda name: server.adapters.pop(name))
        none.setattr(server, "logits", lambda name, tokens: LoraServer.logits(server, BASE, tokens))
        deaf = ServerResident(pool, given)
        with pytest.raises(EngineError, match=r"with the mean of the pool's adapters: a text's log-likelihood"):
            check_server(deaf)
        deaf.close()
    with monkeypatch.context() as old:
        old.setattr(
            server,
            "answer",
            lambda path, asked: (
                (404, {"detail": "Not Found"}) if "lora" in path else LoraServer.answer(server, path, asked)
            ),
        )
        bare = ServerResident(pool, given)
        with pytest.raises(ServerError, match=r"gave 404 Not Found; vLLM loads adapters with --enable-lora"):
            check_server(bare)
        bare._loaded = ""
        bare.close()
    with monkeypatch.context() as small:  # what does not fit into memory
        small.setattr(server_check, "fitting_layers", lambda *_: 1)
        asked: list[Any] = []
        small.setattr(server_check, "of_server", lambda held, prompts: asked.append(prompts))
        large = ServerResident(pool, given)
        check_server(large)
        assert [len(p) for (p,) in asked] == [63, 63]
        assert asked[0][0][-1] == 47
        large.close()


def test_a_server_without_log_likelihoods_of_prompts_is_refused(
    pool: Pool, server: LoraServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = server.complete
    monkeypatch.setattr(server, "complete", lambda asked: stock({**asked, "echo": False}))
    held = ServerResident(pool, settings(server, tmp_path))
    with pytest.raises(ServerError, match="gave 0 log-likelihoods for a prompt of"):
        check_server(held)
    held.close()


# Settings, and the key.


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({}, "evaluator.server.url is not set; its address, such as http://localhost:8000"),
        ({"url": "localhost:8000"}, "evaluator.server.model is not set"),
        (
            {"url": "localhost:8000", "model": "m", "adapters": "x"},
            "example evaluator.server.url=http://localhost:8000",
        ),
        ({"url": f"http://me:{KEY}@host"}, "holds more than a place"),
        ({"url": f"http://host/?key={KEY}"}, "holds more than a place"),
        ({"key": KEY}, "evaluator.server has key; no key stands in a configuration"),
        ({"api_key": KEY}, "put it into the environment variable OPENAI_API_KEY"),
        ({"key_from": KEY}, "not the name of an environment variable"),
        ({"modell": "x"}, "did you mean 'model'"),
        ({"timeout": 0}, "evaluator.server.timeout is 0; above 0"),
        ({"retries": -1}, "a whole number from 0"),
        ({"concurrency": 0}, "a whole number from 1"),
        ({"adapters_there": "here"}, "a path from the root on"),
    ],
)
def test_refuses_what_is_no_server(node: dict[str, Any], words: str) -> None:
    whole = {"url": "http://host:1", "model": "m", "adapters": "a"} if "url" not in node and node else {}
    if ("url" in node and "host" in node["url"] and "@" in node["url"]) or "?" in node.get("url", ""):
        whole = {"model": "m", "adapters": "a"}
    with pytest.raises(ConfigError) as found:
        ServerSettings.of({**whole, **node})
    assert words in str(found.value)
    assert KEY not in str(found.value)


def test_an_engine_and_its_server_belong_together() -> None:
    with pytest.raises(ConfigError, match=r"evaluator.engine is server and evaluator.server.url is not set"):
        LocalEvaluator(lambda **_: None, engine="server")  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigError, match=r"it belongs to evaluator.engine=server"):
        LocalEvaluator(lambda **_: None, server={"url": "http://h", "model": "m", "adapters": "a"})  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigError, match=r"a server was started with its own"):
        EngineSettings("server", {"max_model_len": 8})
    found = ServerSettings.of({"url": "http://host:1/v1/", "model": "m", "adapters": "a", "timeout": None})
    assert found.root == "http://host:1"
    assert pickle.loads(pickle.dumps(found)) == found


def test_a_key_is_sent_and_struck_out_of_what_comes_back(
    pool: Pool, server: LoraServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = KEY
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another")
    with pytest.raises(ServerError) as refused:
        ServerResident(pool, settings(server, tmp_path))
    assert "gave 401 wrong key ***, not" in str(refused.value)
    assert "environment variable OPENAI_API_KEY" in str(refused.value)
    monkeypatch.setenv("MY_KEY", KEY)
    given = settings(server, tmp_path, key_from="MY_KEY")
    own = worker(pool, given)
    server.faults.extend([400])
    failed = own.evaluate(Candidate(0, pool.info.linear({"a": 1.0})))
    assert failed.error.startswith("POST http")
    assert "no luck with ***" in failed.error
    assert KEY not in repr(given)
    assert own.evaluate(Candidate(1, pool.info.linear({"a": 1.0}))).ok
    own.close()
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ConfigError, match=r"there is no such environment variable"):
        given.require_key()
