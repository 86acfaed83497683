from typing import ClassVar, Literal

import pytest

from evomerge.config.construct import build
from evomerge.config.kinds import check_kind
from evomerge.errors import ConfigError


class Inner:
    def __init__(self, *, size: int = 1) -> None:
        self.size = size


class Part:
    def __init__(
        self,
        spec: str,
        *,
        seed: int,
        popsize: int | None = None,
        sigma0: float = 0.25,
        mode: Literal["full", "diagonal"] = "full",
        names: list[str] | None = None,
        inner: Inner | None = None,
    ) -> None:
        self.spec, self.seed, self.popsize, self.sigma0, self.mode, self.names = (
            spec,
            seed,
            popsize,
            sigma0,
            mode,
            names,
        )
        self.inner = inner

    ask = tell = print  # what makes it a strategy


TARGET = f"{__name__}.Part"


def test_builds_with_injected_and_configured_arguments() -> None:
    part = build({"_target_": TARGET, "popsize": 12, "sigma0": 1}, "strategy", "spec", seed=3)
    assert (part.spec, part.seed, part.popsize, part.sigma0) == ("spec", 3, 12, 1.0)
    assert isinstance(part.sigma0, float)


class Ported(Part):
    foreign_keys: ClassVar[dict[str, tuple[str, str]]] = {"lr": ("steps have no rate", "set fitness.sigma0")}
    prepare = run = fingerprint = print


def test_keys_of_another_tool_are_answered() -> None:
    node = {"_target_": f"{__name__}.Ported", "lr": 3}
    with pytest.raises(ConfigError, match=r"^held_out has no key 'lr'; steps have no rate; set held_out.sigma0$"):
        build(node, "held_out", "spec", seed=0)


def test_builds_nested_targets() -> None:
    node = {"_target_": TARGET, "inner": {"_target_": f"{__name__}.Inner", "size": 4}}
    assert build(node, "strategy", "spec", seed=0).inner.size == 4


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": TARGET, "popsizes": 3}, "strategy has no key 'popsizes'; did you mean 'popsize'?"),
        ({"_target_": TARGET, "popsize": "many"}, "strategy.popsize is 'many'; it should be"),
        ({"_target_": TARGET, "mode": "ful"}, "strategy.mode is 'ful'; it should be 'full' or 'diagonal'"),
        ({"_target_": TARGET, "names": [1]}, "strategy.names is [1]"),
        ({"_target_": TARGET, "seed": 1}, "strategy has no key 'seed'"),
        ({"_target_": f"{__name__}.Parts"}, "did you mean 'Part'?"),
        ({"_target_": "nowhere.Part"}, "strategy._target_ is 'nowhere.Part'"),
        ({"popsize": 1}, "_target_"),
        (None, "strategy is None"),
    ],
)
def test_says_what_is_wrong_and_what_is_allowed(node: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(node, "strategy", "spec", seed=0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


class Needs:
    def __init__(self, *, tasks: list[str]) -> None:
        self.tasks = tasks

    prepare = run = fingerprint = print  # what makes it a fitness


def test_names_a_missing_key() -> None:
    with pytest.raises(ConfigError, match=r"fitness\.tasks is missing"):
        build({"_target_": f"{__name__}.Needs"}, "fitness")


@pytest.mark.parametrize("key", ["fitness", "held_out", "strategy", "search_space", "evaluator", "phases.one.strategy"])
@pytest.mark.parametrize(
    "target",
    [
        "evomerge.evaluation.ray_pool.RayEvaluator",
        "evomerge.errors.ConfigError",
        "search_spaces.parameter.ParameterSpace",
        "builtins.print",
        "builtins.int",
        "collections.OrderedDict",
        "evomerge.trackers.tracker.Tracker",
    ],
)
def test_a_target_of_another_kind_is_refused(key: str, target: str) -> None:
    part = key.rpartition(".")[2]
    if target.rpartition(".")[2] in {"evaluator": "RayEvaluator", "search_space": "ParameterSpace"}.get(part, "-"):
        return
    given = {"strategy": ((1, 2), {"seed": 1}), "search_space": ((1, 2), {}), "evaluator": ((1,), {})}
    args, named = given.get(part, ((), {}))
    with pytest.raises(ConfigError, match=rf"{key}(\._target_ is|\.args is missing)") as caught:
        build({"_target_": target}, key, *args, **named)
    assert "\n" not in str(caught.value)


def test_what_hands_on_to_another_is_taken() -> None:
    class Wrapper:
        def __getattr__(self, name: str) -> object:
            return len

    check_kind(Wrapper, "strategy", "x.Wrapper")
    check_kind(Wrapper(), "strategy", "x.Wrapper")
    with pytest.raises(ConfigError, match="a strategy has ask, tell; this has no ask, tell"):
        check_kind(object(), "strategy", "x.Wrapper")


@pytest.mark.parametrize("target", ["os.system", "builtins.print", "json.dumps", "math.sqrt"])
@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("strategy", "a class: a strategy has ask, tell; "),
        ("phases.path.search_space", "a class: a search space has spec, decode; "),
        ("held_out", "a class: a fitness has prepare, run, fingerprint; "),
    ],
)
def test_functions_of_python_s_own_are_not_called(target: str, key: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build({"_target_": target}, key, "touch /never", seed=0)
    assert str(caught.value).startswith(f"{key}._target_ is {target!r}, a function of Python's own; {says}")


def made(spec: str, *, seed: int) -> Part:
    return Part(spec, seed=seed)


def test_functions_of_one_s_own_may_make_a_part() -> None:
    assert build({"_target_": f"{__name__}.made"}, "strategy", "spec", seed=3).seed == 3
    with pytest.raises(ConfigError, match=r"cannot be made like a strategy: .*; a strategy has ask, tell, and"):
        build({"_target_": f"{__name__}.made"}, "strategy", "spec", "more", seed=3)


def test_a_key_that_takes_the_value_of_one_that_is_not_set_names_that() -> None:
    from omegaconf import OmegaConf

    config = OmegaConf.create({"part": {"_target_": TARGET, "spec": "${fitness.file}"}, "fitness": {"file": "???"}})
    with pytest.raises(ConfigError, match=r"fitness\.file is not set; .* set it with fitness\.file="):
        build(config.part, "strategy", seed=0)
