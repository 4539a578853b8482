"""Layers to stacked parameters and back, in memory: bytes, structure, order, and the words of every error."""

from __future__ import annotations

import tracemalloc
from collections import OrderedDict
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from implementations.checkpoints import checkpoint
from implementations.checkpoints.checkpoint import stack_names
from reference.arguments import leaves
from tests.support.checkpoints import DTYPES, as_bytes, assert_refused, random_array, stacked_bytes, zeros

# Any: they are also called in ways that their types forbid.
stack_params: Any = checkpoint.stack_params
unstack_params: Any = checkpoint.unstack_params


class Pair(NamedTuple):
    w: Any
    b: Any


def shape_of(tree):
    """The tree with dtype, shape and bytes in the place of arrays: equal where trees are the same."""
    if isinstance(tree, dict):
        return {key: shape_of(item) for key, item in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree).__name__, [shape_of(item) for item in tree]
    return None if tree is None else as_bytes(tree)


def layer(random):
    return {
        "attention": (
            random_array(random, (2, 3), DTYPES[0]),
            [random_array(random, (3,), np.dtype(ml_dtypes.bfloat16))],
        ),
        "pair": Pair(random_array(random, (), np.dtype("int64")), None),
        "scale": random_array(random, (), np.dtype("float64")),
        3: random_array(random, (2, 0), np.dtype("bool")),
    }


def test_trees_there_and_back():
    random = np.random.default_rng(0)
    trees = [layer(random) for _ in range(12)]
    stacked = stack_params(trees)
    assert stacked["attention"][0].shape == (12, 2, 3)
    assert stacked["scale"].shape == (12,)  # of shape () in a layer
    assert isinstance(stacked["pair"], Pair)
    assert stacked["pair"].b is None
    for path, array in leaves("", stacked):
        alone = [dict(leaves("", tree))[path] for tree in trees]
        assert as_bytes(array) == stacked_bytes(alone, 0), path
    assert [shape_of(tree) for tree in unstack_params(stacked)] == [shape_of(tree) for tree in trees]


def test_the_example_of_the_docstring():
    trees = [{"w": np.eye(2)}, {"w": np.eye(2)[::-1]}]
    assert stack_params(trees)["w"].tolist() == [[[1, 0], [0, 1]], [[0, 1], [1, 0]]]
    assert stack_params(trees, axis=1)["w"].shape == (2, 2, 2)
    assert stack_names({"h.0.w": np.eye(2), "h.1.w": np.eye(2)[::-1]})["h.w"].tolist() == [
        [[1, 0], [0, 1]],
        [[0, 1], [1, 0]],
    ]


arrays = st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple), st.sampled_from(DTYPES))
trees = st.recursive(
    arrays | st.none(),
    lambda parts: (
        st.dictionaries(st.sampled_from(["w", "b", 1, "1"]), parts, max_size=3)
        | st.lists(parts, max_size=3)
        | st.lists(parts, max_size=3).map(tuple)
        | st.tuples(parts, parts).map(lambda pair: Pair(*pair))
    ),
    max_leaves=6,
)


def filled(tree, random):
    if isinstance(tree, dict):
        return {key: filled(item, random) for key, item in tree.items()}
    if isinstance(tree, tuple) and len(tree) == 2 and isinstance(tree[1], np.dtype):
        return random_array(random, *tree)
    if isinstance(tree, Pair):
        return Pair(*(filled(item, random) for item in tree))
    return None if tree is None else type(tree)(filled(item, random) for item in tree)


@given(trees, st.integers(1, 12), st.integers(-2, 1), st.integers(0, 99))
def test_any_tree_there_and_back(tree, num_layers, axis, seed):
    random = np.random.default_rng(seed)
    layers = [filled(tree, random) for _ in range(num_layers)]
    if not list(leaves("", layers[0])):
        with pytest.raises(ValueError, match=r"^layer 0: expected at least one array, got none$"):
            stack_params(layers, axis)
        return
    stacked = stack_params(layers, axis)
    for (path, array), *alone in zip(leaves("", stacked), *(leaves("", one) for one in layers), strict=True):
        assert as_bytes(array) == stacked_bytes([one for _, one in alone], axis), path
    assert [shape_of(one) for one in unstack_params(stacked, axis)] == [shape_of(one) for one in layers]


def test_unstacking_makes_views_and_stacking_does_not():
    stacked = {"w": np.zeros((3, 2, 2)), "b": np.zeros(3)}
    layers = unstack_params(stacked)
    assert all(np.shares_memory(one["w"], stacked["w"]) and np.shares_memory(one["b"], stacked["b"]) for one in layers)
    again = stack_params(layers)
    assert not np.shares_memory(again["w"], stacked["w"])


def test_no_layers_unstack_to_no_trees():
    assert unstack_params({"w": np.zeros((0, 2))}) == []


def test_a_stack_is_held_once():
    """A copy of a layer or of the list would be at least one layer more, 1/8 of it."""
    layers: list[Any] = [{"w": np.ones(1 << 17), "b": np.ones(1 << 17, np.float32)} for _ in range(8)]
    size = 8 * (layers[0]["w"].nbytes + layers[0]["b"].nbytes)
    tracemalloc.start()
    try:
        stack_params(layers, axis=1)
        assert size <= tracemalloc.get_traced_memory()[1] < 1.05 * size
    finally:
        tracemalloc.stop()


def test_what_may_differ_between_layers():
    """The order of keys, NumPy's scalars for arrays of shape (), the layout in memory."""
    a: Any = {"w": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "s": np.float32(1)}
    b: Any = {"s": np.array(2, np.float32), "w": np.arange(12.0).reshape(2, 6)[:, ::2]}
    stacked = stack_params([a, b])
    assert list(stacked) == ["w", "s"]
    np.testing.assert_array_equal(stacked["w"], np.stack([a["w"], b["w"]]))
    assert stacked["s"].tolist() == [1, 2]


W = {"w": zeros(4)}
TREE_ERRORS = {
    "no list": (lambda: stack_params(W), TypeError, "trees: expected a list of trees, one a layer, got dict"),
    "no layer": (lambda: stack_params([]), ValueError, "trees: expected at least one layer, got none"),
    "no array": (lambda: stack_params([{}, {}]), ValueError, "layer 0: expected at least one array, got none"),
    "missing key": (
        lambda: stack_params([{"a": W, "b": W}, {"a": W, "b": W}, {"a": W}]),
        TypeError,
        "layer 2['b']['w']: expected float32[4] (that of layer 0), got no array",
    ),
    "extra key": (
        lambda: stack_params([W, W | {"b": zeros(2)}]),
        TypeError,
        "layer 1['b']: expected no array (that of layer 0), got float32[2]",
    ),
    "None": (
        lambda: stack_params([W, {"w": None}]),
        TypeError,
        "layer 1['w']: expected float32[4] (that of layer 0), got no array",
    ),
    "other container": (
        lambda: stack_params([(zeros(4), zeros(4)), [zeros(4), zeros(4)]]),
        TypeError,
        "layer 1: expected (*, *) (that of layer 0), got [*, *]",
    ),
    "empty container": (
        lambda: stack_params([W | {"b": ()}, W | {"b": []}]),
        TypeError,
        "layer 1: expected {'b': (), 'w': *} (that of layer 0), got {'b': [], 'w': *}",
    ),
    "named tuple": (
        lambda: stack_params([{"a": Pair(zeros(4), zeros(4))}, {"a": (zeros(4), zeros(4))}]),
        TypeError,
        "layer 1['a'].w: expected float32[4] (that of layer 0), got no array",
    ),
    "ordered dict": (
        lambda: stack_params([W, OrderedDict(W)]),
        TypeError,
        "layer 1: expected {'w': *} (that of layer 0), got OrderedDict({'w': *})",
    ),
    "shape": (
        lambda: stack_params([[W], [W], [{"w": zeros(8)}]]),
        ValueError,
        "layer 2[0]['w']: expected float32[4] (that of layer 0), got float32[8]",
    ),
    "shape that would broadcast": (
        lambda: stack_params([W, {"w": zeros(1)}]),
        ValueError,
        "layer 1['w']: expected float32[4] (that of layer 0), got float32[1]",
    ),
    "dtype": (
        lambda: stack_params([W, {"w": zeros(4, dtype=ml_dtypes.bfloat16)}]),
        TypeError,
        "layer 1['w']: expected float32[4] (that of layer 0), got bfloat16[4]",
    ),
    "byte order": (
        lambda: stack_params([W, {"w": zeros(4, dtype=">f4")}]),
        TypeError,
        "layer 1['w']: expected float32[4] (that of layer 0), got >f4[4]",
    ),
    "float": (lambda: stack_params([W, {"w": 1.0}]), TypeError, "layer 1['w']: expected a NumPy array, got float"),
    "masked": (
        lambda: stack_params([{"w": np.ma.masked_array([1.0, 2.0], [True, False])}]),
        TypeError,
        "layer 0['w']: expected a NumPy array, got numpy.ma.MaskedArray",
    ),
    "objects": (
        lambda: stack_params([{"w": np.array([None])}]),
        TypeError,
        "layer 0['w']: expected a NumPy array, got one of objects",
    ),
    "axis": (
        lambda: stack_params([{"b": zeros(3)}], axis=2),
        ValueError,
        "axis: expected -2 to 1 (for layer 0['b'] of shape (3,)), got 2",
    ),
    "axis below": (
        lambda: stack_params([{"b": zeros(3)}], axis=-3),
        ValueError,
        "axis: expected -2 to 1 (for layer 0['b'] of shape (3,)), got -3",
    ),
    "axis no int": (lambda: stack_params([W], axis=True), TypeError, "axis: expected an int, got True"),
    "leading axes": (
        lambda: unstack_params({"b": zeros(3), "w": zeros(4, 4)}),
        ValueError,
        "stacked_params['w']: expected 3 layers along axis 0 (that of stacked_params['b']), got 4",
    ),
    "no leading axis": (
        lambda: unstack_params([zeros()]),
        ValueError,
        "stacked_params[0]: expected an axis 0 of layers, got shape ()",
    ),
    "no axis": (
        lambda: unstack_params({"w": zeros(3, 3), "z": zeros(3)}, axis=-2),
        ValueError,
        "stacked_params['z']: expected an axis -2 of layers, got shape (3,)",
    ),
    "nothing": (lambda: unstack_params({}), ValueError, "stacked_params: expected at least one array, got none"),
    "list": (
        lambda: unstack_params({"w": "abc"}),
        TypeError,
        "stacked_params['w']: expected a NumPy array, got str",
    ),
    "unstack axis": (lambda: unstack_params(W, axis=1.0), TypeError, "axis: expected an int, got 1.0"),
}


@pytest.mark.parametrize("case", TREE_ERRORS)
def test_trees_that_do_not_fit(case):
    assert_refused(*TREE_ERRORS[case])
