"""The framework's own transforms and compiler around a stack: `jax.vmap`, `torch.func.jvp`, `tf.GradientTape` ...

What is right is the loop in NumPy and its derivative by hand; of forward mode and second order complex steps through
the one and the other. Second order is symmetric, so forward and reverse over reverse agree.
"""

from __future__ import annotations

import numpy as np
import pytest

from implementations.check.comparator import assert_close
from implementations.check.dialect import from_numpy, to_numpy
from reference.stack import apply_layers, apply_layers_vjp

# Layers of w = (2, 3) make 6 of x = 1 and 60 of tx = 10; of tw = (5, 7), 35. Gradients are those of y^2 / 2: y dy/dw.
BY_HAND = {
    "batching": [[6, 60]],
    "ensemble": [[6, 35]],
    "per_example_gradients": [[[6 * 3, 6 * 2], [60 * 30, 60 * 20]], [6 * 6, 60 * 6]],
    "gradient_of_batch": [[18 + 1800, 12 + 1200]],
    "forward_mode": [5 * 3 * 1 + 2 * 7 * 1 + 2 * 3 * 10],
    "reverse_inside": [[18, 12], 36],
}


@pytest.mark.torch_backend("eager")
@pytest.mark.parametrize("transform", BY_HAND)
def test_transform_by_hand(implementation, transform):
    def apply(w, x):
        return implementation.scan_layers(lambda carry, w: (carry * w, None), w, x)[0]

    arrays = (np.array(a, float) for a in ([2, 3], 1, [5, 7], 10))
    results = implementation.AROUND[transform](apply, *from_numpy(implementation, tuple(arrays)))
    results = results if isinstance(results, (tuple, list)) else [results]
    assert [implementation.to_numpy(result).tolist() for result in results] == BY_HAND[transform]


N, D, STEP = 5, 3, 1e-30  # the square of the complex step is below the last bit of any result
_rng = np.random.default_rng(0)
W, TW = _rng.standard_normal((2, N, D, D))
X, TX = _rng.standard_normal((2, D))


def second_order(forward, gradient):
    moved = W + 1j * STEP * TW, X + 1j * STEP * TX
    return tuple(g.imag / STEP for g in gradient(*moved, forward(*moved)))


# transform of AROUND -> the row that it is, and what is right by (forward, gradient)
TRANSFORMS = {
    "batching": ("batching from outside (the framework's vmap)",
        lambda f, g: np.stack([f(W, X), f(W, TX)])),
    "ensemble": ("ensembles from outside (batched weights)",
        lambda f, g: np.stack([f(W, X), f(TW, X)])),
    "per_example_gradients": ("per-example gradients from outside (batched gradient)",
        lambda f, g: tuple(map(np.stack, zip(g(W, X, f(W, X)), g(W, TX, f(W, TX)), strict=True)))),
    "gradient_of_batch": ("gradient of a batch from outside",
        lambda f, g: g(W, X, f(W, X))[0] + g(W, TX, f(W, TX))[0]),
    "forward_mode": ("forward mode from outside",
        lambda f, g: f(W + 1j * STEP * TW, X + 1j * STEP * TX).imag / STEP),
    "reverse_inside": ("gradient inside the user's compiled function", lambda f, g: g(W, X, f(W, X))),
    "reverse_over_reverse": ("second order from outside, reverse over reverse", second_order),
    "forward_over_reverse": ("second order from outside, forward over reverse", second_order),
}  # fmt: skip


@pytest.mark.torch_backend("aot_eager")
@pytest.mark.parametrize(
    "transform", [pytest.param(name, marks=pytest.mark.covers(row)) for name, (row, _) in TRANSFORMS.items()]
)
def test_transform_of_the_dense_stack(implementation, transform):
    """Of any layer: tests/tools/test_check.py."""
    run, right = implementation.AROUND[transform], TRANSFORMS[transform][1]
    results = to_numpy(
        implementation, run(implementation.scan_apply_layers, *from_numpy(implementation, (W, X, TW, TX)))
    )
    results = tuple(results) if isinstance(results, list) else results
    expected = right(apply_layers, lambda *inputs: apply_layers_vjp(*inputs)[1:])
    assert_close(f"{implementation.__name__}, {transform}", results, expected)
