import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.genomes.arrays import ArrayGenome
from evomerge.genomes.encoding import pack_genomes, unpack_genomes
from evomerge.genomes.genome import Genome
from evomerge.genomes.lineages import LineageGenome
from evomerge.run.state_files import StateError, from_bytes, to_bytes


def test_values_come_back_as_they_were() -> None:
    arrays = [np.array(3.5), np.zeros((0, 4)), np.arange(6)[::2], np.array([True]), np.array([1, 2], np.uint32)]
    tree = {
        "arrays": arrays,
        "numbers": [0.1, 1e-310, 2**200, -0.0, np.float64(0.3), np.int64(4)],
        "nested": {"none": None, "text": "é", "yes": True, "pair": (1, 2)},
    }
    again = from_bytes(*to_bytes(tree))
    for before, after in zip(arrays, again["arrays"], strict=True):
        assert before.dtype == after.dtype
        assert before.shape == after.shape
        assert np.array_equal(before, after)
    assert [repr(x) for x in again["numbers"]] == ["0.1", "1e-310", repr(2**200), "-0.0", "0.3", "4"]
    assert again["nested"] == {"none": None, "text": "é", "yes": True, "pair": [1, 2]}
    assert np.isnan(from_bytes(*to_bytes({"x": float("nan")}))["x"])


SHAPE = b'{"a":{"__array__":"0","shape":[9223372036854775808]}}'


@pytest.mark.parametrize(
    "text", [b"[1]", b"{", b'{"a":{"__array__":"7","shape":[1]}}', b'{"a":{"__float__":"x"}}', SHAPE]
)
def test_malformed_states_are_errors(text: bytes) -> None:
    with pytest.raises(StateError):
        from_bytes(text, to_bytes({"a": np.arange(3)})[1])
    with pytest.raises(StateError):
        from_bytes(b"{}", b"short")


def test_genomes_of_every_kind_come_back_equal() -> None:
    a, b = LineageGenome(("a",)), LineageGenome(("b",))
    child = LineageGenome((0.25, 0.5), (a, b))
    genomes = [
        Genome((0.1, 3, "linear", True)),
        ArrayGenome(np.array([0.5, -1.0], np.float32)),
        child,
        LineageGenome((0.5, 0.75), (child, a)),
        b,
        Genome((1.0,)),
    ]
    packed = pack_genomes(genomes)
    assert len(packed["nodes"]) == 4  # shared ancestors are there once
    again = unpack_genomes(from_bytes(*to_bytes(packed)))
    assert again == genomes
    assert [type(value) for value in again[0].values] == [float, int, str, bool]
    with pytest.raises(ConfigError, match="saved genomes are malformed"):
        unpack_genomes({"genomes": [["lineage", 5]], "nodes": [], "arrays": []})
