"""One implementation, measured in a process of its own: python -m implementations.measure NAME [--mode ...].

Prints one JSON object a line: {"event": "progress", ...} while it works, {"event": "result", ...} at the end. Nothing
here asserts a time. What is observed and not as declared is listed under "problems".
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from implementations import load
from implementations.environment import pin
from implementations.interface import LEVELS, Implementation
from reference.cases import EXACT_NAMES, NAMES, case
from reference.error_bound import MAX_RATIO, sharp_sd, worst_ratio
from reference.stack import oracle

D = 64  # width of the sized and timed stacks: from 1000 elements a stacked array is never taken for a constant
DEPTHS = (2, 4, 16, 64, 256, 1024)
RECOMPILE_DEPTHS = (0, 1, 2, 3, 8, 64)
# Programs for RECOMPILE_DEPTHS, called as it stands: JAX one a depth, torch one for 0, for 1 and for all others, TF one.
PROGRAMS = {"jax_scan": 6, "torch_compile": 3, "tf_while": 1}


class Mode(NamedTuple):
    depths: tuple[int, ...]
    dtypes: tuple[str, ...]
    cases: tuple[str, ...]
    gradients: bool
    patience: float  # a form is not tried deeper once it compiles this many times longer than the rolled one
    compilations: int  # timed ones, for each program
    run_seconds: float  # spent on run time, for each depth


FEW = ("worked_example_2x2", "orthogonal_3x7", "orthogonal_1024x16", "permutation_1001x16")
ALL = ("float32", "float64", "bfloat16")
MODES = {
    "quick": Mode((4, 64, 1024), ("float32",), FEW, False, 2.0, 1, 0.3),
    "default": Mode((4, 16, 64, 256, 1024), ALL, NAMES, True, 3.0, 3, 0.5),
    "full": Mode(DEPTHS, ALL, NAMES, True, 50.0, 3, 2.0),
}


def measure(name: str, mode: Mode, progress: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Everything about one implementation, as plain data."""
    start = time.perf_counter()
    implementation = load(name)
    forms = {
        "rolled": (implementation.scan_apply_layers, implementation.compile),
        "unrolled": (implementation.unroll_apply_layers, implementation.compile),
        **implementation.ALTERNATIVES,
    }
    total = len(mode.dtypes) * len(mode.cases) + len(mode.depths) * len(forms) * (1 + mode.gradients) + 1
    done = 0

    def step(what: str) -> None:
        nonlocal done
        progress(done, total, what)
        done += 1

    step("programs compiled")
    programs = count_programs(implementation)  # first: nothing else has been compiled yet
    numerics = list(check_numerics(implementation, mode, step))
    sizes, times = measure_forms(implementation, forms, mode, step)
    result = {
        "name": name,
        "status": "ok",
        "versions": implementation.versions(),
        "settings": implementation.settings(),
        "units": dict(implementation.UNITS),
        "numerics": numerics,
        "sizes": sizes,
        "times": times,
        "recompiles": [
            {
                "what": f"N = {', '.join(map(str, RECOMPILE_DEPTHS))}, called as it stands",
                "programs": programs,
                "declared": PROGRAMS[name],
                "ok": programs == PROGRAMS[name],
            }
        ],
        "seconds": time.perf_counter() - start,
    }
    return result | {"problems": list(problems(result))}


def count_programs(implementation: Implementation) -> int:
    before = implementation.program_count()
    for N in RECOMPILE_DEPTHS * 2:
        implementation.scan_apply_layers(*problem(implementation, N)[:2])
    return implementation.program_count() - before


def check_numerics(
    implementation: Implementation, mode: Mode, step: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Error over what `reference/error_bound.py` allows, for each case, dtype and result; exact cases must be equal."""
    run = implementation.gradient(implementation.scan_apply_layers)
    for dtype in mode.dtypes:
        for name in mode.cases:
            step(f"{name} {dtype}")
            problem = case(name, dtype)
            actual = run(*(implementation.from_numpy(array) for array in problem.inputs))
            sd = sharp_sd(*problem.inputs, dtype)
            for quantity, got, want in zip(("y", "dweights", "dx"), actual, oracle(*problem.inputs), strict=True):
                array = implementation.to_numpy(got)
                allowed = np.zeros_like(want) if problem.exact else getattr(sd, quantity)
                ratio = worst_ratio(array, want, allowed)
                ok = ratio <= (0 if problem.exact else MAX_RATIO) and array.dtype == problem.x.dtype
                yield {
                    "case": name,
                    "dtype": dtype,
                    "N": len(problem.weights),
                    "d": len(problem.x),
                    "quantity": quantity,
                    "ratio": ratio,
                    "allowed": 0.0 if problem.exact else MAX_RATIO,
                    "exact": name in EXACT_NAMES,
                    "ok": bool(ok),
                }


def measure_forms(
    implementation: Implementation, forms: dict[str, Any], mode: Mode, step: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Graph size, memory, compile time and run time of every form at every depth it reaches with patience."""
    sizes: list[dict[str, Any]] = []
    times: list[dict[str, Any]] = []
    implementation.compile_seconds(implementation.scan_apply_layers, *problem(implementation, 4)[:2])  # warm up
    for with_gradient in (False, True)[: 1 + mode.gradients]:
        given_up: set[str] = set()
        for N in mode.depths:
            weights, x, cotangent = problem(implementation, N)
            extra = {"cotangent": cotangent} if with_gradient else {}
            programs: dict[str, Callable[[], Any]] = {}
            compile_seconds: dict[str, list[float]] = {}
            for form, (apply, compiler) in forms.items():
                step(f"{form} N={N}" + (" gradient" if with_gradient else ""))
                at = {"form": form, "N": N, "d": D, "dtype": "float32", "gradient": with_gradient}
                if form in given_up:
                    continue
                compile_seconds[form] = []
                if compiler == implementation.compile:
                    for _ in range(mode.compilations if form in ("rolled", "unrolled") else 1):
                        compile_seconds[form].append(implementation.compile_seconds(apply, weights, x, **extra))
                        if compile_seconds[form][0] > mode.patience * min(compile_seconds["rolled"]):
                            given_up.add(form)
                            break
                    sizes.append(at | implementation.graph_size(apply, weights, x, **extra))
                programs[form] = _program(implementation, apply, compiler, weights, x, cotangent if with_gradient else None)
            run_seconds = interleave(
                programs | {"read": reader(implementation.to_numpy(weights))}, mode.run_seconds, implementation.wait
            )
            for form in programs:
                times.append(
                    {"form": form, "N": N, "d": D, "dtype": "float32", "gradient": with_gradient}
                    | {"compile_seconds": compile_seconds[form], "run_seconds": run_seconds[form]}
                    | {"read_seconds": run_seconds["read"]}
                )
    return sizes, times


def _program(
    implementation: Implementation, apply: Any, compiler: Any, weights: Any, x: Any, cotangent: Any
) -> Callable[[], Any]:
    if cotangent is None:
        run = compiler(apply) if compiler else apply
        return lambda: run(weights, x)
    if compiler == implementation.compile:
        run = implementation.compile_gradient(apply)
    else:
        run = implementation.gradient(compiler(apply) if compiler else apply)
    return lambda: run(weights, x, cotangent)


def interleave(
    programs: dict[str, Callable[[], Any]], budget: float, wait: Callable[[Any], Any]
) -> dict[str, list[float]]:
    """Seconds of each call: every program once a round, so that what slows the machine slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():  # compiles, and fills the caches
        wait(program())
        wait(program())
    end = time.perf_counter() + budget
    while len(seconds["read"]) < 5 or (time.perf_counter() < end and len(seconds["read"]) < 200):
        for name, program in programs.items():
            start = time.perf_counter()
            wait(program())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def reader(weights: np.ndarray) -> Callable[[], Any]:
    """The fastest of several ways to read the weights once: the time that no stack can beat."""
    words = weights.reshape(-1).view(np.int64)
    pool = ThreadPoolExecutor(2)
    halves = np.array_split(words, 2)
    readers = [lambda: words.max(), lambda: list(pool.map(np.max, halves)), lambda: weights.sum()]

    def seconds(read: Callable[[], Any]) -> float:
        start = time.perf_counter()
        read()
        return time.perf_counter() - start

    return min(readers, key=lambda read: min(seconds(read) for _ in range(5)))


def problem(implementation: Implementation, N: int) -> tuple[Any, Any, Any]:
    """Orthogonal-sized random weights [N, D, D], x [D], cotangent [D] in float32: nothing grows out of range."""
    rng = np.random.default_rng(N)
    arrays = rng.standard_normal((N, D, D)) / np.sqrt(D), rng.standard_normal(D), rng.standard_normal(D)
    weights, x, cotangent = (implementation.from_numpy(array.astype(np.float32)) for array in arrays)
    return weights, x, cotangent


def problems(result: dict[str, Any]) -> Iterator[str]:
    """What a reader must be told: an error above its bound, a rolled program whose size depends on N."""
    for row in result["numerics"]:
        if not row["ok"]:
            yield f"{row['case']} {row['dtype']}: {row['quantity']} is {row['ratio']:.2g} sd off, allowed {row['allowed']}"
    for row in result["recompiles"]:
        if not row["ok"]:
            yield f"{row['what']}: {row['programs']} programs, declared {row['declared']}"
    for with_gradient in (False, True):
        rows = [r for r in result["sizes"] if r["form"] == "rolled" and r["gradient"] == with_gradient]
        for level in LEVELS:
            counts = {row["N"]: row[level] for row in rows}
            if len(set(counts.values())) > 1:
                yield f"rolled, {level}, {'gradient' if with_gradient else 'forward'}: size depends on N: {counts}"
        if any(row["loops"] < 1 + with_gradient for row in rows):
            yield "rolled: a loop is missing from the compiled program"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--mode", choices=MODES, default="default")
    parser.add_argument("--depths", type=lambda text: tuple(map(int, text.split(","))), help="comma-separated")
    arguments = parser.parse_args()
    mode = MODES[arguments.mode]
    if arguments.depths:
        mode = mode._replace(depths=arguments.depths)
    pin()

    def say(**event: Any) -> None:
        print(json.dumps(event), flush=True)

    def progress(done: int, total: int, what: str) -> None:
        say(event="progress", done=done, total=total, what=what)

    say(event="result", result=measure(arguments.name, mode, progress))


if __name__ == "__main__":
    main()
