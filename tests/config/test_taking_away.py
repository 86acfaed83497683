"""What takes models, entries and parts away from an experiment, and what is said where something does not."""

import pytest

from evomerge.config.compose import compose_config
from evomerge.errors import ConfigError


def test_what_takes_something_away() -> None:
    assert list(compose_config(["experiment=demo", "~pool.models.math"]).pool.models) == ["base", "lang"]
    chosen = compose_config(["experiment=demo", "pool=custom", "pool.models={a: A}"]).pool
    assert (dict(chosen.models), chosen.base, chosen.root) == ({"a": "A"}, None, None)
    assert list(compose_config(["experiment=demo", "pool.models={a: A}"]).pool.models) == ["base", "math", "lang", "a"]
    assert (
        "weight" not in compose_config(["experiment=demo", "~search_space.parameters.weight"]).search_space.parameters
    )
    for word in ("held_out=null", "~held_out", "~fitness@held_out", "fitness@held_out=null"):
        assert compose_config(["experiment=demo", word]).held_out is None
    assert compose_config(["search.weights={}", "pool.models={}"]).pool.models == {}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("pool.models={}", ("changes nothing: mappings are merged", "~pool.models.math", "pool=custom begins with no")),
        ("search_space.parameters={}", ("changes nothing", "~search_space.parameters.weight")),
        ("~pool.models.maths", ("pool.models.maths is not set", "did you mean 'pool.models.math'?")),
        ("~pool.models", ("~pool.models.NAME", "pool=custom begins with no models")),
        ("pool.models.math=null", ("null is no folder", "~pool.models.NAME")),
        ("~search.seed", ("search.seed is always there; another value: search.seed=VALUE",)),
        ("~strategy", ("a configuration has strategy", "strategy=OPTION")),
        ("~fitness", ("~fitness was given; a configuration has fitness; choose another: fitness=OPTION",)),
        ("~evaluator", ("choose another: evaluator=OPTION",)),
        ("~pool", ("choose another: pool=OPTION",)),
        ("hydra=1", ("hydra=1: hydra takes no value of its own",)),
        ("fitness=null", ("fitness=null: null is no option; GROUP=OPTION",)),
        ("fitness=3", ("fitness=3: it is given no name",)),
        ("strategy=true", ("strategy=true: it is given no name",)),
        ("strategy=[cma_es,b]", ("strategy: there is no option 'b'; one name: strategy=OPTION",)),
        ("strategy=cma_es,ga", ("strategy=cma_es,ga: it has several values; one; several are a sweep",)),
        ("search.seed=1,2", ("search.seed=1,2: it has several values",)),
        ("~strategy.popsize", ("strategy.popsize is not set", "it is null already")),
        ("~fitness.taks", ("did you mean 'fitness.tasks'?",)),
    ],
)
def test_what_is_said(word: str, says: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        compose_config(["experiment=demo", word])
    assert len(str(error.value).splitlines()) == 1
    for part in says:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "key",
    [
        *("search", "search.racing", "pool", "pool.models", "search_space", "search_space.parameters"),
        *("strategy", "fitness", "held_out", "evaluator"),
    ],
)
def test_what_is_advised_works(key: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose_config(["experiment=demo", f"{key}={{}}"])
    advised = [word.strip(",;") for word in f"{error.value.allowed} {error.value.do}".split()]
    advised = [word for word in advised if ("=" in word or word.startswith("~")) and word != f"{key}={{}}"]
    assert advised or f"leave {key}={{}} out" in error.value.do
    for word in advised:
        config = compose_config(["experiment=demo", word])
        assert config.pool.base is None or config.pool.base in config.pool.models
