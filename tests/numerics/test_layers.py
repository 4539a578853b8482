"""Every layer in every framework: values, the outputs of each layer and gradients, against the hand-written NumPy."""

from __future__ import annotations

import functools
import importlib
from functools import partial

import ml_dtypes
import numpy as np
import pytest

from implementations.check.comparator import assert_trees
from implementations.check.dialect import flat, from_numpy, pullback, to_numpy, with_arrays
from implementations.check.problems import Results, is_float
from reference import layers
from reference.cases import SIZES, layer_carry, layer_params
from reference.stack import run_layers, run_layers_vjp, tree_map
from tests.conftest import loaded
from tests.support.laws import assert_constant


@pytest.mark.torch_backend("eager")
def test_a_layer_adds_to_what_enters_it(implementation):
    """Of an mlp without weights the biases are left: 1 + 10 + 10, and 2 + 20 + 30."""
    params = layer_params("mlp", 0, 2, d=2, f=4)
    params["down"] = {"w": np.zeros((2, 4, 2), np.float32), "bias": np.array([[10, 20], [10, 30]], np.float32)}
    arrays = from_numpy(implementation, (params, np.array([1, 2], np.float32)))
    y, _ = implementation.scan_layers(implementation.LAYERS["mlp"], *arrays)
    assert implementation.to_numpy(y).tolist() == [21, 52]


N = 3
WINDOWS = np.array([2, 5, 3], np.int32)  # how far back each layer of the decoder sees


def showing(layer):
    """The layer, its y the new carry beside its own: what a stack hides, every layer's output, is compared too."""

    def shows(carry, params, *x):
        new_carry, y = layer(carry, params, *x)
        return new_carry, {"carry": new_carry, "own": y}

    return shows


def showing_vjp(vjp):
    def shows(carry, params, *x_and_cotangents):
        *x, dcarry, dy = x_and_cotangents
        dcarry = tree_map(np.add, dcarry, dy["carry"])
        return vjp(carry, params, *x, dcarry, dy["own"])

    return shows


def inputs(name):
    layer = name.partition(",")[0]
    return layer_params(layer, 1, N, **SIZES[layer]), layer_carry(layer, 1, **SIZES[layer]), xs(name)


def xs(name):
    return WINDOWS if name.endswith("window") else None


def as_dtype(tree, dtype):
    return tree_map(lambda a: a.astype(dtype) if is_float(a) else a, tree)


@functools.cache
def right(name, dtype):
    """Inputs, cotangents and results, by NumPy in that dtype, from numbers that are of float32."""
    layer = layers.LAYERS[name.partition(",")[0]]
    given = as_dtype(inputs(name), dtype)
    outputs = run_layers(showing(layer.forward), *given)
    rng = np.random.default_rng(2)
    cotangents = tree_map(lambda a: rng.standard_normal(a.shape).astype(dtype) if is_float(a) else None, outputs)
    outputs, gradients = run_layers_vjp(showing(layer.forward), showing_vjp(layer.vjp), *given, cotangents=cotangents)
    return given, cotangents, Results(*outputs, *gradients)


NAMES = (*layers.LAYERS, "transformer_decoder, window")


@pytest.mark.torch_backend("eager")
@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        pytest.param("scan_layers", "float32", marks=pytest.mark.thorough("torch_compile")),
        ("scan_layers", "float64"),
        *(pytest.param("unroll_layers", dtype, marks=pytest.mark.thorough) for dtype in ("float32", "float64")),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_values_outputs_and_gradients(implementation, name, form, dtype):
    actual = run(implementation, name, form, dtype)
    who = f"{implementation.__name__}, {name}, {form}, {dtype}"
    assert_layers(who, actual, name, dtype)


@pytest.mark.thorough
@pytest.mark.parametrize("name", layers.LAYERS)
def test_values_and_gradients_under_inductor(name):
    """Elsewhere the decoder is trained under Inductor (test_training_parity), the encoder runs (test_minilm)."""
    actual = run(loaded("torch_compile"), name, "scan_layers", "float32")
    assert_layers(f"torch_compile, {name}, inductor", actual, name, "float32")


def run(implementation, name, form, dtype, change=lambda layer: layer):
    given, cotangents, _ = right(name, dtype)
    layer = showing(change(implementation.LAYERS[name.partition(",")[0]]))
    stack, compiled = partial(getattr(implementation, form), layer), implementation.__name__ == "jax_scan"
    # JAX, called as it stands, compiles every operation by itself
    outputs, gradients = pullback(implementation, stack, given, cotangents, compiled=compiled)
    return Results(*outputs, *gradients)


def assert_layers(who, actual, name, dtype):
    exact, yardstick = (right(name, dtype)[2] for dtype in ("float64", "float32"))
    if "encoder" in name:
        # softmax does not see what all keys have in common: the gradient of their bias is zero but for rounding
        actual, exact, yardstick = (without_key_bias(results) for results in (actual, exact, yardstick))
    assert_trees(who, actual, exact, yardstick, dtype=dtype if dtype == "float64" else None)


def without_key_bias(results):
    key = results.dparams["key"]
    query = results.dparams["query"]
    summed = {**query, "bias": query["bias"] + key["bias"]}  # as large as its neighbour's, which it must not change
    return results._replace(dparams={**results.dparams, "query": summed, "key": {"w": key["w"]}})


@pytest.mark.torch_backend("eager")
@pytest.mark.parametrize("name", NAMES)
def test_values_in_bfloat16(implementation, name):
    """From inputs that are of bfloat16; ulps are relative, so NumPy's float32 is the yardstick here too."""
    layer, given = name.partition(",")[0], as_dtype(inputs(name), ml_dtypes.bfloat16)
    stack = partial(implementation.scan_layers, showing(implementation.LAYERS[layer]))
    outputs = to_numpy(implementation, stack(*from_numpy(implementation, given)))
    expected = [
        values(run_layers(showing(layers.LAYERS[layer].forward), *as_dtype(given, dtype)))
        for dtype in (np.float64, np.float32)
    ]
    who = f"{implementation.__name__}, {name}, bfloat16"
    if own := outputs[1]["own"]:  # what batch norms saw stays in float32; its error is that of bfloat16 activations
        assert {array.dtype for array in flat(own)} == {np.dtype(np.float32)}
        outputs[1]["own"] = as_dtype(own, ml_dtypes.bfloat16)
    assert_trees(who, values(outputs), *expected, dtype=ml_dtypes.bfloat16)


def values(outputs):
    return {"carry": outputs[0], "ys": outputs[1]}


# Mutants: wrong layers that the comparison must catch.


def changed_params(change):
    """The layer, with its params changed before it sees them."""
    return lambda layer: lambda carry, params, *x: layer(carry, change(params), *x)


def permuted_heads(params):
    return {**params, "query": {name: array[..., ::-1, :] for name, array in params["query"].items()}}


def swapped_norms(params):
    return {**params, "norm1": params["norm2"], "norm2": params["norm1"]}


def no_mask(layer):
    return lambda carry, params: layer({**carry, "mask": carry["mask"] | True}, params)


def opposite_mask(layer):
    def step(carry, params):
        new, y = layer({**carry, "mask": ~carry["mask"]}, params)
        return {**new, "mask": carry["mask"]}, y

    return step


def window_off_by_one(layer):
    return lambda carry, params, window: layer(carry, params, window + 1)


MUTANTS = {
    "heads in another order": ("transformer_encoder", changed_params(permuted_heads)),
    "norms swapped": ("transformer_encoder", changed_params(swapped_norms)),
    "no mask": ("transformer_encoder", no_mask),
    "the mask's opposite": ("transformer_encoder", opposite_mask),
    "heads of the decoder in another order": ("transformer_decoder", changed_params(permuted_heads)),
    "a window off by one": ("transformer_decoder, window", window_off_by_one),
    "norms of the images swapped": ("residual_conv", changed_params(swapped_norms)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_wrong_layers_are_caught(mutant):
    name, change = MUTANTS[mutant]
    actual = run(loaded("jax_scan"), name, "scan_layers", "float32", change)
    with pytest.raises(AssertionError, match="observed an error"):
        assert_layers(mutant, actual, name, "float32")


# What frameworks choose differently by default: each constant, changed, must be noticed too.
CONSTANTS = {
    "EPS": ("transformer_decoder", 1e-6),
    "EPS of the images": ("residual_conv", 1e-3),
    "EPS_BERT": ("transformer_encoder", 1e-5),
    "BASE": ("transformer_decoder", 9_000.0),
}


@pytest.mark.parametrize("what", CONSTANTS)
def test_wrong_constants_are_caught(what, monkeypatch):
    name, value = CONSTANTS[what]
    implementation = loaded("jax_scan")
    monkeypatch.setattr(importlib.import_module("jax_scan.layers"), what.partition(" ")[0], value)
    actual = run(implementation, name, "scan_layers", "float32", lambda layer: lambda *args: layer(*args))
    with pytest.raises(AssertionError, match="observed an error"):
        assert_layers(what, actual, name, "float32")


def test_the_other_gelu_is_caught(monkeypatch):
    import jax

    gelu = jax.nn.gelu
    monkeypatch.setattr(jax.nn, "gelu", lambda h, approximate: gelu(h, approximate=not approximate))
    for name in ("mlp", "transformer_encoder"):
        actual = run(loaded("jax_scan"), name, "scan_layers", "float32", lambda layer: lambda *args: layer(*args))
        with pytest.raises(AssertionError, match="observed an error"):
            assert_layers("gelu", actual, name, "float32")


@pytest.mark.torch_backend("aot_eager")
def test_gelu_of_what_is_far_below_zero_is_zero_when_compiled(implementation):
    """1 + erf is 0 there but for its last bits, which trained weights multiply: XLA's are wrong, by 8.6e-7 at -9.6."""
    params, carry = (
        layer_params("transformer_encoder", 1, 1, **SIZES["transformer_encoder"]),
        inputs("transformer_encoder")[1],
    )
    up, down = params["up"], params["down"]
    params["up"] = {"w": 0 * up["w"], "bias": 0 * up["bias"] + np.linspace(-13, -9, up["bias"].size, dtype=np.float32)}
    run = implementation.compile(partial(implementation.scan_layers, implementation.LAYERS["transformer_encoder"]))
    signs = 1 - 2 * (np.arange(down["w"].shape[-1], dtype=np.float32) % 2)  # the norm takes off what all have
    downs = (params | {"down": {"w": 0 * down["w"] + w * signs, "bias": down["bias"]}} for w in (2**20, 0))
    far, nothing = (implementation.to_numpy(run(*from_numpy(implementation, (own, carry)))[0]["x"]) for own in downs)
    np.testing.assert_allclose(far, nothing, atol=1e-5)


def test_rotary_positions_of_keys_off_by_one_are_caught(monkeypatch):
    """Of the keys alone: what turns queries and keys alike changes nothing."""
    folder, calls = importlib.import_module("jax_scan.layers"), []

    def shifted(q, positions):
        calls.append(positions)
        return rotate(q, positions + (len(calls) % 2 == 0))

    rotate = folder._rotate
    monkeypatch.setattr(folder, "_rotate", shifted)
    actual = run(loaded("jax_scan"), "transformer_decoder", "scan_layers", "float32")
    with pytest.raises(AssertionError, match="observed an error"):
        assert_layers("rotary", actual, "transformer_decoder", "float32")


# First values.


@pytest.mark.parametrize("layer", ["dense", "mlp", "residual_conv"])
def test_stacked_params_are_those_of_single_inits(implementation, layer):
    """With keys of their own: no two layers alike, and the first layers of a deeper stack need not be these."""
    stacked = implementation.init_layers(layer, 3, 4, **SIZES[layer])
    folder = importlib.import_module(f"{implementation.__name__}.layers")
    singles = [folder.init_layer(layer, key, **SIZES[layer]) for key in keys(implementation.__name__, 3, 4)]
    stacked, *singles = (to_numpy(implementation, tree) for tree in (stacked, *singles))
    for array, *parts in zip(flat(stacked), *map(flat, singles), strict=True):
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, np.stack(parts))
    weights = [array for array in flat(stacked) if array.std() > 0.01]
    assert all(not np.array_equal(w[0], w[1]) for w in weights)
    shapes = [array.shape for array in flat(layer_params(layer, 0, 4, **SIZES[layer]))]
    assert [array.shape for array in flat(stacked)] == shapes


def keys(name, seed, N):
    """One a layer, as `init_layers` says it makes them."""
    if name == "jax_scan":
        import jax

        return list(jax.random.split(jax.random.key(seed), N))
    if name == "torch_compile":
        import torch

        from torch_compile.layers import layer_seeds

        return [torch.Generator().manual_seed(s) for s in layer_seeds(seed, N)]
    import tensorflow as tf

    return list(tf.random.split([seed, 0], N))


def test_first_values_have_the_scale_of_their_fan_in(implementation):
    params = to_numpy(implementation, implementation.init_layers("transformer_encoder", 0, 8, d=32, h=4, e=8, f=64))
    for name, fan_in in (("query", 32), ("out", 32), ("up", 32), ("down", 64)):
        assert params[name]["w"].std() == pytest.approx(fan_in**-0.5, rel=0.05)
        assert not params[name]["bias"].any()
    assert (params["norm1"]["scale"] == 1).all()


# Wrong shapes, in the same words everywhere.

WRONG = {
    "('up', 'w')": (lambda p: {**p, "up": {**p["up"], "w": p["up"]["w"][:, 1:]}},
        ValueError, "params['up']['w']: expected shape (d, f) with d = 12, f = 10, got (11, 10)"),
    "('query', 'bias')": (lambda p: {**p, "query": {**p["query"], "bias": p["query"]["bias"][:, 0]}},
        ValueError, "params['query']['bias']: expected shape (h, e)"),
    "a name missing": (lambda p: {name: p[name] for name in p if name != "norm2"},
        TypeError, "params of transformer_encoder: expected arrays"),
}  # fmt: skip


@pytest.mark.torch_backend("eager")
@pytest.mark.parametrize("what", WRONG)
def test_wrong_params_are_refused_in_the_same_words(implementation, what):
    change, kind, words = WRONG[what]
    params, carry, _ = from_numpy(implementation, inputs("transformer_encoder"))
    with pytest.raises(kind) as caught:
        implementation.scan_layers(implementation.LAYERS["transformer_encoder"], change(params), carry)
    assert words in str(caught.value)


def test_a_size_that_is_missing_is_named(implementation):
    with pytest.raises(TypeError, match=r"sizes: expected a size for f of 'f -> d', got \{'d': 4\}"):
        implementation.init_layers("mlp", 0, 2, d=4)


# Graph size: one program for 6 and 48 layers, at all three levels. With 6 layers every stacked array has 1000 elements:
# TensorFlow takes a smaller array of zeros for a constant.

WIDE = {
    "transformer_encoder": {"d": 192, "h": 3, "e": 64, "f": 192},
    "transformer_decoder": {"d": 192, "h": 6, "g": 3, "e": 64, "f": 192},
    "residual_conv": {"c": 192},
}


# A program with a gradient takes seconds to compile; of `mlp` it is counted in test_program_size.
@pytest.mark.parametrize(
    "gradient", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["forward", "gradient"]
)
@pytest.mark.parametrize("layer", WIDE)
def test_six_layers_and_forty_eight_have_one_size(implementation, layer, gradient):
    sizes = {N: size(implementation, layer, N, gradient) for N in (6, 48)}
    assert_constant(f"{implementation.__name__}, {layer}", sizes, loops=1 + gradient)


def size(implementation, layer, N, gradient):
    params, carry = layer_params(layer, 0, N, **WIDE[layer]), layer_carry(layer, 0, 1, 2, **WIDE[layer])
    x = carry["x"] if isinstance(carry, dict) else carry
    arrays = from_numpy(implementation, [*flat(params), x])
    masks = from_numpy(implementation, {"mask": carry["mask"]}) if isinstance(carry, dict) else {}

    def apply(*arrays):
        carry = {"x": arrays[-1], **masks} if masks else arrays[-1]
        carry, _ = implementation.scan_layers(implementation.LAYERS[layer], with_arrays(params, arrays), carry)
        return carry["x"] if masks else carry

    cotangent = from_numpy(implementation, np.ones_like(x)) if gradient else None
    return implementation.graph_size(apply, *arrays, cotangent=cotangent, memory=False)
