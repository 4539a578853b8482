"""Norms and clipping of a stack's gradients, layer by layer, in every dtype and of any size: float64 is right.

What comes in may be of several dtypes, larger than the root of the largest number, complex, or nothing at all.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from implementations.check.dialect import flat, from_numpy, pullback, to_numpy
from implementations.check.problems import is_float
from reference.stack import tree_map


def test_two_layers_by_hand(implementation):
    """Norms of (3, 4) and of (6, 8); the second is clipped to the length of the first."""
    gradients = from_numpy(implementation, {"w": np.array([[3, 4], [6, 8]], np.float32)})
    assert implementation.to_numpy(implementation.layer_norms(gradients)).tolist() == [5, 10]
    clipped = implementation.to_numpy(implementation.clip_layers(gradients, 5.0)["w"])
    np.testing.assert_allclose(clipped, [[3, 4], [3, 4]], rtol=1e-6)


BFLOAT16 = ml_dtypes.bfloat16
RNG = np.random.default_rng(0)
A, B = RNG.standard_normal((3, 4)), RNG.standard_normal((3, 2, 5))
COMPLEX = (A + 1j * A[:, ::-1]).astype(np.complex64)

# what -> gradients of three layers, some [3]: a number a layer
GRADIENTS = {
    "float16": {"a": A.astype(np.float16), "b": B.astype(np.float16)},
    "float16, squares above its largest number": [(A * 1e4).astype(np.float16), (B * 1e4).astype(np.float16)],
    "three dtypes and integers": (A.astype(np.float32), [B.astype(BFLOAT16), B[:, 0].astype(np.float16)], np.arange(3)),
    "float64 and bfloat16": {"a": A, "b": B.astype(BFLOAT16)},
    "float32, 1e20": {"a": (A * 1e20).astype(np.float32), "b": B.astype(np.float32)},
    "bfloat16, 1e30": ((A * 1e30).astype(BFLOAT16), B.astype(BFLOAT16)),
    "float64, 1e200": (A * 1e200, B),
    "float32, the largest number": (np.full((3, 4), np.finfo(np.float32).max),),
    "float32, 1e-30": {"a": (A * 1e-30).astype(np.float32)},
    "a number a layer": (A[:, 0].astype(np.float32), B.astype(np.float32)),
    "complex": {"a": COMPLEX},
    "complex, 1e25": {"a": COMPLEX * np.float32(1e25)},
    "complex and real": {"a": COMPLEX, "b": B.astype(np.float32)},
    "nothing in an array": (np.zeros((3, 0, 2), np.float32), A.astype(np.float32)),
    "zeros in a layer": (np.array([[1, 2], [0, 0], [3, 4]], np.float32),),
    "no layers": (A[:0].astype(np.float32), A[:0, 0].astype(np.float32)),
    "integers alone": {"k": np.arange(6, dtype=np.int32).reshape(3, 2)},
    "NaN and infinity": (np.array([[1, np.nan], [1, 2], [np.inf, 1]], np.float32),),
}
any_gradients = pytest.mark.parametrize("gradients", GRADIENTS.values(), ids=GRADIENTS)


def as_wide(array):
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def right_norms(gradients):
    def of(i):
        return math.hypot(*(abs(v) for a in flat(gradients) if is_float(a) for v in np.ravel(as_wide(a)[i])))

    return np.array([of(i) for i in range(len(flat(gradients)[0]))])


def ulp(dtype):
    return float(ml_dtypes.finfo(dtype).eps)


@any_gradients
def test_norms_are_those_of_float64(implementation, gradients):
    found = implementation.to_numpy(implementation.layer_norms(from_numpy(implementation, gradients)))
    has_float64 = any(a.dtype == np.float64 for a in flat(gradients))
    assert found.dtype == (np.float64 if has_float64 else np.float32)
    with np.errstate(over="ignore"):
        expected = right_norms(gradients).astype(found.dtype)  # more than the largest number is infinite
    np.testing.assert_allclose(found, expected, rtol=16 * ulp(found.dtype))


@any_gradients
@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clipped_layers_have_the_norm_that_they_may_have(implementation, gradients, max_norm):
    found = to_numpy(implementation, implementation.clip_layers(from_numpy(implementation, gradients), max_norm))
    norms = right_norms(gradients)
    with np.errstate(invalid="ignore", divide="ignore"):
        factors = np.minimum(1, max_norm / norms)

    def check(before, after):
        assert after.dtype == before.dtype
        if not is_float(before):
            np.testing.assert_array_equal(after, before)
            return
        with np.errstate(invalid="ignore"):
            expected = as_wide(before) * factors.reshape(-1, *[1] * (before.ndim - 1))
        real = np.abs(before).real.dtype  # an error of this dtype
        np.testing.assert_allclose(
            as_wide(after), expected, rtol=16 * ulp(real), atol=float(ml_dtypes.finfo(real).tiny)
        )

    tree_map(check, gradients, found)


@pytest.mark.parametrize("size", [1, 1e25])
def test_the_gradient_of_a_norm_is_the_direction(implementation, size):
    given = (A * size).astype(np.float32)
    _, (gradient,) = pullback(implementation, implementation.layer_norms, (given,), np.ones(3, np.float32))
    expected = as_wide(given) / right_norms(given)[:, None]
    np.testing.assert_allclose(gradient, expected, rtol=32 * ulp(np.float32))
