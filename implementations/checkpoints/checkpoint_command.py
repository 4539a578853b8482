"""The commands `stack-checkpoint` and `unstack-checkpoint`: `checkpoint_files` as a user starts it.

python -m implementations stack-checkpoint model.safetensors stacked.safetensors
python -m implementations unstack-checkpoint stacked.safetensors model.safetensors
"""

from __future__ import annotations

import argparse
import contextlib
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from implementations import wording
from implementations.checkpoints.checkpoint_files import Summary, stack_file, unstack_file
from implementations.progress import Report

EXIT = (
    "Exit status: 0; 2 for wrong arguments and for a file that cannot be converted, with the reason on stderr; 130 "
    "after Ctrl-C. OUT is written beside itself and takes its place in one step, so it is never half a file, and may "
    "be IN. The bytes are moved a piece at a time, so memory does not grow with the file. No framework is needed."
)


def stack_main(arguments: Sequence[str]) -> int:
    made = argparse.ArgumentParser(
        prog="python -m implementations stack-checkpoint",
        description=(
            "Turn a checkpoint with a tensor for each layer, encoder.layer.0.w, encoder.layer.1.w, ... [d, d], into "
            "one with a tensor for all layers, encoder.layer.w [N, d, d], which scan_layers takes. Spellings: "
            "layer.0.w, layer/0/w, layer_0.w, layer_0/w. Names without a layer index, tensors that not all layers have "
            "because their kinds differ, dtypes, bytes and metadata stay as they are. IN in shards becomes one file, "
            "and unstacked one file again. A shard alone is refused, and so are layers that do not begin at 0 or have "
            "a gap. What was stacked is noted in the metadata, from which "
            "unstack-checkpoint makes the old file again, byte for byte if safetensors wrote it."
        ),
        epilog=EXIT,
    )
    _add_files(made)
    made.add_argument(
        "--prefix",
        nargs="+",
        action="extend",
        metavar="P",
        help="stack only these: what stands before the layer index, as encoder.layer does in encoder.layer.0.w, "
        "layers_ in layers_0.w, layers/ in layers/0/w. Default: every stack there is, found by the first whole number "
        "in a name, which after an underscore counts behind layer, layers, block, blocks and h only",
    )
    made.add_argument(
        "--axis",
        type=int,
        default=0,
        metavar="K",
        help="where the axis of layers goes; default: 0, which scans run over",
    )
    options = made.parse_args(arguments)
    return _run(stack_file, options, "stacking")


def unstack_main(arguments: Sequence[str]) -> int:
    made = argparse.ArgumentParser(
        prog="python -m implementations unstack-checkpoint",
        description=(
            "Turn a checkpoint with a tensor for all layers, encoder.layer.w [N, d, d], into one with a tensor for "
            "each, encoder.layer.0.w, encoder.layer.1.w, ... [d, d]. What stack-checkpoint has noted in the metadata "
            "says which are stacks. Without that, name them by --prefix. What was in shards comes back as one file."
        ),
        epilog=EXIT,
    )
    _add_files(made)
    made.add_argument(
        "--prefix",
        nargs="+",
        action="extend",
        metavar="P",
        help="unstack only these; without metadata, every name that begins with P and a dot is taken for a stack",
    )
    made.add_argument(
        "--axis", type=int, metavar="K", help="the axis of layers; default: that of the metadata, 0 without metadata"
    )
    options = made.parse_args(arguments)
    return _run(unstack_file, options, "unstacking")


def _add_files(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "source",
        type=Path,
        metavar="IN",
        help="a .safetensors file, a .safetensors.index.json of shards, or a folder with one of these",
    )
    made.add_argument("target", type=Path, metavar="OUT", help="the .safetensors file to write")


def _run(convert: Callable[..., Summary], options: argparse.Namespace, what: str) -> int:
    began = time.monotonic()
    # As Ctrl-C: no half of a file must stay.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with _progress(what) as report:
            summary = convert(options.source, options.target, options.prefix, options.axis, report)
    except KeyboardInterrupt:
        print(f"interrupted: {options.target} is what it was", file=sys.stderr)
        return 130
    except OSError as error:
        # The system's own says what, and apart from it where; where may be the file beside the target.
        text = f"{error.filename or options.target}: {error.strerror}" if error.strerror else error
        print(text, file=sys.stderr)
        return 2
    except (TypeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(said(summary, options.target, time.monotonic() - began))
    return 0


def said(summary: Summary, target: Path, seconds: float) -> str:
    """The line at the end."""
    stacks = ", ".join(f"{prefix or repr('')} of {_count(N, 'layer')}" for prefix, N in summary.layers.items())
    return (
        f"{target}: {_count(len(summary.layers), 'stack')} ({stacks}), {_count(summary.before, 'tensor')} -> "
        f"{summary.after}, {summary.size:,} bytes in {wording.seconds(seconds)}, peak resident memory "
        f"{wording.size(_peak())}"
    )


def _peak() -> int:
    """Bytes of memory that this process had resident at most."""
    # On Linux getrusage also counts what the process that started this one had, if that was more.
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8")):
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # in bytes there, in kB elsewhere


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Report | None]:
    """On a terminal a bar, elsewhere nothing; on stderr: stdout has the line at the end."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(30), DownloadColumn(), TimeElapsedColumn())
    name = TextColumn("[dim]{task.fields[name]}")
    with Progress(*columns, name, console=console, transient=True) as shown:
        task = shown.add_task(what, total=None, name="")
        yield lambda done, total, name: shown.update(task, completed=done, total=total, name=escape(name))
