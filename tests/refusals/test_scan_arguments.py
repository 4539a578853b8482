"""Bad input of the stacks of any layer: one table, the same exception and the same words in every implementation.

What is wrong with arguments is said before the layer is looked at, what is wrong with the layer after one look at it.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from implementations.check.dialect import flat, ops, with_arrays
from reference.arguments import leaves
from reference.stack import tree_map
from tests.conftest import loaded

pytestmark = pytest.mark.torch_backend("eager")
ANY_ARRAY = "expected an array of this framework (from_numpy makes one)"
X = np.ones(3, np.float32)
W = np.ones((2, 3), np.float32)  # [N, d]


class AsIs:
    """A leaf that stays what it is, where NumPy arrays become the framework's."""

    def __init__(self, value):
        self.value = value


# what -> (arguments, exception, message); the layer is never called
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "leading axes differ": ({"stacked_params": {"w": W, "b": W[:1]}}, ValueError,
        "stacked_params['w']: expected a leading axis of 1 (that of stacked_params['b']), got 2"),
    "leading axes differ, deep down": (
        {"stacked_params": {"a": [W, (None, W)], "b": {"c": np.ones((3, 1), np.float32)}}}, ValueError,
        "stacked_params['b']['c']: expected a leading axis of 2 (that of stacked_params['a'][0]), got 3"),
    "no layers in one": ({"stacked_params": (W, W[:0])}, ValueError,
        "stacked_params[1]: expected a leading axis of 2 (that of stacked_params[0]), got 0"),
    "xs long": ({"stacked_params": W, "xs": [np.ones(3, np.float32)]}, ValueError,
        "xs[0]: expected a leading axis of 2 (that of stacked_params), got 3"),
    "xs of one, which would broadcast": ({"stacked_params": W, "xs": np.ones((1, 3), np.float32)}, ValueError,
        "xs: expected a leading axis of 2 (that of stacked_params), got 1"),
    "params 0-d": ({"stacked_params": {"w": W, "z": np.array(1, np.float32)}}, ValueError,
        "stacked_params['z']: expected a leading axis of layers, got shape ()"),
    "xs 0-d": ({"stacked_params": W, "xs": np.array(1, np.int32)}, ValueError,
        "xs: expected a leading axis of layers, got shape ()"),
    "no params": ({"stacked_params": None}, ValueError, "stacked_params: expected at least one array, got none"),
    "no arrays": ({"stacked_params": {"a": (), "b": [None]}}, ValueError,
        "stacked_params: expected at least one array, got none"),
    "a float for params": ({"stacked_params": {"w": 1.0}}, TypeError, f"stacked_params['w']: {ANY_ARRAY}, got float"),
    "a list of floats": ({"stacked_params": [1.0, 2.0]}, TypeError, f"stacked_params[0]: {ANY_ARRAY}, got float"),
    "text": ({"stacked_params": {"w": W, "x": "w"}}, TypeError, f"stacked_params['x']: {ANY_ARRAY}, got str"),
    "a NumPy array": ({"stacked_params": {"w": AsIs(W)}}, TypeError,
        f"stacked_params['w']: {ANY_ARRAY}, got numpy.ndarray"),
    "a NumPy array as xs": ({"xs": AsIs(W)}, TypeError, f"xs: {ANY_ARRAY}, got numpy.ndarray"),
    "a float for init": ({"init": 1.0}, TypeError, f"init: {ANY_ARRAY}, got float"),
    "an int in init": ({"init": (X, {"n": 0})}, TypeError, f"init[1]['n']: {ANY_ARRAY}, got int"),
    "reverse 1": ({"reverse": 1}, TypeError, "reverse: expected a bool, got 1"),
    "reverse None": ({"reverse": None}, TypeError, "reverse: expected a bool, got None"),
}  # fmt: skip
UNROLL, REMAT = "unroll: expected an int of at least 1", "remat: expected False, True or an int of at least 1"
OPTIONS: dict[str, tuple[Any, ...]] = {
    "unroll 0": ({"unroll": 0}, ValueError, f"{UNROLL}, got 0"),
    "unroll -1": ({"unroll": -1}, ValueError, f"{UNROLL}, got -1"),
    "unroll True": ({"unroll": True}, TypeError, f"{UNROLL}, got True"),
    "unroll 2.0": ({"unroll": 2.0}, TypeError, f"{UNROLL}, got 2.0"),
    "unroll None": ({"unroll": None}, TypeError, f"{UNROLL}, got None"),
    "remat 0": ({"remat": 0}, ValueError, f"{REMAT}, got 0"),
    "remat -2": ({"remat": -2}, ValueError, f"{REMAT}, got -2"),
    "remat 1.5": ({"remat": 1.5}, TypeError, f"{REMAT}, got 1.5"),
    "remat None": ({"remat": None}, TypeError, f"{REMAT}, got None"),
    "remat text": ({"remat": "full"}, TypeError, f"{REMAT}, got 'full'"),
}
PAIR = "layer: expected a pair (new_carry, y), got"
# what -> (init, the layer for o, exception, message)
LAYERS: dict[str, tuple[Any, ...]] = {
    "an array": (X, lambda o: lambda c, p: c, TypeError, f"{PAIR} float32[3]"),
    "an array of two": (X[:2], lambda o: lambda c, p: c, TypeError, f"{PAIR} float32[2]"),
    "a list": (X, lambda o: lambda c, p: [c, None], TypeError, f"{PAIR} [float32[3], None]"),
    "three": (X, lambda o: lambda c, p: (c, None, {"n": p}), TypeError,
        f"{PAIR} (float32[3], None, {{'n': float32[3]}})"),
    "one": (X, lambda o: lambda c, p: (c,), TypeError, f"{PAIR} (float32[3],)"),
    "nothing": (X, lambda o: lambda c, p: None, TypeError, f"{PAIR} None"),
    "a carry of another shape": (
        X[:1],  # added to p, it broadcasts
        lambda o: lambda c, p: (c + p, None),
        ValueError,
        "carry: expected float32[1] (that of init), got float32[3]",
    ),
    "a carry of another rank": ({"h": X}, lambda o: lambda c, p: ({"h": o.sum(c["h"] * p)}, None), ValueError,
        "carry['h']: expected float32[3] (that of init), got float32[]"),
    "a carry of fewer bits": ((X, X), lambda o: lambda c, p: ((c[0], o.cast(c[1], "bfloat16")), None), TypeError,
        "carry[1]: expected float32[3] (that of init), got bfloat16[3]"),
    "a carry of more bits": (X, lambda o: lambda c, p: (o.cast(c, "float64"), None), TypeError,
        "carry: expected float32[3] (that of init), got float64[3]"),
    "a carry with another key": ({"h": X}, lambda o: lambda c, p: ({"h": c["h"], "extra": p}, None), TypeError,
        "carry['extra']: expected no array (that of init), got float32[3]"),
    "a carry without a key": ({"g": X, "h": X}, lambda o: lambda c, p: ({"h": c["h"]}, None), TypeError,
        "carry['g']: expected float32[3] (that of init), got no array"),
    "a list for a tuple": ((X,), lambda o: lambda c, p: ([c[0]], None), TypeError,
        "carry: expected (*,) (that of init), got [*]"),
    "None for nothing": ({"h": X, "none": None}, lambda o: lambda c, p: ({"h": c["h"]}, None), TypeError,
        "carry: expected {'h': *, 'none': None} (that of init), got {'h': *}"),
    "a float as carry": (X, lambda o: lambda c, p: (1.0, None), TypeError, f"carry: {ANY_ARRAY}, got float"),
    "a float as y": (X, lambda o: lambda c, p: (c, {"s": 1.0}), TypeError, f"y['s']: {ANY_ARRAY}, got float"),
    "text as y": (X, lambda o: lambda c, p: (c, "y"), TypeError, f"y: {ANY_ARRAY}, got str"),
}  # fmt: skip


# what -> (function, arguments, exception, message)
TRANSFORMS: dict[str, tuple[Any, ...]] = {
    "cotangents, an array": ("vjp_layers", {"cotangents": X}, TypeError,
        "cotangents: expected a tuple of carry, ys, got float32[3]"),
    "cotangents of one": ("vjp_layers", {"cotangents": (X,)}, TypeError,
        "cotangents: expected a tuple of carry, ys, got (float32[3],)"),
    "cotangents, a list": ("vjp_layers", {"cotangents": [X, None]}, TypeError,
        "cotangents: expected a tuple of carry, ys, got [float32[3], None]"),
    "cotangents of another shape": ("vjp_layers", {"cotangents": (X[:1], None)}, ValueError,
        "cotangents[0]: expected float32[3] (that of carry), got float32[1]"),
    "cotangents of another dtype": ("vjp_layers", {"cotangents": (X.astype(np.float64), None)}, TypeError,
        "cotangents[0]: expected float32[3] (that of carry), got float64[3]"),
    "cotangents, a float": ("vjp_layers", {"cotangents": (1.0, None)}, TypeError,
        f"cotangents[0]: {ANY_ARRAY}, got float"),
    "a cotangent where there is no y": ("vjp_layers", {"cotangents": (X, W)}, TypeError,
        "cotangents[1]: expected no array (that of ys), got float32[2, 3]"),
    "tangents of two": ("jvp_layers", {"tangents": (W, X)}, TypeError,
        "tangents: expected a tuple of stacked_params, init, xs, got (float32[2, 3], float32[3])"),
    "tangents of another depth": ("jvp_layers", {"tangents": (W[:1], X, None)}, ValueError,
        "tangents[0]: expected float32[2, 3] (that of stacked_params), got float32[1, 3]"),
    "tangents, hvp": ("hvp_layers", {"tangents": (W, {"h": X}, None)}, TypeError,
        "tangents[1]: expected float32[3] (that of init), got no array"),
    "in_axes, an int": ("vmap_layers", {"in_axes": 0}, TypeError,
        "in_axes: expected an axis or None for each of stacked_params, init, xs, got 0"),
    "in_axes of two": ("vmap_layers", {"in_axes": (0, None)}, TypeError,
        "in_axes: expected an axis or None for each of stacked_params, init, xs, got (0, None)"),
    "in_axes of bools": ("vmap_layers", {"in_axes": (False, True, None)}, TypeError,
        "in_axes: expected an axis or None for each of stacked_params, init, xs, got (False, True, None)"),
    "in_axes of None": ("vmap_layers", {"in_axes": (None, None, None)}, ValueError,
        "in_axes: expected at least one axis, got (None, None, None)"),
    "in_axes beyond": ("vmap_layers", {"in_axes": (None, 1, None)}, ValueError,
        "init: expected a batch along axis 1, got shape (3,)"),
    "batches differ": ("vmap_layers", {"in_axes": (0, 0, None)}, ValueError,
        "init: expected a batch of 2 along axis 0 (that of stacked_params), got shape (3,)"),
    "batches differ, cotangents": (
        "vmap_vjp_layers", {"init": np.ones((4, 3), np.float32), "cotangents": (W, None)}, ValueError,
        "cotangents[0]: expected a batch of 4 along axis 0 (that of init), got shape (2, 3)"),
    "batches differ, gradients": ("vmap_vjp_layers", {"in_axes": (0, 0, None), "cotangents": (X, None)}, ValueError,
        "init: expected a batch of 2 along axis 0 (that of stacked_params), got shape (3,)"),
}  # fmt: skip


# Tests.


def arrays_of(implementation, tree):
    def convert(leaf):
        if isinstance(leaf, AsIs):
            return leaf.value
        return implementation.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf

    return tree_map(convert, tree)


def never(*_):
    raise AssertionError("the layer was called")


def keep(carry, params):
    return carry, None


def arguments_for(implementation, **given):
    return arrays_of(implementation, {"stacked_params": W, "init": X} | given)


def assert_refused(implementation, form, layer, arguments, exception, message, looks=0):
    """Exactly this type, exactly these words, no program made, and the layer called at most `looks` times."""
    calls = []

    def counted(*args):
        calls.append(args)
        return layer(*args)

    before = implementation.program_count()
    with pytest.raises(exception) as caught:
        getattr(implementation, form)(counted, **arguments)
    assert type(caught.value) is exception
    assert str(caught.value) == message
    assert len(calls) <= looks
    assert implementation.program_count() == before


def assert_said_inside(implementation, form, layer, arguments, message):
    """Inside the user's compiled function the type may be wrapped and text put around, but the words arrive."""
    arrays = [leaf for leaf in flat(arguments) if implementation.as_leaf(leaf) is not None]

    def program(*arrays):
        rest = iter(arrays)
        inside = tree_map(lambda a: a if implementation.as_leaf(a) is None else next(rest), arguments)
        return getattr(implementation, form)(layer, **inside)

    with pytest.raises(Exception, match=re.escape(message)):
        implementation.compile(program)(*arrays)


bad_arguments = pytest.mark.parametrize(("given", "exception", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
bad_options = pytest.mark.parametrize(("given", "exception", "message"), OPTIONS.values(), ids=OPTIONS)
bad_layers = pytest.mark.parametrize(("init", "make", "exception", "message"), LAYERS.values(), ids=LAYERS)
bad_for_transforms = pytest.mark.parametrize(
    ("form", "given", "exception", "message"), TRANSFORMS.values(), ids=TRANSFORMS
)
both_forms = pytest.mark.parametrize("form", ["scan_layers", "unroll_layers"])


@both_forms
@bad_arguments
def test_bad_arguments(implementation, form, given, exception, message):
    assert_refused(implementation, form, never, arguments_for(implementation, **given), exception, message)


@bad_options
def test_bad_options(implementation, given, exception, message):
    assert_refused(implementation, "scan_layers", never, arguments_for(implementation, **given), exception, message)


@both_forms
@bad_layers
def test_bad_layers(implementation, form, init, make, exception, message):
    layer = make(ops(implementation.__name__))
    arguments = arguments_for(implementation, init=init)
    assert_refused(implementation, form, layer, arguments, exception, message, looks=1)


def more_for(implementation, form):
    """What else a transform asks for, right."""
    total = ops(implementation.__name__).sum
    more: dict[str, Any] = {
        "vjp_layers": {"cotangents": (None, None)},
        "jvp_layers": {"tangents": (None, None, None)},
        "hvp_layers": {"tangents": (None, None, None), "loss": lambda carry, ys: total(carry)},
        "vmap_layers": {"in_axes": (None, 0, None)},
        "vmap_vjp_layers": {"in_axes": (None, 0, None), "cotangents": (None, None)},
    }
    return more[form]


@bad_for_transforms
def test_bad_tangents_and_axes(implementation, form, given, exception, message):
    arguments = arguments_for(implementation, **more_for(implementation, form) | given)
    with pytest.raises(exception) as caught:
        getattr(implementation, form)(keep, **arguments)
    assert type(caught.value) is exception
    assert str(caught.value) == message


@pytest.mark.parametrize("form", ["vjp_layers", "jvp_layers", "hvp_layers"])
def test_transforms_say_the_same_of_arguments_and_layers(implementation, form):
    more = more_for(implementation, form)
    for bad, exception, message in (ARGUMENTS["leading axes differ"], *OPTIONS.values()):
        assert_refused(implementation, form, never, arguments_for(implementation, **more | bad), exception, message)
    for name in ("an array of two", "a carry of another shape"):
        init, make, exception, message = LAYERS[name]
        layer, arguments = make(ops(implementation.__name__)), arguments_for(implementation, init=init, **more)
        assert_refused(implementation, form, layer, arguments, exception, message, looks=1)


@bad_arguments
def test_words_of_arguments_stand_inside_the_users_function(implementation, given, exception, message):
    words = message.replace("numpy.ndarray", "numpy")  # torch takes a NumPy array for a scalar of NumPy here
    assert_said_inside(implementation, "scan_layers", keep, arguments_for(implementation, **given), words)


SPARSE = {
    "torch_compile": lambda array: array.to_sparse(),
    "tf_while": lambda array: importlib.import_module("tensorflow").sparse.from_dense(array),
}


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_arrays(name):
    """JAX's are containers of arrays, and are taken for those."""
    implementation = loaded(name)
    array = implementation.from_numpy(np.eye(3, dtype=np.float32))
    with pytest.raises(TypeError, match=f"init: {re.escape(ANY_ARRAY)}, got .*parse"):
        implementation.scan_layers(lambda c, p: (c, None), array[None], SPARSE[name](array))


@pytest.mark.parametrize("name", ["unroll 0", "remat None"])
def test_words_of_options_stand_inside_the_users_function(implementation, name):
    given, _, message = OPTIONS[name]
    assert_said_inside(implementation, "scan_layers", keep, arguments_for(implementation, **given), message)


@bad_layers
def test_words_of_layers_stand_inside_the_users_function(implementation, init, make, exception, message):
    layer = make(ops(implementation.__name__))
    assert_said_inside(implementation, "scan_layers", layer, arguments_for(implementation, init=init), message)


trees = st.recursive(
    st.just("*") | st.none(),
    lambda tree: st.dictionaries(st.sampled_from("abc"), tree, max_size=3) | st.lists(tree, max_size=3).map(tuple),
    max_leaves=6,
)


@given(trees=st.tuples(trees, trees), sizes=st.permutations([0, 1, 2, 3]), seed=st.integers(0, 99))
def test_any_leaf_of_another_depth_is_named(implementation, trees, sizes, seed):
    """Of whatever tree, in whatever place, whichever size: nothing is cut off, clamped or broadcast."""
    paths = [path for name, tree in zip(("stacked_params", "xs"), trees, strict=True) for path, _ in leaves(name, tree)]
    if len(paths) < 2:
        return
    bad, (N, other, *_) = seed % len(paths), sizes
    depths = [other if k == bad else N for k in range(len(paths))]
    arrays = [implementation.from_numpy(np.ones((depth, 2), np.float32)) for depth in depths]
    stacked_params, xs = with_arrays(trees, arrays)
    # the first leaf says how many there are; where it is the bad one, the second is the first to differ
    named, expected, got = (paths[bad], N, other) if bad else (paths[1], other, N)
    message = f"{named}: expected a leading axis of {expected} (that of {paths[0]}), got {got}"
    for form in ("scan_layers", "unroll_layers"):
        arguments = {"stacked_params": stacked_params, "init": implementation.from_numpy(X), "xs": xs}
        assert_refused(implementation, form, never, arguments, ValueError, message)
