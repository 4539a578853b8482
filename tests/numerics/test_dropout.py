"""Dropout in a stack: masks, keys and rates."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from packaging.version import Version

from implementations.check.dialect import from_numpy, pullback
from tests.conftest import loaded

quick = pytest.mark.torch_backend("aot_eager")

RATE, WIDTH, LAYERS = 0.75, 1000, 4  # 1 / (1 - RATE) = 4: on integers nothing rounds


@quick
def test_what_is_kept_makes_up_for_what_is_dropped(implementation):
    """At a rate of 3/4 one in four is kept, four times as large."""
    (key,) = implementation.layer_keys(3, 1, (WIDTH,))
    left = implementation.to_numpy(implementation.dropout(implementation.from_numpy(np.ones(WIDTH)), key, 0.75))
    assert set(left.tolist()) == {0, 4}
    assert 150 < (left == 4).sum() < 350  # of 1000


def dropping(implementation):
    def layer(carry, w, key):
        dropped = implementation.dropout(carry * w, key, RATE)
        return carry, dropped

    return layer


def masks(implementation, form="scan_layers", seed=3, dtype="float32", **options):
    """What is left of ones in each layer, [LAYERS, WIDTH]."""
    w, x = from_numpy(implementation, (np.ones(LAYERS, dtype), np.ones(WIDTH, dtype)))
    keys = implementation.layer_keys(seed, LAYERS, (WIDTH,))
    _, ys = getattr(implementation, form)(dropping(implementation), w, x, keys, **options)
    return implementation.to_numpy(ys)


def assert_dropped(left):
    """Each layer drops other elements of ones, at the rate, and the rest makes up for them."""
    assert set(np.unique(left)) == {0, 1 / (1 - RATE)}, "values"
    # a binomial number, within six standard deviations: in each layer, and where two layers agree
    for kept in left > 0:
        assert abs(kept.mean() - (1 - RATE)) < 6 * np.sqrt(RATE * (1 - RATE) / kept.size), "rate"
    agree, by_chance = (left[:-1] > 0) == (left[1:] > 0), RATE**2 + (1 - RATE) ** 2
    assert abs(agree.mean() - by_chance) < 6 * np.sqrt(by_chance * (1 - by_chance) / agree.size), "layers"


@quick
@pytest.mark.covers("dropout: one key a layer")
def test_every_layer_drops_other_elements_at_the_rate(implementation):
    assert_dropped(masks(implementation))


WRONG_MASKS = {
    "frozen": (lambda left: np.stack([left[0]] * LAYERS), "layers"),
    "frozen in two layers": (lambda left: left[[0, 0, 2, 3]], "layers"),
    "the wrong way round": (lambda left: 4 - left, "rate"),
    "not made up for": (lambda left: left / 4, "values"),
    "nothing dropped": (lambda left: np.full_like(left, 4), "values"),
}


@pytest.mark.parametrize(("change", "what"), WRONG_MASKS.values(), ids=WRONG_MASKS)
def test_wrong_masks_are_caught(change, what):
    left = np.where(np.random.default_rng(0).uniform(size=(LAYERS, WIDTH)) < RATE, 0, 4)
    assert_dropped(left)
    with pytest.raises(AssertionError, match=what):
        assert_dropped(change(left))


@quick
@pytest.mark.covers("dropout: one key a layer")
def test_masks_are_those_of_the_seed_rolled_and_unrolled(implementation):
    left = masks(implementation)
    for other in ({"form": "unroll_layers"}, {}, {"unroll": 3}, {"remat": 2}, {"reverse": True}):
        np.testing.assert_array_equal(left, masks(implementation, **other), strict=True, err_msg=str(other))
    assert not np.array_equal(left, masks(implementation, seed=4))


@quick
@pytest.mark.parametrize("dtype", [np.float64, ml_dtypes.bfloat16])
def test_dropout_keeps_the_dtype(implementation, dtype):
    left = masks(implementation, dtype=dtype)
    assert left.dtype == dtype
    assert 0 < (left > 0).mean() < 1


@quick
@pytest.mark.parametrize("options", [{}, {"remat": True}, {"remat": 3, "reverse": True}], ids=str)
def test_the_gradient_goes_through_the_same_mask(implementation, options, request):
    """Also where the backward pass runs the layer again: a new mask there would be silent."""
    if implementation.__name__ == "jax_scan" and options.get("remat") == 3:  # which does not divide the layers
        is_old = Version(implementation.versions()["jax"]) < Version("0.10.2")
        reason = "jax before 0.10.2: of the branches of a cond, one keeps a key for the backward pass"
        request.applymarker(pytest.mark.xfail(is_old, raises=AssertionError, reason=reason))
    keys = implementation.layer_keys(3, LAYERS, (WIDTH,))
    layer = dropping(implementation)
    inputs = np.full(LAYERS, 2, np.float32), np.arange(WIDTH, dtype=np.float32)
    cotangents = np.zeros(WIDTH, np.float32), np.ones((LAYERS, WIDTH), np.float32)
    (_, ys), (dw, dx) = pullback(
        implementation, lambda w, x: implementation.scan_layers(layer, w, x, keys, **options), inputs, cotangents
    )
    left = masks(implementation)
    np.testing.assert_array_equal(ys, 2 * inputs[1] * left)
    np.testing.assert_array_equal(dx, 2 * left.sum(0))
    np.testing.assert_array_equal(dw, left @ inputs[1])


# What dropout is given.


@quick
@pytest.mark.parametrize("rate", [1, 1.0, np.float32(1)], ids=repr)
def test_of_rate_1_nothing_is_left_and_the_gradient_is_zero(implementation, rate):
    """array / (1 - rate) is NaN, or infinite, and 0 times that is NaN: also in the gradient."""
    (key,) = implementation.layer_keys(3, 1, (WIDTH,))
    x = np.arange(WIDTH, dtype=np.float32)
    y, (dx,) = pullback(implementation, lambda x: implementation.dropout(x, key, rate), (x,), np.ones_like(x))
    np.testing.assert_array_equal(y, np.zeros_like(x), strict=True)
    np.testing.assert_array_equal(dx, np.zeros_like(x), strict=True)


@quick
@pytest.mark.parametrize("rate", [0, 0.0])
def test_of_rate_0_everything_is_left(implementation, rate):
    (key,) = implementation.layer_keys(3, 1, (WIDTH,))
    x = np.arange(WIDTH, dtype=np.float32)
    y = implementation.dropout(implementation.from_numpy(x), key, rate)
    np.testing.assert_array_equal(implementation.to_numpy(y), x, strict=True)


WRONG_RATES = {
    "1.5": (1.5, ValueError, "1.5"),
    "-0.1": (-0.1, ValueError, "-0.1"),
    "2": (2, ValueError, "2"),
    "NaN": (float("nan"), ValueError, "nan"),
    "text": ("0.5", TypeError, "'0.5'"),
    "None": (None, TypeError, "None"),
    "True": (True, TypeError, "True"),
}


@quick
@pytest.mark.parametrize(("rate", "exception", "got"), WRONG_RATES.values(), ids=WRONG_RATES)
def test_a_rate_that_is_none_is_refused(implementation, rate, exception, got):
    (key,) = implementation.layer_keys(3, 1, (2,))
    with pytest.raises(exception) as caught:
        implementation.dropout(implementation.from_numpy(np.ones(2, np.float32)), key, rate)
    assert type(caught.value) is exception
    assert str(caught.value) == f"rate: expected a number from 0 to 1, got {got}"


def test_a_rate_may_change_from_call_to_call_in_a_compiled_function(implementation):
    (key,) = implementation.layer_keys(3, 1, (WIDTH,))
    x = implementation.from_numpy(np.ones(WIDTH, np.float32))
    for rate in (0.5, 0.75, 0.25, 1.0):
        y = implementation.to_numpy(
            implementation.compile(lambda x, key, r=rate: implementation.dropout(x, key, r))(x, key)
        )
        assert set(np.unique(y)) <= {0, np.float32(1) / np.float32(1 - rate or 1)}
        assert abs((y == 0).mean() - rate) < 0.1


def test_a_key_made_for_another_shape_is_refused_where_it_would_be_broadcast():
    implementation = loaded("torch_compile")
    x = implementation.from_numpy(np.ones((2, 3), np.float32))
    for shape in ((3,), (1, 3), (2, 1), (), (3, 2)):
        (key,) = implementation.layer_keys(0, 1, shape)
        with pytest.raises(ValueError, match="key") as caught:
            implementation.dropout(x, key, 0.5)
        shown = f"({shape[0]},)" if len(shape) == 1 else str(shape)
        assert str(caught.value) == f"key: expected shape (2, 3) (that of array, as for layer_keys), got {shown}"
    (key,) = implementation.layer_keys(0, 1, (2, 3))
    assert implementation.dropout(x, key, 0.5).shape == (2, 3)
