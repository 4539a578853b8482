"""The rows of a check, in the order in which they are shown: what a layer stack must do, and what must not pass.

A row runs the stack, then says what is wrong with what came out; what the stack raises is the stack's answer. Names
that the capability table has mean the same there. What is right is NumPy in float64: the loop, its derivative by
complex step. All of it is small, and seeded so that a layer in the wrong place changes every number after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from implementations.check.candidate import Candidate
from implementations.check.comparator import assert_case, assert_close
from implementations.check.dialect import from_numpy, layer_of, ops, ops_of, pullback, to_numpy
from implementations.check.problems import ACTIVATIONS, complex_step_gradient, make_cell, problem
from implementations.results.laws import broken_laws
from implementations.results.records import Size
from reference import cases
from reference.stack import run_layers

STEP = 1e-30  # of the complex step: its square is below the last bit of any result
N, D = 5, 3
_rng = np.random.default_rng(0)
W, TW = _rng.standard_normal((2, N, D, D))
PAIRS = _rng.standard_normal((N, 2, D, D))
X, TX, B = _rng.standard_normal((3, D))
DEPTHS, WIDTH = (2, 8, 64), 64  # of the counted stack
BY_CASE = {"float32": ("orthogonal_3x7", "small_integers_3x7", "orthogonal_1024x16"), "float64": ("orthogonal_3x7",)}

Make = Callable[..., Any]  # of the operations `o` of dialect.py: a function of arrays, which calls o.scan


class Row(NamedTuple):
    section: str
    name: str
    run: Callable[[Candidate], Any]  # raises what the stack raises
    wrong: Callable[[Any], str]  # what is wrong with what `run` returned, in words
    needs: tuple[str, ...] = ()  # of the arguments of scan_layers that a stack need not have


def rows() -> list[Row]:
    return [*_values(), *_gradients(), *_transforms(), *_mistakes(), *_sizes(), *_numerics()]


# Values.


def _values() -> Iterator[Row]:
    def stack(name: str, make: Make, *inputs: Any, needs: tuple[str, ...] = ()) -> Row:
        def run(candidate: Candidate) -> Any:
            return to_numpy(candidate, make(ops_of(candidate))(*from_numpy(candidate, inputs)))

        return Row("values", name, run, partial(_unlike, lambda: make(_right())(*inputs)), needs)

    cell = problem("cell", N, "float64").inputs
    yield stack("forward", _tanh_stack(), W, X)
    yield stack("N = 0", _tanh_stack(), W[:0], X)
    yield stack("N = 1", _tanh_stack(), W[:1], X)
    yield stack("what each layer returns, in layer order", _showing(), W, X)
    yield stack("any layer: nested trees, None, integers, xs and ys", _cell(), *cell, needs=("xs",))
    yield stack("reverse", _showing(reverse=True), W, X, needs=("reverse",))
    yield stack("unroll=k, forward", _showing(unroll=2), W, X, needs=("unroll",))
    yield stack("remat, forward", _showing(remat=True), W, X, needs=("remat",))
    yield stack("a carry that is handed on, and returned", _passing(), W, X, B)
    yield Row("values", "bfloat16", partial(_integers, dtype="bfloat16"), _unlike_integers)


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


def _integers(candidate: Candidate, dtype: str) -> Any:
    case = cases.case("small_integers_3x7", dtype)
    dense = ops_of(candidate).matvec
    stacked, init = map(candidate.from_numpy, (case.weights, case.x))
    return to_numpy(candidate, candidate.scan_layers(lambda c, w: (dense(w, c), None), stacked, init)[0])


def _unlike_integers(y: Any) -> str:
    case = cases.case("small_integers_3x7", str(y.dtype))
    right = run_layers(lambda c, w: (w @ c, None), case.weights.astype(float), case.x.astype(float))[0]
    return "" if np.array_equal(y.astype(float), right) else f"observed {y}, allowed {right}"


# Gradients, by the framework's ordinary reverse mode.


def _gradients() -> Iterator[Row]:
    def gradient(
        name: str, make: Make, *inputs: Any, needs: tuple[str, ...] = (), wanted: Any = None, compiled: bool = False
    ) -> Row:
        @cache
        def right() -> tuple[Any, Any]:
            outputs = make(_right())(*inputs)
            found = complex_step_gradient(lambda inputs: make(_right())(*inputs), inputs, cotangents_of(outputs))
            return outputs, tuple(d if wanted is None or i in wanted else None for i, d in enumerate(found))

        def run(candidate: Candidate) -> Any:
            how = {"wanted": wanted, "compiled": compiled}
            return pullback(candidate, make(ops_of(candidate)), inputs, cotangents_of(right()[0]), **how)

        return Row("gradients", name, run, partial(_unlike, right), needs)

    cell = problem("cell", N, "float64").inputs
    yield gradient("reverse mode from outside", _tanh_stack(), W, X)
    yield gradient("of a sum", lambda o: lambda w, x: o.sum(_tanh_stack()(o)(w, x)), W, X)
    yield gradient("of what each layer returns", _showing(), W, X)
    yield gradient("of nested trees, None, integers, xs and ys", _cell(), *cell, needs=("xs",))
    yield gradient("reverse, gradient", _showing(reverse=True), W, X, needs=("reverse",))
    yield gradient("unroll=k, where k does not divide N", _tanh_stack(unroll=2), W, X, needs=("unroll",))
    yield gradient("remat=True", _tanh_stack(remat=True), W, X, needs=("remat",))
    yield gradient("remat=k, where k does not divide N", _tanh_stack(remat=2), W, X, needs=("remat",))
    yield gradient("frozen parameters", _tanh_stack(), W, X, wanted=(1,))
    yield gradient("frozen carry", _tanh_stack(), W, X, wanted=(0,))
    yield gradient("a stack in a stack", _nested, PAIRS, X)
    yield gradient("a stack used several times in one program", _twice, W, X, B)
    yield gradient("a parameter shared by all layers", _with_bias, W, X, B)
    yield gradient("a closed-over value gets its gradient", _closed_over, W, X, B)
    yield gradient("layers that end in tanh, sigmoid, exp, softmax", _activations, W, X)
    yield gradient("gradient of a compiled stack", _tanh_stack(), W, X, compiled=True)


def cotangents_of(outputs: Any) -> Any:
    """Some numbers for each output of floating point, None for the others."""
    if isinstance(outputs, dict):
        return {key: cotangents_of(part) for key, part in outputs.items()}
    if isinstance(outputs, (tuple, list)):
        return type(outputs)(map(cotangents_of, outputs))
    if outputs is None or np.asarray(outputs).dtype.kind not in "fc":
        return None
    return np.linspace(1, 2, np.size(outputs)).reshape(np.shape(outputs))


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


def _transforms() -> Iterator[Row]:
    def row(name: str, run: Callable[..., Any], right: Callable[[], Any]) -> Row:
        def transformed(candidate: Candidate) -> Any:
            stack = _tanh_stack()(ops_of(candidate))
            return _as_tuple(to_numpy(candidate, run(candidate, stack, *from_numpy(candidate, (W, X, TW, TX)))))

        return Row("transforms", name, transformed, partial(_unlike, lambda: _as_tuple(right())))

    def around(transform: str) -> Callable[..., Any]:
        return lambda candidate, *args: candidate.AROUND[transform](*args)

    def compiled(candidate: Candidate, stack: Any, w: Any, x: Any, *_: Any) -> Any:
        return candidate.compile(lambda w, x: 2 * stack(w, 2 * x))(w, x)

    def f(w: Any, x: Any) -> Any:
        return run_layers(layer_of(ACTIVATIONS["tanh"], "numpy"), w, x)[0]

    def g(w: Any, x: Any) -> tuple[Any, Any]:
        """The gradient of |f|^2 / 2, by hand: also of complex numbers."""
        carries = [x]
        for layer in w:
            carries.append(np.tanh(layer @ carries[-1]))
        dw, dx = np.empty_like(w), carries[-1]
        for i in reversed(range(len(w))):
            dsum = dx * (1 - carries[i + 1] ** 2)
            dw[i], dx = np.outer(dsum, carries[i]), w[i].T @ dsum
        return dw, dx

    def second_order() -> Any:
        return tuple(d.imag / STEP for d in g(W + 1j * STEP * TW, X + 1j * STEP * TX))

    yield row("called inside the user's compiled function", compiled, lambda: 2 * f(W, 2 * X))
    yield row("gradient inside the user's compiled function", around("reverse_inside"), lambda: g(W, X))
    yield row("batching from outside (the framework's vmap)", around("batching"), lambda: np.stack([f(W, X), f(W, TX)]))
    yield row("ensembles from outside (batched weights)", around("ensemble"), lambda: np.stack([f(W, X), f(TW, X)]))
    yield row(
        "per-example gradients from outside (batched gradient)",
        around("per_example_gradients"),
        lambda: tuple(map(np.stack, zip(g(W, X), g(W, TX), strict=True))),
    )
    yield row("gradient of a batch from outside", around("gradient_of_batch"), lambda: g(W, X)[0] + g(W, TX)[0])
    yield row(
        "forward mode from outside",
        around("forward_mode"),
        lambda: f(W + 1j * STEP * TW, X + 1j * STEP * TX).imag / STEP,
    )
    yield row("second order from outside, reverse over reverse", around("reverse_over_reverse"), second_order)
    yield row("second order from outside, forward over reverse", around("forward_over_reverse"), second_order)


def _as_tuple(tree: Any) -> Any:
    return tuple(tree) if isinstance(tree, list) else tree


# Mistakes, which must not pass for results.


def _mistakes() -> Iterator[Row]:
    def row(name: str, call: Callable[[Candidate, Any, Any], Any], needs: tuple[str, ...] = ()) -> Row:
        def run(candidate: Candidate) -> str:
            try:
                call(candidate, ops_of(candidate), partial(from_numpy, candidate))
            except Exception as error:
                return words(error)
            return ""

        return Row("mistakes", name, run, lambda said: "" if said else "accepted without an error", needs)

    def product(carry: Any, params: Any) -> Any:
        return carry * params["a"] * params["b"], None

    def unequal(candidate: Candidate, o: Any, of: Any) -> Any:
        return candidate.scan_layers(product, of({"a": np.ones((3, D)), "b": np.ones((4, D))}), of(np.ones(D)))

    def unequal_xs(candidate: Candidate, o: Any, of: Any) -> Any:
        layer, ones = (lambda c, p, x: (c * p * x, None)), (np.ones((3, D)), np.ones(D), np.ones((4, D)))
        return candidate.scan_layers(layer, *of(ones))

    def wider(candidate: Candidate, o: Any, of: Any) -> Any:
        return candidate.scan_layers(lambda c, p: (c * p, None), *of((np.ones((N, D)), np.ones(1))))

    def narrower(candidate: Candidate, o: Any, of: Any) -> Any:
        return candidate.scan_layers(lambda c, p: (o.cast(c, "float32"), None), *of((np.ones((N, D)), np.ones(D))))

    def another_structure(candidate: Candidate, o: Any, of: Any) -> Any:
        return candidate.scan_layers(lambda c, p: ([c[0] * p], None), of(np.ones((N, D))), (of(np.ones(D)),))

    def no_pair(candidate: Candidate, o: Any, of: Any) -> Any:
        return candidate.scan_layers(lambda c, p: c * p, *of((np.ones((N, 2)), np.ones(2))))

    yield row("parameters of unequal depth", unequal)
    yield row("xs of another depth than the parameters", unequal_xs, ("xs",))
    yield row("a carry that grows", wider)
    yield row("a carry that changes its dtype", narrower)
    yield row("a carry that changes its structure", another_structure)
    yield row("a layer that returns no pair", no_pair)


# Sizes and memory.


def _sizes() -> Iterator[Row]:
    def counted(candidate: Candidate, gradient: bool) -> list[Size]:
        layer = ops_of(candidate).matvec
        of = Size(program="gradient" if gradient else "forward", layer="dense", d=WIDTH, carry_bytes=4 * WIDTH)
        found = []
        for depth in DEPTHS:
            w, x = from_numpy(candidate, (np.ones((depth, WIDTH, WIDTH), np.float32), np.ones(WIDTH, np.float32)))
            apply = lambda w, x: candidate.scan_layers(lambda c, w: (layer(w, c), None), w, x)[0]  # noqa: E731
            cotangent, memory = (x if gradient else None), gradient and depth != DEPTHS[1]
            found.append(of.counted(depth, candidate.graph_size(apply, w, x, cotangent=cotangent, memory=memory)))
        return found

    gradients: dict[int, list[Size]] = {}  # counted once for two rows

    def of_gradient(candidate: Candidate) -> list[Size]:
        if id(candidate) not in gradients:
            gradients[id(candidate)] = counted(candidate, True)
        return gradients[id(candidate)]

    def law(sizes: list[Size]) -> str:
        return "; ".join(broken_laws(sizes))

    def copies(sizes: list[Size]) -> str:
        first, last = sizes[0], sizes[-1]
        a_layer = ((last.temp_bytes or 0) - (first.temp_bytes or 0)) / (last.N - first.N)
        weights = 4 * WIDTH * WIDTH
        said = f"one more layer adds {a_layer / of_carry:.3g} carries, its weights are {weights / of_carry:.3g}"
        return said if a_layer > weights / 2 else ""

    of_carry = 4 * WIDTH
    yield Row("sizes", "one size at every N >= 2, forward", partial(counted, gradient=False), law)
    yield Row("sizes", "one size at every N >= 2, gradient", of_gradient, law)
    yield Row("sizes", "no copy of the weights is kept for the backward pass", of_gradient, copies)


# Numerics: how far off rounding may take the dense stack, derived for each case.


def _numerics() -> Iterator[Row]:
    def run(candidate: Candidate, dtype: str) -> Any:
        matvec = ops_of(candidate).matvec

        def apply(w: Any, x: Any) -> Any:
            return candidate.scan_layers(lambda c, w: (matvec(w, c), None), w, x)[0]

        results = {}
        for name in BY_CASE[dtype]:
            case = cases.case(name, dtype)
            found = candidate.gradient(apply)(*map(candidate.from_numpy, case.inputs))
            results[name] = tuple(map(candidate.to_numpy, found))
        return results

    def wrong(results: Any, dtype: str) -> str:
        return _first(
            partial(assert_case, "", cases.case(name, dtype), arrays) for name, arrays in results.items()
        ).removeprefix(", ")

    for dtype in BY_CASE:
        name = f"{dtype} within the derived bound, forward and gradient"
        yield Row("numerics", name, partial(run, dtype=dtype), partial(wrong, dtype=dtype))


# What is right, and what is wrong.


@cache
def _right() -> Any:
    """NumPy's operations, with the loop as the stack: it has no options that change no value."""

    def scan(layer: Any, params: Any, init: Any, xs: Any = None, *, reverse: bool = False, **_: Any) -> Any:
        return run_layers(layer, params, init, xs, reverse)

    return SimpleNamespace(**(vars(ops("numpy")) | {"scan": scan}))


def _unlike(right: Callable[[], Any], found: Any) -> str:
    return _first([partial(assert_close, "", found, right())]).removeprefix(", ")


def _first(assertions: Any) -> str:
    for holds in assertions:
        try:
            holds()
        except AssertionError as error:
            return str(error)
    return ""


def words(error: BaseException) -> str:
    """The kind of an error, and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
