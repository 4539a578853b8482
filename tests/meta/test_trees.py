"""The comparison of trees lets the right stack pass and no wrong one, and names the leaf and the layer."""

from __future__ import annotations

import re

import numpy as np
import pytest

from reference.stack import tree_map
from tests.support import tree_mutants
from tests.support.options import VALUES
from tests.support.problems import complex_step_gradient, problem, right
from tests.support.tree_mutants import WRONG, float32_throughout
from tests.support.trees import assert_trees

DEPTHS = [N for N in VALUES["N"] if N not in (0, 1)]


def check(stack, N, reverse=False, dtype="float32"):
    cell = problem("cell", N, dtype)
    results = stack(cell.inputs, cell.cotangents, reverse)
    results = type(results)(*tree_map(np.asarray, tuple(results)))
    assert_trees(stack.__name__, results, *right("cell", N, reverse), dtype=dtype)


@pytest.mark.parametrize("dtype", VALUES["dtype"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("N", VALUES["N"])
def test_the_right_stack_passes(N, reverse, dtype):
    """Reverse mode by hand, against forward mode by complex steps."""
    check(tree_mutants.right, N, reverse, dtype)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("N", DEPTHS)
@pytest.mark.parametrize("stack", WRONG, ids=lambda stack: stack.__name__)
def test_wrong_stacks_are_caught(stack, N, reverse):
    if stack is tree_mutants.carries_of_the_group_before and N <= tree_mutants.K:
        N = tree_mutants.K + 1  # one group has none before it
    with pytest.raises(AssertionError, match=rf"{stack.__name__}, \w+.*: observed an error of .*, allowed "):
        check(stack, N, reverse)


@pytest.mark.parametrize("N", [1, *DEPTHS])
def test_less_precision_is_caught(N):
    with pytest.raises(AssertionError, match=r"observed an error of .*, allowed"):
        check(float32_throughout, N, dtype="float64")


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_the_layer_and_the_leaf_are_named(layer):
    def off(inputs, cotangents, reverse):
        results = tree_mutants.right(inputs, cotangents, reverse)
        results.dparams["rest"][0][layer, 1] += 1e-3
        return results

    with pytest.raises(
        AssertionError, match=re.escape(f"off, dparams['rest'][0], layer {layer}: observed an error of")
    ):
        check(off, 4)


CHANGES = {
    "another dtype": (
        lambda r: r._replace(dinit={**r.dinit, "h": r.dinit["h"].astype(np.float64)}),
        "dinit['h']: observed dtype float64, allowed float32",
    ),
    "another integer dtype": (
        lambda r: r._replace(carry={**r.carry, "count": np.array(1)}),
        "carry['count']: observed dtype int64, allowed int32",
    ),
    "another integer": (
        lambda r: r._replace(carry={**r.carry, "count": np.asarray(r.carry["count"] + np.int32(1))}),
        "carry['count']: observed an error of 1, allowed 0",
    ),
    "another shape": (lambda r: r._replace(dxs=(r.dxs[0][:3],)), "dxs[0]: observed shape (3, 3), allowed (4, 3)"),
    "NaN": (
        lambda r: r._replace(carry={**r.carry, "h": r.carry["h"] * np.float32(np.nan)}),
        "carry['h']: observed an error of nan",
    ),
    "a list": (lambda r: r._replace(dxs=[r.dxs[0]]), "dxs: observed ['*'], allowed ('*',)"),
    "a gradient of an integer": (
        lambda r: r._replace(dinit={**r.dinit, "count": np.array(0)}),
        "dinit: observed {'count': '*', 'h': '*'}, allowed {'count': None, 'h': '*'}",
    ),
    "no y": (lambda r: r._replace(ys=None), "ys: observed None, allowed {"),
    "a Python number": (
        lambda r: r._replace(carry={**r.carry, "count": 3}),
        "carry['count']: observed a int, allowed a numpy.ndarray",
    ),
}  # what -> change of the right results, message


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_all_but_values_is_caught_too(change, message):
    cell = problem("cell", 4)
    results = tree_mutants.right(cell.inputs, cell.cotangents, False)
    changed = change(type(results)(*tree_map(np.asarray, tuple(results))))
    with pytest.raises(AssertionError, match=re.escape(f"numpy, {message}")):
        assert_trees("numpy", changed, *right("cell", 4))


def test_the_complex_step_is_the_derivative():
    """Of a function whose derivative everybody knows."""
    x = np.array([0.5, 2.0])
    gradient = complex_step_gradient(lambda t: t["x"] ** 3, {"x": x, "n": np.array(1)}, np.array([1.0, 10.0]))
    np.testing.assert_allclose(gradient["x"], [3 * 0.25, 10 * 3 * 4], rtol=1e-15)
    assert gradient["n"] is None
