"""Probes of the capability table: gates, dropout, mixed precision, one program, NaN, names, decoding, cycles."""

from __future__ import annotations

import numpy as np

from reference.stack import run_layers_vjp
from tests.composition import test_cycles
from tests.numerics import test_decoding
from tests.support import outside
from tests.support.dialect import from_numpy, layer_of, ops, pullback
from tests.support.probes import TX, D, N, W, X, assert_close, layer, loop, make_tanh, quick
from tests.support.problems import complex_step_gradient
from tests.support.trees import assert_trees


@quick
def one_key_a_layer(implementation):
    """Rolled and unrolled drop the same, layers differ, a seed is reproduced, a rate is kept."""
    width, rate = 1000, 0.25
    ones, params = from_numpy(implementation, (np.ones(width, np.float32), np.zeros((N, 1), np.float32)))

    def drop(carry, params, key):
        return carry, implementation.dropout(carry, key, rate)

    def masks(stack, seed):
        _, ys = stack(drop, params, ones, implementation.layer_keys(seed, N, (width,)))
        return implementation.to_numpy(ys)

    rolled = masks(implementation.scan_layers, 3)
    np.testing.assert_array_equal(rolled, masks(implementation.unroll_layers, 3))
    np.testing.assert_array_equal(rolled, masks(implementation.scan_layers, 3))
    assert set(np.unique(rolled)) == {0, np.float32(1 / (1 - rate))}
    assert len({mask.tobytes() for mask in (*rolled, *masks(implementation.scan_layers, 4))}) == 2 * N
    kept = (rolled > 0).mean()
    assert abs(kept - (1 - rate)) < 6 * np.sqrt(rate * (1 - rate) / rolled.size), kept


@quick
def gates(implementation):
    """Gates of 0 leave early and pad depths to one; between 0 and 1 they mix, and have a gradient."""
    exits = np.array([1.0, 1, 1, 0, 0])
    gated = implementation.gated(layer(implementation, make_tanh))
    carry, _ = implementation.scan_layers(gated, *from_numpy(implementation, (W, X, exits)))
    assert_close(implementation, carry, loop(layer_of(make_tanh, "numpy"), W[:3], X)[0])

    padded = np.concatenate([W[:2], np.zeros((3, D, D))])
    carry, _ = implementation.scan_layers(gated, *from_numpy(implementation, (padded, X, np.array([1.0, 1, 0, 0, 0]))))
    assert_close(implementation, carry, loop(layer_of(make_tanh, "numpy"), W[:2], X)[0])

    def right(w, x, g):
        return loop(lambda c, w, g: (g * np.tanh(w @ c) + (1 - g) * c, None), w, x, g)[0]

    inputs, mixing = [W, X, np.array([1, 0.5, 0, 0.25, 1])], None
    mixing = pullback(implementation, lambda w, x, g: implementation.scan_layers(gated, w, x, g)[0], inputs, TX)
    expected = right(*inputs), complex_step_gradient(lambda inputs: right(*inputs), inputs, TX)
    assert_close(implementation, from_numpy(implementation, mixing), expected)


@quick
def mixed_precision(implementation):
    """A bfloat16 carry, float32 params and their float32 gradients: integers, so that the numbers are exact."""
    rng = np.random.default_rng(0)
    w = rng.permuted(np.tile(np.eye(D, dtype=np.float32), (N, 1, 1)), axis=1)
    x, cotangent = (ops("numpy").cast(np.array(a), "bfloat16") for a in ([3, -2, 1], [1, 5, -4]))
    dtype = from_numpy(implementation, x).dtype  # the framework's bfloat16
    half = implementation.cast_params(implementation.LAYERS["dense"], dtype)

    def run(w, x):
        return implementation.scan_layers(half, w, x)[0]

    y, (dw, dx) = pullback(implementation, run, [w, x], cotangent)
    right = run_layers_vjp(
        lambda c, w: (w @ c, None), dense_vjp, w, x.astype(float), cotangents=(cotangent.astype(float), None)
    )
    for got, expected, dtype in ((y, right[0][0], x.dtype), (dw, right[1][0], w.dtype), (dx, right[1][1], x.dtype)):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got.astype(float), expected)


def dense_vjp(carry, w, dcarry, dy):
    return w.T @ dcarry, np.outer(dcarry, carry)


@quick
def autocast(implementation):
    """Around the stack it would change the dtypes within a layer: silently is the one way in which it must not."""
    import torch

    weights, x = from_numpy(implementation, (W, X))
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        implementation.scan_layers(layer(implementation, make_tanh), weights, x)


@quick
def one_program(implementation):
    """Programs made for calls with several depths, and the results of the calls."""
    tanh, depths = layer(implementation, make_tanh), (2, 3, 5)
    count, results = getattr(outside, implementation.__name__).programs(
        lambda w, x: implementation.scan_layers(tanh, w, x)[0], [from_numpy(implementation, (W[:n], X)) for n in depths]
    )
    assert count == 1
    assert_close(implementation, results, [loop(layer_of(make_tanh, "numpy"), W[:n], X)[0] for n in depths])


def exported(implementation):
    """One program, exported with a symbolic depth, called with several."""
    import jax
    from jax import export

    scope = export.SymbolicScope()
    shapes = [export.symbolic_shape(shape, scope=scope) for shape in (f"N, {D}, {D}", f"{D}")]
    tanh = layer(implementation, make_tanh)
    stack = jax.jit(lambda w, x: implementation.scan_layers(tanh, w, x)[0])
    program = export.export(stack)(*(jax.ShapeDtypeStruct(shape, np.float64) for shape in shapes))
    for n in (2, 3, 5):
        y = program.call(*from_numpy(implementation, (W[:n], X)))
        assert_close(implementation, y, loop(layer_of(make_tanh, "numpy"), W[:n], X)[0])


@quick
def where_the_nan_is(implementation):
    """The first layer, in the order in which they run, whose results are not finite."""
    tanh, broken = layer(implementation, make_tanh), W.copy()
    broken[[1, 3], 0, 0] = np.nan
    for w, reverse, expected in ((broken, False, 1), (broken, True, 3), (W, False, -1)):
        found = implementation.locate_nonfinite(tanh, *from_numpy(implementation, (w, X)), reverse=reverse)
        assert int(implementation.to_numpy(found)) == expected


@quick
def named(implementation):
    tanh, arrays = layer(implementation, make_tanh), from_numpy(implementation, (W, X))
    names = getattr(outside, implementation.__name__).profile_names
    assert "scan_layers" in names(lambda w, x: implementation.scan_layers(tanh, w, x)[0], *arrays)
    assert "scan_layers" not in names(lambda w, x: implementation.unroll_layers(tanh, w, x)[0], *arrays)


@quick
def decoding(implementation):
    actual = test_decoding.decoded(implementation, "entries", "float64", False)
    assert_trees("decoding", actual, *map(test_decoding.right, ("float64", "float32")), dtype="float64")


@quick
def cycles(implementation):
    assert_trees("cycles", test_cycles.run(implementation), *map(test_cycles.expected, ("float64", "float32")))
