"""Arguments of other programs: single entries without a plus sign, and beside a text."""

from typing import Any

import pytest

from evomerge.config.compose import compose_config
from evomerge.config.overrides import set_value
from evomerge.errors import ConfigError

TASKS = ("fitness=lm_eval", "fitness.tasks=[t]")


def test_single_entries_are_added_to_what_is_there() -> None:
    config: Any = compose_config([*TASKS, "evaluator.engine_args={seed: 1}", "evaluator.engine_args.max_model_len=64"])
    assert config.evaluator.engine_args == {"seed": 1, "max_model_len": 64}
    config = compose_config([*TASKS, "fitness.model_args.max_length=32", "fitness.model_args.add_bos_token=true"])
    assert config.fitness.model_args == {"max_length": 32, "add_bos_token": True}
    config = compose_config([*TASKS, "fitness@held_out=lm_eval", "held_out.model_args.max_length=32"])
    assert (config.fitness.model_args, config.held_out.model_args) == (None, {"max_length": 32})


@pytest.mark.parametrize("key", ["fitness.model_args", "evaluator.engine_args"])
def test_a_text_is_not_replaced_by_a_single_entry(key: str) -> None:
    """Hydra would leave max_length out without a word."""
    text = f"{key}='max_length=32'"
    says = f"{key}.seed is set, and {key} is the text 'max_length=32'; a mapping .*; add seed to the text"
    with pytest.raises(ConfigError, match=says):
        compose_config([*TASKS, text, f"{key}.seed=1"])
    config: Any = compose_config([*TASKS, text])
    with pytest.raises(ConfigError, match=says):
        set_value(config, f"{key}.seed", "1")
    compose_config(
        [*TASKS, text, f"{key}={{seed: 1}}", f"{key}.max_length=32"]
    )  # the mapping stands in the text's place
