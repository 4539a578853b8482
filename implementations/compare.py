"""The comparison: every implementation measured in a process of its own, one after the other, then merged and shown.

    python -m implementations [--quick | --full] [--implementations NAMES] [--depths N,N] [--out FOLDER]

A framework that is missing, broken or crashing costs its own column and nothing else. Timings must not compete for the
machine, so nothing runs in parallel.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from implementations import NAMES, ROOT, capabilities, files, progress
from implementations.measuring import isolate, training_check
from implementations.report import figures, html, tables
from implementations.report.table import BAD, renderable
from implementations.results import deviations
from implementations.results.records import Capabilities, Measured, OnDevices, Results, from_json, to_json

# Set by the user, and numbers depend on them.
ENVIRONMENT = (
    "XLA_FLAGS", "TF_XLA_FLAGS", "TF_ENABLE_ONEDNN_OPTS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS",
    "JAX_ENABLE_X64", "JAX_PLATFORMS", "JAX_DEFAULT_MATMUL_PRECISION", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES", "GLIBC_TUNABLES",
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m implementations",
        description=(
            "Compare the layer stacks of jax_scan, torch_compile and tf_while on this machine: numerics against NumPy "
            "float64; graph size, compile time, run time and memory against the number of layers N, rolled and "
            "unrolled."
        ),
        epilog=(
            "Writes index.html (one self-contained page), results.json and figures/*.svg into the output folder. "
            "Exit status: 0 if everything observed is as declared, 1 if something is not, 2 for wrong arguments, 130 "
            "after Ctrl-C. Other commands, each with --help: bench, check, peers, devices, versions, "
            "embed, capabilities, stack-checkpoint, unstack-checkpoint."
        ),
    )
    modes = made.add_mutually_exclusive_group()
    modes.add_argument(
        "--quick", action="store_const", dest="mode", const="quick", help="under a minute: few N, few cases"
    )
    modes.add_argument(
        "--full",
        action="store_const",
        dest="mode",
        const="full",
        help="every N, the slow compiles of the unrolled twin, every program of the general stack with an MLP",
    )
    made.add_argument(
        "--depths",
        type=_depths,
        metavar="N,N,...",
        help="measure the dense stack at these numbers of layers instead of the mode's own",
    )
    add_shared(made, Path("report"), 3600)
    made.set_defaults(mode="default", layers=None)
    return made


def add_shared(made: argparse.ArgumentParser, out: Path, timeout: float) -> None:
    """The options of every command that measures."""
    made.add_argument(
        "--implementations",
        action="append",
        type=some_of(NAMES),
        metavar="NAMES",
        help=f"only these, separated by commas; then a missing framework is an error. Of: {', '.join(NAMES)}",
    )
    made.add_argument("--out", type=Path, default=out, metavar="FOLDER", help=f"default: {out}")
    made.add_argument(
        "--timeout",
        type=float,
        default=timeout,
        metavar="SECONDS",
        help=f"give up an implementation after this; default: {timeout}",
    )


def some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Reads names separated by commas."""

    def read(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        if not names or not set(names) <= set(known):
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, got {text!r}")
        return names

    return read


def _depths(text: str) -> list[int]:
    try:
        depths = sorted({int(part) for part in text.split(",")})
    except ValueError:
        depths = [-1]
    if depths[0] < 0:
        raise argparse.ArgumentTypeError(f"expected numbers of layers, separated by commas, got {text!r}")
    return depths


def _narrowed(options: argparse.Namespace) -> list[str]:
    """The options that say what of a mode is measured."""
    given = {"--depths": options.depths, "--layers": options.layers}
    return [part for option, values in given.items() if values for part in (option, ",".join(map(str, values)))]


def main(arguments: Sequence[str]) -> int:
    return run(parser().parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """Compare as asked for; the exit status."""
    # As Ctrl-C: the measuring process must not outlive this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return compare(options)
    except KeyboardInterrupt:
        print("interrupted: every file is a whole one, of this run or of an earlier one", file=sys.stderr)
        return 130


def compare(options: argparse.Namespace) -> int:
    began = time.monotonic()
    asked_for = [name for names in options.implementations or () for name in names]
    names = [name for name in NAMES if name in (asked_for or NAMES)]
    known, devices = provenance(options, names if asked_for else ()), on_devices(options.out)
    arguments = ["--mode", options.mode, *_narrowed(options)]
    measured = []
    with progress.of_each(names) as report_of:
        for name in names:
            found = isolate.measure(name, arguments, options.timeout, report_of(name))
            measured.append(replace(found, asked_for=bool(asked_for)))
    trained = training_check.right() if any(found.training for found in measured) else None
    results = merge(options.mode, known, measured, time.monotonic() - began, training=trained, devices=devices)
    drawn = figures.figures(results)
    page = html.page(results, drawn)

    console = Console()
    console = Console(width=min(console.width, 100) if console.is_terminal else 100)
    for table in tables.tables(results):
        console.print(renderable(table))
    folder = options.out
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        files.replace(folder / "figures" / f"{name}.svg", figure.svg)
    files.replace(folder / "index.html", page)
    files.replace(folder / "results.json", json.dumps(to_json(results), indent=1, allow_nan=False) + "\n")
    console.print(f"Written: {folder}/index.html, {folder}/results.json. {results.seconds:.0f} s.", highlight=False)
    for text in results.deviations:
        console.print(f"{BAD} {text}", style="bold red", highlight=False, markup=False)
    if not results.deviations:
        console.print("Everything observed is as declared.", style="bold green")
    return int(bool(results.deviations))


def on_devices(folder: Path) -> tuple[OnDevices, ...]:
    """What `python -m implementations devices` has written into the folder of the report, if it has."""
    written = folder / "devices" / "devices.json"
    try:
        found = json.loads(written.read_text(encoding="utf-8")) if written.exists() else ()
        return tuple(from_json(OnDevices, one) for one in found)
    except ValueError as error:  # of another version
        raise SystemExit(f"{written}: {error}") from error


def merge(mode: str, known: dict[str, str], measured: Sequence[Measured], seconds: float, **found: Any) -> Results:
    """The results of a run, and what else was `found`, with their verdict."""
    unmeasured = dict.fromkeys(NAMES, "not run") | {one.name: one.status for one in measured}
    matrix = capabilities.matrix({name: status for name, status in unmeasured.items() if status != "ok"})
    results = Results(
        mode=mode,
        provenance=known,
        implementations=tuple(measured),
        capabilities=from_json(Capabilities, matrix),
        seconds=round(seconds, 1),
        **found,
    )
    return replace(results, deviations=tuple(deviations.deviations(results)))


def provenance(options: argparse.Namespace, names: Sequence[str]) -> dict[str, str]:
    how = {"default": [], "bench": ["bench"]}.get(options.mode, [f"--{options.mode}"])
    command = ["python", "-m", "implementations", *how]
    command += ["--implementations", ",".join(names)] if names else []
    command += _narrowed(options)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = [f"{name}={os.environ[name]}" for name in ENVIRONMENT if name in os.environ]
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(command),
        "commit": _commit(),
        "cpu": f"{_cpu()}, {usable} usable cores{load}",
        "platform": f"{platform.platform()}, Python {platform.python_version()}",
        "environment": " ".join(flags) or "no flags set",
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (", with changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "none"
