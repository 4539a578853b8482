"""One implementation, measured in a process of its own: python -m implementations.measuring.measure NAME [--mode ...].

Prints one JSON object a line: {"event": "progress", ...} while it works, {"event": "result", ...} at the end. Nothing
here judges: `implementations/results/deviations.py` does. A framework that is not installed is a result too, "not run".
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from implementations import REQUIRES, load
from implementations.environment import pin
from implementations.interface import Implementation
from implementations.measuring import bench, programs, training_check
from implementations.measuring.bench import Case
from implementations.measuring.timing import interleave, reader, timed_program
from implementations.minilm import checkpoint_check
from reference.cases import DTYPES, NAMES, case
from reference.error_bound import MAX_RATIO, sharp_sd, worst_ratio
from reference.stack import oracle

D = 64  # width of the sized and timed stacks: from 1000 elements a stacked array is never taken for a constant
REPEAT_SECONDS = 2.0
DEPTHS = (1, 2, 4, 16, 64, 256, 1024)
RECOMPILE_DEPTHS = (0, 1, 2, 3, 8, 64)
# Programs for RECOMPILE_DEPTHS: JAX one a depth; torch one for 0, one for 1 and one for all others; TF one.
PROGRAMS = {"jax_scan": 6, "torch_compile": 2, "tf_while": 1}


class Mode(NamedTuple):
    rolled: tuple[int, ...]  # depths N
    unrolled: tuple[int, ...]
    alternatives: tuple[int, ...]
    cases: dict[str, tuple[str, ...]]  # dtype -> names
    rolled_gradients: tuple[int, ...]
    unrolled_gradients: tuple[int, ...]
    alternative_gradients: bool
    patience: float  # seconds: a form is not tried deeper once a compilation has taken longer
    compilations: int  # timed ones: of the rolled form, and of the unrolled one until they take REPEAT_SECONDS together
    run_seconds: float  # spent on run time at each depth
    programs: dict[str, tuple[str, ...]]  # of the general stack: layer -> names
    linear: tuple[int, ...] = ()  # depths at which the gradient is timed in turn
    program_depths: tuple[int, ...] = ()
    stepped: tuple[int, ...] = ()  # more of them for several layers a step, where the remainder counts
    twins: tuple[int, ...] = ()  # depths of the unrolled form of the general stack
    checkpoint: bool = False  # a trained network, on sentences
    training: bool = False  # of a small language model
    slow: bool = False  # both in torch too, where a gradient of these takes ten seconds and more to compile
    bench: tuple[Case, ...] = ()  # timed beside their limit, or beside what users do instead
    bench_seconds: float = 15.0  # of timing a case, all tries together


FEW = ("orthogonal_1024x16", "permutation_1001x16")  # of one width: each one compiles for seconds in torch
# A program of the general stack compiles for 5 to 40 s in torch: the default run has those of the dense layer that are
# fastest; the full run has all of `mlp`, which keeps more than its carry, so that the choices of remat differ.
DENSE = (
    *("gradient", "vjp_layers", "jvp_layers", "vmap_layers", "vmap_vjp_layers", "hvp_layers"),
    f"gradient, remat={programs.K}",
)
MODES = {
    "quick": Mode((4, 1024), (4, 16), (), {"float32": FEW}, (), (), False, 5, 1, 0.3, {}),
    "default": Mode(
        (4, 64, 1024), (4, 64), (64,), {"float32": NAMES, "float64": FEW, "bfloat16": FEW}, (4, 1024), (2, 4),
        False, 10, 1, 0.5, {"dense": DENSE}, linear=(256, 1024), program_depths=(23, 255),
        checkpoint=True, training=True, bench=bench.TRAINED[:1], bench_seconds=8.0,
    ),
    "full": Mode(
        DEPTHS, DEPTHS, DEPTHS[1:], dict.fromkeys(DTYPES, NAMES), DEPTHS, DEPTHS, True,
        20, 3, 2.0, {"mlp": programs.NAMES}, linear=(256, 1024), program_depths=(23, 511), stepped=(64,),
        twins=(2, 4, 16), checkpoint=True, training=True, slow=True, bench=bench.CASES,
    ),
    "bench": Mode((), (), (), {}, (), (), False, 60, 0, 0, {}, bench=bench.CASES),
}  # fmt: skip


def measure(name: str, mode: Mode, progress: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Everything about one implementation, as plain data."""
    start = time.perf_counter()
    implementation = load(name)
    groups = [
        *((False, N) for N in sorted({*mode.rolled, *mode.unrolled, *mode.alternatives})),
        *((True, N) for N in sorted({*mode.rolled_gradients, *mode.unrolled_gradients})),
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

    recompiles = []
    if counted:
        step("programs compiled")
        compiled = count_programs(implementation)  # first: nothing else has been compiled yet
        what, ok = f"N = {', '.join(map(str, RECOMPILE_DEPTHS))}, called as it stands", compiled == PROGRAMS[name]
        recompiles.append({"what": what, "programs": compiled, "declared": PROGRAMS[name], "ok": ok})
    numerics = list(check_numerics(implementation, mode, step))
    sizes: list[dict[str, Any]] = []
    times: list[dict[str, Any]] = []
    given_up: set[tuple[bool, str]] = set()
    implementation.compile_seconds(implementation.scan_apply_layers, *problem(implementation, 4)[:2])  # warm up
    for gradient, N in groups:
        measure_depth(implementation, mode, gradient, N, given_up, sizes, times, step)
    linear = measure_linear(implementation, mode, step)
    general_sizes = []
    for program, N in general:
        step(f"{program.name} N={N}")
        general_sizes.append(programs.size(implementation, program, N))
    checkpoint = checkpoint_check.check(implementation, slow, step) if mode.checkpoint else None
    training = training_check.check(implementation, slow, step) if mode.training else None
    benched = [bench.measure_case(implementation, case, mode.patience, mode.bench_seconds, step) for case in mode.bench]
    return {
        "name": name,
        "status": "ok",
        "versions": implementation.versions(),
        "settings": implementation.settings(),
        "units": dict(implementation.UNITS),
        "numerics": numerics,
        "sizes": sizes,
        "times": times,
        "linear": linear,
        "programs": general_sizes,
        "checkpoint": checkpoint,
        "training": training,
        "bench": benched,
        "recompiles": recompiles,
        "seconds": time.perf_counter() - start,
        "problems": [],
    }


def general_programs(implementation: Implementation, mode: Mode) -> list[tuple[programs.Program, int]]:
    """Which programs of the general stack, and at which N: each at all its depths, one program after the other."""
    chosen = []
    for layer, names in mode.programs.items():
        for program in programs.programs(implementation, layer):
            depths = {*mode.program_depths, *(mode.stepped if max(program.unroll, program.remat) > 1 else ())}
            depths = set(mode.twins) if program.form == "unrolled" else depths
            chosen += [(program, N) for N in sorted(depths) if program.name in names]
    return chosen


def forms(implementation: Implementation, mode: Mode, gradient: bool, N: int) -> dict[str, tuple[Any, Any]]:
    """Form -> (apply, compiler) of what is measured at depth N. Gradients of alternatives are for the full run."""
    chosen: dict[str, tuple[Any, Any]] = {}
    if N in (mode.rolled_gradients if gradient else mode.rolled):
        chosen["rolled"] = implementation.scan_apply_layers, implementation.compile
    if N in (mode.unrolled_gradients if gradient else mode.unrolled):
        chosen["unrolled"] = implementation.unroll_apply_layers, implementation.compile
    if N in mode.alternatives and (not gradient or mode.alternative_gradients):
        chosen |= implementation.ALTERNATIVES
    return chosen


def count_programs(implementation: Implementation) -> int:
    before = implementation.program_count()
    for N in RECOMPILE_DEPTHS * 2:
        implementation.scan_apply_layers(*problem(implementation, N)[:2])
    return implementation.program_count() - before


def check_numerics(implementation: Implementation, mode: Mode, step: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Error over what `reference/error_bound.py` allows, for each case, dtype and result; exact cases must be equal."""
    run = implementation.gradient(implementation.scan_apply_layers)
    for dtype, names in mode.cases.items():
        for name in names:
            step(f"{name} {dtype}")
            posed = case(name, dtype)
            actual = run(*(implementation.from_numpy(array) for array in posed.inputs))
            sd = sharp_sd(*posed.inputs, dtype)
            for quantity, got, want in zip(("y", "dweights", "dx"), actual, oracle(*posed.inputs), strict=True):
                array = implementation.to_numpy(got)
                ratio = worst_ratio(array, want, np.zeros_like(want) if posed.exact else getattr(sd, quantity))
                allowed = 0.0 if posed.exact else MAX_RATIO
                row = {"case": name, "dtype": dtype, "N": len(posed.weights), "d": len(posed.x), "quantity": quantity}
                ok = ratio <= allowed and array.dtype == posed.x.dtype
                yield row | {"ratio": ratio, "allowed": allowed, "exact": posed.exact, "ok": ok}


def measure_depth(
    implementation: Implementation,
    mode: Mode,
    gradient: bool,
    N: int,
    given_up: set[tuple[bool, str]],
    sizes: list[dict[str, Any]],
    times: list[dict[str, Any]],
    step: Callable[[str], None],
) -> None:
    """Graph size, memory, compile time and run time of each form at one depth; appends to sizes and times."""
    weights, x, cotangent = problem(implementation, N)
    args, extra = ((weights, x, cotangent), {"cotangent": cotangent}) if gradient else ((weights, x), {})
    programs: dict[str, Callable[[], Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for form, (apply, compiler) in forms(implementation, mode, gradient, N).items():
        step(f"{form} N={N}" + (" gradient" if gradient else ""))
        if (gradient, form) in given_up:
            continue
        at = {"form": form, "N": N, "d": D, "dtype": "float32", "gradient": gradient}
        seconds: list[float] = []
        again = mode.compilations if form in ("rolled", "unrolled") else 1
        while compiler == implementation.compile and len(seconds) < again:
            seconds += implementation.compile_seconds(apply, weights, x, **extra)
            if form != "rolled" and sum(seconds) >= REPEAT_SECONDS:
                break
        if seconds or isinstance(compiler, partial):  # with other options: counted, but not timed
            start = time.perf_counter()
            # torch has to build and run for it; and for the gradient of its own loop, whose sizes a run alone tells
            memory = gradient or form in ("rolled", "unrolled")
            sizes.append(at | implementation.graph_size(apply, weights, x, memory=memory, **extra))
            if min(seconds, default=time.perf_counter() - start) > mode.patience:
                given_up.add((gradient, form))
        rows[form] = at | {"compile_seconds": seconds}
        programs[form] = partial(timed_program(implementation, apply, compiler, gradient), *args)
    programs["read"] = reader(implementation, weights)
    run_seconds = interleave(programs, mode.run_seconds, implementation.wait)
    times += [
        row | {"run_seconds": run_seconds[form], "read_seconds": run_seconds["read"]} for form, row in rows.items()
    ]


def measure_linear(implementation: Implementation, mode: Mode, step: Callable[[str], None]) -> list[dict[str, Any]]:
    """The gradient of the rolled stack at several depths in turn, one program each: what N does to its run time."""
    runs: dict[str, Callable[[], Any]] = {}
    for N in mode.linear:
        step(f"rolled N={N} gradient, in turn")
        run = implementation.compile_gradient(implementation.scan_apply_layers)
        runs[str(N)] = partial(run, *problem(implementation, N))
    seconds = interleave(runs, mode.run_seconds * len(runs), implementation.wait) if runs else {}
    at = {"form": "rolled", "d": D, "dtype": "float32", "gradient": True}
    return [at | {"N": N, "run_seconds": seconds[str(N)]} for N in mode.linear]


def problem(implementation: Implementation, N: int) -> tuple[Any, Any, Any]:
    """Gaussian weights [N, D, D], x [D], cotangent [D] in float32: nothing grows out of range."""
    rng = np.random.default_rng(N)
    arrays = rng.standard_normal((N, D, D)) / np.sqrt(D), rng.standard_normal(D), rng.standard_normal(D)
    weights, x, cotangent = (implementation.from_numpy(array.astype(np.float32)) for array in arrays)
    return weights, x, cotangent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--mode", choices=MODES, default="default")
    parser.add_argument("--depths", type=lambda text: tuple(map(int, text.split(","))), help="comma-separated")
    parser.add_argument("--layers", type=lambda text: text.split(","), help="of the bench, comma-separated")
    arguments = parser.parse_args()
    mode = MODES[arguments.mode]
    if arguments.layers:
        mode = mode._replace(bench=tuple(case for case in mode.bench if case.layer in arguments.layers))
    if arguments.depths:
        kinds = (
            "rolled",
            "unrolled",
            "alternatives",
            *(("rolled_gradients", "unrolled_gradients") if mode.rolled_gradients else ()),
        )
        asked = dict.fromkeys(kinds, arguments.depths)
        mode = mode._replace(**asked)
    pin()

    def say(**event: Any) -> None:
        print(json.dumps(event), flush=True)

    def progress(done: int, total: int, what: str) -> None:
        say(event="progress", done=done, total=total, what=what)

    try:
        result = measure(arguments.name, mode, progress)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != REQUIRES[arguments.name]:
            raise
        reason, _, install = str(error).partition(": ")
        result = {"name": arguments.name, "status": "not run", "reason": reason, "install": install}
    say(event="result", result=result)


if __name__ == "__main__":
    main()
