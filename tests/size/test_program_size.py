"""Every program of the general stack has one size for all N, or stays below one: derivatives, batches, remat, unroll.

The layer is `mlp`, with a norm and biases for each of T positions: so every stacked array has N T D >= 1000 elements
at N = 2. Below that TensorFlow captures an array of zeros as a constant, and counts a node or two less.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from implementations import load
from implementations.check.dialect import flat, from_numpy, ops
from implementations.measuring.measure import D as DENSE_D
from implementations.measuring.measure import problem
from tests.conftest import loaded
from tests.support.laws import assert_bounded, assert_constant, assert_grows, assert_memory_a_layer, assert_no_copy

DEPTHS = (2, 512)
ALL_DEPTHS = (2, 3, 8, 64, 512)
TWIN_DEPTHS = (2, 3, 5)
T, D, F, BATCH = 16, 32, 64, 2
K = 2  # layers a step, or a group, where memory is measured
# Layers a step, or a group -> the stated constant, how many times the program with one it is at most, and depths with
# every remainder.
SEVERAL = {2: (4, (7, 66)), 3: (8, (7, 67, 6, 8))}
CARRY = T * D * 4  # bytes
SHAPES = {
    "norm": {"scale": (T, D), "bias": (T, D)},
    "up": {"w": (D, F), "bias": (T, F)},
    "down": {"w": (F, D), "bias": (T, D)},
}
NUM_PARAMS = 6


def arrays(N):
    """Flat: params in the order of SHAPES, then a carry."""
    rng = np.random.default_rng(N)
    shapes = [(N, *shape) for part in SHAPES.values() for shape in part.values()]
    return [(rng.standard_normal(shape) / 8).astype(np.float32) for shape in (*shapes, (T, D))]


def tree(params):
    params = iter(params)
    return {part: {name: next(params) for name in names} for part, names in SHAPES.items()}


def forms(implementation):
    """name -> (function of flat arrays, what follows params and init, is its gradient counted, loops)."""
    o, mlp = ops(implementation.__name__), implementation.LAYERS["mlp"]

    def stack(arrays):
        return tree(arrays[:NUM_PARAMS]), arrays[NUM_PARAMS], arrays[NUM_PARAMS + 1 :]

    def forward(**options):
        def run(*arrays):
            params, init, _ = stack(arrays)
            return implementation.scan_layers(mlp, params, init, **options)[0]

        return run

    def vjp(*arrays):
        params, init, (cotangent,) = stack(arrays)
        return tuple(flat(implementation.vjp_layers(mlp, params, init, cotangents=(cotangent, None))))

    def jvp(*arrays):
        params, init, tangents = stack(arrays)
        tangents = tree(tangents[:NUM_PARAMS]), tangents[NUM_PARAMS], None
        return tuple(flat(implementation.jvp_layers(mlp, params, init, tangents=tangents)))

    def hvp(*arrays):
        params, init, tangents = stack(arrays)
        tangents = tree(tangents[:NUM_PARAMS]), tangents[NUM_PARAMS], None
        loss = lambda carry, _: o.sum(carry**2)  # noqa: E731
        return tuple(flat(implementation.hvp_layers(mlp, loss, params, init, tangents=tangents)))

    def vmap(*arrays):
        params, _, (inits,) = stack(arrays)
        return implementation.vmap_layers(mlp, params, inits)[0]

    def per_example_gradients(*arrays):
        params, _, (inits, cotangents) = stack(arrays)
        return tuple(flat(implementation.vmap_vjp_layers(mlp, params, inits, cotangents=(cotangents, None))))

    def copies_the_weights(*arrays):
        return forward()(*(array * 2 for array in arrays))

    def unrolled(*arrays):
        params, init, _ = stack(arrays)
        return implementation.unroll_layers(mlp, params, init)[0]

    batch: list[tuple[int, ...]] = [(BATCH, T, D)]
    none: list[tuple[int, ...]] = []
    tangents = [*(s for part in SHAPES.values() for s in part.values()), (T, D)]
    return {
        "forward": (forward(), none, False, 1),
        "gradient": (forward(), none, True, 2),
        "vjp_layers": (vjp, [(T, D)], False, 2),
        "jvp_layers": (jvp, tangents, False, 1),
        "hvp_layers": (hvp, tangents, False, 2),
        "vmap_layers": (vmap, batch, False, 1),
        "vmap_vjp_layers": (per_example_gradients, batch * 2, False, 2),
        "remat=True": (forward(remat=True), none, True, 2),
        **{f"remat={k}": (forward(remat=k), none, True, 2) for k in SEVERAL},
        **{f"unroll={k}": (forward(unroll=k), none, True, 2) for k in SEVERAL},
        f"remat=True, unroll={K}": (forward(remat=True, unroll=K), none, True, 2),
        "unrolled": (unrolled, none, False, 0),
        "gradient, unrolled": (unrolled, none, True, 0),
        "copies the weights": (copies_the_weights, none, False, 1),
    }


ROLLED = (
    "forward",
    "gradient",
    "vjp_layers",
    "jvp_layers",
    "hvp_layers",
    "vmap_layers",
    "vmap_vjp_layers",
    "remat=True",
)


@functools.cache
def size(name, form, N, memory):
    implementation = load(name)
    apply, more, gradient, _ = forms(implementation)[form]
    rng = np.random.default_rng(N)
    # tangents of params have their leading axis
    more = [(N, *shape) for shape in more[:-1]] + more[-1:] if len(more) == NUM_PARAMS + 1 else more
    given = from_numpy(implementation, [*arrays(N), *(rng.standard_normal(s).astype(np.float32) for s in more)])
    cotangent = from_numpy(implementation, np.ones((T, D), np.float32)) if gradient else None
    return implementation.graph_size(apply, *given, cotangent=cotangent, memory=memory)


def sizes(implementation, form, depths, memory=False):
    memory = memory or implementation.__name__ != "torch_compile"  # which builds and runs the program to know
    return {N: size(implementation.__name__, form, N, memory) for N in depths}


def loops(implementation, form):
    return forms(implementation)[form][3]


@pytest.mark.parametrize("depths", [DEPTHS, pytest.param(ALL_DEPTHS, marks=pytest.mark.thorough)], ids=str)
@pytest.mark.parametrize("form", ROLLED)
def test_rolled_has_one_size(implementation, form, depths):
    who = f"{implementation.__name__}, {form}"
    assert_constant(who, sizes(implementation, form, depths), loops(implementation, form))


@pytest.mark.parametrize("k", [2, pytest.param(3, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("option", ["unroll", "remat"])
def test_several_layers_a_step_stay_below_one_size(implementation, option, k):
    form, (times, depths) = f"{option}={k}", SEVERAL[k]
    who, rolled = f"{implementation.__name__}, {form}", sizes(implementation, "gradient", (2,))[2]
    assert_bounded(who, sizes(implementation, form, depths), rolled, times, loops(implementation, form))


@pytest.mark.parametrize(
    "form", ["unrolled", pytest.param("gradient, unrolled", marks=pytest.mark.thorough("torch_compile", "tf_while"))]
)
def test_unrolled_grows_with_every_layer(implementation, form):
    twin = sizes(implementation, form, TWIN_DEPTHS)
    assert_grows(f"{implementation.__name__}, {form}", twin)


# Memory. A layer's residuals, what its derivative needs beside the weights, are eight times its carry and more.
# In torch that of the dense stack is measured in tests/size/test_graph_size.py.
of_memory = pytest.mark.thorough("torch_compile")


@of_memory
@pytest.mark.parametrize("form", ["forward", "jvp_layers"])
def test_memory_without_a_backward_pass_does_not_depend_on_depth(implementation, form):
    assert_memory_a_layer(f"{implementation.__name__}, {form}", sizes(implementation, form, DEPTHS, memory=True), 0, 0)


@of_memory
@pytest.mark.parametrize("unroll", [1, pytest.param(K, marks=pytest.mark.thorough("torch_compile"))])
def test_remat_keeps_one_carry_a_layer(implementation, unroll):
    """Where K divides N: else JAX keeps the carries of what is left over twice."""
    form = "remat=True" if unroll == 1 else f"remat=True, unroll={K}"
    found = sizes(implementation, form, DEPTHS if unroll == 1 else (6, 66), memory=True)
    assert_memory_a_layer(f"{implementation.__name__}, {form}", found, CARRY, 2 * CARRY + 8)


@of_memory
def test_remat_of_groups_keeps_one_carry_a_group(implementation):
    who, found = f"{implementation.__name__}, remat={K}", sizes(implementation, f"remat={K}", (6, 66), memory=True)
    assert_memory_a_layer(who, found, CARRY / K, CARRY / K + 8)


@of_memory
def test_without_remat_the_residuals_are_kept(implementation):
    """And no copy of the weights, which are 8 carries.

    In TensorFlow the carry, 2 carries before the gelu, and a number for each norm; in torch the carry, the norm, 2
    before and 2 after the gelu, and numbers for each norm; in JAX those 4, and 4 of the norm's steps."""
    found = sizes(implementation, "gradient", DEPTHS, memory=True)
    carries = {"jax_scan": 8, "torch_compile": 5, "tf_while": 3}[implementation.__name__]
    low, high = carries * CARRY, (carries + 2) * CARRY
    assert_memory_a_layer(f"{implementation.__name__}, remat=False", found, low, high)


OPTIONS = ({"unroll": 3}, {"remat": 3, "reverse": True})


@of_memory
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_remainder_does_not_copy_the_weights(implementation, options):
    """The layer is `dense`: its weights are 64 times its carry. 65 layers: neither 2 nor 3 divides that."""
    weights, x, cotangent = problem(implementation, 65)
    dense = implementation.LAYERS["dense"]
    found = implementation.graph_size(
        lambda w, x: implementation.scan_layers(dense, w, x, **options)[0], weights, x, cotangent=cotangent
    )
    assert_no_copy(f"{implementation.__name__}, {options}", found, 65 * DENSE_D * DENSE_D * 4)


# Wrong programs: each law must catch the one that breaks it.


def test_program_that_unrolls_is_caught(implementation):
    unrolled = sizes(implementation, "unrolled", TWIN_DEPTHS)
    with pytest.raises(AssertionError, match="captured size changes with N: N = 2: "):
        assert_constant("mutant", unrolled, loops=0)


def test_program_without_a_loop_is_caught_by_the_bound():
    implementation = loaded("jax_scan")  # the law knows no framework, and JAX compiles a twin soonest
    unrolled = sizes(implementation, "gradient, unrolled", TWIN_DEPTHS)
    with pytest.raises(AssertionError, match="loops: expected at least 1: N = 2: 0, "):
        assert_bounded("mutant", unrolled, sizes(implementation, "gradient", (2,))[2], times=8, loops=1)


def test_program_that_grows_is_caught_by_the_bound(implementation):
    deep = {2: sizes(implementation, "unrolled", (2,))[2], 64: captured_at_64(implementation)}
    with pytest.raises(AssertionError, match=r"captured: observed .* allowed \d+ for all N"):
        assert_bounded("mutant", deep, sizes(implementation, "forward", (2,))[2], times=8, loops=0)


def captured_at_64(implementation):
    """The twin is too slow to compile at 64 layers: what it would capture, from the growth of a layer."""
    two, three = sizes(implementation, "unrolled", (2, 3)).values()
    return {key: two[key] + 62 * (three[key] - two[key]) for key in two}


@of_memory
def test_program_that_copies_the_weights_is_caught(implementation):
    copies = sizes(implementation, "copies the weights", (2, 64), memory=True)
    with pytest.raises(AssertionError, match=r"observed \d+\.\d bytes a layer, allowed 0\.0 to 0\.0"):
        assert_memory_a_layer("mutant", copies, 0, 0)
    stack = sum(array.nbytes for array in arrays(64)[:NUM_PARAMS])
    with pytest.raises(AssertionError, match=r"observed \d+ bytes, allowed half of"):
        assert_no_copy("mutant", copies[64], stack)


def test_remat_that_keeps_everything_is_caught():
    implementation = loaded("jax_scan")
    keeps = sizes(implementation, "gradient, unrolled", (2, 5))
    with pytest.raises(AssertionError, match=r"bytes a layer, allowed"):
        assert_memory_a_layer("mutant", keeps, CARRY, 2 * CARRY + 8)
