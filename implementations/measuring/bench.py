"""The bench: a training step beside its twin and what users do instead; a stack beside what no stack can beat.

What no stack can beat, the limit, is for single vectors reading the weights once, and for batches, on a GPU for single
vectors too, the same product without the chain: one matrix of as many numbers as all layers have. A gradient and a
training step have the limit of their forward program, which is less than they need: they read the weights again, and
write as much.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from implementations import wording
from implementations.interface import Apply, Array, Implementation, Tree
from implementations.measuring.timing import first_call, interleave, on_cpu, peak_bytes, product, reader
from implementations.results import bench_facts
from implementations.results.bench_facts import RAW
from implementations.results.records import FORMS, LIMIT, PROGRAMS, Case, Time
from reference.cases import DTYPES, layer_carry, layer_params
from reference.shapes import PARAMS
from reference.stack import tree_map

TRIES = 3
FEW_LAYERS = 8  # whose compilation says how long that of N takes
RATE = 0.001  # of the training step
PEAK_BYTES = 2**28  # of weights, from which on the peak of the process is theirs


def _dense(program: str, *shapes: tuple[int, int], batch: int = 0, dtype: str = "float32") -> list[Case]:
    at = partial(Case, layer="dense", batch=batch, dtype=dtype, program=program)
    return [at(N=N, sizes={"d": d}) for d, N in shapes]


SHAPES = ((64, 256), (256, 64), (1024, 64))  # d, N: 4 and 16 MB of weights; 256 MB are beyond any last-level cache
DEEP = (256, 512)
_MLP = partial(Case, layer="mlp", N=64, sizes={"d": 64, "f": 256}, batch=32)
_ENCODER = partial(
    Case, layer="transformer_encoder", N=16, sizes={"d": 64, "h": 4, "e": 16, "f": 256, "T": 32}, batch=2
)
# Of a size where the products rule the time: about a million weights a layer, 128 rows for each of them.
TRAINED = tuple(
    Case(layer=layer, N=8, sizes=sizes, batch=batch, program="training step")
    for layer, batch, sizes in (
        ("mlp", 128, {"d": 256, "f": 1024}),
        ("transformer_encoder", 2, {"d": 256, "h": 4, "e": 64, "f": 1024, "T": 64}),
        ("transformer_decoder", 2, {"d": 256, "h": 4, "g": 2, "e": 64, "f": 1024, "T": 64}),
        ("residual_conv", 4, {"c": 64, "T": 16}),
    )
)
CASES = (
    *TRAINED,
    *_dense("forward", *SHAPES, DEEP),
    *_dense("gradient", *SHAPES, DEEP),
    *_dense("forward", *SHAPES, batch=32),
    *_dense("gradient", *SHAPES, batch=32),
    *_dense("forward", *SHAPES, dtype="bfloat16"),
    *_dense("training step", *SHAPES[:2]),
    *(case(program=program) for case in (_MLP, _ENCODER) for program in PROGRAMS),
)


# `dense` takes one vector. One object for all, because torch finds what it has compiled by it.
def batched_dense(y: Array, w: Array) -> tuple[Array, None]:
    """A dense layer for a batch: y [B, d], w [d, d]."""
    return y @ w, None


class Problem(NamedTuple):
    params: Tree
    x: Array
    mask: Array | None
    cotangent: Array  # of the result, which has the shape of x
    weights: list[np.ndarray]  # those of the params that are factors of a product
    update: Callable[[Tree, Tree], Tree]  # compiled once for all forms


def steps(implementation: Implementation, cases: tuple[Case, ...]) -> int:
    """How often `measure_case` says what it does, for all cases."""
    return sum(len(forms(implementation, case, None)) for case in cases)


def forms(implementation: Implementation, case: Case, mask: Array | None) -> dict[str, tuple[Any, Any]]:
    """Form -> (apply, compiler). What users do instead: of single vectors in float32, and of training steps."""
    if case.is_single:
        pair = implementation.scan_apply_layers, implementation.unroll_apply_layers
        chosen: dict[str, Any] = {
            form: (apply, implementation.compile) for form, apply in zip(FORMS, pair, strict=True)
        }
        if case.dtype == "float32" and case.program != "training step":
            others = implementation.ALTERNATIVES
            chosen |= {name: others[name] for name in others if case.program == "forward" or name.startswith(RAW)}
        return chosen
    layer = batched_dense if case.layer == "dense" else implementation.LAYERS[case.layer]
    stacks = implementation.LAYER_FORMS
    if not case.is_step:
        stacks = {form: (stacks[form][0], implementation.compile) for form in FORMS}
    return {form: (masked(stack(layer), mask), compiler) for form, (stack, compiler) in stacks.items()}


def masked(stack: Callable[[Any, Any], Any], mask: Array | None) -> Apply:
    """The stack as a function of its params and x. The mask is closed over: it has no gradient."""
    return stack if mask is None else lambda params, x: stack(params, {"x": x, "mask": mask})["x"]


def measure_case(
    implementation: Implementation, case: Case, patience: float, budget: float, step: Callable[[str], None]
) -> Time:
    """The forms of one case, timed in turn; budget: seconds of timing, all tries together."""
    load = [_load()]
    posed = problem(implementation, case)
    timed: dict[str, Callable[[], Any]] = {} if case.is_step else {LIMIT: limit(implementation, case, posed)}
    skipped: dict[str, str] = {}
    compiled: dict[str, tuple[float, ...]] = {}
    gradients: dict[str, Callable[[], Any]] = {}
    chosen = forms(implementation, case, posed.mask)
    if case.is_step:  # what a process compiles first takes more than its own time
        with implementation.cold():
            implementation.wait(posed.update(posed.params, posed.params))
    for form, (apply, compiler) in chosen.items():
        step(f"bench: {form}, {case.name}")
        seconds = 0.0
        with _noting(form, skipped):
            if form != "rolled" and compiler == implementation.compile and case.N > FEW_LAYERS:
                seconds = estimated_seconds(implementation, case, form, patience)
        if seconds > patience:
            skipped[form] = f"would compile for about {wording.seconds(seconds)}"
        elif case.is_step:
            with _noting(form, skipped), implementation.cold():
                gradients[form] = program(implementation, replace(case, program="gradient"), apply, compiler, posed)
                compiled[form] = (first_call(gradients[form], implementation.wait),)
        elif form in FORMS and (case.layer, case.dtype) == ("dense", "float32") and case.program in PROGRAMS:
            compiled[form] = tuple(compile_seconds(implementation, case, apply, posed, 2))
    for form, (apply, compiler) in chosen.items():  # after all of the above, which empties JAX's caches
        if form not in skipped:
            known = gradients.get(form)
            made = train(posed, known) if known else program(implementation, case, apply, compiler, posed)
            with _noting(form, skipped):
                implementation.wait(made())
                timed[form] = made
    if case.is_step:  # so long that few rounds fit, and so steady that their quartiles tell
        run_seconds, tries = interleave(timed, budget, implementation.wait), 1
    else:
        run_seconds, tries = quietest(timed, implementation.wait, budget)
    weights_bytes = sum(array.nbytes for array in posed.weights)
    peak = case.program in PROGRAMS and weights_bytes >= PEAK_BYTES and on_cpu(implementation)
    return Time(
        **vars(case),
        limit=None if case.is_step else "read" if case.is_single else "product",
        run_seconds=run_seconds,
        tries=tries,
        compile_seconds=compiled,
        skipped=skipped,
        weights_bytes=weights_bytes,
        peak_bytes=peak_bytes(lambda: implementation.wait(timed["rolled"]())) if peak else None,
        load=(*load, _load()),
    )


@contextlib.contextmanager
def _noting(form: str, skipped: dict[str, str]) -> Iterator[None]:
    """What a user first writes need not have a gradient, or compile: then that is the result."""
    try:
        yield
    except Exception as error:
        if form in FORMS:
            raise
        skipped[form] = f"raises {type(error).__name__}"


def problem(implementation: Implementation, case: Case) -> Problem:
    """Gaussian weights, with which nothing grows out of range."""
    rng = np.random.default_rng(case.N)
    if case.layer == "dense":  # drawn in float32 and in place: 256 MB would take 1 GB on the way
        d = case.sizes["d"]
        params: Any = rng.standard_normal((case.N, d, d), dtype=np.float32)
        params *= d**-0.5
        carry: Any = rng.standard_normal((case.batch, d) if case.batch else d, dtype=np.float32)
    else:
        params = layer_params(case.layer, case.N, case.N, **case.sizes)
        carry = layer_carry(case.layer, case.N, B=case.batch, **case.sizes)
    x, mask = (carry["x"], carry["mask"]) if isinstance(carry, dict) else (carry, None)
    dtype = DTYPES[case.dtype]
    params = tree_map(lambda array: array.astype(dtype, copy=False), params)
    weights: list[np.ndarray] = []
    tree_map(lambda axes, array: weights.append(array) if "->" in axes else None, PARAMS[case.layer], params)
    cotangent = rng.standard_normal(x.shape).astype(dtype)
    x, cotangent = (implementation.from_numpy(array.astype(dtype, copy=False)) for array in (x, cotangent))
    return Problem(
        tree_map(implementation.from_numpy, params),
        x,
        None if mask is None else implementation.from_numpy(mask),
        cotangent,
        weights,
        implementation.compile(update),
    )


def limit(implementation: Implementation, case: Case, posed: Problem) -> Callable[[], Any]:
    """Reading the weights once, or one product of the whole batch with as many numbers."""
    if case.is_single:
        return reader(implementation, posed.params)
    _, d = case.width
    flat = np.concatenate([array.reshape(-1) for array in posed.weights])
    rng = np.random.default_rng(case.N)
    rows = rng.standard_normal((implementation.to_numpy(posed.x).size // d, d)).astype(flat.dtype)
    return product(implementation, rows, flat)


def program(
    implementation: Implementation, case: Case, apply: Apply, compiler: Any, posed: Problem
) -> Callable[[], Any]:
    """One call, compiled as its form is; compiler None: `apply` is compiled already."""
    backward = case.program != "forward"
    if backward and compiler == implementation.compile:
        run = implementation.compile_gradient(apply)
    else:
        run = compiler(apply) if compiler else apply
        run = implementation.gradient(run) if backward else run
    call = partial(run, posed.params, posed.x, *([posed.cotangent] if backward else ()))
    return train(posed, call) if case.program == "training step" else call


def update(params: Tree, dparams: Tree) -> Tree:
    """The params a step down."""
    return tree_map(lambda p, d: p - RATE * d, params, dparams)


def train(posed: Problem, gradient: Callable[[], Any]) -> Callable[[], Any]:
    """A training step: two compiled functions, the gradient and the update of the params, timed together."""

    def step() -> Any:
        _, dparams, _ = gradient()
        return posed.update(posed.params, dparams)

    return step


def compile_seconds(
    implementation: Implementation, case: Case, apply: Apply, posed: Problem, times: int = 1
) -> list[float]:
    cotangent = None if case.program == "forward" else posed.cotangent
    return implementation.compile_seconds(apply, posed.params, posed.x, cotangent=cotangent, times=times)


def estimated_seconds(implementation: Implementation, case: Case, form: str, patience: float) -> float:
    """How long a form may compile at N layers: N / 8 times as long as 8. An alternative may be a loop, which does not:
    where it seems to take too long, what 8 layers more add to it decides."""

    def at(N: int) -> float:
        few = problem(implementation, fewer := replace(case, N=N))
        return compile_seconds(implementation, fewer, forms(implementation, fewer, few.mask)[form][0], few)[0]

    seconds = at(FEW_LAYERS)
    proportional = seconds * case.N / FEW_LAYERS
    if form == "unrolled" or proportional <= patience:
        return proportional
    return seconds + max(0.0, at(2 * FEW_LAYERS) - seconds) * (case.N - FEW_LAYERS) / FEW_LAYERS


def quietest(
    timed: dict[str, Callable[[], Any]], wait: Callable[[Any], Any], budget: float
) -> tuple[dict[str, tuple[float, ...]], int]:
    """Seconds of each call in the try with the least noise, and how many tries there were: no more than are needed for
    every form to be a figure, or than there is time for."""
    found: list[dict[str, tuple[float, ...]]] = []
    start = time.perf_counter()
    while len(found) < TRIES and (not found or time.perf_counter() - start < budget):
        found.append(interleave(timed, budget / TRIES, wait))
        if bench_facts.noisiest(found[-1]) <= bench_facts.NOISY:
            break
    return min(found, key=bench_facts.noisiest), len(found)


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
