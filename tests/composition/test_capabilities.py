"""What the capability table declares is what happens: a `yes` works, a `no` fails as declared, until it is mended."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from implementations import NAMES, capabilities
from implementations.capabilities import TABLE, No, NotApplicable, declared
from reference import cases
from reference.stack import apply_layers, apply_layers_vjp
from tests.conftest import loaded
from tests.support import outside, probes, probes_recipes, probes_transforms
from tests.support.comparator import assert_case, gradient
from tests.support.dialect import layer_of
from tests.support.probes import STEP, TW, TX, W, X, assert_close, gradient_of, quick, values


def expected(transform, forward, gradient):
    """What the transform of f(w, x) = |forward(w, x)|^2 / 2 gives; gradient(w, x, cotangent) is that of `forward`."""

    def of_f(w, x):
        return gradient(w, x, forward(w, x))

    moved = W + 1j * STEP * TW, X + 1j * STEP * TX
    return {
        "batching": lambda: np.stack([forward(W, X), forward(W, TX)]),
        "ensemble": lambda: np.stack([forward(W, X), forward(TW, X)]),
        "per_example_gradients": lambda: tuple(map(np.stack, zip(of_f(W, X), of_f(W, TX), strict=True))),
        "gradient_of_batch": lambda: of_f(W, X)[0] + of_f(W, TX)[0],
        "forward_mode": lambda: forward(*moved).imag / STEP,
        "reverse_inside": lambda: of_f(W, X),
        # The complex step through the gradient: exact, and symmetric, so forward and reverse over reverse agree.
        "reverse_over_reverse": lambda: tuple(g.imag / STEP for g in of_f(*moved)),
        "forward_over_reverse": lambda: tuple(g.imag / STEP for g in of_f(*moved)),
    }[transform]()


def from_outside(transform):
    """Around `scan_apply_layers`, then around `scan_layers` with a layer that is not linear."""

    def probe(implementation):
        run = getattr(getattr(outside, implementation.__name__), transform)

        def is_right(apply, forward, gradient):
            results = run(apply, *map(implementation.from_numpy, (W, X, TW, TX)))
            results = tuple(results) if isinstance(results, list) else results
            assert_close(implementation, results, expected(transform, forward, gradient))

        is_right(implementation.scan_apply_layers, apply_layers, lambda *inputs: apply_layers_vjp(*inputs)[1:])
        tanh, right = probes.layer(implementation, probes.make_tanh), layer_of(probes.make_tanh, "numpy")
        is_right(
            lambda w, x: implementation.scan_layers(tanh, w, x)[0],
            lambda w, x: probes.loop(right, w, x)[0],
            probes.tanh_gradient,
        )

    return quick(probe)


def case_of(name, dtype, layers=None):
    def probe(implementation):
        case = cases.case(name, dtype)
        case = case._replace(weights=case.weights[:layers])
        assert_case(implementation.__name__, case, gradient(implementation, implementation.scan_apply_layers, case))

    return quick(probe)


def inside_a_program(implementation):
    program = implementation.compile(lambda w, x: 2 * implementation.scan_apply_layers(w, 2 * x))
    y = program(*map(implementation.from_numpy, (W, X)))
    np.testing.assert_allclose(implementation.to_numpy(y), 4 * apply_layers(W, X), rtol=1e-12)


@quick
def one_program(implementation):
    rng = np.random.default_rng(0)
    before = implementation.program_count()
    for N in (2, 3, 5, 8):
        arrays = rng.standard_normal((N, 11, 11)), rng.standard_normal(11)
        implementation.scan_apply_layers(*map(implementation.from_numpy, arrays))
    assert implementation.program_count() == before + 1


def stack_of_ones(implementation, N, d=64, dtype=np.float32):
    return [implementation.from_numpy(np.ones(shape, dtype)) for shape in ((N, d, d), (d,))]


def one_size(implementation):
    """At three levels; at all depths and of all transforms: tests/size."""

    def sizes(N, **cotangent):
        stack = stack_of_ones(implementation, N)
        size = implementation.graph_size(implementation.scan_apply_layers, *stack, memory=False, **cotangent)
        return {level: size[level] for level in ("captured", "lowered", "compiled")}

    (cotangent,) = stack_of_ones(implementation, 1)[1:]
    assert sizes(2) == sizes(8)
    assert sizes(2, cotangent=cotangent) == sizes(8, cotangent=cotangent)


def no_copy(implementation):
    """One more layer costs the gradient less than half of its weights."""

    def temporary(N):
        weights, x = stack_of_ones(implementation, N)
        return implementation.graph_size(implementation.scan_apply_layers, weights, x, cotangent=x)["temp_bytes"]

    assert (temporary(8) - temporary(2)) / 6 < 64 * 64 * 4 / 2


def memory_reported(implementation):
    arrays = map(implementation.from_numpy, (W, X))
    assert implementation.graph_size(implementation.scan_apply_layers, *arrays)["temp_bytes"] > 0


def bfloat16_read_in_place(implementation):
    """As float32 is (tests/size/test_graph_size.py)."""
    if implementation.settings()["device"] != "cpu":
        pytest.skip("declared for the CPU")

    def temporary(N):
        arrays = stack_of_ones(implementation, N, dtype=ml_dtypes.bfloat16)
        return implementation.graph_size(implementation.scan_apply_layers, *arrays)["temp_bytes"]

    assert temporary(2) == temporary(8)


PROBES = {
    "forward": case_of("small_integers_3x7", "float32"),
    "N = 0": case_of("small_integers_3x7", "float32", layers=0),
    "N = 1": case_of("small_integers_3x7", "float32", layers=1),
    "float64": case_of("orthogonal_3x7", "float64"),
    "bfloat16": case_of("orthogonal_3x7", "bfloat16"),
    "one program for all N": one_program,
    "one size at every N >= 2, forward and gradient": one_size,
    "no copy of the weights is kept for the backward pass": no_copy,
    "temporary memory reported": memory_reported,
    "bfloat16 weights are read where they are": bfloat16_read_in_place,
    "called inside the user's compiled function": inside_a_program,
    "gradient inside the user's compiled function": from_outside("reverse_inside"),
    "reverse mode from outside": case_of("orthogonal_3x7", "float32"),
    "batching from outside (the framework's vmap)": from_outside("batching"),
    "ensembles from outside (batched weights)": from_outside("ensemble"),
    "per-example gradients from outside (batched gradient)": from_outside("per_example_gradients"),
    "gradient of a batch from outside": from_outside("gradient_of_batch"),
    "forward mode from outside": from_outside("forward_mode"),
    "second order from outside, reverse over reverse": from_outside("reverse_over_reverse"),
    "second order from outside, forward over reverse": from_outside("forward_over_reverse"),
    "any layer: nested trees, None, integers, xs and ys": values(),
    "reverse": values(reverse=True),
    "unroll=k, where k does not divide N": gradient_of(probes.with_options(unroll=2), W, X, compiler=probes.as_it_is),
    "remat=True": values(remat=True),
    "remat=k, where k does not divide N": gradient_of(probes.with_options(remat=2), W, X, compiler=probes.as_it_is),
    "any layer, N = 0 and N = 1": values(depths=(0, 1)),
    "a stack in a stack": gradient_of(probes.scan_in_scan, probes.TWO_EACH, X, compiler=probes.as_it_is),
    "a stack used several times in one program": gradient_of(probes.used_twice, W, X, probes.B),
    "a parameter shared by all layers": gradient_of(probes.shared_parameter, W, X, probes.B),
    "a closed-over value gets its gradient": gradient_of(probes.closed_over, W, X, probes.B),
    "gradient of a compiled stack": probes.gradient_of_a_compiled_stack,
    "layers that end in tanh, sigmoid, exp, softmax": gradient_of(probes.activations, W, X, compiled=True),
    "frozen parameters, frozen carry": probes.frozen,
    "`vjp_layers`, compiled": probes_transforms.vjp,
    "`jvp_layers`, compiled": probes_transforms.jvp,
    "`hvp_layers`, compiled": probes_transforms.hvp,
    "`vmap_layers`, compiled": probes_transforms.vmap,
    "`vmap_vjp_layers` (per-example gradients), compiled": probes_transforms.per_example_gradients,
    "`jvp_layers` of layers with attention": probes_transforms.attention_jvp,
    "one program for all N, any layer": probes_recipes.one_program,
    "one exported program for all N": probes_recipes.exported,
    "decoding with a cache of keys and values": probes_recipes.decoding,
    "cycles of several kinds of layer, with a prefix and a remainder": probes_recipes.cycles,
    "gates: early exit, padded depth": probes_recipes.gates,
    "dropout: one key a layer": probes_recipes.one_key_a_layer,
    "mixed precision: bfloat16 carry, float32 params": probes_recipes.mixed_precision,
    "autocast around the stack": probes_recipes.autocast,
    "which layer made the NaN": probes_recipes.where_the_nan_is,
    "the stack by name in a profile": probes_recipes.named,
}


def test_every_capability_has_a_probe():
    assert list(PROBES) == list(TABLE)


@pytest.mark.parametrize("capability", PROBES)
@pytest.mark.parametrize("name", NAMES)
def test_as_declared(request, name, capability):
    implementation = loaded(name)
    state = declared(capability, name)
    if isinstance(state, NotApplicable):
        pytest.skip(f"not applicable: {state.reason}")
    if isinstance(state, No):
        raises = capabilities.exception(state)
        request.applymarker(pytest.mark.xfail(strict=True, raises=raises, reason=f"{state.reason}: {state.link}"))
    PROBES[capability](implementation)


def test_tables_of_the_readmes_are_current():
    assert capabilities.main(["--check"]) == 0
