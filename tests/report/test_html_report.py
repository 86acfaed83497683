"""What reports say, without a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import report_runs

from evomerge.api.tables import as_text
from evomerge.cli.main import main
from evomerge.errors import ConfigError
from evomerge.report.html import page as pages
from evomerge.report.html.data import RunView
from evomerge.report.html.report import report_html, write_report
from evomerge.report.status import read_status
from evomerge.report.status_view import StatusPanel
from evomerge.report.summary import summarize
from evomerge.report.table import render
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger, read_ledger
from evomerge.run.ledger_file import LedgerError, encode
from evomerge.run.responses import write_responses


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_runs.parameter_run(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(autouse=True)
def _no_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_plotly", lambda: "/* plotly.js */")


def words(run: Path) -> str:
    """The text of a run's report."""
    return text_of(report_html([RunView.of(run)]))


def text_of(page: str) -> str:
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page[page.index("<body>") :], flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def figures(page: str) -> list[dict]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return [figure["views"][0] for figure in json.loads(found[1]).values()]


def copy(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder))


def cut_ledger(run: Path, until: str, split: str = "search") -> None:
    """Drop the event of this kind and all after it, as if the process had been killed then."""
    lines = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    events = [json.loads(line) for line in lines]
    place = next(i for i, e in enumerate(events) if e["event"] == until and e.get("split", split) == split)
    (run / "ledger.jsonl").write_bytes(b"".join(lines[:place]))


def rewrite(run: Path, change: Callable[[dict], dict]) -> None:
    """Change events of a run, their checksums too."""
    lines = (run / "ledger.jsonl").read_bytes().splitlines()
    events = [{k: v for k, v in json.loads(line).items() if k != "crc32"} for line in lines]
    (run / "ledger.jsonl").write_bytes(b"".join(encode(change(event)) for event in events))


def test_the_head_says_what_won_and_how_sure_that_is(finished: Path) -> None:
    summary = summarize(finished)
    row = summary.evolved
    assert row is not None
    assert row.comparison is not None
    text = words(finished)
    assert "CMA-ES over merge parameters for math and lang" in text
    assert f"The evolved merge beats every baseline by {row.gain:.3f} or more" in text
    assert f"It scores {row.mean:.3f} on the mean of 3 tasks; uniform average, the best baseline, scores" in text
    assert "The difference is significant: p < 0.0001 by the paired McNemar test on 360 held-out items" in text
    assert f"{row.comparison.wins} won, {row.comparison.losses} lost" in text
    assert "could not be made" not in text


def test_no_part_of_any_report_is_missing(tmp_path: Path) -> None:
    makers = (report_runs.path_run, report_runs.lineage_run, report_runs.two_objectives_run, report_runs.archive_run)
    found = {}
    for make in makers:
        page = report_html([RunView.of(make(tmp_path / make.__name__))])
        assert "could not be made" not in page
        found[make.__name__] = re.findall(r"<h2>(.*?)</h2>", page)
    common = ["Scores", "Search", "Recipe", "Genes", "Items", "Cost", "Reproduce"]
    assert found["path_run"] == common
    assert found["lineage_run"] == ["Scores", "Search", "Niches", "Recipe", "Lineage", *common[3:]]
    assert found["two_objectives_run"] == ["Scores", "Search", "Front", *common[2:]]
    assert set(found["archive_run"]) >= {"Archive", *common}


def test_the_curve_is_the_best_so_far(finished: Path) -> None:
    view = RunView.of(finished)
    candidates, best = figures(report_html([view]))[1]["data"]
    scores = [trial.objectives["score"] for trial in view.history.trials]
    assert candidates["y"] == pytest.approx(scores, rel=1e-5)
    steps = np.maximum.accumulate(scores)
    places = [i for i in range(len(scores)) if i == 0 or steps[i] > steps[i - 1]]
    assert best["x"] == [*(place + 1 for place in places), len(scores)]
    assert best["y"] == pytest.approx([*steps[places], steps[-1]], rel=1e-5)


def test_the_recipe_as_a_heat_map(finished: Path) -> None:
    view = RunView.of(finished)
    maps = [trace for figure in figures(report_html([view])) for trace in figure["data"] if trace["type"] == "heatmap"]
    assert view.recipe is not None
    own = {e.slice: {i.model: dict(i.parameters)["weight"] for i in e.inputs} for e in view.recipe.slices}
    layers = [own[s] for s in own if s.component == "attn"]
    assert len(maps) == 2
    for trace, name in zip(maps, ("math", "lang"), strict=True):
        embed, *inner, norm = trace["z"][0]
        assert inner == pytest.approx([weights[name] for weights in layers], rel=1e-5)
        assert (embed, norm) == pytest.approx([own[s][name] for s in own if s.layer is None], rel=1e-5)


def test_examples_of_items_won_and_lost(finished: Path) -> None:
    view = RunView.of(finished)
    text = words(finished)
    record = view.record
    assert record is not None
    assert record.best is not None
    rival = next(m for m in record.baselines if m.name == summarize(finished).rows[0].name)
    task = "english_sums/acc"
    own, other = record.best.evaluation.items[task], rival.evaluation.items[task]
    place = int(np.flatnonzero(own < other)[0])
    assert f"english_sums · item {place} english_sums: question {place}? Answer: answer {place}" in text
    assert "evolved wrong · math right" in text


def test_examples_show_what_both_models_answered(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path / "run")
    record = RunView.of(run).record
    assert record is not None
    assert record.best is not None
    rival = next(m for m in record.baselines if m.name == summarize(finished).rows[0].name)
    for who, model in (("mine", record.best), ("theirs", rival)):
        evaluation = model.evaluation
        texts = {"english_sums": [f"<b>{who} {place}" for place in range(len(evaluation.items["english_sums/acc"]))]}
        write_responses(RunFolder.open(run), replace(evaluation, responses=texts))
    page = report_html([RunView.of(run)])
    own, other = (model.evaluation.items["english_sums/acc"] for model in (record.best, rival))
    place = int(np.flatnonzero(own < other)[0])
    shown = f"evolved wrong, it answered: <b>mine {place} math right, it answered: <b>theirs {place}"
    assert shown in text_of(page)
    assert "<b>mine" not in page


@pytest.mark.parametrize("make", [report_runs.parameter_run, report_runs.failed_run, report_runs.lineage_run])
def test_paths_are_their_last_names_unless_asked_for(make: Callable[[Path], Path], tmp_path: Path) -> None:
    run = make(tmp_path / "private" / "run")
    config = run / "config.yaml"
    config.write_text(f"run_dir: {run}\npool:\n  models: {{a: {tmp_path}/private/a, b: '~/b/c/d', c: org/model}}\n")
    page = report_html([RunView.of(run)])
    assert str(tmp_path) not in page
    assert "private" not in page
    assert "evomerge export …/run -o recipe.yaml" in text_of(page)
    assert "a: …/a, b: '…/d', c: org/model" in text_of(page)
    whole = report_html([RunView.of(run)], paths=True)
    assert f"evomerge export {run} -o recipe.yaml" in text_of(whole)
    assert len(figures(page)) == len(figures(whole))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see /home/me/run/log.txt.", "see …/log.txt."),
        ('{"text": "/home/me/x"}', '{"text": "…/x"}'),
        ("C:\\Users\\me\\x and \\\\host\\share\\y", "…/x and \\\\host\\share\\y"),
        ("'~/models/a', =/b/c", "'…/a', =…/c"),
        ("https://example.org/a/b, and/or, 1/2/3, </div></p>, org/model, ../up/x, /root", None),
        ("data:image/png;base64,/9j/4AAQ/x", "data:image/png;base64,…/x"),
    ],
)
def test_what_is_a_path(text: str, shown: str | None) -> None:
    assert pages.names_only(text) == (shown or text)


def test_tokens_that_were_saved_are_said(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path / "run")
    rewrite(run, lambda e: {**e, "tokens": {"run": 1000, "stock": 4200}} if e["event"] == "told" else e)
    assert "where lm-eval runs" in words(run)
    assert "4.2 times as many: prefixes saved 76 %. What prompts have in common" in words(run)
    kept = {"run": 1000, "stock": 4200, "hidden": 500.0}
    rewrite(run, lambda e: {**e, "tokens": kept} if e["event"] == "told" else e)
    assert "8.4 times as many: prefixes saved 76 %, hidden states 12 %." in words(run)
    assert "up to their first new layer" in words(run)
    rewrite(run, lambda e: {**e, "tokens": {"run": 4200, "stock": 4200}} if e["event"] == "told" else e)
    assert "tokens, as lm-eval runs them." in words(run)
    assert "halved" not in words(run)
    told = [event for event in read_ledger(run) if event["event"] == "told"]
    halved = {"run": 4200, "stock": 4200, "halved": 2}
    rewrite(run, lambda e: {**e, "tokens": halved} if e["event"] == "told" else e)
    assert "tokens, as lm-eval runs them." in words(run)
    assert f"{len(told)} evaluations ran in batches that were halved since memory ran out: scores may" in words(run)
    status = read_status(run)
    assert (status.halved, "halved" in status.tokens) == (len(told), False)
    assert "memory" in (panel := as_text(StatusPanel(status), 80))
    assert "batches that were halved" in " ".join(panel.split())
    assert "Log-likelihoods of the search" not in words(finished)  # which says nothing of tokens


def test_what_statistics_of_data_took_is_said(finished: Path, tmp_path: Path) -> None:
    assert read_status(finished).as_dict()["calibration"] is None
    assert "statistics of data" not in " ".join(as_text(render(summarize(finished)), 80).split()).lower()
    run = copy(finished, tmp_path / "run")
    rewrite(run, lambda e: {**e, "calibration": 0.0} if e["event"] == "started" else e)
    assert "Statistics of data were there before." in words(run)
    rewrite(run, lambda e: {**e, "calibration": 1000.0} if e["event"] == "started" else e)
    last = list(read_ledger(run))[-1]
    with RunFolder.open(run).ledger.open("ab") as file:  # another session made some that had been deleted
        file.write(encode({"seq": last["seq"] + 1, "event": "resumed", "time": last["time"], "calibration": 500.0}))
    status = read_status(run)
    assert status.state != "damaged"
    found = status.as_dict()["calibration"]
    others = status.seconds + status.held_out_seconds
    assert found == {"seconds": 1500.0, "share": 1500 / (1500 + others)}
    said = f"tatistics of data took 25 min, {100 * found['share']:.1f} % of the run's"
    for shown in (words(run), as_text(StatusPanel(status), 100), as_text(render(summarize(run)), 100)):
        assert said in " ".join(shown.split())


def test_how_far_both_ways_to_score_are_apart_is_said(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path / "run")
    apart = {"nats": 5.7e-6, "turned": 0, "items": 450, "texts": 1, "generated": 20, "objective/score": -1.5e-7}
    assert "scored with shared forwards" not in words(run)

    def told(event: dict, apart: dict) -> dict:
        return {**event, "apart": apart} if event["event"] == "told" and event["split"] == "held_out" else event

    rewrite(run, lambda event: told(event, apart))
    assert "log-likelihoods differ by 5.7e-06 nats at most, 0 of 450 right or wrong answers turned" in words(run)
    assert "1 of 20 texts differ, score by -1.5e-07." in words(run)
    for odd in ({"nats": "far"}, {"nats": -1}, {"turned": 3}, {"nats": 0.0, "items": -2}):
        rewrite(run, lambda event, odd=odd: told(event, odd))
        assert "turned" not in words(run)


def test_an_overlap_of_items_is_said(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path / "run")
    rewrite(run, lambda e: {**e, "overlap": 0.25} if e["event"] == "started" else e)
    assert "25 % of the held-out items are items of the search too" in words(run)
    assert "items of the search too" not in words(finished)


def test_reasons_of_failures(tmp_path: Path) -> None:
    text = words(report_runs.failed_run(tmp_path / "run"))
    assert "50 % of the candidates have no score: 30 failed." in text
    assert "30 of 60 candidates." in text
    assert re.search(r"worker 1 died \(signal 9\) twice failed 10 \d", text)
    assert re.search(r"OutOfMemoryError: tried to allocate [\d.]+ GiB at batch size 1 failed 10 \d", text)


def test_a_killed_run_shows_what_there_is(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path / "run")
    cut_ledger(run, "asked", "held_out")
    text = words(run)
    assert "The run did not end: its process is gone after 60 of 60 candidates. It can be resumed." in text
    assert "There are no held-out scores." in text
    assert "or more, on the items of the search" in text
    assert "evomerge resume" in text


def test_a_run_that_goes_on(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path / "run")
    cut_ledger(run, "asked", "held_out")
    with Ledger(RunFolder.open(run)):
        assert "The run is going on: 60 of 60 candidates so far." in words(run)


def test_a_run_that_has_hardly_begun(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path / "run")
    lines = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (run / "ledger.jsonl").write_bytes(b"".join(lines[:2]))
    text = words(run)
    assert "No candidate has been evaluated yet" in text
    assert "could not be made" not in text


def test_damage_is_named_and_the_rest_is_shown(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path / "run")
    lines = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    lines[60] = lines[60].replace(b"search", b"sear\x00h", 1)
    (run / "ledger.jsonl").write_bytes(b"".join(lines))
    (run / "best" / "recipe.yaml").write_text("evomerge_recipe: [")
    (run / "config.yaml").write_bytes(b"\xff\xfe: {")
    next(iter((run / "items").glob("search-0*"))).write_bytes(b"nothing")
    text = words(run)
    assert "The ledger is damaged, and what follows the damage is not shown." in text
    assert "line 61 does not match its checksum" in text
    assert "Per-item scores are missing" in text
    assert "best/recipe.yaml" in text
    assert "The best candidate by score is number" in text


def test_a_run_without_baselines_or_a_pool(tmp_path: Path) -> None:
    run = report_runs.parameter_run(tmp_path / "run", 20, baselines=False, held_out=False)
    (run / "pool.json").unlink()
    text = words(run)
    assert re.search(r"The best candidate scores 0\.\d{3}", text)
    assert "The run has no baselines to compare it with." in text
    assert "could not be made" not in text


def test_text_of_strangers_is_escaped(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>\u202e"
    run = report_runs.parameter_run(tmp_path / "run", 30, names=("base", evil, "<b>x</b>"), texts=False)
    page = report_html([RunView.of(run)])
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert page.count("<script") == 3
    assert "<b>x" not in page
    for figure in figures(page):
        assert "<b>x" not in json.dumps(figure, ensure_ascii=False)


def test_the_page_may_only_run_its_own_scripts(finished: Path) -> None:
    page = report_html([RunView.of(finished)])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src &#39;none&#39;" in policy[1]
    assert policy[1].count("sha256-") == 2
    assert "unsafe-inline&#39;; img-src" in policy[1]  # of styles
    assert "unsafe-eval" not in policy[1]
    assert not re.search(r"(src|href)=\"(https?:)?//", page)


def test_secrets_are_left_out(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path / "run")
    with (run / "config.yaml").open("a") as file:
        file.write("trackers:\n- name: wandb\n  api_key: 0123abcd\n  hf_token: 'hf_xyz'\n  tokenizer: kept\n")
    page = report_html([RunView.of(run)])
    assert "0123abcd" not in page
    assert "hf_xyz" not in page
    assert "api_key: (left out)" in page
    assert "tokenizer: kept" in page


def test_runs_side_by_side(finished: Path, tmp_path: Path) -> None:
    other = report_runs.path_run(tmp_path / "path")
    page = report_html([RunView.of(finished), RunView.of(other)])
    text = text_of(page)
    assert "2 runs side by side" in text
    assert "finished has the best winner on the reported items" in text
    assert re.search(r"path CatCMA · 50 evaluations .* −0\.\d{3} < 0\.0001", text)
    assert re.search(r"strategy\._target_ CmaEs finished CatCma path", text)
    (curves,) = figures(page)
    assert [trace["name"] for trace in curves["data"]] == ["finished", "path"]
    assert "could not be made" not in page


def test_other_items_cannot_be_compared(finished: Path, tmp_path: Path) -> None:
    other = copy(finished, tmp_path / "other")
    items = RunFolder.open(other).items
    for file in items.glob("held_out-*.safetensors"):
        file.unlink()
    page = report_html([RunView.of(finished), RunView.of(other)])
    assert "Per-item scores are missing" in page


@pytest.mark.parametrize("seed", range(12))
def test_whatever_a_ledger_holds_there_is_a_report(seed: int, tmp_path: Path) -> None:
    """Fields of a stranger's ledger, whose checksums are right, may hold anything."""
    run = report_runs.parameter_run(tmp_path / "run", 6)
    ledger = run / "ledger.jsonl"
    rng = np.random.default_rng(seed)
    junk = [None, True, -1, 1e308, "NaN", "x" * 3000, [], [[1, "a"]], {}, {"a": {"b": None}}, [{}], "</script>"]
    lines = []
    for line in ledger.read_text().splitlines():
        event = {key: value for key, value in json.loads(line).items() if key != "crc32"}
        for key in list(event):
            if key not in ("seq", "event", "schema") and rng.random() < 0.15:
                event[key] = junk[rng.integers(len(junk))]
        lines.append(encode(event))
    ledger.write_bytes(b"".join(lines))
    page = report_html([RunView.of(run)])
    assert "<h1>" in page
    assert "</script>x" not in page


def test_too_many_runs(finished: Path) -> None:
    with pytest.raises(ConfigError, match="41 runs"):
        report_html([RunView.of(finished)] * 41)


def test_the_verb(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy(finished, tmp_path / "run")
    assert main(["report", str(run)]) == 0
    assert f"wrote {run / 'report.html'}" in capsys.readouterr().out
    assert main(["report", str(run), str(finished), "-o", str(tmp_path / "x.html")]) == 0
    assert "2 runs side by side" in (tmp_path / "x.html").read_text()
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_a_file_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_text("")
    with pytest.raises(LedgerError, match="no started event"):
        write_report([tmp_path])
