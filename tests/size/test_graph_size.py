"""Graph size does not depend on N: at three levels, forward and gradient; the unrolled twin shows that it could.

Stacks are wide enough (N d d >= 1000 at the smallest N) that no framework takes an array of zeros for a constant.
"""

from __future__ import annotations

import ast
import functools
import re
from itertools import product

import ml_dtypes
import numpy as np
import pytest

from implementations import load
from implementations.measuring.measure import D, problem
from tests.conftest import loaded
from tests.support.laws import assert_constant, assert_grows

DEPTHS = (2, 3, 8, 64, 512, 1024)
MEMORY_DEPTHS = (2, 1024)  # torch builds and runs the program to know
# Three depths show the growth of the twin; its gradient at 64 layers compiles for half a minute in torch.
TWIN_DEPTHS = (2, 3, 8)
CARRY = D * 4  # bytes of one float32 carry
WEIGHTS = D * CARRY  # bytes of one layer's weights

both_ways = pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])


@functools.cache
def size(name: str, form: str, N: int, gradient: bool) -> dict[str, int]:
    implementation = load(name)
    weights, x, cotangent = problem(implementation, N)
    apply = getattr(implementation, form)
    memory = form == "scan_apply_layers" and N in MEMORY_DEPTHS
    return implementation.graph_size(apply, weights, x, cotangent=cotangent if gradient else None, memory=memory)


def sizes(implementation, form: str, depths: tuple[int, ...], gradient: bool) -> dict[int, dict[str, int]]:
    return {N: size(implementation.__name__, form, N, gradient) for N in depths}


@pytest.mark.covers("one size at every N >= 2, forward and gradient")
@both_ways
def test_rolled_has_one_size(implementation, gradient):
    rolled = sizes(implementation, "scan_apply_layers", DEPTHS, gradient)
    assert_constant(implementation.__name__, rolled, loops=1 + gradient)


@both_ways
def test_unrolled_grows_with_every_layer(implementation, gradient):
    assert_grows(implementation.__name__, sizes(implementation, "unroll_apply_layers", TWIN_DEPTHS, gradient))


def test_forward_memory_does_not_depend_on_depth(implementation):
    """And has no room for the weights of one layer, which are read where they are."""
    rolled = sizes(implementation, "scan_apply_layers", DEPTHS, gradient=False)
    assert len({rolled[N]["temp_bytes"] for N in MEMORY_DEPTHS}) == 1, rolled
    assert rolled[1024]["temp_bytes"] < WEIGHTS


@pytest.mark.covers("bfloat16 weights are read where they are")
def test_bfloat16_weights_are_read_where_they_are(implementation):
    if implementation.settings()["device"] != "cpu":
        pytest.skip("declared for the CPU")

    def temporary(N):
        arrays = (implementation.from_numpy(np.ones(shape, ml_dtypes.bfloat16)) for shape in ((N, D, D), (D,)))
        return implementation.graph_size(implementation.scan_apply_layers, *arrays)["temp_bytes"]

    assert temporary(2) == temporary(8)


def test_several_layers_a_step_are_read_where_they_are(implementation):
    dense = implementation.LAYERS["dense"]
    several = implementation.graph_size(
        lambda w, x: implementation.scan_layers(dense, w, x, unroll=4)[0], *problem(implementation, 64)[:2]
    )
    assert several["loops"]
    assert several["temp_bytes"] < WEIGHTS


@pytest.mark.covers("no copy of the weights is kept for the backward pass", "temporary memory reported")
def test_gradient_memory_is_carries_not_weights(implementation):
    """A layer adds the carry it keeps, in torch its cotangent too; a copy of the weights would add 64 times as much."""
    rolled = sizes(implementation, "scan_apply_layers", DEPTHS, gradient=True)
    a_layer = (rolled[1024]["temp_bytes"] - rolled[2]["temp_bytes"]) / (1024 - 2)
    assert CARRY <= a_layer <= 2 * CARRY + 8, f"{implementation.__name__}: {a_layer} bytes a layer"
    assert rolled[1024]["temp_bytes"] < 1024 * WEIGHTS / 10


@pytest.mark.parametrize("N", [0, 1])
@both_ways
def test_shallow_programs_are_no_larger(implementation, N, gradient):
    """A compiler may drop the loop; it must not add to it."""
    shallow = size(implementation.__name__, "scan_apply_layers", N, gradient)
    deep = size(implementation.__name__, "scan_apply_layers", 2, gradient)
    assert shallow["compiled"] <= deep["compiled"]


@both_ways
def test_unrolled_code_presented_as_rolled_is_caught(implementation, gradient):
    with pytest.raises(AssertionError, match=r"captured size changes with N: N = 2: .*, N = 8: "):
        assert_constant("mutant", sizes(implementation, "unroll_apply_layers", TWIN_DEPTHS, gradient), loops=0)


def test_scan_that_unrolls_itself_is_caught():
    """`lax.scan(unroll=True)` is captured as one scan and lowered as N layers: one level would not do."""
    implementation = loaded("jax_scan")
    from jax import lax

    def unrolls_itself(weights, x):
        return lax.scan(implementation.LAYERS["dense"], x, weights, unroll=True)[0]

    mutant = {N: implementation.graph_size(unrolls_itself, *problem(implementation, N)[:2]) for N in TWIN_DEPTHS}
    assert len({size["captured"] for size in mutant.values()}) == 1
    with pytest.raises(AssertionError, match=r"lowered size changes with N: N = 2: .*, N = 8: "):
        assert_constant("mutant", mutant, loops=1)


def test_constant_size_without_a_loop_is_caught():
    """A program that ignores its layers has constant size too."""
    with pytest.raises(AssertionError, match="loops: expected at least 1: N = 2: 0, "):
        assert_constant("mutant", {N: {"captured": 1, "lowered": 1, "compiled": 1, "loops": 0} for N in DEPTHS}, 1)


def test_twin_that_is_rolled_is_caught(implementation):
    with pytest.raises(AssertionError, match="captured size does not grow with N: N = 2: "):
        assert_grows("mutant", sizes(implementation, "scan_apply_layers", TWIN_DEPTHS, False))


# What Inductor's code calls that is no work on the numbers of an array: to make, view, check and free them, loops, and
# the copies of what a loop begins with.
HOUSEKEEPING = re.compile(
    r"empty_strided_\w+|reinterpret_tensor|alloc_from_pool|assert_\w+|\w+\.(?:clear|clone|item)"
    r"|\w*RuntimeError|while_loop_\w+|torch\.as_strided|int|float|bool|len|range|max|min"
)
COUNTED = re.compile(r"(?:cpp|triton)_\w+|extern_kernels\.\w+|torch\.ops\.\w+\.\w+\.\w+|.*\.copy_")


def kernel_calls(code):
    """Those of Inductor's code, found by Python's own parser; what is neither a kernel nor known is an error."""
    tree = ast.parse(code)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.args.args]
    functions = [node for node in functions if node.args.args[-1].arg == "args" and len(node.args.args) <= 2]
    subgraphs = {node.name for node in functions if not node.name.startswith("while_loop_")}
    called = [ast.unparse(call.func) for node in functions for call in ast.walk(node) if isinstance(call, ast.Call)]
    counted = [name for name in called if name in subgraphs or COUNTED.fullmatch(name)]
    unknown = {name for name in called if not HOUSEKEEPING.fullmatch(name)} - set(counted)
    assert not unknown, f"calls that are counted nowhere: {unknown}"
    return len(counted)


def test_torch_counts_every_call(monkeypatch):
    """Kernels by their names and regions compiled once, forward and backward, found in a second way."""
    implementation = loaded("torch_compile")
    from torch_compile import graph
    from torch_compile.alternatives import ALTERNATIVES, raw_scan, while_loop

    nested_compile_region, _ = ALTERNATIVES["nested_compile_region"]

    right, codes = graph._kernel_calls, []

    def noting(code):
        codes.append(code)
        return right(code)

    monkeypatch.setattr(graph, "_kernel_calls", noting)
    stacks = implementation.scan_apply_layers, implementation.unroll_apply_layers
    sizes = {}
    for apply in (*stacks, nested_compile_region, raw_scan, while_loop):
        for N, gradient in product((2, 5), (False, True)):
            if N == 5 and apply is not nested_compile_region:
                continue
            if gradient and apply is while_loop:  # it has none
                continue
            weights, x, cotangent = problem(implementation, N)
            cotangent = cotangent if gradient else None
            sizes[apply, gradient, N] = implementation.graph_size(apply, weights, x, cotangent=cotangent, memory=False)
    for code in codes:
        assert right(code) == kernel_calls(code) + len(re.findall(r"\bfor *\(", code))
    for gradient, calls in ((False, 1), (True, 3)):  # a region forward; another backward, and a copy of its gradient
        of = [sizes[nested_compile_region, gradient, N]["compiled"] for N in (2, 5)]
        assert of[1] - of[0] == 3 * calls, of


def test_a_call_by_an_unknown_name_is_caught():
    with pytest.raises(AssertionError, match=r"counted nowhere: \{'mystery'\}"):
        kernel_calls("def call(self, args):\n    buf0 = mystery(args)\n")


@pytest.mark.thorough
def test_torch_compiles_from_cold_then_warm_and_again_from_cold():
    """Seen by what Inductor finds in its cache: what was compiled before is not found, and is kept for a later call."""
    implementation = loaded("torch_compile")
    from torch._dynamo.utils import counters

    def hits(function):
        before = counters["inductor"]["fxgraph_cache_hit"]
        return function(), counters["inductor"]["fxgraph_cache_hit"] - before

    apply, arrays = implementation.unroll_apply_layers, problem(implementation, 2)[:2]
    assert hits(lambda: implementation.compile_seconds(apply, *arrays))[1] == 0
    seconds, found = hits(lambda: implementation.compile_seconds(apply, *arrays, times=2))
    assert (len(seconds), found) == (2, 1)
    assert hits(lambda: implementation.compile(lambda *arrays: apply(*arrays))(*arrays))[1] == 1
