"""The recipes around a stack: gates, mixed precision, the layer where NaN begins."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from implementations.check.comparator import assert_case, assert_trees
from implementations.check.dialect import from_numpy, layer_of, ops, pullback, to_numpy
from implementations.check.problems import ACTIVATIONS, D, as_float64, make_cell, problem
from reference import cases
from reference.stack import apply_layers, run_layers, tree_map
from tests.conftest import loaded
from tests.support.problems import assert_program

quick = pytest.mark.torch_backend("aot_eager")
CASE = cases.case("small_integers_3x7", "float32")
both_forms = pytest.mark.parametrize("form", ["scan_layers", "unroll_layers"])


# Gates.


@quick
def test_a_gate_by_hand(implementation):
    """Layers of 2, 3 and 5: open, closed, and half open, which is half of 10 and half of the 2 that entered."""
    gated = implementation.gated(lambda carry, w: (carry * w, None))
    arrays = np.array([2, 3, 5], np.float32), np.array(1, np.float32), np.array([1, 0, 0.5], np.float32)
    carry, _ = implementation.scan_layers(gated, *from_numpy(implementation, arrays))
    assert implementation.to_numpy(carry) == 6


def make_gated(o):
    layer = o.gated(ACTIVATIONS["tanh"](o))

    def gated(weights, gates, x):
        return o.scan(layer, weights, x, gates)[0]

    return gated


@quick
@pytest.mark.covers("gates: early exit, padded depth")
@pytest.mark.parametrize("gates", [[1, 0.5, 0.25, 0.75], [0, 0, 1, 0]], ids=str)
def test_gates_mix_and_have_a_gradient_open_and_closed(implementation, gates):
    rng = np.random.default_rng(0)
    inputs = (rng.standard_normal((4, D, D)), np.array(gates), rng.standard_normal(D))
    assert_program(implementation, make_gated, tuple(a.astype(np.float32) for a in inputs), compiled=False)


def gated_dense(implementation, form, weights, x, gates):
    layer = layer_of(make_gated_dense, implementation.__name__)
    arrays = from_numpy(implementation, (weights, x, np.array(gates, np.float32)))
    return to_numpy(implementation, getattr(implementation, form)(layer, *arrays)[0])


def make_gated_dense(o):
    return o.gated(lambda carry, w: (o.matvec(w, carry), None))


@quick
@pytest.mark.covers("gates: early exit, padded depth")
@both_forms
def test_gates_of_0_and_1_leave_early_and_skip(implementation, form):
    """Exactly: integers, which a product with 0 or 1 does not round."""
    for gates in ([1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1], [1, 0, 1]):
        kept = CASE.weights[np.array(gates, bool)]
        y = gated_dense(implementation, form, CASE.weights, CASE.x, gates)
        np.testing.assert_array_equal(y, apply_layers(kept, CASE.x), strict=True)


@quick
@pytest.mark.covers("gates: early exit, padded depth")
def test_stacks_padded_to_one_depth_give_what_they_gave(implementation):
    for N in (0, 1, 2, 3):
        padded = np.concatenate([CASE.weights[:N], np.zeros((5 - N, 7, 7), np.float32)])
        y = gated_dense(implementation, "scan_layers", padded, CASE.x, [1] * N + [0] * (5 - N))
        np.testing.assert_array_equal(y, apply_layers(CASE.weights[:N], CASE.x), strict=True)


@quick
def test_a_closed_gate_does_not_keep_nan_out(implementation):
    padded = np.concatenate([CASE.weights, np.full((1, 7, 7), np.nan, np.float32)])
    assert np.isnan(gated_dense(implementation, "scan_layers", padded, CASE.x, [1, 1, 1, 0])).all()


@quick
@both_forms
def test_a_gated_layer_keeps_its_xs_its_ys_and_its_integers(implementation, form):
    params, init, xs = problem("cell", 4).inputs
    gates = np.array([1, 0, 1, 0], np.float32)
    gated = implementation.gated(layer_of(make_cell, implementation.__name__))
    arrays = from_numpy(implementation, (params, init, (gates, xs)))
    actual = to_numpy(implementation, getattr(implementation, form)(gated, *arrays))

    def right(namespace, dtype):
        cell = layer_of(make_cell, namespace)

        def step(carry, params, x):
            gate, x = x
            new, y = cell(carry, params, x)
            return (new if gate else carry), y

        inputs = tree_map(dtype, (params, init, (gates, xs)))
        return run_layers(step, *inputs)

    named = (
        dict(zip(("carry", "ys"), r, strict=True))
        for r in (actual, right("exact", as_float64), right("numpy", np.asarray))
    )
    assert_trees(f"{implementation.__name__}, gated cell, {form}", *named)


# Mixed precision.


@quick
@pytest.mark.covers("mixed precision: bfloat16 carry, float32 params")
def test_params_stay_in_float32_around_a_bfloat16_carry(implementation):
    """The numbers are those of the case in bfloat16; the gradient of float32 params is float32."""
    case = cases.case("orthogonal_3x7", "bfloat16")
    layer = implementation.cast_params(implementation.LAYERS["dense"], ops(implementation.__name__).bfloat16)
    inputs = case.weights.astype(np.float32), case.x
    (y, _), (dweights, dx) = pullback(
        implementation, lambda w, x: implementation.scan_layers(layer, w, x), inputs, (case.cotangent, None)
    )
    assert dweights.dtype == np.float32
    as_bfloat16 = dweights.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(as_bfloat16.astype(np.float32), dweights)  # it came out of bfloat16
    assert_case(implementation.__name__, case, (y, as_bfloat16, dx))


@quick
def test_integers_among_the_params_are_not_cast(implementation):
    def layer(carry, params):
        return carry, params["k"]

    layer = implementation.cast_params(layer, ops(implementation.__name__).bfloat16)
    params = {"w": np.ones((2, 3), np.float32), "k": np.array([257, 258], np.int32)}  # bfloat16 has no 257
    _, ys = implementation.scan_layers(layer, *from_numpy(implementation, (params, np.ones(3, np.float32))))
    np.testing.assert_array_equal(implementation.to_numpy(ys), params["k"], strict=True)


@pytest.mark.covers("autocast around the stack")
@pytest.mark.parametrize(
    ("way", "options"),
    [("as it stands", {}), ("as it stands", {"remat": True}), ("compiled", {"remat": 2, "unroll": 2}), ("with it", {})],
)
def test_autocast_around_the_stack(implementation, way, options):
    """As around the loop. bfloat16 has no 257 and no 514, which become 256 and 512 in products, and nowhere else: the
    carry is 1, 1 + 256, 257 + 256 * 256. A product that the layer takes out of it is of 257 to the end, and back."""
    import torch

    device = from_numpy(implementation, CASE.x).device.type

    def layer(carry, w):
        with torch.autocast(device, enabled=False):
            exact = carry @ w
        return carry + (y := carry @ w), (y, exact)

    def apply(w, x):
        return implementation.scan_layers(layer, w, x, **options)

    def under_autocast(w, x):
        with torch.autocast(device, dtype=torch.bfloat16):
            return (torch.compile(apply) if way == "compiled" else apply)(w, x)

    eye = np.eye(2, dtype=np.float32)
    leaves = [a.requires_grad_() for a in from_numpy(implementation, (257 * np.stack([eye, eye]), eye))]
    carry, (ys, exact) = (torch.compile(under_autocast) if way == "with it" else under_autocast)(*leaves)
    assert (carry.dtype, ys.dtype, exact.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    torch.autograd.backward([carry.diagonal().sum(), exact.diagonal(0, 1, 2).sum()])
    found = [carry.detach(), *ys.detach().float(), *exact.detach(), *leaves[0].grad, leaves[1].grad]
    wanted = [65793, 256, 65536, 257, 257 * 257, 512 + 1, 256 + 257, 514 + 256 * 512 + 257]
    for observed, number in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(implementation.to_numpy(observed), number * eye, strict=True)


def test_autocast_that_changes_the_dtype_of_the_carry_is_refused():
    torch_compile = loaded("torch_compile")
    import torch

    weights, x = from_numpy(torch_compile, (CASE.weights, CASE.x))
    for form in ("scan_apply_layers", "unroll_apply_layers"):
        with torch.autocast(x.device.type, dtype=torch.bfloat16), pytest.raises(TypeError) as caught:
            getattr(torch_compile, form)(weights, x)
        assert str(caught.value) == "carry: expected float32[7] (that of init), got bfloat16[7]"
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            y = getattr(torch_compile, form)(weights.bfloat16(), x.bfloat16())
        assert torch.equal(y, torch_compile.unroll_apply_layers(weights, x).bfloat16())


@quick
@both_forms
def test_a_carry_that_drifts_to_the_dtype_of_params_is_refused(implementation, form):
    o = ops(implementation.__name__)
    arrays = from_numpy(implementation, (np.ones((2, 3), np.float32), np.ones(3, ml_dtypes.bfloat16)))
    with pytest.raises(TypeError) as caught:
        getattr(implementation, form)(lambda carry, w: (o.like(carry, w) * w, None), *arrays)
    assert str(caught.value) == "carry: expected bfloat16[3] (that of init), got float32[3]"


# Debugging.


def located(implementation, layer, *trees, **options):
    return int(
        implementation.to_numpy(implementation.locate_nonfinite(layer, *from_numpy(implementation, trees), **options))
    )


@quick
@pytest.mark.covers("which layer made the NaN")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_first_layer_that_is_not_finite_is_named(implementation, reverse, value):
    """Of two that are not: the one that runs first. An infinity shows in y alone: tanh makes 1 of it."""
    params, init, xs = problem("cell", 4).inputs
    layer = layer_of(make_cell, implementation.__name__)
    assert located(implementation, layer, params, init, xs, reverse=reverse) == -1
    for broken in ([0], [3], [1, 2]):
        x = xs[0].copy()
        x[broken, 1] = value
        expected = broken[-1] if reverse else broken[0]
        assert located(implementation, layer, params, init, (x,), reverse=reverse) == expected


@quick
@pytest.mark.parametrize("reverse", [False, True])
def test_without_layers_none_is_named(implementation, reverse):
    inputs = problem("cell", 0).inputs
    assert located(implementation, layer_of(make_cell, implementation.__name__), *inputs, reverse=reverse) == -1


@quick
def test_a_layer_is_named_inside_the_users_function(implementation):
    weights = CASE.weights.copy()
    weights[1, 2, 3] = np.nan
    layer = implementation.LAYERS["dense"]
    program = implementation.compile(lambda w, x: implementation.locate_nonfinite(layer, w, x))
    assert int(implementation.to_numpy(program(*from_numpy(implementation, (weights, CASE.x))))) == 1


@quick
@pytest.mark.covers("the stack by name in a profile")
def test_the_stack_has_its_name_in_a_profile(implementation):
    layer, arrays = implementation.LAYERS["dense"], from_numpy(implementation, (CASE.weights, CASE.x))
    names = implementation.profile_names
    assert "scan_layers" in names(lambda w, x: implementation.scan_layers(layer, w, x)[0], *arrays)
    assert "scan_layers" not in names(lambda w, x: implementation.unroll_layers(layer, w, x)[0], *arrays)


# Complex numbers, and layers without any number of floating point.

TURNS = np.array([[1j, 2 + 1j], [0.5 + 1j, 1 - 1j], [1j, 1]], np.complex64)


def phases(o):
    """Of a complex carry: turned by params; y is the carry."""

    def layer(carry, turn):
        return carry * turn, carry

    return layer


@quick
@both_forms
def test_complex_params_are_not_cast(implementation, form):
    """They are the y of the layer; of the floats beside them the dtype is seen to be the other."""

    def layer(carry, params):
        return carry, params

    layer = implementation.cast_params(layer, ops(implementation.__name__).bfloat16)
    params = {"turn": TURNS, "w": np.full((3, 2), 257, np.float32)}
    arrays = from_numpy(implementation, (params, np.ones(2, np.float32)))
    ys = to_numpy(implementation, getattr(implementation, form)(layer, *arrays)[1])
    np.testing.assert_array_equal(ys["turn"], TURNS, strict=True)
    np.testing.assert_array_equal(ys["w"], np.full((3, 2), 256, ml_dtypes.bfloat16), strict=True)


@quick
def test_a_gate_mixes_complex_carries(implementation):
    gates = np.array([0.5, 0, 1], np.float32)
    gated = implementation.gated(layer_of(phases, implementation.__name__))
    arrays = from_numpy(implementation, (TURNS, np.ones(2, np.complex64), gates))
    carry, _ = implementation.unroll_layers(gated, *arrays)
    np.testing.assert_allclose(implementation.to_numpy(carry), (0.5 * TURNS[0] + 0.5) * TURNS[2], rtol=1e-6)


@quick
@pytest.mark.parametrize("value", [complex(np.nan, 1), complex(1, np.nan), complex(1, np.inf), complex(-np.inf, 1)])
def test_complex_numbers_that_are_not_finite_are_found(implementation, value):
    layer = layer_of(phases, implementation.__name__)
    assert located(implementation, layer, TURNS, np.ones(2, np.complex64)) == -1
    large = np.full(2, 3e38 + 3e38j, np.complex64)  # whose absolute value is infinite
    assert located(implementation, layer, np.ones((1, 2), np.complex64), large) == -1
    broken = TURNS.copy()
    broken[1, 0] = value
    assert located(implementation, layer, broken, np.ones(2, np.complex64)) == 1


@pytest.mark.parametrize("reverse", [False, pytest.param(True, marks=pytest.mark.thorough("torch_compile"))])
def test_of_layers_without_floats_none_is_named(implementation, reverse):
    """Nor of those without any number: by the real compiler."""

    def layer(carry, k):
        return carry + k, None

    k = np.arange(3, dtype=np.int32)
    assert located(implementation, layer, k, np.zeros((), np.int32), reverse=reverse) == -1
    assert located(implementation, lambda carry, k: (carry, None), k, None, reverse=reverse) == -1
