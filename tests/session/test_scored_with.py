"""A run that goes on scores as it began: with the same engine, weights and positions."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from evomerge.config.compose import compose_config
from evomerge.errors import ConfigError
from evomerge.session.scored_with import keep_scored_with, scored_with, take_over

VLLM = ["fitness=lm_eval", "fitness.tasks=[t]", "evaluator.engine=vllm"]


def of(*overrides: str) -> dict[str, Any]:
    config: Any = compose_config(overrides)
    return scored_with(config)


def test_another_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluator.engine is transformers and was vllm when .*warm_start=\[RUN\]"):
        keep_scored_with(of(*VLLM), of())
    with pytest.raises(ConfigError, match=r"evaluator.quantise is null and was int8"):
        keep_scored_with(of("evaluator.quantise=int8"), of())
    keep_scored_with(scored_with(OmegaConf.create({"evaluator": {"workers": 1}})), of())  # runs of before


@pytest.mark.parametrize("given", ["{max_model_len: 128}", "'max_model_len=128,max_num_seqs=4'"])
def test_positions_that_cut_prompts_are_kept(given: str) -> None:
    before = of(*VLLM, f"evaluator.engine_args={given}")
    with pytest.raises(ConfigError, match=r"evaluator.engine_args.max_model_len is 64 and was 128"):
        keep_scored_with(before, of(*VLLM, "evaluator.engine_args={max_model_len: 64}"))
    keep_scored_with(before, of(*VLLM, "evaluator.engine_args={max_model_len: 128, max_num_seqs: 8}"))
    keep_scored_with(before, of(*VLLM))  # the model's own, which may be as many
    cut = [*VLLM, "fitness.max_length=32"]
    keep_scored_with(*(of(*cut, f"evaluator.engine_args={{max_model_len: {n}}}") for n in (128, 64)))


def test_another_evaluator_takes_the_engine_over() -> None:
    config: Any = compose_config([*VLLM, "evaluator.engine_args={seed: 1}", "evaluator.adapters_at_once=2"])
    chosen: Any = compose_config(["evaluator=ray"]).evaluator
    take_over(config, chosen)
    assert (chosen.engine, chosen.engine_args, chosen.adapters_at_once) == ("vllm", {"seed": 1}, 2)
    assert (chosen.workers, chosen.quantise) == (2, None)
    config.evaluator.adapters_at_once = 0
    take_over(config, chosen)
    assert chosen.adapters_at_once == 0  # merged, and not as many as nobody said
    direct: Any = OmegaConf.create({"_target_": "x", "workers": 1})
    take_over(config, direct)
    assert direct == {"_target_": "x", "workers": 1}
