"""lm-eval's model arguments and chat templates: prompts and numbers of the stock tool, or a line that says why not."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fitness_parity import assert_equal, responses
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.api_models import TemplateAPI
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalCompletionsAPI
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.cli.main import main
from evomerge.errors import ConfigError, EvomergeWarning, FitnessError
from evomerge.models.loaded import LoadedModel
from evomerge.utils.installed_source import parsed
from fitness._lm_eval import prepared
from fitness.lm_eval_tasks import LmEvalFitness

ALL = ["choose", "complete", "read", "write"]
TURNS = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} . {% endfor %}"
THINKING = (
    TURNS
    + "{{ style | default('w0') }} {% if add_generation_prompt %}assistant : "
    + "{% if enable_thinking is defined and not enable_thinking %}w30 w31 {% endif %}{% endif %}"
)
SHORT = "{{ messages[-1]['content'] }} a : "


@pytest.fixture(scope="module")
def chat_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with two chat templates, the default of which honours `enable_thinking` and `style`."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(model_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": THINKING, "short": SHORT}
    tokenizer.model_max_length = 5
    for file in folder.glob("chat_template*"):
        file.unlink()
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def chat(chat_folder: Path) -> LoadedModel:
    module = AutoModelForCausalLM.from_pretrained(chat_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    return LoadedModel(module, tokenizer, torch.float32, torch.device("cpu"), str(chat_folder))


@pytest.fixture
def chat_stock(stock: Any, chat_folder: Path) -> Any:
    """Stock `simple_evaluate` of that model: names, model arguments, and what else it takes."""

    def run(names: list[Any], arguments: dict[str, Any], **kwargs: Any) -> Any:
        return stock(names, arguments={"pretrained": str(chat_folder), **arguments}, **kwargs)

    return run


def scored(model: LoadedModel, names: list[Any], tasks: Any, **kwargs: Any) -> tuple[LmEvalFitness, Any]:
    fitness = LmEvalFitness(names, include_path=str(tasks.path), **kwargs)
    fitness.prepare(model)
    return fitness, fitness.run(model)


def prompts(fitness: LmEvalFitness) -> dict[str, list[Any]]:
    """The arguments of every request, as the samples of stock results have them."""
    return {
        name: [list(instance.args) for instance in task.instances] for name, task in fitness._loaded().tasks.items()
    }


def stock_prompts(results: Any) -> dict[str, list[Any]]:
    return {
        name: [list(args) for s in samples if s["filter"] == samples[0]["filter"] for args in s["arguments"]]
        for name, samples in results["samples"].items()
    }


LATER = (
    *("prefix_token_id", "truncation", "logits_cache", "mixed_precision_dtype"),
    *("enable_thinking", "think_end_token", "chat_template_args"),
)
CHAT = {"apply_chat_template": True}
CASES: dict[str, tuple[list[str], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # tasks, what both take, our arguments, the arguments of --model_args where they are others
    "not thinking": (ALL, CHAT, {"enable_thinking": False}, {}),
    "thinking": (["write"], CHAT, {"enable_thinking": True, "think_end_token": "w7"}, {}),
    "end of thinking": (["write"], {}, {"think_end_token": "w7"}, {}),
    "end of thinking, an id": (["write"], {}, {"think_end_token": 11}, {}),
    "template arguments": (ALL, CHAT, {"chat_template_args": {"style": "w9 w8"}}, {}),
    "template brought": (ALL, CHAT, {"chat_template_args": {"chat_template": TURNS + "w3 "}}, {}),
    "both": (ALL, CHAT, {"chat_template_args": {"style": "w9"}, "enable_thinking": False}, {}),
    "shots": (ALL[:2], {**CHAT, "num_fewshot": 2}, {"enable_thinking": False}, {}),
    "prefix": (["read"], {}, {"prefix_token_id": 9}, {}),
    "truncation": (["write"], {}, {"truncation": True}, {}),
    "no logits cache": (ALL, {}, {"logits_cache": False}, {}),
    "autocast": (ALL, {}, {"mixed_precision_dtype": "bfloat16"}, {"softmax_dtype": "float32"}),
    "autocast, model softmax": (
        ALL,
        {},
        {"mixed_precision_dtype": "bfloat16", "softmax_dtype": "model"},
        {"softmax_dtype": None},
    ),
    "softmax": (ALL, {}, {"softmax_dtype": "float64"}, {}),
    "half softmax": (ALL, {}, {"softmax_dtype": "bfloat16"}, {}),
    "length": (ALL, CHAT, {"max_length": 30}, {}),
    "bos": (ALL, CHAT, {"add_bos_token": True}, {}),
    "in one": (
        ALL,
        CHAT,
        {"model_args": "max_length=30, add_bos_token=True,softmax_dtype='float64',"},
        {"max_length": 30, "add_bos_token": True, "softmax_dtype": "float64"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_arguments_equal_stock(case: str, chat: LoadedModel, chat_stock: Any, tasks: Any) -> None:
    names, both, ours, theirs = CASES[case]
    names = [name for name in names if "num_fewshot" not in both or name != "read"]
    one_by_one = {name: value for name, value in {**ours, **theirs}.items() if name != "model_args"}
    results = chat_stock(names, one_by_one, **both)
    fitness, scores = scored(chat, names, tasks, **both, **ours)
    assert_equal(fitness, scores, results)
    assert prompts(fitness) == stock_prompts(results)
    plain, _ = scored(chat, names, tasks, **both)
    if case != "no logits cache":  # which may change the last digits and need not
        assert responses(fitness) != responses(plain), "the argument made no difference"


@pytest.mark.slow
def test_a_named_template_is_the_one_that_is_used(chat: LoadedModel, chat_stock: Any, tasks: Any) -> None:
    """Stock lm_eval notes the name and renders with the default: its ``chat_template`` argument is what equals ours."""
    results = chat_stock(ALL, {"chat_template_args": {"chat_template": "short"}}, apply_chat_template=True)
    fitness, scores = scored(chat, ALL, tasks, apply_chat_template="short")
    assert_equal(fitness, scores, results)
    assert prompts(fitness) == stock_prompts(results)
    assert all(prompt.endswith(" a : ") for prompt, _ in prompts(fitness)["write"])
    by_name = stock_prompts(chat_stock(["write"], {}, apply_chat_template="short"))
    default, _ = scored(chat, ["write"], tasks, apply_chat_template="default")
    assert by_name == prompts(default), "lm_eval honours the name by now: docs/lm_eval.md says that it does not"


# A task's own


TERMS: dict[str, dict[str, Any]] = {
    "no template": {"apply_chat_template": False},
    "another template": {"apply_chat_template": "short"},
    "instruction": {"system_instruction": "w2 w3"},
    "no instruction": {"system_instruction": ""},
    "one turn": {"fewshot_as_multiturn": False, "num_fewshot": 2},
    "template arguments": {"chat_template_args": {"style": "w9"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", TERMS)
@pytest.mark.parametrize("own", ["write", "choose"])
def test_a_task_of_its_own_settings_equals_stock(
    case: str, own: str, chat: LoadedModel, chat_stock: Any, tasks: Any
) -> None:
    """Every task scores as a stock command of its own flags scores it, beside one with the fitness's settings."""
    if case == "one turn" and own == "write":
        own = "complete"  # `write` has no examples
        (tasks.path / "shots.yaml").write_text(
            (tasks.path / "complete.yaml").read_text().replace("task: complete", "task: shots")
        )
    other = "choose" if own in ("write", "shots", "complete") else "write"
    common: dict[str, Any] = {"apply_chat_template": True, "system_instruction": "w1 w1"}
    fitness, scores = scored(chat, [{"task": own, **TERMS[case]}, other], tasks, **common)
    flags = {**common, **TERMS[case]}
    arguments = {"chat_template_args": flags.pop("chat_template_args", {})}
    if flags["apply_chat_template"] == "short":
        flags["apply_chat_template"] = True
        arguments = {"chat_template_args": {"chat_template": "short"}}
    expected = {
        own: chat_stock([own], arguments, **flags),
        other: chat_stock([other], {}, **common),
    }
    assert prompts(fitness) == {name: stock_prompts(results)[name] for name, results in expected.items()}
    exact = {own, other} != {"choose", "complete"}  # requests of one type share batches, padded to another length
    for name, results in expected.items():
        for key, value in results["results"][name].items():
            if "," in key and "_stderr" not in key:
                ours = scores.metrics[f"{name}/{key.removesuffix(',none')}"]
                assert ours == (value if exact else pytest.approx(value, rel=1e-5)), (name, key)
    plain, _ = scored(
        chat, [{k: v for k, v in {"task": own, **TERMS[case]}.items() if k in ("task", "num_fewshot")}], tasks, **common
    )
    assert prompts(plain)[own] != prompts(fitness)[own], "the key made no difference"


def test_what_a_term_leaves_out_is_the_fitnesss(chat: LoadedModel, tasks: Any) -> None:
    own = {"apply_chat_template": "short", "system_instruction": "w5", "chat_template_args": {"style": "w6"}}
    whole, _ = scored(chat, ["write"], tasks, **own)
    nothing = dict.fromkeys(("apply_chat_template", "system_instruction", "fewshot_as_multiturn", "chat_template_args"))
    term, _ = scored(chat, [{"task": "write", **nothing}], tasks, **own)
    assert prompts(term) == prompts(whole)
    assert term.fingerprint() == whole.fingerprint()


# What decides a score


def test_fingerprint_is_as_it_was_unless_something_new_is_said(
    chat: LoadedModel, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders of runs keep it: what was hashed before the arguments came is hashed alike."""
    hashed: list[dict[str, Any]] = []
    real = prepared.fingerprint

    def fingerprint(loaded: Any, requests: Any, settings: Any) -> str:
        hashed.append(dict(settings))
        return real(loaded, requests, settings)

    monkeypatch.setattr(prepared, "fingerprint", fingerprint)

    def of(terms: list[Any], **kwargs: Any) -> str:
        fitness = LmEvalFitness(terms, include_path=str(tasks.path), **kwargs)
        fitness.prepare(chat)
        return fitness.fingerprint()

    common: dict[str, Any] = {"apply_chat_template": True, "gen_kwargs": {"max_gen_toks": 4}}
    reference = of(["write"], **common)
    assert hashed == [
        {
            "terms": [("write", ("write",), 1.0, "score", hashed[0]["terms"][0][4])],
            "prompts": {
                "num_fewshot": None,
                "limit": None,
                "apply_chat_template": True,
                "fewshot_as_multiturn": True,
                "system_instruction": None,
                "gen_kwargs": {"max_gen_toks": 4},
                "fewshot_seed": 1234,
            },
            "chat_template": {"default": THINKING, "short": SHORT},
            "dtype": "torch.float32",
            "softmax_dtype": "None",
            "batch_size": 16,
            "max_length": 48,
            "add_bos_token": None,
            "grouped": True,
            "block_size": None,
        }
    ]
    others = [
        of(["write"], **common, **arguments)
        for arguments in (
            {"enable_thinking": False},
            {"think_end_token": "w7"},
            {"think_end_token": 7},
            {"chat_template_args": {"style": "w0"}},
            {"prefix_token_id": 1},
            {"truncation": True},
            {"logits_cache": False},
            {"mixed_precision_dtype": "bfloat16"},
        )
    ] + [
        of([{"task": "write", **own}], **common)
        for own in (
            {"apply_chat_template": "default"},
            {"system_instruction": ""},
            {"fewshot_as_multiturn": False},
            {"chat_template_args": {"style": "w0"}},
        )
    ]
    others.append(of(["write"], **{**common, "apply_chat_template": "short"}))
    assert len({reference, *others}) == len(others) + 1
    on, off = ({"task": "write", "apply_chat_template": switch} for switch in (True, False))
    assert len({of([on]), of([off]), of(["write"])}) == 3
    assert hashed[-3]["task_prompts"]["write"]["chat_template"] == {"default": THINKING, "short": SHORT}


# What people read


def test_texts_show_what_the_model_read(chat: LoadedModel, tasks: Any) -> None:
    terms = [{"task": "choose", "apply_chat_template": False, "num_fewshot": 1}, "write"]
    common: dict[str, Any] = {"apply_chat_template": True, "system_instruction": "w1 w2", "enable_thinking": False}
    fitness, _ = scored(chat, terms, tasks, **common)
    texts = fitness.texts(3)
    asked = prompts(fitness)
    assert [text["prompt"] for text in texts["write"]] == [prompt for prompt, _ in asked["write"][:3]]
    assert texts["write"][0]["prompt"].startswith("system : w1 w2 . user : ")
    assert texts["write"][0]["prompt"].endswith("assistant : w30 w31 ")
    assert [text["prompt"] for text in texts["choose"]] == [asked["choose"][place][0] for place in (0, 3, 6)]
    assert texts["choose"][0]["prompt"].count("q :") == 2
    assert "user" not in texts["choose"][0]["prompt"]
    # A driver whose workers prepare has the tokenizer only.
    driver = LmEvalFitness(terms, include_path=str(tasks.path), **common)
    driver.check_tokenizer(lambda: chat.tokenizer)
    assert driver.texts(3) == texts


def test_texts_of_choices_that_are_prompts(model: LoadedModel, tasks: Any, tmp_path: Path) -> None:
    """As in Winogrande: a prompt for each choice, one after the other."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"c": ["w1 w2", "w3"], "gold": 1, "end": "w4"}) + "\n")
    task = {
        "task": "blanks",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{gold}}",
        "doc_to_choice": "{{c}}",
        "doc_to_target": "{{end}}",
    }
    fitness = LmEvalFitness([{"task": task}])
    assert fitness.texts(1) == {"blanks": [{"prompt": "w1 w2\nw3", "target": "w4"}]}


# What makes no sense


def arguments_of_the_vllm_model() -> list[str]:
    """Read, since importing it needs vLLM."""
    module = parsed("lm_eval", "models", "vllm_causallms.py")
    assert module is not None
    model = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "VLLM")
    made = next(node for node in model.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return [argument.arg for argument in made.args.args]


def test_every_argument_of_lm_eval_is_taken_or_answered() -> None:
    """And is on docs/lm_eval.md."""
    taken = set(inspect.signature(LmEvalFitness).parameters)
    models = (HFLM, TemplateAPI, LocalCompletionsAPI)
    theirs = {name for model in models for name in inspect.signature(model.__init__).parameters}
    theirs |= {*inspect.signature(simple_evaluate).parameters, *arguments_of_the_vllm_model()}
    theirs -= {"self", "kwargs"}
    assert theirs - taken - set(LmEvalFitness.foreign_keys) == set()
    assert not taken & set(LmEvalFitness.foreign_keys)
    page = (Path(__file__).parents[2] / "docs" / "lm_eval.md").read_text()
    first_column = "\n".join(line.split("|")[1] for line in page.splitlines() if line.startswith("|"))
    named = set(re.findall(r"`(\w+)`", first_column))
    ours = {"response_length", "fewshot_seed", "keep_responses", "task_timeout"}
    ours |= {"forwards", "batch_tokens", "compare_forwards"}
    assert named == theirs | set(LmEvalFitness.foreign_keys) | ours | taken


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"enable_thinking": True}, "think_end_token is not given; the token that ends the thinking"),
        ({"enable_thinking": "yes"}, "enable_thinking is 'yes'; true or false, or null"),
        ({"think_end_token": ""}, "think_end_token is ''"),
        ({"think_end_token": True}, "think_end_token is True"),
        ({"think_end_token": -1}, "think_end_token is -1; the id of a token, 0 or more, or its text"),
        ({"prefix_token_id": "w1"}, "prefix_token_id is 'w1'; the id of a token"),
        ({"truncation": None}, "truncation is None; true or false"),
        ({"logits_cache": 1}, "logits_cache is 1"),
        ({"mixed_precision_dtype": "bf16"}, "mixed_precision_dtype is 'bf16'; did you mean 'bfloat16'?"),
        ({"softmax_dtype": "float23"}, "softmax_dtype is 'float23'; did you mean 'float32'?"),
        ({"batch_size": "auto"}, "batch_size is 'auto'"),
        ({"apply_chat_template": ""}, "apply_chat_template is ''; true, false, or the name"),
        ({"apply_chat_template": None}, "apply_chat_template is None"),
        ({"fewshot_as_multiturn": "no"}, "fewshot_as_multiturn is 'no'"),
        ({"system_instruction": 3}, "system_instruction is 3; a text"),
        ({"chat_template_args": {"style": "w1"}}, "given style, and no task applies it; set apply_chat_template=true"),
        ({"enable_thinking": False}, "given enable_thinking, and no task applies it"),
        ({**CHAT, "chat_template_args": {"tokenize": True}}, "chat_template_args.tokenize is given; lm-eval sets it"),
        ({**CHAT, "chat_template_args": {1: 2}}, "chat_template_args is {1: 2}; a mapping such as"),
        (
            {**CHAT, "enable_thinking": False, "chat_template_args": {"enable_thinking": True}},
            "enable_thinking is given twice",
        ),
        (
            {"apply_chat_template": "short", "chat_template_args": {"chat_template": "w1"}},
            "the chat template is named twice, as 'short' and in chat_template_args",
        ),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LmEvalFitness(["a"], **arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"apply_chat_templat": False}, "did you mean 'apply_chat_template'?"),
        ({"apply_chat_template": 1}, "tasks[0].apply_chat_template is 1; true, false, or the name"),
        ({"fewshot_as_multiturn": "no"}, "tasks[0].fewshot_as_multiturn is 'no'; true or false"),
        ({"fewshot_as_multiturn": True}, "tasks[0] gives the chat template fewshot_as_multiturn, and its prompts use"),
        ({"system_instruction": ["w1"]}, "tasks[0].system_instruction is ['w1']; a text"),
        ({"chat_template_args": "style=w1"}, "tasks[0].chat_template_args is 'style=w1'; a mapping"),
        ({"chat_template_args": {"style": 1}}, "tasks[0] gives the chat template style, and its prompts use none"),
        ({"enable_thinking": True}, "'enable_thinking'; it is one of all tasks; of a task write chat"),
    ],
)
def test_terms_that_make_no_sense(term: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LmEvalFitness([{"task": "a", **term}])
    assert message in str(caught.value)


def test_thinking_needs_tasks_that_generate(chat: LoadedModel, tasks: Any) -> None:
    thinking: dict[str, Any] = {**CHAT, "enable_thinking": True, "think_end_token": "w7"}
    fitness = LmEvalFitness(ALL, include_path=str(tasks.path), **thinking)
    with pytest.raises(FitnessError, match="answers are not generated in: choose, complete; tasks with output_type"):
        fitness.check()
    alone = {"task": "write", "chat_template_args": {"enable_thinking": True}}
    mixed, _ = scored(chat, ["choose", alone], tasks, **CHAT, think_end_token="w7")
    whole, _ = scored(chat, ["write"], tasks, **thinking)
    assert responses(mixed)["write"] == responses(whole)["write"]


@pytest.mark.parametrize(
    ("terms", "arguments", "message"),
    [
        (["write"], {"apply_chat_template": "shirt"}, "no template 'shirt'; did you mean 'short'? (one of: default, "),
        ([{"task": "write", "apply_chat_template": "long"}], {}, "apply_chat_template of task 'write' is 'long'"),
        (["write"], {"prefix_token_id": 51}, "prefix_token_id is 51; an id below 51"),
        (["write"], {"think_end_token": 60}, "think_end_token is 60; an id below 51"),
    ],
    ids=str,
)
def test_what_the_tokenizer_has_not(
    chat: LoadedModel, tasks: Any, terms: list[Any], arguments: dict[str, Any], message: str
) -> None:
    """Said before a model is loaded, and of a model that is given otherwise."""
    fitness = LmEvalFitness(terms, include_path=str(tasks.path), **arguments)
    for check in (lambda: fitness.check_tokenizer(lambda: chat.tokenizer), lambda: fitness.prepare(chat)):
        with pytest.raises(FitnessError) as caught:
            check()
        assert message in str(caught.value)


def test_a_tokenizer_of_one_template_has_no_names(model: LoadedModel, tasks: Any) -> None:
    for choice in (True, "default"):
        scored(model, [{"task": "write", "limit": 1}], tasks, apply_chat_template=choice)
    with pytest.raises(FitnessError, match="is 'short'; the tokenizer has one template, without a name: true"):
        scored(model, ["write"], tasks, apply_chat_template="short")
    model.tokenizer.chat_template = {"short": SHORT}
    with pytest.raises(FitnessError, match="is true, and the tokenizer has no template 'default'; one of: short"):
        scored(model, ["write"], tasks, **CHAT)
    model.tokenizer.chat_template = None
    fitness = LmEvalFitness([{"task": "write", **CHAT}], include_path=str(tasks.path))
    with pytest.raises(FitnessError, match="apply_chat_template of task 'write' is true; a tokenizer with a chat"):
        fitness.check_tokenizer(lambda: model.tokenizer)
    with pytest.raises(FitnessError, match="the model has no tokenizer"):
        fitness.check_tokenizer(lambda: None)
    LmEvalFitness(["write"], include_path=str(tasks.path)).check_tokenizer(pytest.fail)  # nothing depends on it


def test_what_changes_nothing_is_warned_of(chat: LoadedModel, tasks: Any) -> None:
    def said(terms: list[Any], **arguments: Any) -> list[str]:
        fitness = LmEvalFitness(terms, include_path=str(tasks.path), **arguments)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            fitness.check_tokenizer(lambda: chat.tokenizer)
        return [str(w.message) for w in found if issubclass(w.category, EvomergeWarning)]

    assert said(["write"], **CHAT, chat_template_args={"style": "w1", "tools": None}, enable_thinking=False) == []
    unread = "the chat template does not read 'stile': giving it changes no prompt"
    assert said(["write", "choose"], **CHAT, chat_template_args={"stile": "w1"}) == [unread]
    assert "'enable_thinking'" in said(["write"], apply_chat_template="short", enable_thinking=False)[0]
    (special,) = said(["write"], think_end_token="<unk>")
    assert special.endswith("set think_end_token=3, its id")


# On the command line


def run_verb(*words: str, capsys: Any) -> tuple[int, str, str]:
    code = main(list(words))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_evaluate_takes_them(chat: LoadedModel, chat_folder: Path, tasks: Any, capsys: Any) -> None:
    _, scores = scored(
        chat,
        [{"task": "write", "apply_chat_template": "short"}, {"task": "choose", "system_instruction": "w1"}],
        tasks,
        **CHAT,
        chat_template_args={"style": "w9"},
        think_end_token="w7",
    )
    evaluate = functools.partial(run_verb, "evaluate", str(chat_folder), f"fitness.include_path='{tasks.path}'")
    given = (
        "fitness=lm_eval",
        "fitness.tasks=[{task: write, apply_chat_template: short}, {task: choose, system_instruction: w1}]",
        "fitness.apply_chat_template=true",
        "fitness.chat_template_args.style=w9",
        "fitness.think_end_token=w7",
    )
    code, out, err = evaluate("--json", *given, capsys=capsys)
    assert code == 0, err
    assert json.loads(out)["metrics"] == dict(scores.metrics)
    for word, message in (
        ("fitness.apply_chat_template=shirt", "did you mean 'short'?"),
        ("fitness.dtype=bfloat16", "there is no key 'fitness.dtype'; models are merged and scored in one dtype; set "),
        ("+fitness.peft=a", "fitness has no key 'peft'; adapters belong to models; set pool.models="),
        (
            "fitness.model_args={dtype: bfloat16}",
            "fitness.model_args has 'dtype'; models are merged and scored in one dtype",
        ),
        (
            "fitness.model_args='pretrained=a,max_length=64'",
            "model_args has 'pretrained'; the models that are merged",
        ),
        ("fitness.model_args='max_lenght=64'", "did you mean 'max_length'?"),
        ("fitness.model_args=max_length", "arguments with their values; 'max_length' has none"),
        ("fitness.model_args=max_length", "for example fitness.model_args='\"max_length=4096,add_bos_token=true\"'"),
        ("fitness.model_args='max_length=abc'", "fitness.model_args.max_length is 'abc'; a whole number, 1 or more"),
        ("fitness.model_args={max_length: -1}", "fitness.model_args.max_length is -1; a whole number, 1 or more"),
        ("fitness.model_args={think_end_token: w8}", "think_end_token is 'w7', and 'w8' in model_args; one of the two"),
        ("fitness.enable_thinkin=true", "did you mean 'fitness.enable_thinking'?"),
        ("fitness.enable_thinking=maybe", "fitness.enable_thinking is 'maybe'; it should be"),
    ):
        code, _, err = evaluate(*given, word, capsys=capsys)
        assert (code, message in err) == (2, True), err
        assert len(err.splitlines()) == 1


def changed(folder: Path, root: Path) -> Path:
    """A copy of a model with other weights."""
    module = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.01)
    module.save_pretrained(root / "changed")
    AutoTokenizer.from_pretrained(folder).save_pretrained(root / "changed")
    return root / "changed"


@pytest.mark.slow
def test_a_search_takes_them(chat_folder: Path, tasks: Any, tmp_path: Path, capsys: Any) -> None:
    search = (
        f"pool.models={{a: '{chat_folder}', b: '{changed(chat_folder, tmp_path)}'}}",
        *("search_space=linear", "strategy=random", "search.evaluations=2", "search.baselines=false", "display=quiet"),
        *("fitness=lm_eval", f"fitness.include_path='{tasks.path}'"),
        "fitness.tasks=[{task: write, apply_chat_template: short}, {task: choose, system_instruction: w1}]",
        *("fitness.apply_chat_template=true", "fitness.enable_thinking=false", f"run_dir='{tmp_path / 'run'}'"),
    )
    code, _, err = run_verb("validate", *search, "fitness.apply_chat_template=shirt", capsys=capsys)
    assert (code, "did you mean 'short'?" in err) == (2, True), err
    code, _, err = run_verb("search", *search, capsys=capsys)
    assert code == 0, err
    texts = json.loads((tmp_path / "run" / "items" / "search-texts.json").read_text())["tasks"]
    assert texts["write"][0]["prompt"].endswith(" : a : ")
    assert texts["choose"][0]["prompt"].startswith("system : w1 . user : q : ")
    assert texts["choose"][0]["prompt"].endswith("assistant : w30 w31 ")
    code, _, err = run_verb("resume", str(tmp_path / "run"), "search.evaluations=3", capsys=capsys)
    assert code == 0, err


@pytest.mark.slow
def test_a_run_that_is_older_than_the_keys(chat_folder: Path, tasks: Any, tmp_path: Path, capsys: Any) -> None:
    """Its configuration has none of them: it goes on as with their defaults, and `evaluate` takes them."""
    run = tmp_path / "run"
    search = (
        f"pool.models={{a: '{chat_folder}', b: '{changed(chat_folder, tmp_path)}'}}",
        *("search_space=linear", "strategy=random", "search.evaluations=2", "search.baselines=false", "display=quiet"),
        *("fitness=lm_eval", f"fitness.include_path='{tasks.path}'", f"run_dir='{run}'"),
        *("fitness.tasks=[read, write]", "fitness.response_length=true", "search.scalarise=weighted"),
    )
    assert main(["search", *search]) == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    for key in LATER:
        del config["fitness"][key]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["resume", str(run), "search.evaluations=3"]) == 0
    capsys.readouterr()
    metrics = []
    for words in ((), ("fitness.prefix_token_id=9",), ("fitness.gen_kwargs.max_gen_toks=1",)):
        code, out, err = run_verb("evaluate", "--json", str(run), *words, capsys=capsys)
        assert code == 0, err
        metrics.append(json.loads(out)["metrics"])
    assert metrics[1] != metrics[0] != metrics[2]
    code, _, err = run_verb("evaluate", str(run), "fitness.truncatoin=true", capsys=capsys)
    assert (code, "fitness has no key 'truncatoin'; did you mean 'truncation'?" in err) == (2, True), err
