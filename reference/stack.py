"""The Python loop that defines what a stack of layers means, and its derivative, written out by hand.

    y = x
    for w in weights:
        y = w @ y

Every implementation is compared with `oracle`: this loop in float64, from the inputs the implementation was given. In a
lower dtype the same functions say how accurate NumPy is there.
"""

from __future__ import annotations

import numpy as np

from reference.layers import Array, dense, dense_vjp


def apply_layers(weights: Array, x: Array) -> Array:
    """Apply N dense layers, one after the other: weights [N, d, d], x [d] -> y [d]. N = 0 returns x."""
    y = x
    for w in weights:
        y, _ = dense(y, w)
    return y


def apply_layers_vjp(weights: Array, x: Array, cotangent: Array) -> tuple[Array, Array, Array]:
    """`apply_layers` and its reverse mode, for the cotangent [d] of y: y [d], dweights [N, d, d], dx [d]."""
    carries = [x]  # carries[k] goes into layer k
    for w in weights:
        carry, _ = dense(carries[-1], w)
        carries.append(carry)
    dweights = np.empty_like(weights)
    for k in reversed(range(len(weights))):
        cotangent, dweights[k] = dense_vjp(carries[k], weights[k], cotangent)
    return carries[-1], dweights, cotangent


def oracle(weights: Array, x: Array, cotangent: Array) -> tuple[Array, Array, Array]:
    """What is right: `apply_layers_vjp` in float64, from inputs that are already rounded to the dtype under test."""
    return apply_layers_vjp(weights.astype(np.float64), x.astype(np.float64), cotangent.astype(np.float64))
