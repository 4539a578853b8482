"""Rows of a check: is a stack equal to the loop? Values, gradients, the framework's own transforms, rounding.

What is right is NumPy in float64: the loop, its derivative by complex step. All of it is small, and seeded so that a
layer in the wrong place changes every number after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from implementations.check.candidate import Candidate
from implementations.check.comparator import assert_case, gradient
from implementations.check.dialect import from_numpy, layer_of, ops, ops_of, pullback, to_numpy
from implementations.check.problems import ACTIVATIONS, complex_step_gradient, is_float, make_cell, problem
from implementations.check.row import Make, Row, dense, first, unlike
from reference import cases
from reference.stack import apply_layers, run_layers, run_layers_vjp, tree_map

STEP = 1e-30  # of the complex step: its square is below the last bit of any result
N, D = 5, 3
_rng = np.random.default_rng(0)
W, TW = _rng.standard_normal((2, N, D, D))
PAIRS = _rng.standard_normal((N, 2, D, D))
X, TX, B = _rng.standard_normal((3, D))
INTEGERS = cases.case("small_integers_3x7", "bfloat16")
BY_CASE = {"float32": ("orthogonal_3x7", "small_integers_3x7", "orthogonal_1024x16"), "float64": ("orthogonal_3x7",)}


@cache
def _right() -> Any:
    """NumPy's operations, with the loop as the stack: it has no options that change no value."""

    def scan(layer: Any, params: Any, init: Any, xs: Any = None, *, reverse: bool = False, **_: Any) -> Any:
        return run_layers(layer, params, init, xs, reverse)

    return SimpleNamespace(**(vars(ops("numpy")) | {"scan": scan}))


# Values.


def values() -> Iterator[Row]:
    def row(name: str, make: Make, *inputs: Any, needs: tuple[str, ...] = ()) -> Row:
        def run(candidate: Candidate) -> Any:
            return to_numpy(candidate, make(ops_of(candidate))(*from_numpy(candidate, inputs)))

        return Row("values", name, run, partial(unlike, lambda: make(_right())(*inputs)), needs)

    cell = problem("cell", N, "float64").inputs
    yield row("forward", _tanh_stack(), W, X)
    yield row("N = 0", _tanh_stack(), W[:0], X)
    yield row("N = 1", _tanh_stack(), W[:1], X)
    yield row("what each layer returns, in layer order", _showing(), W, X)
    yield row("any layer: nested trees, None, integers, xs and ys", _cell(), *cell, needs=("xs",))
    yield row("reverse", _showing(reverse=True), W, X, needs=("reverse",))
    yield row("unroll=k, forward", _showing(unroll=2), W, X, needs=("unroll",))
    yield row("remat, forward", _showing(remat=True), W, X, needs=("remat",))
    yield row("a carry that is handed on, and returned", _passing(), W, X, B)
    yield Row("values", "the unrolled twin, if it has one", _twin, partial(unlike, lambda: f(W, X)), ("unroll_layers",))
    yield Row("values", "bfloat16", _integers, wrong_integers)


def f(w: Any, x: Any) -> Any:
    """The stack of most rows, in NumPy."""
    return run_layers(layer_of(ACTIVATIONS["tanh"], "numpy"), w, x)[0]


def _twin(candidate: Candidate) -> Any:
    layer = ACTIVATIONS["tanh"](ops_of(candidate))
    return to_numpy(candidate, candidate.unroll_layers(layer, *from_numpy(candidate, (W, X)))[0])


def _tanh_stack(**options: Any) -> Make:
    return lambda o: lambda w, x: o.scan(ACTIVATIONS["tanh"](o), w, x, **options)[0]


def _showing(**options: Any) -> Make:
    """Each layer returns the sum of what entered it."""

    def make(o: Any) -> Any:
        def layer(carry: Any, w: Any) -> Any:
            return o.tanh(o.matvec(w, carry)), o.sum(carry)

        return lambda w, x: o.scan(layer, w, x, **options)

    return make


def _cell(**options: Any) -> Make:
    return lambda o: lambda params, init, xs: o.scan(make_cell(o), params, init, xs, **options)


def _passing() -> Make:
    def make(o: Any) -> Any:
        def layer(carry: Any, w: Any) -> Any:
            h = o.tanh(o.matvec(w, carry["h"]))
            return {"h": h, "kept": carry["kept"]}, (carry["kept"], h)

        return lambda w, x, b: o.scan(layer, w, {"h": x, "kept": b})

    return make


def _integers(candidate: Candidate) -> Any:
    return to_numpy(candidate, dense(candidate)(*from_numpy(candidate, INTEGERS.inputs[:2])))


def wrong_integers(y: Any) -> str:
    """So small that bfloat16 has all of them."""
    return unlike(lambda: apply_layers(*INTEGERS.inputs[:2]), y)


# Gradients, by the framework's ordinary reverse mode.


def gradients() -> Iterator[Row]:
    def row(
        name: str, make: Make, *inputs: Any, needs: tuple[str, ...] = (), wanted: Any = None, compiled: bool = False
    ) -> Row:
        @cache
        def right() -> tuple[Any, Any]:
            outputs = make(_right())(*inputs)
            found = complex_step_gradient(lambda inputs: make(_right())(*inputs), inputs, cotangents_of(outputs))
            return outputs, tuple(d if wanted is None or i in wanted else None for i, d in enumerate(found))

        def run(candidate: Candidate) -> Any:
            stack = make(ops_of(candidate))
            stack = candidate.compile(stack) if compiled else stack  # by the user, who differentiates what is compiled
            return pullback(candidate, stack, inputs, cotangents_of(right()[0]), wanted=wanted)

        return Row("gradients", name, run, partial(unlike, right), needs)

    cell = problem("cell", N, "float64").inputs
    yield row("reverse mode from outside", _tanh_stack(), W, X)
    yield row("of a sum", lambda o: lambda w, x: o.sum(_tanh_stack()(o)(w, x)), W, X)
    yield row("of what each layer returns", _showing(), W, X)
    yield row("of nested trees, None, integers, xs and ys", _cell(), *cell, needs=("xs",))
    yield row("reverse, gradient", _showing(reverse=True), W, X, needs=("reverse",))
    yield row("unroll=k, where k does not divide N", _tanh_stack(unroll=2), W, X, needs=("unroll",))
    yield row("remat=True", _tanh_stack(remat=True), W, X, needs=("remat",))
    yield row("remat=k, where k does not divide N", _tanh_stack(remat=2), W, X, needs=("remat",))
    yield row("frozen parameters", _tanh_stack(), W, X, wanted=(1,))
    yield row("frozen carry", _tanh_stack(), W, X, wanted=(0,))
    yield row("a stack in a stack", _nested, PAIRS, X)
    yield row("a stack used several times in one program", _twice, W, X, B)
    yield row("a parameter shared by all layers", _with_bias, W, X, B)
    yield row("a closed-over value gets its gradient", _closed_over, W, X, B)
    yield row("layers that end in tanh, sigmoid, exp, softmax", _activations, W, X)
    yield row("gradient of a compiled stack", _tanh_stack(), W, X, compiled=True)


def cotangents_of(outputs: Any) -> Any:
    """Some numbers for each output of floating point, None for the others."""
    return tree_map(lambda a: np.linspace(1, 2, np.size(a)).reshape(np.shape(a)) if is_float(a) else None, outputs)


def _nested(o: Any) -> Any:
    def block(carry: Any, ws: Any) -> Any:  # ws [2, d, d]
        return o.scan(ACTIVATIONS["tanh"](o), ws, carry)[0], None

    return lambda ws, x: o.scan(block, ws, x)[0]


def _with_bias(o: Any) -> Any:
    """b is broadcast along a new axis of layers: its gradient is the sum over them."""

    def layer(carry: Any, params: Any) -> Any:
        return o.tanh(o.matvec(params["w"], carry) + params["b"]), None

    return lambda w, x, b: o.scan(layer, {"w": w, "b": o.shared(b, N)}, x)[0]


def _twice(o: Any) -> Any:
    return lambda w, x, b: _with_bias(o)(w, _with_bias(o)(w, x, b), b)


def _closed_over(o: Any) -> Any:
    return lambda w, x, b: o.scan(lambda carry, w: (o.tanh(o.matvec(w, carry) + b), None), w, x)[0]


def _activations(o: Any) -> Any:
    """Side by side: one after the other, exp would drive softmax to its limit."""
    return lambda w, x: sum(o.scan(make(o), w / 2, x)[0] for make in ACTIVATIONS.values())


# The framework's own transforms and compiler around a stack.


def transforms_of_any_layer() -> Iterator[Row]:
    def vjp(carry: Any, w: Any, dcarry: Any, _: Any) -> tuple[Any, Any]:
        dsum = dcarry * (1 - np.tanh(w @ carry) ** 2)
        return w.T @ dsum, np.outer(dsum, carry)

    def g(w: Any, x: Any) -> Any:
        return run_layers_vjp(layer_of(ACTIVATIONS["tanh"], "numpy"), vjp, w, x, cotangents=(f(w, x), None))[1][:2]

    def compiled(candidate: Candidate, stack: Any, w: Any, x: Any, *_: Any) -> Any:
        return candidate.compile(lambda w, x: 2 * stack(w, 2 * x))(w, x)

    yield around("called inside the user's compiled function", compiled, _of_tanh, lambda: 2 * f(W, 2 * X))
    yield from transforms(_of_tanh, f, g)


def _of_tanh(candidate: Candidate) -> Any:
    return _tanh_stack()(ops_of(candidate))


def transforms(stack: Callable[[Any], Any], f: Callable[..., Any], g: Callable[..., Any]) -> Iterator[Row]:
    """Of any stack of (w, x), which in NumPy is f, g the gradient of |f|^2 / 2, both also of complex numbers."""

    def row(name: str, transform: str, right: Callable[[], Any]) -> Row:
        return around(name, lambda candidate, *args: candidate.AROUND[transform](*args), stack, right)

    moved = W + 1j * STEP * TW, X + 1j * STEP * TX

    def second_order() -> Any:
        return tuple(d.imag / STEP for d in g(*moved))

    def per_example() -> Any:
        return tuple(map(np.stack, zip(g(W, X), g(W, TX), strict=True)))

    def of_batch() -> Any:  # by what the batch shares, and by the batch
        dw, dx = per_example()
        return dw.sum(axis=0), dx

    yield row("gradient inside the user's compiled function", "reverse_inside", lambda: g(W, X))
    yield row("batching from outside (the framework's vmap)", "batching", lambda: np.stack([f(W, X), f(W, TX)]))
    yield row("ensembles from outside (batched weights)", "ensemble", lambda: np.stack([f(W, X), f(TW, X)]))
    yield row("per-example gradients from outside (batched gradient)", "per_example_gradients", per_example)
    yield row("gradient of a batch from outside", "gradient_of_batch", of_batch)
    yield row("forward mode from outside", "forward_mode", lambda: f(*moved).imag / STEP)
    yield row("second order from outside, reverse over reverse", "reverse_over_reverse", second_order)
    yield row("second order from outside, forward over reverse", "forward_over_reverse", second_order)


def around(name: str, transform: Callable[..., Any], stack: Callable[[Any], Any], right: Callable[[], Any]) -> Row:
    """`transform(candidate, stack, w, x, tw, tx)`."""

    def run(candidate: Candidate) -> Any:
        found = transform(candidate, stack(candidate), *from_numpy(candidate, (W, X, TW, TX)))
        return _as_tuple(to_numpy(candidate, found))

    return Row("transforms", name, run, partial(unlike, lambda: _as_tuple(right())))


def _as_tuple(tree: Any) -> Any:
    return tuple(tree) if isinstance(tree, list) else tree


# Numerics: how far off rounding may take the dense stack, derived for each case.


def numerics() -> Iterator[Row]:
    def run(candidate: Candidate, dtype: str) -> Any:
        apply = dense(candidate)
        return {name: gradient(candidate, apply, cases.case(name, dtype)) for name in BY_CASE[dtype]}

    def wrong(results: Any, dtype: str) -> str:
        return first(partial(assert_case, "", cases.case(name, dtype), arrays) for name, arrays in results.items())

    for dtype in BY_CASE:
        name = f"{dtype} within the derived bound, forward and gradient"
        yield Row("numerics", name, partial(run, dtype=dtype), partial(wrong, dtype=dtype))
