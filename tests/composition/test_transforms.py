"""`vjp_layers`, `jvp_layers`, `vmap_layers`, `hvp_layers`, `vmap_vjp_layers` against NumPy, as called and compiled.

NumPy: the hand-written derivative of the loop for reverse mode, complex steps for forward mode, complex steps through
the hand-written derivative for second order, a Python loop over the batch.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from implementations.check.comparator import assert_trees
from implementations.check.dialect import flat, from_numpy, layer_of, ops, to_numpy
from implementations.check.problems import STEP, as_complex, as_float64, cell_vjp, is_float, make_cell, problem
from reference.cases import SIZES, layer_carry, layer_params
from reference.layers import transformer_decoder
from reference.stack import run_layers, run_layers_vjp, tree_map
from tests.conftest import loaded

quick = pytest.mark.torch_backend("eager")


@quick
def test_transforms_by_hand(implementation):
    """Layers of 2 and 3 make 6 of 1. Tangents are (5, 7) of w and 10 of x; the loss is y^2 / 2."""

    def layer(carry, w):
        return carry * w, None

    def numbers(*arrays):
        return [implementation.to_numpy(array).tolist() for array in arrays]

    given = ([2, 3], 1, [5, 7], 10, [1, 10])
    w, x, tw, tx, batch = from_numpy(implementation, tuple(np.array(a, float) for a in given))
    (y, _), (dw, dx, _) = implementation.vjp_layers(layer, w, x, cotangents=(tx, None))
    assert numbers(y, dw, dx) == [6, [10 * 3, 10 * 2], 10 * 6]
    (y, _), (ty, _) = implementation.jvp_layers(layer, w, x, tangents=(tw, tx, None))
    assert numbers(y, ty) == [6, 5 * 3 + 2 * 7 + 6 * 10]
    assert numbers(implementation.vmap_layers(layer, w, batch)[0]) == [[6, 60]]
    _, (dw, dx, _) = implementation.vmap_vjp_layers(layer, w, batch, cotangents=(batch, None))
    assert numbers(dw, dx) == [[[3, 2], [10 * 30, 10 * 20]], [6, 60]]
    # the gradient is y (w1 x, w0 x, w0 w1), of x^2, x^2 and x: moved along x by x, twice and once as much
    (dw, dx, _), (tdw, tdx, _) = implementation.hvp_layers(
        layer, lambda y, _: y * y / 2, w, x, tangents=(None, x, None)
    )
    assert numbers(dw, dx, tdw, tdx) == [[6 * 3, 6 * 2], 6 * 6, [36, 24], 36]


N = 5
# what -> options, and whether the user compiles
OPTIONS = {
    "called": ({}, False),
    "reverse, unroll": ({"reverse": True, "unroll": 2}, True),
    "remat": ({"remat": True}, True),
    "remat of 2, reverse": ({"remat": 2, "reverse": True}, False),
}
long_in_torch = pytest.mark.thorough("torch_compile")
every_option = pytest.mark.parametrize(
    ("options", "compiled"),
    [pytest.param(*row, id=what, marks=[long_in_torch] * ("reverse" in what)) for what, row in OPTIONS.items()],
)


# Inputs. The members of a batch differ in every float; tangents are None for integers, as cotangents are.


def drawn(seed, tree):
    rng = np.random.default_rng(seed)
    return tree_map(lambda a: rng.standard_normal(np.shape(a)).astype(a.dtype) if is_float(a) else None, tree)


def batch(seed, tree, size=3):
    """`size` trees like `tree`, in one: each array [size, ...]."""
    rng = np.random.default_rng(seed)
    scale = lambda a: rng.uniform(0.5, 1.5, (size, *np.shape(a)))  # noqa: E731
    return tree_map(lambda a: (scale(a) * a).astype(a.dtype) if is_float(a) else np.stack([a] * size), tree)


# What is right, from inputs in float64 for the oracle, in float32 for the yardstick.


def values(inputs, reverse=False):
    params, init, xs = inputs
    return run_layers(layer_of(make_cell, "numpy"), params, init, xs, reverse)


def reverse_mode(inputs, cotangents, reverse=False):
    return run_layers_vjp(layer_of(make_cell, "numpy"), cell_vjp, *inputs, cotangents=cotangents, reverse=reverse)


def stepped(inputs, tangents):
    """The inputs, complex, a step along the tangents, where None is zero."""

    def step(array, tangent):
        array = as_complex(array)
        return array if tangent is None else array + array.dtype.type(STEP * 1j) * tangent

    return tree_map(step, inputs, tangents)


def derivative(tree):
    return tree_map(lambda a: (np.asarray(a).imag / STEP).astype(a.real.dtype) if np.iscomplexobj(a) else None, tree)


def forward_mode(inputs, tangents, reverse=False):
    return values(inputs, reverse), derivative(values(stepped(inputs, tangents), reverse))


def loss_of(name):
    o = ops(name)

    def loss(carry, ys):
        return (o.sum(carry["h"] * carry["h"]) + o.sum(ys["out"][0] * ys["out"][0])) / 2 + o.sum(ys["sum"])

    return loss


def loss_gradient(carry, ys):
    dys = {"out": (ys["out"][0], None), "none": None, "sum": np.ones_like(ys["sum"])}
    return {"h": carry["h"], "count": None}, dys


def second_order(inputs, tangents, reverse=False):
    """The gradient of the loss, and its derivative along the tangents."""

    def gradient(inputs):
        return reverse_mode(inputs, loss_gradient(*values(inputs, reverse)), reverse)[1]

    return gradient(inputs), derivative(gradient(stepped(inputs, tangents)))


def one_by_one(function, *batched, batch_size=3):
    """`function` of each member of the batch, stacked; `batched` are pairs (tree, axis or None)."""
    members = [
        [tree if axis is None else tree_map(partial(np.take, indices=i, axis=axis), tree) for tree, axis in batched]
        for i in range(batch_size)
    ]
    return tree_map(lambda *arrays: np.stack(arrays), *(function(*member) for member in members))


# Comparison.


def check(implementation, what, transform, arrays, right, compiled):
    """`transform(*arrays)` is `right(*arrays)`: a tuple of results each."""
    run = implementation.compile(transform) if compiled else transform
    actual = to_numpy(implementation, run(*(from_numpy(implementation, tree) for tree in arrays)))
    named = [
        {str(i): tree for i, tree in enumerate(result)}
        for result in (actual, right(*tree_map(as_float64, arrays)), right(*arrays))
    ]
    assert_trees(f"{implementation.__name__}, {what}", *named)


def cell(implementation):
    return layer_of(make_cell, implementation.__name__)


INPUTS = problem("cell", N).inputs
COTANGENTS = problem("cell", N).cotangents
TANGENTS = drawn(1, INPUTS)


@quick
@pytest.mark.covers("`vjp_layers`, compiled")
@every_option
def test_reverse_mode(implementation, options, compiled):
    layer = cell(implementation)

    def transform(inputs, cotangents):
        return implementation.vjp_layers(layer, *inputs, cotangents=cotangents, **options)

    right = partial(reverse_mode, reverse=options.get("reverse", False))
    check(implementation, f"vjp_layers, {options}", transform, (INPUTS, COTANGENTS), right, compiled)


@quick
@pytest.mark.covers("`jvp_layers`, compiled")
@every_option
def test_forward_mode(implementation, options, compiled):
    layer = cell(implementation)

    def transform(inputs, tangents):
        return implementation.jvp_layers(layer, *inputs, tangents=tangents, **options)

    right = partial(forward_mode, reverse=options.get("reverse", False))
    check(implementation, f"jvp_layers, {options}", transform, (INPUTS, TANGENTS), right, compiled)


@quick
@pytest.mark.covers("`hvp_layers`, compiled")
@every_option
def test_second_order(implementation, options, compiled):
    check_second_order(implementation, options, compiled)


def test_second_order_under_inductor():
    check_second_order(loaded("torch_compile"), {}, True)


def check_second_order(implementation, options, compiled):
    layer, of = cell(implementation), loss_of(implementation.__name__)

    def transform(inputs, tangents):
        return implementation.hvp_layers(layer, of, *inputs, tangents=tangents, **options)

    right = partial(second_order, reverse=options.get("reverse", False))
    check(implementation, f"hvp_layers, {options}", transform, (INPUTS, TANGENTS), right, compiled)


# what -> in_axes of stacked_params, init and xs, options, and whether the user compiles
AXES = {
    "inits": ((None, 0, None), {}, False),
    "ensemble": ((0, None, None), {}, True),
    "stacks and inits": ((0, 0, None), {"unroll": 2}, True),
    "all, reverse": ((0, 0, 0), {"reverse": True}, False),
    "xs, axis 1": ((None, None, 1), {"remat": 2}, True),
}
every_batch = pytest.mark.parametrize(
    ("axes", "options", "compiled"),
    [
        pytest.param(*row, id=what, marks=[long_in_torch] * (what in ("stacks and inits", "xs, axis 1")))
        for what, row in AXES.items()
    ],
)


def batched(axes):
    return tuple(
        tree if axis is None else tree_map(lambda a, axis=axis: np.moveaxis(a, 0, axis), batch(2, tree))
        for tree, axis in zip(INPUTS, axes, strict=True)
    )


@quick
@pytest.mark.covers("`vmap_layers`, compiled")
@every_batch
def test_batching(implementation, axes, options, compiled):
    layer, reverse = cell(implementation), options.get("reverse", False)

    def transform(*inputs):
        return implementation.vmap_layers(layer, *inputs, in_axes=axes, **options)

    def right(*inputs):
        return one_by_one(lambda *one: values(one, reverse), *zip(inputs, axes, strict=True))

    check(implementation, f"vmap_layers, {axes}, {options}", transform, batched(axes), right, compiled)


@quick
@pytest.mark.covers("`vmap_vjp_layers` (per-example gradients), compiled")
@every_batch
def test_per_example_gradients(implementation, axes, options, compiled):
    """Of what the batch shares too, one gradient for each member."""
    check_per_example_gradients(implementation, axes, options, compiled)


@pytest.mark.thorough
def test_per_example_gradients_under_inductor():
    check_per_example_gradients(loaded("torch_compile"), (None, 0, None), {}, True)


def check_per_example_gradients(implementation, axes, options, compiled):
    layer, reverse = cell(implementation), options.get("reverse", False)

    def transform(inputs, cotangents):
        return implementation.vmap_vjp_layers(layer, *inputs, cotangents=cotangents, in_axes=axes, **options)

    def right(inputs, cotangents):
        pairs = (*zip(inputs, axes, strict=True), (cotangents, 0))
        return one_by_one(lambda *one: reverse_mode(one[:3], one[3], reverse), *pairs)

    trees = batched(axes), batch(3, COTANGENTS)
    check(implementation, f"vmap_vjp_layers, {axes}, {options}", transform, trees, right, compiled)


@quick
def test_none_is_zero_for_a_whole_tree(implementation):
    layer = cell(implementation)
    (dcarry, dys), (tparams, tinit, _) = COTANGENTS, TANGENTS
    zeros = tree_map(lambda a: a if a is None else np.zeros_like(a), (dys, TANGENTS[2]))

    def transform(inputs, dcarry, tangents):
        reverse = implementation.vjp_layers(layer, *inputs, cotangents=(dcarry, None))
        forward = implementation.jvp_layers(layer, *inputs, tangents=(*tangents, None))
        return reverse[1], forward[1]

    def right(inputs, dcarry, tangents):
        like = tree_map(lambda a: None if a is None else a.astype(dcarry["h"].dtype), zeros)
        return reverse_mode(inputs, (dcarry, like[0]))[1], forward_mode(inputs, (*tangents, like[1]))[1]

    check(implementation, "None for zero", transform, (INPUTS, dcarry, (tparams, tinit)), right, False)


@quick
@pytest.mark.covers("`jvp_layers` of layers with attention")
def test_forward_mode_of_attention(implementation):
    size, layer = SIZES["transformer_decoder"], implementation.LAYERS["transformer_decoder"]
    inputs = layer_params("transformer_decoder", 0, 2, **size), layer_carry("transformer_decoder", 0, **size), None

    def transform(inputs, tangents):
        return implementation.jvp_layers(layer, *inputs, tangents=tangents)

    def right(inputs, tangents):
        def outputs(inputs):
            return run_layers(transformer_decoder, *inputs)

        return outputs(inputs), derivative(outputs(stepped(inputs, tangents)))

    check(implementation, "attention", transform, (inputs, drawn(7, inputs)), right, False)


@quick
@pytest.mark.parametrize("options", [{}, {"unroll": 2, "reverse": True}], ids=str)
def test_reverse_mode_is_the_transpose_of_forward_mode(implementation, options):
    """<J v, w> = <v, J' w> in float64, for v and w drawn at random: neither is compared with anything of ours."""
    inputs, cotangents = problem("cell", N, "float64").inputs, drawn(5, problem("cell", N, "float64").cotangents)
    tangents = drawn(6, inputs)
    as_arrays = partial(from_numpy, implementation)
    (_, pushed), (_, pulled) = (
        implementation.jvp_layers(cell(implementation), *as_arrays(inputs), tangents=as_arrays(tangents), **options),
        implementation.vjp_layers(
            cell(implementation), *as_arrays(inputs), cotangents=as_arrays(cotangents), **options
        ),
    )
    left, right = (
        sum(np.vdot(a, b) for a, b in zip(flat(trees[0]), flat(to_numpy(implementation, trees[1])), strict=True))
        for trees in ((cotangents, pushed), (tangents, pulled))
    )
    scale = sum(abs(a * b).sum() for a, b in zip(flat(tangents), flat(to_numpy(implementation, pulled)), strict=True))
    assert abs(left - right) <= 1e-14 * scale
    assert scale > 1


@pytest.mark.torch_backend("aot_eager")
@pytest.mark.parametrize("params", ["integers", "numbers that reach nothing"])
def test_what_has_no_derivative(implementation, params):
    """A carry of integers, with params of integers or with such that no result depends on: None, or zeros."""
    stack, has_one = implementation, params != "integers"
    draw = np.float32 if has_one else np.int32
    w, x, batch = (
        stack.from_numpy(a) for a in (np.ones((3, 2), draw), np.array([1, 2], np.int32), np.ones((2, 2), np.int32))
    )

    def layer(c, p):
        return c + 1, c * 2

    def loss(carry, ys):
        return (w if has_one else stack.from_numpy(np.ones((3, 2), np.float32)))[0, 0]

    (carry, _), grads = stack.vjp_layers(layer, w, x, cotangents=(None, None))
    assert stack.to_numpy(carry).tolist() == [4, 5]
    found = [grads, *stack.hvp_layers(layer, loss, w, x, tangents=(None, None, None))]
    found += [stack.vmap_vjp_layers(layer, w, batch, cotangents=(None, None))[1]]
    for dparams, dx, dxs in found:
        assert dx is None
        assert dxs is None
        assert not stack.to_numpy(dparams).any() if has_one else dparams is None
    assert stack.jvp_layers(layer, w, x, tangents=(None, None, None))[1] == (None, None)
