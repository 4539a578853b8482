"""A list of trees to one stacked tree and back: bytes, containers, gradients."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from implementations.check.dialect import from_numpy, pullback, to_numpy
from reference.stack import tree_map
from tests.conftest import loaded

pytestmark = pytest.mark.torch_backend("eager")


def test_two_layers_by_hand(implementation):
    trees = [from_numpy(implementation, {"w": np.array(value)}) for value in (2.0, 3.0)]
    stacked = implementation.stack_layers(trees)
    assert implementation.to_numpy(stacked["w"]).tolist() == [2, 3]
    rows = implementation.unstack_layers(stacked)
    assert [float(implementation.to_numpy(row["w"])) for row in rows] == [2, 3]
    carry, _ = implementation.scan_layers(lambda c, p: (c * p["w"], None), stacked, rows[0]["w"])
    assert float(implementation.to_numpy(carry)) == 12


def layers(N):
    """Trees of many dtypes, the keys of every other one in another order."""
    rng = np.random.default_rng(0)
    for i in range(N):
        tree = {
            "b": rng.standard_normal(4).astype(ml_dtypes.bfloat16),
            "attention": [rng.standard_normal((2, 3)), None, (np.array(i, np.int32), np.array([i > 1]))],
            "scale": np.array(0.5 + i, np.float16),
            "empty": {},
            "z": (rng.standard_normal(2) + 1j * rng.standard_normal(2)).astype(np.complex64),
            "none": np.zeros((0, 2), np.float32),
        }
        yield dict(reversed(tree.items())) if i % 2 else tree


def assert_equal(actual, expected):
    tree_map(lambda e, a: np.testing.assert_array_equal(a, e, strict=True), expected, actual)
    assert [*sorted(actual)] == [*sorted(expected)]
    assert actual["attention"][1] is None


@pytest.mark.parametrize("N", [1, 2, 5])
@pytest.mark.covers("a list of layers to a stack, and back")
def test_there_and_back_byte_for_byte(implementation, N):
    trees = list(layers(N))
    stacked = implementation.stack_layers([from_numpy(implementation, tree) for tree in trees])
    assert_equal(to_numpy(implementation, stacked), tree_map(lambda *arrays: np.stack(arrays), *trees))
    rows = implementation.unstack_layers(stacked)
    assert len(rows) == N
    for row, tree in zip(rows, trees, strict=True):
        assert_equal(to_numpy(implementation, row), tree)


def test_gradients_go_to_each_layer_and_come_from_each(implementation):
    """Of 2 c[0] and 3 c[1]^2, where c is 5 and 7."""
    inputs = np.array(5.0), np.array(7.0)

    def there(a, b):
        stacked = implementation.stack_layers([{"c": a}, {"c": b}])["c"]
        return 2 * stacked[0] + 3 * stacked[1] ** 2

    def back(a, b):
        first, second = implementation.unstack_layers(implementation.stack_layers((a, b)))
        return 2 * first + 3 * second**2

    for function in (there, back):
        y, gradients = pullback(implementation, function, inputs, np.array(1.0))
        assert (y, *gradients) == (157, 2, 42)


def test_layers_of_torch_are_views_of_the_stack():
    """Where the framework has views, nothing is copied on the way back."""
    implementation = loaded("torch_compile")
    (w,) = from_numpy(implementation, (np.arange(6.0).reshape(3, 2),))
    _, row = implementation.unstack_layers([w])[:2]
    row[0].add_(10)
    assert w.tolist() == [[0, 1], [12, 13], [4, 5]]
