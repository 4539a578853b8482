"""What the capability table declares is what happens: a `yes` works, a `no` fails as declared, until it is mended."""

from __future__ import annotations

import numpy as np
import pytest

from implementations import NAMES, capabilities
from implementations.capabilities import TABLE, No, NotApplicable, declared
from reference import cases
from reference.stack import apply_layers, apply_layers_vjp
from tests import outside
from tests.comparator import assert_case, gradient
from tests.conftest import loaded

STEP = 1e-30  # of the complex step: its square is below the last bit of any result
_rng = np.random.default_rng(0)
W, TW = _rng.standard_normal((2, 3, 7, 7))
X, TX = _rng.standard_normal((2, 7))


def _gradient(w, x):
    """(dw, dx) of |apply_layers(w, x)|^2 / 2."""
    return apply_layers_vjp(w, x, apply_layers(w, x))[1:]


EXPECTED = {
    "batching": lambda: np.stack([apply_layers(W, X), apply_layers(W, TX)]),
    "ensemble": lambda: np.stack([apply_layers(W, X), apply_layers(TW, X)]),
    "per_example_gradients": lambda: tuple(map(np.stack, zip(_gradient(W, X), _gradient(W, TX), strict=True))),
    "gradient_of_batch": lambda: _gradient(W, X)[0] + _gradient(W, TX)[0],
    "forward_mode": lambda: apply_layers(W + 1j * STEP * TW, X + 1j * STEP * TX).imag / STEP,
    "reverse_inside": lambda: _gradient(W, X),
    # The complex step through the gradient: exact, and symmetric, so forward and reverse over reverse agree.
    "reverse_over_reverse": lambda: tuple(g.imag / STEP for g in _gradient(W + 1j * STEP * TW, X + 1j * STEP * TX)),
}
EXPECTED["forward_over_reverse"] = EXPECTED["reverse_over_reverse"]


def from_outside(transform):
    def probe(implementation):
        run = getattr(getattr(outside, implementation.__name__), transform)
        results = run(implementation.scan_apply_layers, *map(implementation.from_numpy, (W, X, TW, TX)))
        for actual, expected in zip(_flat(results), _flat(EXPECTED[transform]()), strict=True):
            scale = abs(expected).max()
            np.testing.assert_allclose(implementation.to_numpy(actual) / scale, expected / scale, atol=1e-13)

    return probe


def _flat(results):
    return results if isinstance(results, (tuple, list)) else (results,)


def case_of(name, dtype, layers=None):
    def probe(implementation):
        case = cases.case(name, dtype)
        case = case._replace(weights=case.weights[:layers])
        assert_case(implementation.__name__, case, gradient(implementation, implementation.scan_apply_layers, case))

    return probe


def inside_a_program(implementation):
    program = implementation.compile(lambda w, x: 2 * implementation.scan_apply_layers(w, 2 * x))
    y = program(*map(implementation.from_numpy, (W, X)))
    np.testing.assert_allclose(implementation.to_numpy(y), 4 * apply_layers(W, X), rtol=1e-12)


def one_program(implementation):
    rng = np.random.default_rng(0)
    before = implementation.program_count()
    for N in (2, 3, 5, 8):
        arrays = rng.standard_normal((N, 11, 11)), rng.standard_normal(11)
        implementation.scan_apply_layers(*map(implementation.from_numpy, arrays))
    assert implementation.program_count() == before + 1


def memory_reported(implementation):
    arrays = map(implementation.from_numpy, (W, X))
    assert implementation.graph_size(implementation.scan_apply_layers, *arrays)["temp_bytes"] > 0


PROBES = {
    "forward": case_of("small_integers_3x7", "float32"),
    "N = 0": case_of("small_integers_3x7", "float32", layers=0),
    "N = 1": case_of("small_integers_3x7", "float32", layers=1),
    "float64": case_of("orthogonal_3x7", "float64"),
    "bfloat16": case_of("orthogonal_3x7", "bfloat16"),
    "one program for all N": one_program,
    "temporary memory reported": memory_reported,
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


def test_readme_block_is_current():
    text = capabilities.README.read_text()
    assert capabilities.rewritten(text) == text
