"""`scan_layers` and `unroll_layers` give the values and ordinary gradients of the NumPy loop, whatever the options."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from implementations.check.dialect import from_numpy, pullback, to_numpy
from reference import cases
from reference.stack import apply_layers
from tests.conftest import loaded
from tests.support.outside import programs
from tests.support.problems import ROWS, VALUES, assert_right, pairs

quick = pytest.mark.torch_backend("eager")


@quick
@pytest.mark.parametrize("form", ["scan_layers", "unroll_layers"])
def test_two_layers_by_hand(implementation, form):
    """Layers of 2 and 3 make 6 of 1; each shows what entered it, in layer order, whichever runs first."""

    def stack(w, x, **options):
        return getattr(implementation, form)(lambda carry, w: (carry * w, carry), w, x, **options)

    inputs = np.array([2.0, 3.0]), np.array(1.0)
    (y, ys), (dw, dx) = pullback(implementation, stack, inputs, (np.array(1.0), np.zeros(2)))
    assert (y, ys.tolist(), dw.tolist(), dx) == (6, [1, 2], [3, 2], 6)
    y, ys = to_numpy(implementation, stack(*from_numpy(implementation, inputs), reverse=True))
    assert (y, ys.tolist()) == (6, [3, 1])


def test_every_pair_of_options_occurs():
    sizes = [len(values) for values in VALUES.values()]
    assert len(set().union(*map(pairs, ROWS))) == sum(a * b for a, b in combinations(sizes, 2))
    assert len(ROWS) < 45


def covered(row):
    yield "any layer: nested trees, None, integers, xs and ys"
    yield from (
        ["any layer, N = 0 and N = 1"] * (row.N < 2) + ["reverse"] * row.reverse + ["remat=True"] * (row.remat is True)
    )


@quick
@pytest.mark.parametrize(
    "row", [pytest.param(row, id=str(row), marks=pytest.mark.covers(*covered(row))) for row in ROWS]
)
def test_every_option(implementation, row):
    """On a layer that has everything: nested trees, None, integers, xs, two kinds of y."""
    assert_right(implementation, "cell", row.N, dtype=row.dtype, **row.keywords)


@quick
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("N", [0, 1, 5])
def test_the_twin(implementation, N, reverse):
    assert_right(implementation, "cell", N, form="unroll_layers", reverse=reverse)


def test_a_layer_whose_results_are_integers_has_gradients_of_zero(implementation):
    inputs = from_numpy(implementation, (np.ones((3, 2)), np.array([1, 2])))
    (y, ys), (dw, dx, _) = implementation.vjp_layers(
        lambda carry, w: (carry * 2, carry), *inputs, cotangents=(None, None)
    )
    y, ys, dw = to_numpy(implementation, (y, ys, dw))
    assert (y.tolist(), ys.tolist(), dw.tolist(), dx) == ([8, 16], [[1, 2], [2, 4], [4, 8]], [[0, 0]] * 3, None)


ODD = [(0, {}), (1, {}), (5, {}), (5, {"reverse": True, "remat": 2}), (5, {"unroll": 2}), (0, {"unroll": 2})]


@quick
@pytest.mark.parametrize(("N", "how"), [*ODD, (5, {"form": "unroll_layers"})], ids=str)
@pytest.mark.parametrize("name", ["mixed", "passing"])
def test_layers_that_frameworks_find_odd(implementation, name, N, how):
    """Two dtypes in one carry and a third as y; carries and slices handed on, one array as carry and as y."""
    assert_right(implementation, name, N, **how)


@pytest.mark.parametrize(("N", "options"), [(5, {}), (4, {"reverse": True, "remat": 3})], ids=str)
@pytest.mark.thorough("torch_compile")
def test_compiled_by_the_user(implementation, N, options):
    """In torch by Inductor, where most of its scan's defects are; also where one layer is left over by the groups."""
    assert_right(implementation, "cell", N, compiled=True, **options)


# Depth, left open.

BY_DEPTH = {2: 5, 3: 16, 5: 326}  # of 1 * 1 + 1 = 2, 2 * 2 + 1 = 5, 5 * 3 + 1 = 16, 16 * 4 + 1 = 65, 65 * 5 + 1 = 326


def times_plus_one(carry, w):
    return carry * w + 1, None


def of_depth(N):
    return np.arange(1, N + 1, dtype=np.float32), np.ones((), np.float32)


@quick
@pytest.mark.covers("one program for all N")
def test_one_program_serves_every_depth(implementation):
    """The width is one that no other test uses."""
    before = implementation.program_count()
    for N in BY_DEPTH:
        y = implementation.scan_apply_layers(*from_numpy(implementation, (np.ones((N, 11, 11)), np.ones(11))))
        assert implementation.to_numpy(y).tolist() == [11**N] * 11
    assert implementation.program_count() == before + 1


@quick
@pytest.mark.covers("one program for all N, any layer")
def test_one_program_serves_every_depth_of_any_layer(implementation):
    def stack(w, x):
        return implementation.scan_layers(times_plus_one, w, x)[0]

    calls = [from_numpy(implementation, of_depth(N)) for N in BY_DEPTH]
    count, results = programs(implementation, stack, calls)
    assert [float(implementation.to_numpy(y)) for y in results] == list(BY_DEPTH.values())
    assert count == 1


# What an exported program needs to run: torch alone.
RUN_EXPORTED = """
import sys, torch
program = torch.export.load(sys.argv[1]).module()
for N in map(int, sys.argv[2:]):
    (carry,), (ys,) = program({"w": torch.arange(1.0, N + 1)}, [torch.ones(())], torch.ones(N))
    print(carry.item(), ys.tolist())
assert "torch_compile" not in sys.modules
"""


@pytest.mark.covers("one exported program for all N", of="torch_compile")
@pytest.mark.parametrize("strict", [False, True], ids=["as it comes", "strict"])
@pytest.mark.parametrize("reverse", [False, True])
def test_an_exported_torch_program_serves_every_depth_without_this_repository(tmp_path, strict, reverse):
    implementation = loaded("torch_compile")
    import torch

    class Model(torch.nn.Module):
        def forward(self, params, init, xs):
            return implementation.scan_layers(
                lambda c, p, x: ([c[0] * p["w"] + x], [c[0] + 0]), params, init, xs, reverse=reverse, unroll=2
            )

    example = {"w": torch.ones(3)}, [torch.ones(())], torch.ones(3)
    depth = torch.export.Dim("N", min=2)
    program = torch.export.export(
        Model(), example, dynamic_shapes=({"w": {0: depth}}, [None], {0: depth}), strict=strict
    )
    assert "aten.mul" in str(program.graph_module.scan_combine_graph_0.code)
    assert "aten.mul" not in program.graph_module.code  # nothing is left of the run of the layer for its shapes
    torch.export.save(program, tmp_path / "stack.pt2")
    command = [sys.executable, "-c", RUN_EXPORTED, str(tmp_path / "stack.pt2"), *map(str, BY_DEPTH)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    carries = [float(line.partition(" ")[0]) for line in run.stdout.splitlines()]
    assert carries == ([4, 10, 154] if reverse else list(BY_DEPTH.values()))
    assert run.stdout.splitlines()[0] == ("4.0 [3.0, 1.0]" if reverse else "5.0 [1.0, 2.0]")


@pytest.mark.covers("one exported program for all N", of="jax_scan")
def test_one_exported_jax_program_serves_every_depth():
    implementation = loaded("jax_scan")
    import jax
    from jax import export

    def exported(stack, *shapes):
        arrays = [jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), np.float32) for shape in shapes]
        return export.export(jax.jit(stack))(*arrays)

    case, scope = cases.case("small_integers_3x7", "float32"), export.SymbolicScope()
    program = exported(implementation.scan_apply_layers, "N, d, d", "d")
    for N in (1, 2, 3):
        y = program.call(*from_numpy(implementation, (case.weights[:N], case.x)))
        np.testing.assert_array_equal(implementation.to_numpy(y), apply_layers(case.weights[:N], case.x))
    program = exported(lambda w, x: implementation.scan_layers(times_plus_one, w, x)[0], "N", "")
    for N, y in BY_DEPTH.items():
        assert program.call(*from_numpy(implementation, of_depth(N))) == y
