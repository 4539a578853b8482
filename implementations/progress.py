"""How far a long command is: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

Report: TypeAlias = Callable[[int, int, str], None]  # done, total, what


@contextlib.contextmanager
def of_each(names: Sequence[str]) -> Iterator[Callable[[str], Report]]:
    """On a terminal a bar for each implementation, elsewhere a line now and then; on stderr: stdout has the tables."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines
        return
    columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("[dim]{task.fields[what]}"), console=console) as shown:
        tasks = {name: shown.add_task(name, total=1, start=False, what="") for name in names}
        yield lambda name: _bar(shown, tasks[name])


def _bar(shown: Progress, task: TaskID) -> Report:
    shown.start_task(task)
    return lambda done, total, what: shown.update(task, completed=done, total=total, what=what)


def _lines(name: str) -> Report:
    last = 0.0

    def tell(done: int, total: int, what: str) -> None:
        nonlocal last
        if time.monotonic() - last > 5 or done == total:
            last = time.monotonic()
            print(f"{name}: {done}/{total} {what}", file=sys.stderr, flush=True)

    return tell
