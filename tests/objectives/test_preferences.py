from __future__ import annotations

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.preferences import (
    distances,
    drawn,
    lattice,
    named_or_lattice,
    nearest_by,
    preference,
    read_preference,
    scale_of,
    written,
)

NAMES = ("maths", "chat")


def test_weights_sum_to_one_whatever_they_were() -> None:
    assert preference({"maths": 3, "chat": 1}, NAMES, "p") == (0.75, 0.25)
    assert preference({"chat": 1e308, "maths": 1e308}, NAMES, "p") == (0.5, 0.5)
    assert read_preference(" maths = 0.7, chat=.3 ", NAMES, "p") == pytest.approx((0.7, 0.3))
    assert read_preference("chat=2", NAMES, "p") == (0.0, 1.0)
    assert written((0.0, 1.0), NAMES) == "chat=1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chta=1", "p has 'chta'; did you mean 'chat'?"),
        ("chat=-0.1", "p.chat is -0.1"),
        ("chat=inf", "p.chat is inf"),
        ("chat=nan", "p has 'chat=nan'; NAME=WEIGHT"),
        ("chat", "p has 'chat'; NAME=WEIGHT"),
        ("chat=1,", "p has ''"),
        ("chat=1,chat=2", "p names 'chat' twice"),
        ("chat=0,maths=0", "p weighs nothing"),
    ],
)
def test_what_is_no_preference_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_preference(text, NAMES, "p")
    assert message in str(error.value)


def test_a_lattice_is_even_and_has_the_corners() -> None:
    assert lattice(2, 3).tolist() == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    halves = [[1, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]]
    assert lattice(3, 9).tolist() == halves  # 10 would be thirds
    assert len(lattice(3, 10)) == 10
    assert lattice(4, 4).tolist() == np.eye(4).tolist()
    assert lattice(1, 3).tolist() == [[1.0]] * 3
    assert np.allclose(lattice(5, 200).sum(axis=1), 1.0)


def test_drawn_weights_are_uniform_among_those_that_sum_to_one() -> None:
    """Of Dirichlet(1) over three: each has mean 1/3 and variance 1/18."""
    found = drawn(3, 20_000, seed=0)
    assert np.allclose(found.sum(axis=1), 1.0)
    assert found.mean(axis=0) == pytest.approx([1 / 3] * 3, abs=0.01)
    assert found.var(axis=0) == pytest.approx([1 / 18] * 3, abs=0.002)
    assert (drawn(3, 5, seed=0) == found[:5]).all()


def test_distances_by_hand() -> None:
    """Ideal (1, 10), scale (1, 5): the point (0.5, 10) misses (0.5, 0), (1.2, 7) misses (-0.2, 0.6)."""
    points, ideal, scale = np.array([[0.5, 10.0], [1.2, 7.0]]), np.array([1.0, 10.0]), np.array([1.0, 5.0])
    found = distances(points, np.array([[0.5, 0.5], [1.0, 0.0]]), ideal, scale)
    assert found == pytest.approx(np.array([[0.25 + 5e-4, 0.5 + 5e-4], [0.3 + 4e-4, -0.2 + 4e-4]]))


def test_the_scale_is_the_front_s_own_range() -> None:
    gains = np.array([[1.0, 0.0], [0.5, 3.0], [0.2, 2.0]])  # the last is dominated
    assert scale_of(gains, gains.max(axis=0)).tolist() == [0.5, 3.0]
    assert scale_of(gains[:1], gains[0]).tolist() == [1.0, 1.0]


def test_the_nearest_changes_with_the_preference() -> None:
    gains = np.array([[0.9, 10.0], [0.6, 70.0], [0.1, 90.0]])
    assert [nearest_by(gains, (w, 1 - w)) for w in (1.0, 0.8, 0.5, 0.1, 0.0)] == [0, 0, 1, 2, 2]
    assert nearest_by(np.array([[0.9, 10.0], [0.9, 20.0]]), (1.0, 0.0)) == 1  # dominated is farther


def test_a_configuration_gives_a_number_or_a_list() -> None:
    assert named_or_lattice(2, NAMES, "k").tolist() == [[1, 0], [0, 1]]
    assert named_or_lattice([{"chat": 2}], NAMES, "k").tolist() == [[0, 1]]
    for wanted in (True, "5", 2.0, None, {"maths": 1}, [3], []):
        with pytest.raises(ConfigError, match="k"):
            named_or_lattice(wanted, NAMES, "k")
