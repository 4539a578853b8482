"""`python -m implementations devices`: the same stack cut over devices, held to NumPy and counted."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from implementations import NAMES, ROOT, files, progress
from implementations.devices.ways import PIPELINE, WAYS
from implementations.measuring import isolate
from implementations.report import figures, html, tables_devices
from implementations.report.table import BAD, in_markdown, renderable
from implementations.results.laws import broken_on_devices
from implementations.results.records import OnDevices, to_json


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m implementations devices",
        description="Cut a stack over devices, in every way: is its gradient right, is its program of one size, what "
        "is sent for one layer, what does a device hold? The devices are virtual: they share the cores of the CPU, so "
        "that nothing is timed.",
        epilog="Writes devices.json and index.html; the next comparison shows them too. Exit status 1: something is "
        "wrong, or not of one size.",
    )
    made.add_argument("--size", type=int, default=8, choices=(2, 4, 8), help="devices; default: 8")
    made.add_argument("--depths", type=int, nargs="+", default=[8, 16, 64], metavar="N", help="default: 8 16 64")
    made.add_argument("--ways", nargs="+", default=[*WAYS, PIPELINE], metavar="WAY", help="only these")
    made.add_argument("--backend", default="aot_eager", help="what compiles torch's programs; inductor takes longer")
    made.add_argument("--implementations", nargs="+", default=NAMES, choices=NAMES, metavar="NAME", help="only these")
    made.add_argument("--readme", action="store_true", help="write the tables into implementations/README.md too")
    made.add_argument("--out", type=Path, default=Path("report/devices"), metavar="FOLDER")
    made.add_argument("--timeout", type=float, default=1800.0, metavar="SECONDS", help="for each; default: 1800")
    return made


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if bad := [N for N in options.depths if N % options.size]:
        parser().error(f"--depths: expected multiples of {options.size}, for as many stages, got {bad[0]}")
    if unknown := {*options.ways} - {*WAYS, PIPELINE}:
        parser().error(f"--ways: expected of {'; '.join([*WAYS, PIPELINE])}, got {min(unknown)}")
    asked = options.size, options.depths, options.ways, options.timeout, options.backend
    found = [on_devices(name, *asked) for name in options.implementations]
    tables, console = tables_devices.tables(found), Console(width=120)
    for table in tables:
        console.print(renderable(table))
    broken = [f"{each.name}: {text}" for each in found for text in broken_on_devices(each)]
    for text in broken:
        console.print(f"{BAD} {text}", style="bold red", highlight=False, markup=False)
    options.out.mkdir(parents=True, exist_ok=True)
    files.replace(options.out / "devices.json", json.dumps([to_json(each) for each in found], indent=1) + "\n")
    files.replace(options.out / "index.html", html.page_of(f"On {options.size} devices", tables, [figures.held(found)]))
    if options.readme:
        files.replace_block(ROOT / "implementations" / "README.md", "devices", "\n\n".join(map(in_markdown, tables)))
    console.print(f"Written: {options.out}/index.html, {options.out}/devices.json.", highlight=False)
    return int(bool(broken))


def on_devices(
    name: str, size: int, depths: Sequence[int], ways: Sequence[str], timeout: float, backend: str = "aot_eager"
) -> OnDevices:
    """In processes of their own: JAX and TensorFlow have many devices in one, torch has a process for each."""
    asked = name, str(size), ",".join(map(str, depths)), "; ".join(ways), backend
    with progress.of_each([name]) as report_of:
        worker = command(name, size, ["-m", "implementations.devices.worker"], asked)
        return isolate.run(OnDevices, name, worker, timeout, report_of(name))


def command(name: str, size: int, program: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """What runs a program of Python with so many devices of that framework."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    return [sys.executable, *(torchrun if name == "torch_compile" else []), *program, *arguments]
