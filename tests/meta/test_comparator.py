"""The comparator lets the right stack pass and no wrong one, and its messages name what is wrong: leaf and layer.

First dense stacks, by their derived bound; then trees, by NumPy as the yardstick, and wrong stacks of `make_cell`.
"""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest

from implementations.check.comparator import assert_case, assert_trees
from implementations.check.dialect import layer_of
from implementations.check.problems import Results, cell_vjp, complex_step_gradient, make_cell, problem, right
from reference import cases
from reference.stack import apply_layers_vjp, run_layers_vjp, tree_map
from tests.support import mutants
from tests.support.problems import VALUES

CASE = cases.case("orthogonal_3x7", "float32")


def dense():
    return apply_layers_vjp(*CASE.inputs)


def test_the_right_stack_passes():
    assert_case("numpy", CASE, dense())


@pytest.mark.parametrize("mutant", mutants.FORWARD, ids=lambda mutant: mutant.__name__)
@pytest.mark.parametrize("name", ["orthogonal_3x7", "permutation_1001x16"])
def test_wrong_values_are_caught(name, mutant):
    case = cases.case(name, "float32")
    _, dweights, dx = apply_layers_vjp(*case.inputs)
    with pytest.raises(AssertionError, match=r"mutant, .*, float32, y: observed an error of .*, allowed"):
        assert_case("mutant", case, (mutant(case.weights, case.x), dweights, dx))


@pytest.mark.parametrize("mutant", mutants.GRADIENT, ids=lambda mutant: mutant.__name__)
@pytest.mark.parametrize("name", ["orthogonal_3x7", "permutation_1001x16"])
def test_wrong_gradients_are_caught(name, mutant):
    case = cases.case(name, "float32")
    with pytest.raises(AssertionError, match=r"mutant, .*, float32, d(weights|x).*: observed an error of .*, allowed"):
        assert_case("mutant", case, mutant(*case.inputs))


@pytest.mark.parametrize("mutant", mutants.PRECISION["float32"], ids=lambda mutant: mutant.__name__)
def test_less_precision_is_caught(mutant):
    _, dweights, dx = dense()
    with pytest.raises(AssertionError, match=r"y: observed an error of .*, allowed"):
        assert_case("mutant", CASE, (mutant(CASE.weights, CASE.x), dweights, dx))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda y, dw, dx: [y, dw, dx], "numpy, orthogonal_3x7, float32: observed a list, allowed a tuple"),
        (lambda y, dw, dx: (y, dw), "observed 2 results, allowed 3"),
        (lambda y, dw, dx: (y.tolist(), dw, dx), "y: observed ['*', '*', '*', '*', '*', '*', '*'], allowed *"),
        (lambda y, dw, dx: (y, dw[:1], dx), "dweights: observed shape (1, 7, 7), allowed (3, 7, 7)"),
        (lambda y, dw, dx: (y, dw, dx.astype(np.float64)), "dx: observed dtype float64, allowed float32"),
        (lambda y, dw, dx: (y * np.nan, dw, dx), "y: observed an error of nan, allowed"),
    ],
)
def test_messages(broken, message):
    with pytest.raises(AssertionError) as caught:
        assert_case("numpy", CASE, broken(*dense()))
    assert message in str(caught.value)


# Trees: wrong stacks, each wrong in one way, as functions of (inputs, cotangents, reverse) that return Results.


CELL = layer_of(make_cell, "numpy")
K = 2  # layers in a group


def right_stack(inputs, cotangents, reverse, layer=CELL, vjp=cell_vjp):
    outputs, gradients = run_layers_vjp(layer, vjp, *inputs, cotangents=cotangents, reverse=reverse)
    return Results(*outputs, *gradients)


def _reordered(tree, order):
    return tree_map(lambda a: a[order], tree)


# The wrong layer, or the right one in the wrong place.


def reverse_ignored(inputs, cotangents, reverse):
    return right_stack(inputs, cotangents, not reverse)


def ys_in_the_other_order(inputs, cotangents, reverse):
    """As the loop makes them when it runs backwards."""
    results = right_stack(inputs, cotangents, reverse)
    return results._replace(ys=_reordered(results.ys, slice(None, None, -1)))


def gradients_in_the_other_order(inputs, cotangents, reverse):
    """As the backward pass makes them."""
    results = right_stack(inputs, cotangents, reverse)
    return results._replace(dparams=_reordered(results.dparams, slice(None, None, -1)))


def xs_in_the_other_order(inputs, cotangents, reverse):
    params, init, xs = inputs
    return right_stack((params, init, _reordered(xs, slice(None, None, -1))), cotangents, reverse)


def cotangents_of_ys_in_the_other_order(inputs, cotangents, reverse):
    dcarry, dys = cotangents
    return right_stack(inputs, (dcarry, _reordered(dys, slice(None, None, -1))), reverse)


def next_layer_clamped(inputs, cotangents, reverse):
    """An index off by one, which XLA clamps to the last layer."""
    params, init, xs = inputs
    order = np.minimum(np.arange(len(params["w"])) + 1, len(params["w"]) - 1)
    return right_stack((_reordered(params, order), init, xs), cotangents, reverse)


def remainder_dropped(inputs, cotangents, reverse):
    """Whole groups of K only. Of one layer, no group is whole."""
    params, init, xs = inputs
    N = len(params["w"])
    whole = slice(0, N - (N % K or K))
    dcarry, dys = cotangents
    results = right_stack(
        (_reordered(params, whole), init, _reordered(xs, whole)), (dcarry, _reordered(dys, whole)), reverse
    )

    def padded(a):
        return np.concatenate([a, np.zeros((N - len(a), *a.shape[1:]), a.dtype)])

    return results._replace(**{name: tree_map(padded, getattr(results, name)) for name in ("ys", "dparams", "dxs")})


def last_layer_repeated(inputs, cotangents, reverse):
    """The last group begins within the one before it, and what both hold runs twice."""
    results = right_stack(inputs, cotangents, reverse)
    params, _, xs = inputs
    carry, _ = CELL(results.carry, *_reordered((params, xs), 0 if reverse else -1))
    return results._replace(carry=carry)


# Right values, wrong gradients.


def carries_of_the_group_before(inputs, cotangents, reverse):
    """What the backward pass recomputes starts from the carry of another group."""
    params, init, xs = inputs
    entered, carry = [], init
    order = range(len(params["w"]))[:: -1 if reverse else 1]
    for i in order:
        entered.append(carry)
        carry, _ = CELL(carry, *_reordered((params, xs), i))
    wrong = {}
    for step, i in enumerate(order):
        if step % K == 0:
            carry = entered[max(step - K, 0)]
        wrong[i] = carry
        carry, _ = CELL(carry, *_reordered((params, xs), i))
    todo = iter([wrong[i] for i in reversed(order)])
    return right_stack(inputs, cotangents, reverse, vjp=lambda carry, *args: cell_vjp(next(todo), *args))


def ys_detached(inputs, cotangents, reverse):
    dcarry, dys = cotangents
    return right_stack(inputs, (dcarry, tree_map(np.zeros_like, dys)), reverse)


def carry_detached(inputs, cotangents, reverse):
    """No gradient passes from a layer to the one before it."""

    def vjp(*args):
        dcarry, *rest = cell_vjp(*args)
        return tree_map(np.zeros_like, dcarry), *rest

    return right_stack(inputs, cotangents, reverse, vjp=vjp)


def gradient_counted_twice(inputs, cotangents, reverse):
    """Of one parameter, as if the stack had run twice."""
    results = right_stack(inputs, cotangents, reverse)
    dparams = {**results.dparams, "rest": [2 * results.dparams["rest"][0], None]}
    return results._replace(dparams=dparams)


def gradient_of_the_last_layer_missing(inputs, cotangents, reverse):
    results = right_stack(inputs, cotangents, reverse)
    dxs = tree_map(np.copy, results.dxs)
    dxs[0][-1] = 0
    return results._replace(dxs=dxs)


# Right layers, less precision than the dtype has.


def one_bfloat16_layer(inputs, cotangents, reverse):
    """The carry that leaves the first layer passes through bfloat16."""

    def cell(carry, params, x):
        new, y = CELL(carry, params, x)
        if carry["count"] == 1:
            new = {**new, "h": new["h"].astype(ml_dtypes.bfloat16).astype(new["h"].dtype)}
        return new, y

    return right_stack(inputs, cotangents, reverse, layer=cell)


def float32_throughout(inputs, cotangents, reverse):
    """float32 sold as float64."""

    def narrow(a):
        return a.astype(np.float32) if a.dtype == np.float64 else a

    inputs, cotangents = tree_map(narrow, (inputs, cotangents))
    results = right_stack(inputs, cotangents, reverse)
    return Results(*tree_map(lambda a: a.astype(np.float64) if a.dtype == np.float32 else a, tuple(results)))


WRONG = (
    reverse_ignored,
    ys_in_the_other_order,
    gradients_in_the_other_order,
    xs_in_the_other_order,
    cotangents_of_ys_in_the_other_order,
    next_layer_clamped,
    remainder_dropped,
    last_layer_repeated,
    carries_of_the_group_before,
    ys_detached,
    carry_detached,
    gradient_counted_twice,
    gradient_of_the_last_layer_missing,
    one_bfloat16_layer,
)


DEPTHS = [N for N in VALUES["N"] if N not in (0, 1)]


def check_cell(stack, N, reverse=False, dtype="float32"):
    cell = problem("cell", N, dtype)
    results = stack(cell.inputs, cell.cotangents, reverse)
    results = type(results)(*tree_map(np.asarray, tuple(results)))
    assert_trees(stack.__name__, results, *right("cell", N, reverse), dtype=dtype)


@pytest.mark.parametrize("dtype", VALUES["dtype"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("N", VALUES["N"])
def test_the_right_stack_of_any_layer_passes(N, reverse, dtype):
    """Reverse mode by hand, against forward mode by complex steps."""
    check_cell(right_stack, N, reverse, dtype)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("N", DEPTHS)
@pytest.mark.parametrize("stack", WRONG, ids=lambda stack: stack.__name__)
def test_wrong_stacks_are_caught(stack, N, reverse):
    if stack is carries_of_the_group_before and N <= K:
        N = K + 1  # one group has none before it
    with pytest.raises(AssertionError, match=rf"{stack.__name__}, \w+.*: observed an error of .*, allowed "):
        check_cell(stack, N, reverse)


@pytest.mark.parametrize("N", [1, *DEPTHS])
def test_less_precision_of_trees_is_caught(N):
    with pytest.raises(AssertionError, match=r"observed an error of .*, allowed"):
        check_cell(float32_throughout, N, dtype="float64")


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_the_layer_and_the_leaf_are_named(layer):
    def off(inputs, cotangents, reverse):
        results = right_stack(inputs, cotangents, reverse)
        results.dparams["rest"][0][layer, 1] += 1e-3
        return results

    with pytest.raises(
        AssertionError, match=re.escape(f"off, dparams['rest'][0], layer {layer}: observed an error of")
    ):
        check_cell(off, 4)


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
    results = right_stack(cell.inputs, cell.cotangents, False)
    changed = change(type(results)(*tree_map(np.asarray, tuple(results))))
    with pytest.raises(AssertionError, match=re.escape(f"numpy, {message}")):
        assert_trees("numpy", changed, *right("cell", 4))


def test_the_complex_step_is_the_derivative():
    """Of a function whose derivative everybody knows."""
    x = np.array([0.5, 2.0])
    gradient = complex_step_gradient(lambda t: t["x"] ** 3, {"x": x, "n": np.array(1)}, np.array([1.0, 10.0]))
    np.testing.assert_allclose(gradient["x"], [3 * 0.25, 10 * 3 * 4], rtol=1e-15)
    assert gradient["n"] is None
