"""A layer that is unlike the others is refused by its number and its leaf, in the same words in every framework."""

from __future__ import annotations

import numpy as np
import pytest

from implementations.check.comparator import assert_close
from implementations.check.dialect import from_numpy
from tests.support.modules import affine, arrays_of

pytestmark = pytest.mark.torch_backend("eager")


def test_a_layer_of_another_width_by_hand(implementation):
    trees = from_numpy(implementation, [{"w": np.zeros((2, d), np.float32)} for d in (2, 2, 3)])
    with pytest.raises(ValueError, match=r"trees\[2\]") as caught:
        implementation.stack_layers(trees)
    assert str(caught.value) == "trees[2]['w']: expected float32[2, 2] (that of trees[0]), got float32[2, 3]"


def tree(**changes):
    whole = {"w": np.zeros((2, 2), np.float32), "b": [np.zeros(2, np.float32), None]}
    return {key: value for key, value in (whole | changes).items() if value is not None}


VECTOR = np.zeros(2, np.float32)
BAD = {
    "shape": (tree(w=VECTOR), ValueError, "['w']: expected float32[2, 2] (that of trees[0]), got float32[2]"),
    "dtype": (
        tree(b=[VECTOR.astype(np.float16), None]),
        TypeError,
        "['b'][0]: expected float32[2] (that of trees[0]), got float16[2]",
    ),
    "missing": (tree(w=None), TypeError, "['w']: expected float32[2, 2] (that of trees[0]), got no array"),
    "extra": (tree(c=VECTOR), TypeError, "['c']: expected no array (that of trees[0]), got float32[2]"),
    "for None": (tree(b=[VECTOR] * 2), TypeError, "['b'][1]: expected no array (that of trees[0]), got float32[2]"),
    "container": (
        tree(b=(VECTOR, None)),
        TypeError,
        ": expected {'b': [*, None], 'w': *} (that of trees[0]), got {'b': (*, None), 'w': *}",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_layer_that_differs_is_named(implementation, what):
    bad, kind, words = BAD[what]
    trees = [from_numpy(implementation, one) for one in (tree(), tree(), bad, tree())]
    with pytest.raises(kind) as caught:
        implementation.stack_layers(trees)
    assert (type(caught.value), str(caught.value)) == (kind, f"trees[2]{words}")


def test_what_is_no_list_of_layers(implementation):
    (w,) = from_numpy(implementation, (np.zeros((3, 2), np.float32),))
    for trees, kind, words in (
        (w, TypeError, "trees: expected a list of layers, got float32[3, 2]"),
        ({"w": w}, TypeError, "trees: expected a list of layers, got {'w': float32[3, 2]}"),
        (3, TypeError, "trees: expected a list of layers, got int"),
        ([], ValueError, "trees: expected at least one layer, got none"),
    ):
        with pytest.raises(kind) as caught:
            implementation.stack_layers(trees)
        assert (type(caught.value), str(caught.value)) == (kind, words)


def test_a_leaf_that_is_no_array_of_the_framework(implementation):
    with pytest.raises(TypeError, match=r"^trees\[0\]\['w'\]: expected an array of this framework .* got float$"):
        implementation.stack_layers([{"w": 1.0}])


def test_what_is_no_stack(implementation):
    a, b = from_numpy(implementation, (np.zeros((3, 2), np.float32), np.zeros(2, np.float32)))
    for stacked, words in (
        ({"w": a, "x": b}, "stacked_params['x']: expected a leading axis of 3 (that of stacked_params['w']), got 2"),
        ({"w": b[0]}, "stacked_params['w']: expected a leading axis of layers, got shape ()"),
        ({}, "stacked_params: expected at least one array, got none"),
    ):
        with pytest.raises(ValueError, match="stacked_params") as caught:
            implementation.unstack_layers(stacked)
        assert str(caught.value) == words


# Modules.


def of_widths(implementation, *widths):
    draw = np.random.default_rng(0).standard_normal
    return [affine(implementation, draw((d, d)), draw(d)) for d in widths]


def leaf(implementation, i, name):
    """How a leaf of module i is written: in JAX a module is a tree, elsewhere it holds its arrays by name."""
    return f"modules[{i}].{name}" if implementation.__name__ == "jax_scan" else f"modules[{i}][{name!r}]"


def test_a_module_of_another_width_is_named(implementation):
    with pytest.raises(ValueError, match="modules") as caught:
        implementation.from_modules(of_widths(implementation, 2, 2, 3))
    where = leaf(implementation, 2, "b")
    assert str(caught.value) == f"{where}: expected float64[2] (that of modules[0]), got float64[3]"


def test_what_is_no_list_of_modules(implementation):
    module = of_widths(implementation, 2)[0]
    for modules, kind, words in (
        (module, TypeError, "modules: expected a list of layers, got Affine"),
        ({"a": module}, TypeError, "modules: expected a list of layers, got dict"),
        ([], ValueError, "modules: expected at least one layer, got none"),
        ([module, 3], TypeError, "modules[1]: expected a module of this framework, got int"),
    ):
        for function in (implementation.from_modules, implementation.scanned):
            with pytest.raises(kind) as caught:
                function(modules)
            assert (type(caught.value), str(caught.value)) == (kind, words)


def test_a_stack_that_is_not_that_of_the_modules(implementation):
    _, stacked_params = implementation.from_modules(of_widths(implementation, 2, 2, 2))
    modules = of_widths(implementation, 2, 2)
    with pytest.raises(ValueError, match="stacked_params") as caught:
        implementation.to_modules(stacked_params, modules)
    assert str(caught.value) == "stacked_params: expected a leading axis of 2 (that of modules), got 3"
    before = [arrays_of(implementation, module) for module in modules]
    _, wide = implementation.from_modules(of_widths(implementation, 3, 3))
    where = leaf(implementation, 0, "b").replace("modules", "unstack_layers(stacked_params)")
    with pytest.raises(ValueError, match="unstack_layers") as caught:
        implementation.to_modules(wide, modules)
    assert str(caught.value) == f"{where}: expected float64[2] (that of modules[0]), got float64[3]"
    assert_close("modules", [arrays_of(implementation, module) for module in modules], before, 0)
