"""One implementation, measured in a process of its own: python -m implementations.measuring.measure NAME [--mode ...].

Prints one JSON object a line: {"event": "progress", ...} while it works, {"event": "result", ...} at the end. Nothing
here judges: `implementations/results/deviations.py` does. A framework that is not installed is a result too, "not run".
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from implementations import REQUIRES, load
from implementations.environment import pin
from implementations.interface import Implementation
from implementations.measuring import bench, programs, training_check
from implementations.measuring.modes import MODES, Mode
from implementations.measuring.timing import interleave
from implementations.minilm import checkpoint_check
from implementations.results.records import (
    DENSE,
    FORMS,
    LIMIT,
    Case,
    Comparison,
    Measured,
    Recompiles,
    Size,
    Time,
    to_json,
)
from reference.cases import case
from reference.error_bound import MAX_RATIO, sharp_sd, worst_ratio
from reference.stack import oracle

D = 64  # width of the sized and timed stacks: from 1000 elements a stacked array is never taken for a constant
REPEAT_SECONDS = 2.0
RECOMPILE_DEPTHS = (0, 1, 2, 3, 8, 64)
# Programs for RECOMPILE_DEPTHS: JAX one a depth; torch one for 0, one for 1 and one for all others; TF one.
PROGRAMS = {"jax_scan": 6, "torch_compile": 2, "tf_while": 1}
Step = Callable[[str], None]


def measure(name: str, mode: Mode, progress: Callable[[int, int, str], None]) -> Measured:
    """Everything about one implementation."""
    start = time.perf_counter()
    implementation = load(name)
    groups = [
        *(("forward", N) for N in sorted({*mode.rolled, *mode.unrolled, *mode.alternatives})),
        *(("gradient", N) for N in sorted({*mode.rolled_gradients, *mode.unrolled_gradients})),
    ]
    general = general_programs(implementation, mode)
    counted = bool(mode.rolled)  # nothing but the bench is asked for otherwise
    total = counted + sum(map(len, mode.cases.values()))
    total += sum(len(forms(implementation, mode, *group)) for group in groups)
    slow = mode.slow or name != "torch_compile"
    total += len(mode.linear) + len(general) + (checkpoint_check.steps(slow) if mode.checkpoint else 0)
    total += mode.training + bench.steps(implementation, mode.bench)
    done = 0

    def step(what: str) -> None:
        nonlocal done
        progress(done, total, what)
        done += 1

    def general_size(program: programs.Program, N: int) -> Size:
        step(f"{program.of.name} N={N}")
        return programs.size(implementation, program, N)

    # first: nothing else has been compiled yet
    recompiles = [count_programs(implementation, PROGRAMS[name], step)] if counted else []
    numerics = tuple(check_numerics(implementation, mode, step))
    given_up: set[tuple[str, str]] = set()
    *arrays, cotangent = problem(implementation, 4)
    # warm up all that is timed: the first program that a process compiles, and its first gradient, take seconds more
    cotangent = cotangent if mode.bench or mode.unrolled_gradients else None
    implementation.compile_seconds(implementation.scan_apply_layers, *arrays, cotangent=cotangent)
    depths = [measure_depth(implementation, mode, *group, given_up, step) for group in groups]
    return Measured(
        name=name,
        recompiles=tuple(recompiles),
        numerics=numerics,
        sizes=tuple(size for sizes, _ in depths for size in sizes),
        times=tuple(times for _, times in depths),
        linear=measure_linear(implementation, mode, step),
        programs=tuple(general_size(*each) for each in general),
        checkpoint=checkpoint_check.check(implementation, slow, step) if mode.checkpoint else None,
        training=training_check.check(implementation, slow, step) if mode.training else None,
        bench=tuple(
            bench.measure_case(implementation, case, mode.patience, mode.bench_seconds, step) for case in mode.bench
        ),
        versions=implementation.versions(),
        settings=implementation.settings(),
        units=dict(implementation.UNITS),
        seconds=time.perf_counter() - start,
    )


def general_programs(implementation: Implementation, mode: Mode) -> list[tuple[programs.Program, int]]:
    """Which programs of the general stack, and at which N: each at all its depths, one program after the other."""
    chosen = []
    for layer, names in mode.programs.items():
        for program in programs.programs(implementation, layer):
            stepped = max(program.of.unroll, program.of.remat) > 1
            depths = {*mode.program_depths, *(mode.stepped if stepped else ())}
            depths = set(mode.twins) if program.of.form == "unrolled" else depths
            chosen += [(program, N) for N in sorted(depths) if program.of.name in names]
    return chosen


def forms(implementation: Implementation, mode: Mode, program: str, N: int) -> dict[str, tuple[Any, Any]]:
    """Form -> (apply, compiler) of what is measured at depth N. Gradients of alternatives are for the full run."""
    gradient = program == "gradient"
    chosen: dict[str, tuple[Any, Any]] = {}
    if N in (mode.rolled_gradients if gradient else mode.rolled):
        chosen["rolled"] = implementation.scan_apply_layers, implementation.compile
    if N in (mode.unrolled_gradients if gradient else mode.unrolled):
        chosen["unrolled"] = implementation.unroll_apply_layers, implementation.compile
    if N in mode.alternatives and (not gradient or mode.alternative_gradients):
        chosen |= implementation.ALTERNATIVES
    return chosen


def count_programs(implementation: Implementation, declared: int, step: Step) -> Recompiles:
    step("programs compiled")
    before = implementation.program_count()
    for N in RECOMPILE_DEPTHS * 2:
        implementation.scan_apply_layers(*problem(implementation, N)[:2])
    return Recompiles(
        what=f"N = {', '.join(map(str, RECOMPILE_DEPTHS))}, called as it stands",
        programs=implementation.program_count() - before,
        declared=declared,
    )


def check_numerics(implementation: Implementation, mode: Mode, step: Step) -> Iterator[Comparison]:
    """Error over what `reference/error_bound.py` allows, for each case, dtype and result; exact cases must be equal."""
    run = implementation.gradient(implementation.scan_apply_layers)
    for dtype, name in ((dtype, name) for dtype, names in mode.cases.items() for name in names):
        step(f"{name} {dtype}")
        posed = case(name, dtype)
        actual = run(*(implementation.from_numpy(array) for array in posed.inputs))
        sd = sharp_sd(*posed.inputs, dtype)
        for quantity, got, want in zip(("y", "dweights", "dx"), actual, oracle(*posed.inputs), strict=True):
            array = implementation.to_numpy(got)
            ratio = worst_ratio(array, want, np.zeros_like(want) if posed.exact else getattr(sd, quantity))
            allowed = 0.0 if posed.exact else MAX_RATIO
            yield Comparison(
                case=name,
                dtype=dtype,
                N=len(posed.weights),
                d=len(posed.x),
                quantity=quantity,
                ratio=ratio,
                allowed=allowed,
                exact=posed.exact,
                ok=bool(ratio <= allowed and array.dtype == posed.x.dtype),
            )


def measure_depth(
    implementation: Implementation, mode: Mode, program: str, N: int, given_up: set[tuple[str, str]], step: Step
) -> tuple[list[Size], Time]:
    """Graph size, memory, compile time and run time of each form at one depth; adds to what is given up."""
    case, gradient = dense(program, N), program == "gradient"
    posed = bench.problem(implementation, case)
    sizes: list[Size] = []
    compiled: dict[str, tuple[float, ...]] = {}
    runs: dict[str, Callable[[], Any]] = {}
    for form, (apply, compiler) in forms(implementation, mode, program, N).items():
        step(f"{form} N={N}" + (" gradient" if gradient else ""))
        if (program, form) in given_up:
            continue
        seconds: list[float] = []
        again = mode.compilations if form in FORMS else 1
        while compiler == implementation.compile and len(seconds) < again:
            seconds += bench.compile_seconds(implementation, case, apply, posed)
            if form != "rolled" and sum(seconds) >= REPEAT_SECONDS:
                break
        if seconds or isinstance(compiler, partial):  # with other options: counted, but not timed
            start = time.perf_counter()
            counts = implementation.graph_size(
                apply,
                posed.params,
                posed.x,
                cotangent=posed.cotangent if gradient else None,
                # torch has to build and run for it; and for the gradient of its own loop, whose sizes a run alone tells
                memory=gradient or form in FORMS,
            )
            of = Size(program=program, layer=DENSE, form=form, d=D, carry_bytes=4 * D)
            sizes.append(of.counted(N, counts))
            if min(seconds, default=time.perf_counter() - start) > mode.patience:
                given_up.add((program, form))
        if seconds:
            compiled[form] = tuple(seconds)
        runs[form] = bench.program(implementation, case, apply, compiler, posed)
    runs[LIMIT] = bench.limit(implementation, case, posed)
    run_seconds = interleave(runs, mode.run_seconds, implementation.wait)
    return sizes, Time(**vars(case), limit="read", run_seconds=run_seconds, compile_seconds=compiled)


def measure_linear(implementation: Implementation, mode: Mode, step: Step) -> tuple[Time, ...]:
    """The gradient of the rolled stack at several depths in turn, one program each: what N does to its run time."""
    rolled = implementation.scan_apply_layers, implementation.compile
    runs: dict[int, Callable[[], Any]] = {}
    for N in mode.linear:
        step(f"rolled N={N} gradient, in turn")
        case = dense("gradient", N)
        runs[N] = bench.program(implementation, case, *rolled, bench.problem(implementation, case))
    seconds = interleave(runs, mode.run_seconds * len(runs), implementation.wait) if runs else {}
    return tuple(Time(**vars(dense("gradient", N)), run_seconds={"rolled": own}) for N, own in seconds.items())


def dense(program: str, N: int) -> Case:
    return Case(layer="dense", N=N, sizes={"d": D}, program=program)


def problem(implementation: Implementation, N: int) -> tuple[Any, Any, Any]:
    """Weights [N, D, D], x [D] and cotangent [D] in float32."""
    posed = bench.problem(implementation, dense("gradient", N))
    return posed.params, posed.x, posed.cotangent


def narrowed(mode: Mode, depths: tuple[int, ...], layers: list[str]) -> Mode:
    """The mode at other depths of the dense stack, its bench of these layers only; all of it where none are given."""
    if layers:
        mode = replace(mode, bench=tuple(case for case in mode.bench if case.layer in layers))
    if depths:
        mode = replace(mode, rolled=depths, unrolled=depths, alternatives=depths)
        if mode.rolled_gradients:
            mode = replace(mode, rolled_gradients=depths, unrolled_gradients=depths)
    return mode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--mode", choices=MODES, default="default")
    parser.add_argument("--depths", type=lambda text: tuple(map(int, text.split(","))), default=())
    parser.add_argument("--layers", type=lambda text: text.split(","), default=[], help="of the bench")
    arguments = parser.parse_args()
    pin()

    def say(**event: Any) -> None:
        print(json.dumps(event), flush=True)

    def progress(done: int, total: int, what: str) -> None:
        say(event="progress", done=done, total=total, what=what)

    try:
        result = measure(arguments.name, narrowed(MODES[arguments.mode], arguments.depths, arguments.layers), progress)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != REQUIRES[arguments.name]:
            raise
        reason, _, install = str(error).partition(": ")
        result = Measured(name=arguments.name, status="not run", reason=reason, install=install)
    say(event="result", result=to_json(result))


if __name__ == "__main__":
    main()
