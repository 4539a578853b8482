"""Bad input of the stacks of any layer: one table, the same exception and the same words in every implementation.

What is wrong with arguments is said before the layer is looked at, what is wrong with the layer after one look at it.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.arguments import leaves
from reference.stack import tree_map
from tests.support.bad_stacks import ARGUMENTS, LAYERS, OPTIONS, TRANSFORMS, AsIs, W, X
from tests.support.dialect import flat, ops, with_arrays

pytestmark = pytest.mark.usefixtures("captured_only")


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
