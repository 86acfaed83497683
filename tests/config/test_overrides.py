"""Overrides of a run that goes on."""

from typing import Any

from evomerge.config.compose import compose_config
from evomerge.config.overrides import set_value, take_away


def test_arguments_of_an_engine_are_given_in_whole_and_taken_away() -> None:
    config: Any = compose_config([])
    arguments = "evaluator.engine_args"
    set_value(config, arguments, "{max_model_length: 64, enforce_eager: true}")
    said = set_value(config, arguments, "{max_model_len: 64, seed: 1}")
    assert config.evaluator.engine_args == {"max_model_len": 64, "seed": 1}
    assert said.endswith("is {'max_model_len': 64, 'seed': 1}")
    assert take_away(config, f"~{arguments}.seed") == "evaluator.engine_args.seed was 1, is left out"
    assert config.evaluator.engine_args == {"max_model_len": 64}
    set_value(config, "evaluator.server", "{model: a}")  # of others, keys that are not named stay
    assert config.evaluator.server.timeout == 120
