"""Keys that are added with + and that nothing reads."""

import pytest

from evomerge.config.compose import compose_config
from evomerge.config.overrides import set_value
from evomerge.errors import ConfigError


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("+a.b.c=1", "there is no key 'a.b.c'; one of: "),
        ("+serach.evaluations=3", "there is no key 'serach.evaluations'; did you mean 'search.evaluations'?"),
        ("+search.evalutions=3", "there is no key 'search.evalutions'; did you mean 'search.evaluations'?"),
        (
            "+search.checkpoint.keeep=3",
            "there is no key 'search.checkpoint.keeep'; did you mean 'search.checkpoint.keep'?",
        ),
        ("+pool.dtyp=float32", "there is no key 'pool.dtyp'; did you mean 'pool.dtype'?"),
        ("+pool.models_of.a=b", "there is no key 'pool.models_of.a'; "),
        ("++naem=x", "there is no key 'naem'; did you mean 'name'?"),
        ("+a={b: 1}", "there is no key 'a.b'; "),
    ],
)
def test_they_are_named_with_the_nearest(word: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(["experiment=demo", word])
    assert str(caught.value).startswith(says)


def test_what_a_value_refers_to_is_read() -> None:
    config = compose_config(["+mine.seed=3", "search.seed=${mine.seed}"])
    assert config.search.seed == 3
    assert compose_config(["+pool.models.new=/some/folder"]).pool.models == {"new": "/some/folder"}


def test_runs_that_go_on_refuse_them_too() -> None:
    config = compose_config(["experiment=demo"])
    with pytest.raises(ConfigError, match=r"there is no key 'a\.b\.c'"):
        set_value(config, "a.b.c", "1")  # type: ignore[arg-type]
