"""Stacks that are not the same all the way: cycles of several kinds of layer, with a prefix and a remainder."""

from __future__ import annotations

import numpy as np
import pytest

from implementations.check.comparator import assert_trees
from implementations.check.dialect import from_numpy, to_numpy
from reference.cases import SIZES, layer_carry, layer_params
from reference.layers import transformer_decoder
from reference.stack import tree_map
from tests.conftest import loaded
from tests.support.laws import assert_bounded


@pytest.mark.torch_backend("eager")
def test_xs_of_a_cycle_are_a_tuple(implementation):
    def scaled(carry, params, x):
        return carry * params + x, carry

    weights, xs = np.array([[2.0, 3.0], [5.0, 7.0]]), np.array([[1.0, 2.0], [3.0, 4.0]])
    arrays = from_numpy(implementation, ((weights[0], weights[1]), np.array(1.0), (xs[0], xs[1])))
    carry, (_, ys, _) = implementation.scan_cycle(implementation.cycled(scaled, scaled), *arrays)
    # ((1 * 2 + 1) * 5 + 3 = 18) * 3 + 2 = 56; 56 * 7 + 4
    assert implementation.to_numpy(carry) == 396
    assert [y.tolist() for y in to_numpy(implementation, ys)] == [[1, 18], [3, 56]]


# Eight layers: one that sees everything, twice local, local, less local, and one more. Here a layer knows its window;
# as xs, one kind of layer would do.
SIZE = SIZES["transformer_decoder"]
CYCLES, WINDOWS = 2, (2, 2, 5)
CYCLE = tuple(layer_params("transformer_decoder", seed, CYCLES, **SIZE) for seed in range(len(WINDOWS)))
FIRST, LAST = (tree_map(lambda a: a[0], layer_params("transformer_decoder", seed, 1, **SIZE)) for seed in (8, 9))
X = layer_carry("transformer_decoder", 0, **SIZE)


def windowed(layer, window):
    return lambda carry, params: layer(carry, params, window)


def expected(dtype, windows=WINDOWS):
    """All layers one after the other, by NumPy."""
    first, cycle, last, x = tree_map(lambda a: a.astype(dtype), (FIRST, list(CYCLE), LAST, X))
    layers = [(first, None)]
    for i in range(CYCLES):
        layers += [
            (tree_map(lambda a, i=i: a[i], params), window) for params, window in zip(cycle, windows, strict=True)
        ]
    for params, window in (*layers, (last, windows[0])):
        x, _ = transformer_decoder(x, params, None if window is None else np.array(window))
    return {"x": x}


LAYERS: dict = {}  # by implementation: one object each, so that each is compiled once


def run(implementation, windows=WINDOWS):
    plain = implementation.LAYERS["transformer_decoder"]
    kinds = LAYERS.setdefault(implementation, {w: windowed(plain, w) for w in (1, *WINDOWS)})
    first, cycle, last, x = from_numpy(implementation, (FIRST, CYCLE, LAST, X))
    x, (before, ys, after) = implementation.scan_cycle(
        implementation.cycled(*(kinds[w] for w in windows)),
        cycle,
        x,
        prefix=[(plain, first)],
        suffix=[(kinds[windows[0]], last)],
    )
    assert (before, ys, after) == ([None], (None,) * len(windows), [None])
    return {"x": implementation.to_numpy(x)}


@pytest.mark.torch_backend("eager")
@pytest.mark.covers("cycles of several kinds of layer, with a prefix and a remainder")
def test_a_prefix_cycles_and_a_remainder_in_one_call(implementation):
    who = f"{implementation.__name__}, scan_cycle"
    assert_trees(who, run(implementation), expected("float64"), expected("float32"), stacked=())


def test_a_cycle_in_another_order_is_caught():
    actual = run(loaded("jax_scan"), WINDOWS[::-1])
    with pytest.raises(AssertionError, match="observed an error"):
        assert_trees("mutant", actual, expected("float64"), expected("float32"), stacked=())


def test_cycles_are_in_the_graph_once():
    implementation = loaded("jax_scan")
    layer = implementation.cycled(*[implementation.LAYERS["mlp"]] * 2)

    def size(N):
        trees = [layer_params("mlp", seed, N, d=64, f=64) for seed in (0, 1)]
        params, x = from_numpy(implementation, (trees, layer_carry("mlp", 0, d=64)))
        return implementation.graph_size(lambda x: implementation.scan_cycle(layer, tuple(params), x)[0], x)

    sizes = {N: size(N) for N in (2, 16)}
    assert_bounded("cycles", sizes, sizes[2], 1, loops=1)
