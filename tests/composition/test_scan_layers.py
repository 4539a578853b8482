"""`scan_layers` and `unroll_layers` give the values and ordinary gradients of the NumPy loop, whatever the options."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from reference import cases
from reference.stack import apply_layers
from tests.conftest import loaded
from tests.support.dialect import from_numpy
from tests.support.options import ROWS, VALUES, pairs
from tests.support.stacks import assert_right

quick = pytest.mark.usefixtures("captured_only")


def test_every_pair_of_options_occurs():
    sizes = [len(values) for values in VALUES.values()]
    assert len(set().union(*map(pairs, ROWS))) == sum(a * b for a, b in combinations(sizes, 2))
    assert len(ROWS) < 45


@pytest.mark.usefixtures("captured_only")
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_option(implementation, row):
    """On a layer that has everything: nested trees, None, integers, xs, two kinds of y."""
    assert_right(implementation, "cell", row.N, dtype=row.dtype, **row.keywords)


@quick
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("N", [0, 1, 5])
def test_the_twin(implementation, N, reverse):
    assert_right(implementation, "cell", N, form="unroll_layers", reverse=reverse)


@quick
@pytest.mark.parametrize("N", [0, 1, 5])
@pytest.mark.parametrize("name", ["mixed", "passing"])
def test_layers_that_frameworks_find_odd(implementation, name, N):
    """Two dtypes in one carry and a third as y; carries and slices handed on, one array as carry and as y."""
    assert_right(implementation, name, N)


@pytest.mark.usefixtures("captured_only")
@pytest.mark.parametrize(
    ("N", "options"), [(5, {"reverse": True, "remat": 2}), (5, {"unroll": 2}), (0, {"unroll": 2})], ids=str
)
@pytest.mark.parametrize("name", ["mixed", "passing"])
def test_odd_layers_take_options(implementation, name, N, options):
    assert_right(implementation, name, N, **options)


@quick
@pytest.mark.parametrize("name", ["mixed", "passing"])
def test_the_twin_of_odd_layers(implementation, name):
    assert_right(implementation, name, 5, form="unroll_layers")


@pytest.mark.parametrize(
    ("N", "options"),
    [(5, {}), (4, {"reverse": True, "remat": 3})],
    ids=str,
)
@pytest.mark.thorough("torch_compile")
def test_compiled_by_the_user(implementation, N, options):
    """In torch by Inductor, where most of its scan's defects are; also where one layer is left over by the groups."""
    assert_right(implementation, "cell", N, compiled=True, use="inductor", **options)


# Depth, left open.


def test_one_exported_jax_program_serves_every_depth():
    implementation = loaded("jax_scan")
    import jax
    from jax import export

    case = cases.case("small_integers_3x7", "float32")

    N, d = export.symbolic_shape("N, d")
    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((N, d, d), (d,))]
    program = export.export(jax.jit(implementation.scan_apply_layers))(*shapes)
    for depth in (1, 2, 3):
        y = program.call(*from_numpy(implementation, (case.weights[:depth], case.x)))
        np.testing.assert_array_equal(implementation.to_numpy(y), apply_layers(case.weights[:depth], case.x))
