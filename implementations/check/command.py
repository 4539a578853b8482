"""`python -m implementations check my_stack.py`: the shared checks, on anybody's stack."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from implementations import files, progress
from implementations.measuring import isolate
from implementations.report import html
from implementations.report.table import BAD, Table, renderable
from implementations.results.records import Checked, to_json

SHOWN = {"yes": "yes", "refused": "refused", "wrong": f"wrong {BAD}", "not offered": "not offered"}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m implementations check",
        description=(
            "Check a layer stack: values, gradients, transforms, mistakes, graph size, memory, numerics. The "
            'file defines FRAMEWORK = "jax", "torch" or "tensorflow" and scan_layers(layer, stacked_params, init, '
            "xs=None, *, reverse=False, unroll=1, remat=False); arguments from xs on may be missing. If it likes also "
            'unroll_layers, compile, and KNOWN = {row: "wrong" or the name of an exception}.'
        ),
        epilog=(
            "yes: right. refused: it raises. wrong: another result, or a mistake accepted, without an error. Exit "
            "status: 0; 1 if a row is wrong, or is not as KNOWN has it; 2 if the file could not be checked."
        ),
    )
    made.add_argument("file", type=Path)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts there")
    made.add_argument("--out", type=Path, metavar="FOLDER", help="write a page there")
    made.add_argument(
        "--timeout", type=float, default=900.0, metavar="SECONDS", help="give up after this; default: 900"
    )
    return made


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if options.json and not options.json.parent.is_dir():  # said now, not after the run
        parser().error(f"--json: no such folder: {options.json.parent}")
    checked = check(options.file, options.timeout)
    if checked.status != "ok":
        print(checked.reason, *filter(None, [checked.install]), sep="\n", file=sys.stderr)
        return 2
    console = Console()
    console = Console(width=min(console.width, 120) if console.is_terminal else 120)
    console.print(renderable(table(checked)))
    for text in checked.deviations:
        console.print(f"{BAD} {text}", style="bold red", highlight=False, markup=False)
    if options.json:
        files.replace(options.json, json.dumps(to_json(checked), indent=1) + "\n")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        files.replace(options.out / "index.html", html.page_of(f"{checked.name}: the checks", [table(checked)]))
    return int(bool(checked.deviations))


def check(path: Path, timeout: float) -> Checked:
    """In a process of its own, so that it may set, break or crash what it likes."""
    command = [sys.executable, "-m", "implementations.check.run", str(path.resolve())]
    with progress.of_each([path.stem]) as report_of:
        return isolate.run(Checked, path.stem, command, timeout, report_of(path.stem))


def table(checked: Checked) -> Table:
    rows = [[row.section, row.row, SHOWN[row.verdict], row.words] for row in checked.rows]
    versions = ", ".join(f"{name} {version}" for name, version in checked.versions.items())
    note = f"{versions}; {checked.seconds:.0f} s. yes: right; refused: it raises; wrong: another result, or a mistake "
    note += "accepted, without an error; not offered: an argument that it does not have."
    return Table("check", checked.name, ("", "row", "verdict", "words"), "llll", rows, note)
