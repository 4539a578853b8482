"""Wrong stacks, each wrong in one way: a test that lets one of them pass tests nothing.

Small NumPy functions of the same arguments as the right ones in `reference/stack.py`, in the dtype they are given. Some
overflow on some cases, which is wrong enough.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np

from reference.layers import Array, dense, dense_vjp
from reference.stack import apply_layers, apply_layers_vjp

Forward = Callable[[Array, Array], Array]
Gradient = Callable[[Array, Array, Array], tuple[Array, Array, Array]]

# Wrong values: other layers than those asked for.


def reversed_layers(weights: Array, x: Array) -> Array:
    return apply_layers(weights[::-1], x)


def first_dropped(weights: Array, x: Array) -> Array:
    return apply_layers(weights[1:], x)


def middle_dropped(weights: Array, x: Array) -> Array:
    return apply_layers(np.delete(weights, len(weights) // 2, axis=0), x)


def last_dropped(weights: Array, x: Array) -> Array:
    return apply_layers(weights[:-1], x)


def middle_repeated(weights: Array, x: Array) -> Array:
    """The middle layer runs again in the place of the one after it."""
    k = len(weights) // 2
    repeated = weights.copy()
    repeated[(k + 1) % len(weights)] = weights[k]
    return apply_layers(repeated, x)


def first_shared(weights: Array, x: Array) -> Array:
    """All layers have the first one's weights, as when a loop is never handed the next slice."""
    return apply_layers(np.broadcast_to(weights[:1], weights.shape), x)


def transposed(weights: Array, x: Array) -> Array:
    return apply_layers(weights.transpose(0, 2, 1), x)


FORWARD: tuple[Forward, ...] = (
    reversed_layers,
    first_dropped,
    middle_dropped,
    last_dropped,
    middle_repeated,
    first_shared,
    transposed,
)

# Right values, wrong gradients.


def detached_carry(weights: Array, x: Array, cotangent: Array) -> tuple[Array, Array, Array]:
    """No gradient passes from a layer to the one before it."""
    y, dweights, dx = apply_layers_vjp(weights, x, cotangent)
    dweights[:-1] = 0
    return y, dweights, np.zeros_like(dx)


def weights_not_transposed(weights: Array, x: Array, cotangent: Array) -> tuple[Array, Array, Array]:
    """The backward pass multiplies by w where it should by w.T."""
    y, dweights, _ = apply_layers_vjp(weights, x, cotangent)
    _, _, dx = apply_layers_vjp(weights.transpose(0, 2, 1), x, cotangent)
    return y, dweights, dx


def backward_in_forward_order(weights: Array, x: Array, cotangent: Array) -> tuple[Array, Array, Array]:
    y, dweights, _ = apply_layers_vjp(weights, x, cotangent)
    _, _, dx = apply_layers_vjp(weights[::-1], x, cotangent)
    return y, dweights, dx


def dweights_reversed(weights: Array, x: Array, cotangent: Array) -> tuple[Array, Array, Array]:
    """Weight gradients in the order in which the backward pass makes them."""
    y, dweights, dx = apply_layers_vjp(weights, x, cotangent)
    return y, dweights[::-1], dx


def dweights_transposed(weights: Array, x: Array, cotangent: Array) -> tuple[Array, Array, Array]:
    y, dweights, dx = apply_layers_vjp(weights, x, cotangent)
    return y, dweights.transpose(0, 2, 1), dx


def dweights_doubled(weights: Array, x: Array, cotangent: Array) -> tuple[Array, Array, Array]:
    y, dweights, dx = apply_layers_vjp(weights, x, cotangent)
    return y, 2 * dweights, dx


def residual_off_by_one(weights: Array, x: Array, cotangent: Array) -> tuple[Array, Array, Array]:
    """A layer's gradient made with the carry that leaves it, not with the one that enters."""
    carries = [x]
    for w in weights:
        carries.append(dense(carries[-1], w)[0])
    dweights = np.empty_like(weights)
    for k in reversed(range(len(weights))):
        _, dweights[k] = dense_vjp(carries[k + 1], weights[k], cotangent)
        cotangent, _ = dense_vjp(carries[k], weights[k], cotangent)
    return carries[-1], dweights, cotangent


GRADIENT: tuple[Gradient, ...] = (
    detached_carry,
    weights_not_transposed,
    backward_in_forward_order,
    dweights_reversed,
    dweights_transposed,
    dweights_doubled,
    residual_off_by_one,
)

# Right layers, less precision than the dtype has. Judge the first two on orthogonal stacks: others may damp the error.


def one_tf32_layer(weights: Array, x: Array) -> Array:
    """The middle layer's product is of numbers with 10 bits after the point, as tensor cores make it."""
    return _with_middle_layer(weights, x, lambda w, y: _tf32(w) @ _tf32(y))


def one_bfloat16_layer(weights: Array, x: Array) -> Array:
    """The middle layer's result passes through bfloat16."""
    return _with_middle_layer(weights, x, lambda w, y: (w @ y).astype(ml_dtypes.bfloat16))


def float32_products(weights: Array, x: Array) -> Array:
    """float32 sold as float64."""
    return apply_layers(weights.astype(np.float32), x.astype(np.float32)).astype(weights.dtype)


def sums_in_the_dtype(weights: Array, x: Array) -> Array:
    """bfloat16 partial sums, each rounded, where they should be float32."""
    y = x
    for w in weights:
        terms = w * y  # [d, d]
        y = terms[:, 0]
        for j in range(1, len(x)):
            y = y + terms[:, j]
    return y


PRECISION: dict[str, tuple[Forward, ...]] = {
    "float32": (one_tf32_layer, one_bfloat16_layer),
    "float64": (one_tf32_layer, one_bfloat16_layer, float32_products),
    "bfloat16": (sums_in_the_dtype,),
}  # dtype -> what that dtype's bound must not let pass


def _with_middle_layer(weights: Array, x: Array, product: Forward) -> Array:
    k = len(weights) // 2
    carry = apply_layers(weights[:k], x)
    return apply_layers(weights[k + 1 :], product(weights[k], carry).astype(x.dtype))


def _tf32(a: Array) -> Array:
    significand, exponent = np.frexp(a)  # significand in [0.5, 1): 11 bits, the first of them always set
    return np.ldexp(np.round(significand * 2**11) / 2**11, exponent)
