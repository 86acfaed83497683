import pickle

from evomerge.errors import EvomergeError, PoolError, nearest


def test_an_error_is_one_line_of_its_parts() -> None:
    assert str(EvomergeError("given", "allowed", "do")) == "given; allowed; do"
    assert str(EvomergeError("given", do="do")) == "given; do"


def test_errors_survive_pickling() -> None:
    # Ray sends a worker's errors through pickle
    error = pickle.loads(pickle.dumps(PoolError("given", "allowed", "do")))
    assert isinstance(error, PoolError)
    assert (error.given, error.allowed, error.do) == ("given", "allowed", "do")


def test_nearest_puts_the_likely_choice_first() -> None:
    assert nearest("tis", ["linear", "slerp", "ties"]) == "did you mean 'ties'? (one of: linear, slerp, ties)"
    assert nearest("zzz", ["b", "a"]) == "one of: a, b"
    assert nearest("x", []) == "there are none"
    assert nearest("zzz", ["b\nc\x1b", "ä"]) == "one of: b\\nc\\x1b, ä"


def test_nearest_cuts_long_lists() -> None:
    text = nearest("task_7", [f"task_{i}" for i in range(100)])
    assert text.startswith("did you mean 'task_7'?")
    assert text.endswith("(100 in all))")
    assert len(text) < 120
