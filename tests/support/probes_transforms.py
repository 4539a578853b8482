"""Probes of the capability table: the `*_layers`, each compiled, for trees with integers and None in them.

What is right is the loop in NumPy, and its derivative by hand; second derivatives by complex steps through the latter.
"""

from __future__ import annotations

import numpy as np

from reference.cases import SIZES, layer_carry, layer_params
from reference.layers import transformer_decoder
from reference.stack import run_layers, run_layers_vjp, tree_map
from tests.support.dialect import from_numpy, layer_of, ops
from tests.support.probes import STEP, N, assert_close, layer, quick
from tests.support.problems import cell_vjp, make_cell, problem

BATCH = 2
CELL = problem("cell", N, "float64")


def compiled(implementation, function, *trees):
    """`implementation.compile` of `function(*trees)`."""
    return implementation.compile(function)(*from_numpy(implementation, trees))


def cell_gradient(inputs, cotangents):
    return run_layers_vjp(layer_of(make_cell, "numpy"), cell_vjp, *inputs, cotangents=cotangents)


def tangents():
    """A direction for each floating-point array of CELL's inputs."""
    rng = np.random.default_rng(1)
    return tree_map(lambda a: rng.standard_normal(a.shape) if a.dtype.kind == "f" else None, CELL.inputs)


def moved(direction):
    return tree_map(lambda a, t: a if t is None else a + 1j * STEP * t, CELL.inputs, direction)


def derivative(tree):
    """From results at `moved`; None for integers."""
    return tree_map(lambda a: np.imag(a) / STEP if np.iscomplexobj(a) else None, tree)


@quick
def vjp(implementation):
    cell = layer(implementation, make_cell)

    def run(inputs, cotangents):
        return implementation.vjp_layers(cell, *inputs, cotangents=cotangents)

    results = compiled(implementation, run, CELL.inputs, CELL.cotangents)
    assert_close(implementation, results, cell_gradient(CELL.inputs, CELL.cotangents))


@quick
def jvp(implementation):
    cell, direction = layer(implementation, make_cell), tangents()
    results = compiled(
        implementation, lambda i, t: implementation.jvp_layers(cell, *i, tangents=t), CELL.inputs, direction
    )
    right = layer_of(make_cell, "numpy")
    expected = run_layers(right, *CELL.inputs), derivative(run_layers(right, *moved(direction)))
    assert_close(implementation, results, expected)


@quick
def hvp(implementation):
    o, cell, direction = ops(implementation.__name__), layer(implementation, make_cell), tangents()

    def loss(carry, ys):
        return (o.sum(carry["h"] ** 2) + o.sum(ys["sum"] ** 2)) / 2

    def gradient(inputs):
        carry, ys = run_layers(layer_of(make_cell, "numpy"), *inputs)
        cotangents = {"h": carry["h"], "count": None}, {"out": (0 * ys["out"][0], None), "none": None, "sum": ys["sum"]}
        return cell_gradient(inputs, cotangents)[1]

    def run(inputs, direction):
        return implementation.hvp_layers(cell, loss, *inputs, tangents=direction)

    results = compiled(implementation, run, CELL.inputs, direction)
    assert_close(implementation, results, (gradient(CELL.inputs), derivative(gradient(moved(direction)))))


def batch_of(tree, axis):
    """`tree` and others like it, along `axis`; `tree` itself where that is None."""
    if axis is None:
        return tree
    return tree_map(
        lambda a: np.stack([a * (k + 1) if a.dtype.kind == "f" else a + k for k in range(BATCH)], axis), tree
    )


def member(tree, axis, k):
    return tree if axis is None else tree_map(lambda a: a.take(k, axis), tree)


def stacked(trees):
    return tree_map(lambda *arrays: np.stack(arrays), *trees)


@quick
def vmap(implementation):
    """Over inits, and over stacks (an ensemble) with an init and inputs of their own."""
    cell = layer(implementation, make_cell)
    for axes in ((None, 0, None), (0, 0, 1)):
        batch = tuple(map(batch_of, CELL.inputs, axes))
        results = compiled(
            implementation, lambda *i, axes=axes: implementation.vmap_layers(cell, *i, in_axes=axes), *batch
        )
        members = [tuple(map(member, batch, axes, [k] * 3)) for k in range(BATCH)]
        assert_close(implementation, results, stacked([run_layers(layer_of(make_cell, "numpy"), *m) for m in members]))


@quick
def per_example_gradients(implementation):
    cell, axes = layer(implementation, make_cell), (None, 0, None)
    batch, cotangents = tuple(map(batch_of, CELL.inputs, axes)), batch_of(CELL.cotangents, 0)

    def run(inputs, cotangents):
        return implementation.vmap_vjp_layers(cell, *inputs, cotangents=cotangents)

    results = compiled(implementation, run, batch, cotangents)
    members = [(tuple(map(member, batch, axes, [k] * 3)), member(cotangents, 0, k)) for k in range(BATCH)]
    assert_close(implementation, results, stacked([cell_gradient(*m) for m in members]))


@quick
def attention_jvp(implementation):
    """Of `transformer_decoder`; right is a complex step through NumPy."""
    size = SIZES["transformer_decoder"]
    params, x = layer_params("transformer_decoder", 0, 2, **size), layer_carry("transformer_decoder", 0, **size)
    params, x = inputs = tree_map(lambda a: a.astype(float), (params, x))
    rng = np.random.default_rng(1)
    direction = tree_map(lambda a: rng.standard_normal(a.shape), inputs)
    stepped = tree_map(lambda a, t: a + 1j * STEP * t, inputs, direction)
    right = np.imag(run_layers(transformer_decoder, *stepped)[0]) / STEP
    tangents = (*from_numpy(implementation, direction), None)
    attention = implementation.LAYERS["transformer_decoder"]
    _, (tx, _) = implementation.jvp_layers(attention, *from_numpy(implementation, inputs), tangents=tangents)
    assert_close(implementation, tx, right)
