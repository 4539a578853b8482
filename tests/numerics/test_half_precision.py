"""Every layer in bfloat16 and float16, where they are not enough: large activations, many positions, gradients.

The bound is that of test_layers: from inputs that are of the dtype, NumPy's float32 error counted in ulps of it.
"""

from __future__ import annotations

from functools import partial

import ml_dtypes
import numpy as np
import pytest

from implementations.check.comparator import assert_trees
from implementations.check.dialect import from_numpy, pullback, to_numpy
from implementations.check.problems import is_float
from reference import layers
from reference.cases import SIZES, layer_carry, layer_params
from reference.stack import run_layers, tree_map

pytestmark = pytest.mark.torch_backend("aot_eager")
HALF = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
NORMED = [name for name in layers.LAYERS if name != "dense"]


@pytest.mark.parametrize(("dtype", "large", "right"), [("bfloat16", 256, 258), ("float16", 2048, 2050)])
def test_a_sum_is_made_in_float32(implementation, dtype, large, right):
    """Neither dtype has large + 1: one after the other, each 1 would be lost."""
    weights, x = np.array([[[1, 1, 1], [0, 0, 0], [0, 0, 0]]], HALF[dtype]), np.array([large, 1, 1], HALF[dtype])
    y = implementation.scan_apply_layers(*from_numpy(implementation, (weights, x)))
    assert implementation.to_numpy(y).tolist() == [right, 0, 0]


def as_dtype(tree, dtype):
    return tree_map(lambda a: a.astype(dtype) if is_float(a) else a, tree)


def large(name, size):
    """One layer and a carry up to `size`, to which the layer adds as much: less would be rounded away."""
    params, carry = layer_params(name, 1, 1, **SIZES[name]), layer_carry(name, 1, **SIZES[name])
    last = "conv2" if name == "residual_conv" else "down"
    params = {**params, last: {**params[last], "w": params[last]["w"] * np.float32(size / 8)}}
    return params, tree_map(lambda a: a * (size / np.abs(a).max()) if is_float(a) else a, carry)


def assert_right(who, implementation, name, given, dtype):
    """Values of a stack of one layer; without the statistics of batch norm, which are of float32."""
    stack = partial(implementation.scan_layers, implementation.LAYERS[name])
    carry, _ = to_numpy(implementation, stack(*from_numpy(implementation, given)))
    right = [{"carry": run_layers(layers.LAYERS[name].forward, *as_dtype(given, d))[0]} for d in ("f8", "f4")]
    assert_trees(f"{implementation.__name__}, {who}", {"carry": carry}, *right, dtype=dtype)


@pytest.mark.parametrize(("dtype", "size"), [("float16", 300.0), ("float16", 1e4), ("bfloat16", 1e4)])
@pytest.mark.parametrize("name", NORMED)
def test_norms_of_large_activations(implementation, name, dtype, size):
    """The square of 256 is infinite in float16: the normed value was 0, and the layer did nothing, which is caught."""
    given = as_dtype(large(name, size), HALF[dtype])
    assert_right(f"{name}, {dtype}, up to {size}", implementation, name, given, HALF[dtype])


@pytest.mark.parametrize("dtype", HALF)
def test_a_thousand_positions(implementation, dtype):
    """bfloat16 has no 257, and neither has angles as fine as these: scores so sharp that a wrong angle is caught."""
    params = layer_params("transformer_decoder", 1, 1, **SIZES["transformer_decoder"])
    for name, times in (("query", 2), ("key", 2), ("out", 4)):
        params = {**params, name: {"w": params[name]["w"] * np.float32(times)}}
    x = layer_carry("transformer_decoder", 1, 1, 1024, **SIZES["transformer_decoder"])
    given = as_dtype((params, x), HALF[dtype])
    assert_right(f"1024 positions, {dtype}", implementation, "transformer_decoder", given, HALF[dtype])


@pytest.mark.parametrize("dtype", HALF)
def test_keys_turn_by_one_radian_a_position_in_a_cache(implementation, dtype):
    """One token at 256 to 260: the first pair of its key turns by 1, of which the dtype rounds some ulps."""
    params = layer_params("transformer_decoder", 1, 1, **SIZES["transformer_decoder"])
    params, x = as_dtype(
        (params, layer_carry("transformer_decoder", 1, 1, 1, **SIZES["transformer_decoder"])), HALF[dtype]
    )
    params, x = from_numpy(implementation, (params, x))
    turned = []
    for position in range(256, 261):
        cache = implementation.empty_cache(params, 1, 261)
        _, cache = implementation.decode(params, x, cache, position)
        key = implementation.to_numpy(cache["k"])[0, 0, position, 0].astype(np.float64)
        turned.append(np.arctan2(key[len(key) // 2], key[0]))
    ulps = 4 * float(ml_dtypes.finfo(HALF[dtype]).eps)
    np.testing.assert_allclose(np.diff(turned) % (2 * np.pi), 1, atol=ulps)


@pytest.mark.parametrize("name", NORMED)
def test_gradients_of_large_activations_are_finite(implementation, name):
    """And not zero: a derivative that squares in float16 has inf - inf or 0 * inf in it. bfloat16 has room for both."""
    params, carry = as_dtype(large(name, 300.0), HALF["float16"])
    x = carry["x"] if name == "transformer_encoder" else carry

    def apply(params, x):
        (mask,) = from_numpy(implementation, (carry["mask"],)) if name == "transformer_encoder" else (None,)
        given = x if mask is None else {"x": x, "mask": mask}
        new, _ = implementation.scan_layers(implementation.LAYERS[name], params, given)
        return new if mask is None else new["x"]

    _, gradients = pullback(implementation, apply, (params, x), np.ones_like(x))
    for gradient in (gradients[1], *[g for tree in gradients[0].values() for g in tree.values()]):
        assert np.isfinite(gradient.astype(np.float64)).all()
    assert np.abs(gradients[1].astype(np.float64)).max() > 0


@pytest.mark.parametrize("dtype", HALF)
def test_a_product_is_rounded_once(implementation, dtype):
    """Sums of 256 terms, of whole numbers and a half, exact in float32: the nearest number of the dtype, as it is
    returned. A sum in half precision, or one that is cut off, is another."""
    rng = np.random.default_rng(0)
    bias, down = rng.integers(-4, 5, 256), rng.integers(-8, 9, (1, 256, 3)) + 0.5
    h = np.where(bias > 0, 64.0 * bias, -64.0)  # so large that the activation is 0 or what it was
    zero = np.zeros((1, 3))
    params = {
        "norm": {"scale": zero, "bias": zero},
        "up": {"w": np.zeros((1, 3, 256)), "bias": h[None]},
        "down": {"w": down, "bias": zero},
    }
    given = as_dtype((tree_map(np.float32, params), np.zeros(3, np.float32)), HALF[dtype])
    carry, _ = to_numpy(
        implementation, implementation.scan_layers(implementation.LAYERS["mlp"], *from_numpy(implementation, given))
    )
    exact = (np.maximum(h, 0) @ down[0]).astype(np.float32)
    assert carry.tolist() == exact.astype(HALF[dtype]).tolist()


@pytest.mark.parametrize("dtype", HALF)
def test_scores_of_attention_larger_than_float16(implementation, dtype):
    """Queries and keys of which the products are 90000 and more, masked ones beside them."""
    params, carry = large("transformer_encoder", 1.0)
    params = {**params, **{name: {**params[name], "bias": 0 * params[name]["bias"] + 300} for name in ("query", "key")}}
    given = as_dtype((params, carry), HALF[dtype])
    stack = partial(implementation.scan_layers, implementation.LAYERS["transformer_encoder"])
    carry, _ = to_numpy(implementation, stack(*from_numpy(implementation, given)))
    assert np.isfinite(carry["x"].astype(np.float64)).all()
