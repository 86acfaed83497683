"""Errors of parts name their keys as the user has written them."""

import pytest

from evomerge.config.construct import build, check_node
from evomerge.config.placing import placed
from evomerge.errors import ConfigError, FitnessError

LM_EVAL = {"_target_": "fitness.lm_eval_tasks.LmEvalFitness", "tasks": ["x"]}


@pytest.mark.parametrize("key", ["fitness", "held_out"])
@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"tasks": []}, "{key}.tasks is empty; at least one lm-eval task; for example {key}.tasks=[gsm8k]"),
        ({"batch_tokens": 0}, "{key}.batch_tokens is 0"),
        ({"batch_size": 0}, "{key}.batch_size is 0"),
        ({"limit": -1}, "{key}.limit is -1"),
        ({"num_fewshot": -1}, "{key}.num_fewshot is -1"),
        ({"task_timeout": 0.0}, "{key}.task_timeout is 0.0"),
        ({"softmax_dtype": "float31"}, "{key}.softmax_dtype is 'float31'"),
        ({"tasks": [{"task": "x", "limit": 0}]}, "{key}.tasks[0].limit is 0"),
        ({"tasks": [{"tusk": "x"}]}, "{key}.tasks[0] has no key 'tusk'"),
        ({"chat_template_args": {"a": 1}}, "set {key}.apply_chat_template=true"),
        (
            {"enable_thinking": True},
            "{key}.enable_thinking is true and {key}.think_end_token is not given",
        ),
    ],
)
def test_a_fitness(key: str, values: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        build({**LM_EVAL, **values}, key)
    assert says.format(key=key) in str(error.value)


def test_a_part_that_stands_elsewhere() -> None:
    says = r"^phases\.path\.strategy\.popsize is 1; see phases\.path\.strategy\.sigma0$"
    with pytest.raises(ConfigError, match=says), placed("phases.path.strategy", ["popsize", "sigma0"]):
        raise ConfigError("strategy.popsize is 1", "see strategy.sigma0")
    says = r"^held_out\.include_path is 'x'; fitness=lm_eval; tasks of fitness/x$"
    with pytest.raises(FitnessError, match=says), placed("held_out", ["include_path", "tasks"]):
        raise FitnessError("include_path is 'x'", "fitness=lm_eval", "tasks of fitness/x")


def test_names_within_a_value_stay() -> None:
    says = r"^fitness\.model_args is 'x'; for example fitness\.model_args='max_length=4096,truncation=true'$"
    with pytest.raises(ConfigError, match=says), placed("fitness", ["model_args", "max_length", "truncation"]):
        raise ConfigError("model_args is 'x'", "for example model_args='max_length=4096,truncation=true'")
    with pytest.raises(ConfigError, match=r"^fitness\.model_args has 'x'"), placed("fitness", ["model_args"]):
        raise ConfigError("model_args has 'x'")


def test_a_file_that_is_called_as_a_key_keeps_its_name() -> None:
    says = r"^fitness\.texts\.a\.file: texts\.jsonl, line 1 has no key 'x'; set fitness\.texts\.a\.key$"
    with pytest.raises(FitnessError, match=says), placed("fitness", ["texts"]):
        raise FitnessError("texts.a.file: texts.jsonl, line 1 has no key 'x'", "set texts.a.key")


@pytest.mark.parametrize("says", ["files names 'x', which is not there", "files says nothing of model 'x'"])
def test_files_are_named_in_full(says: str) -> None:
    with pytest.raises(FitnessError, match=f"^calibration\\.{says}; a file$"), placed("calibration", ["files"]):
        raise FitnessError(says, "a file")


def test_an_error_that_is_in_full_already_stays() -> None:
    with pytest.raises(ConfigError) as error, placed("strategy", ["popsize"]):
        raise ConfigError("strategy.popsize is 1", "strategy.popsize=4")
    assert error.value.args == ("strategy.popsize is 1", "strategy.popsize=4", "")


def test_a_strategy_of_strategies_is_given_nodes() -> None:
    node = {"_target_": "evomerge.strategies.islands.Islands", "strategies": ["cma_es"]}
    with pytest.raises(ConfigError, match=r"^strategy\.strategies\.0 is 'cma_es'; a mapping with _target_"):
        check_node(node, "strategy", 2, {"seed"})
