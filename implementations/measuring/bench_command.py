"""`python -m implementations bench`: run times beside their limits, without the rest of the comparison."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from implementations import compare
from reference.shapes import PARAMS


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m implementations bench",
        description=(
            "Time training steps of real layers beside the unrolled twin and what users do instead of a scan; and "
            "dense stacks beside what no stack can beat: reading the weights once, or for a batch one product with as "
            "many numbers; beside their twin; and beside the framework's raw primitive. All forms of a "
            "case run in turn, round by round, and what is too noisy to be a figure says so: leave the machine alone "
            "meanwhile. Peak memory is that of the process, compile times are cold."
        ),
        epilog=(
            "Writes index.html (one self-contained page) and results.json into the output folder, which is of one "
            "machine and device: give each its own. An unrolled twin that would compile for more than a minute is left "
            "out. Exit status: 0, or 1 if an implementation failed, or is missing and was asked for by name, or none "
            "ran; 2 for wrong arguments, 130 after Ctrl-C."
        ),
    )
    compare.add_shared(made, Path("report/bench"), 3600)
    made.add_argument(
        "--layers",
        type=compare.some_of((*PARAMS,)),
        metavar="NAMES",
        help=f"only the stacks of these layers, separated by commas. Of: {', '.join(PARAMS)}",
    )
    made.set_defaults(mode="bench", depths=None)
    return made


def main(arguments: Sequence[str]) -> int:
    return compare.run(parser().parse_args(arguments))
