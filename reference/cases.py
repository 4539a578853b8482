"""Seeded, named problems: the inputs that every implementation is run on.

A case is only a case if a wrong stack fails it: `tests/meta/test_cases.py` shows for each, in each dtype, that layers
in another order, dropped, shared or transposed, and a detached carry, change the result by more than the bound allows.
Inputs are rounded to the dtype first, and the oracle starts from the rounded ones. Five widths and few depths, because
frameworks compile for each shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np

from reference.layers import Array
from reference.shapes import PARAMS, shape_and_scale

DTYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


class Case(NamedTuple):
    name: str
    weights: Array  # [N, d, d]
    x: Array  # [d]
    cotangent: Array  # [d], of y
    exact: bool  # no correct implementation rounds anything here, forward or backward: results must be equal, by ==

    @property
    def inputs(self) -> tuple[Array, Array, Array]:
        return self.weights, self.x, self.cotangent


def case(name: str, dtype: str) -> Case:
    """The problem `name`, one of NAMES, as NumPy arrays of `dtype`, one of DTYPES. The same numbers at each call."""
    kind, N, d = _CASES[name]
    rng = np.random.default_rng(list(name.encode()))
    weights, x, cotangent = (array.astype(DTYPES[dtype]) for array in kind(rng, N, d))
    return Case(name, weights, x, cotangent, exact=name in EXACT_NAMES)


Problem: TypeAlias = tuple[Array, Array, Array]  # weights [N, d, d], x [d], cotangent [d], in float64


def _orthogonal(rng: np.random.Generator, N: int, d: int) -> Problem:
    """Nothing grows, shrinks or is forgotten: an error in any layer arrives in full."""
    return np.linalg.qr(rng.standard_normal((N, d, d)))[0], rng.standard_normal(d), rng.standard_normal(d)


def _gaussian(rng: np.random.Generator, N: int, d: int) -> Problem:
    """Badly conditioned, the more so the deeper: at N = 1024 the bound in bfloat16 would be as large as y."""
    return rng.standard_normal((N, d, d)) / np.sqrt(d), rng.standard_normal(d), rng.standard_normal(d)


def _positive(rng: np.random.Generator, N: int, d: int) -> Problem:
    """All products of one sign, so partial sums are as large as they can be.

    Such layers forget all of their input but its size, so a dropped one would hardly show: they double and halve.
    """
    gain = np.where(np.arange(N) % 2, 0.5, 2.0)
    return gain[:, None, None] * rng.uniform(0, 2 / d, (N, d, d)), rng.uniform(size=d), rng.uniform(size=d)


def _worked_example(rng: np.random.Generator, N: int, d: int) -> Problem:
    """Identity, then swap: [3, 4] -> [4, 3]. To be recognised: symmetric and commuting, it tells little apart."""
    return np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]]]), np.array([3, 4]), np.array([5, 6])


def _permutation(rng: np.random.Generator, N: int, d: int) -> Problem:
    """The numbers 1 .. d are moved around: all differ, so every layer that moves one shows."""
    numbers = np.arange(1, d + 1)  # products of two, in dweights, are at most d^2: 256 for d = 16
    return np.eye(d)[_permutations(rng, N, d)], rng.permutation(numbers), rng.permutation(numbers)


def _powers_of_two(rng: np.random.Generator, N: int, d: int) -> Problem:
    """Signed permutations scaled by powers of two: exponents of the carry walk between -30 and 30, of dweights +-98."""
    to = np.arange(d)
    exponents = rng.integers(-30, 31, (N + 1, d))  # [k] of what enters layer k
    weights = np.zeros((N, d, d))
    for k, source in enumerate(_permutations(rng, N, d)):
        weights[k, to, source] = _signs(rng, d) * 2.0 ** (exponents[k + 1] - exponents[k, source])
    return weights, _signs(rng, d) * 2.0 ** exponents[0], _signs(rng, d) * 2.0 ** rng.integers(-8, 9, d)


def _small_integers(rng: np.random.Generator, N: int, d: int) -> Problem:
    """Dense, and every number on the way, partial sums included, is an integer of at most 256."""
    return rng.integers(-1, 2, (N, d, d)), rng.integers(-2, 3, d), rng.integers(-2, 3, d)


def _permutations(rng: np.random.Generator, N: int, d: int) -> Array:
    return rng.permuted(np.tile(np.arange(d), (N, 1)), axis=1)  # [N, d]


def _signs(rng: np.random.Generator, d: int) -> Array:
    return rng.choice([-1.0, 1.0], d)


_Kind: TypeAlias = Callable[[np.random.Generator, int, int], Problem]
_EXACT: dict[str, tuple[_Kind, int, int]] = {
    "worked_example_2x2": (_worked_example, 2, 2),
    "small_integers_3x7": (_small_integers, 3, 7),
    "powers_of_two_64x16": (_powers_of_two, 64, 16),
    "permutation_1001x16": (_permutation, 1001, 16),
}
_CASES: dict[str, tuple[_Kind, int, int]] = {
    "orthogonal_3x7": (_orthogonal, 3, 7),
    "orthogonal_12x33": (_orthogonal, 12, 33),
    "orthogonal_8x256": (_orthogonal, 8, 256),
    "orthogonal_1024x16": (_orthogonal, 1024, 16),
    "gaussian_3x7": (_gaussian, 3, 7),
    "gaussian_12x33": (_gaussian, 12, 33),
    "gaussian_8x256": (_gaussian, 8, 256),
    "gaussian_64x16": (_gaussian, 64, 16),
    "positive_3x7": (_positive, 3, 7),
    "positive_12x33": (_positive, 12, 33),
    "positive_8x256": (_positive, 8, 256),
    "positive_1024x16": (_positive, 1024, 16),
    **_EXACT,
}  # name (depth x width) -> kind, N, d
NAMES = tuple(_CASES)
EXACT_NAMES = tuple(_EXACT)


def layer_params(layer: str, seed: int, N: int, **sizes: int) -> Any:
    """Parameters of N layers of that name, stacked, in float32: small enough to train, and no two arrays alike."""
    rng = np.random.default_rng(seed)

    def draw(axes: Any) -> Any:
        if isinstance(axes, dict):
            return {name: draw(part) for name, part in axes.items()}
        shape, scale = shape_and_scale(axes, sizes)
        return (scale * rng.standard_normal((N, *shape))).astype(np.float32)

    def around(tree: Any) -> Any:
        """Biases near 0 and scales near 1: drawn with a scale of 1 they would be all that counts."""
        small = {name: 0.1 * array + (name == "scale") for name, array in tree.items() if name in ("scale", "bias")}
        return {name: around(part) if isinstance(part, dict) else small.get(name, part) for name, part in tree.items()}

    params = draw(PARAMS[layer])
    return around(params) if isinstance(params, dict) else params


# Sizes by layer, for carries of a few hundred numbers: every symbol has a size of its own, so that none stands in for
# another.
SIZES: dict[str, dict[str, int]] = {
    "dense": {"d": 7},
    "mlp": {"d": 5, "f": 7},
    "transformer_encoder": {"d": 12, "h": 3, "e": 4, "f": 10},
    "transformer_decoder": {"d": 12, "h": 6, "g": 2, "e": 4, "f": 10},
    "residual_conv": {"c": 3},
}


def layer_carry(layer: str, seed: int, B: int = 2, T: int = 5, **sizes: int) -> Any:
    """A carry for that layer in float32: of B sequences of T positions, or of B images of T x T + 1."""
    rng = np.random.default_rng([seed, 1])
    shapes = {"dense": ("d",), "mlp": (B, "d"), "residual_conv": (B, T, T + 1, "c")}
    shape = [sizes[axis] if isinstance(axis, str) else axis for axis in shapes.get(layer, (B, T, "d"))]
    x = rng.standard_normal(shape).astype(np.float32)
    if layer != "transformer_encoder":
        return x
    lengths = T - np.arange(B) % T  # the first sequence is whole, each other one shorter than the one before it
    return {"x": x, "mask": np.arange(T) < lengths[:, None]}
