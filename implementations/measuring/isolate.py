"""One implementation measured in a process of its own, whatever happens there.

The child prints JSON lines on stdout: {"event": "progress", "done", "total", "what"} as it goes, then one
{"event": "result", "result"}. Its stderr is kept for the reason of a failure. When this process stops, so does the
child, and everything that the child has started.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import IO, Any, TypeVar

from implementations import ROOT
from implementations.progress import Report
from implementations.results.records import Checked, Measured, OnDevices, from_json

Result = TypeVar("Result", Measured, Checked, OnDevices)


def measure(name: str, arguments: Sequence[str], timeout: float, tell: Report) -> Measured:
    """The result that `implementations.measuring.measure` prints for implementation `name`."""
    command = [sys.executable, "-m", "implementations.measuring.measure", name, *arguments]
    return run(Measured, name, command, timeout, tell)


def run(kind: type[Result], name: str, command: Sequence[str], timeout: float, tell: Report) -> Result:
    """The result that `command` prints; what goes wrong there becomes its status and reason."""
    result: Result | None = None
    wrong, what, done, total = "", "the start", 0, 1
    with tempfile.TemporaryFile() as log:
        # A session of its own: Ctrl-C reaches this process alone, and what the child has started can be ended with it.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, text=True, start_new_session=True, errors="replace"
        )
        late = threading.Event()

        def give_up() -> None:
            late.set()
            _end(process)

        clock = threading.Timer(timeout, give_up)
        clock.start()
        try:
            assert process.stdout is not None
            for event in _events(process.stdout):
                if event["event"] == "progress":
                    done, total, what = int(event["done"]), int(event["total"]), str(event["what"])
                    tell(done, total, what)
                elif event["event"] == "result":
                    try:
                        result = from_json(kind, event.get("result"))
                    except ValueError as error:
                        wrong = f"its result is not what is expected: {error}"
                    break  # what the child has started may keep its end of the pipe open
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10 if result else None)
        finally:
            clock.cancel()
            _end(process)
        if result is not None and result.name == name:
            if process.returncode < 0 and process.returncode != -signal.SIGTERM:
                text = f"ended by signal {signal.Signals(-process.returncode).name} after its result"
                result = replace(result, problems=(*result.problems, text))  # type: ignore[union-attr]  # it is one
            tell(total, total, result.status)
            return result
        tell(done, total, "failed")
        if late.is_set():
            wrong = f"given up after {timeout:g} s, at {what}"
        ended = wrong or f"exit status {process.returncode}, no result"
        return kind(name=name, status="failed", reason=f"{_tail(log)}\n{ended}".strip())


def _events(lines: IO[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects among the lines; a framework may print what it likes between them."""
    for line in lines:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and "event" in event:
                yield event


def _tail(log: IO[bytes], lines: int = 12) -> str:
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - 20_000))
    text = log.read().decode(errors="replace")
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def _end(process: subprocess.Popen[str]) -> None:
    """End the process and everything it has started (compilers, worker pools), politely first."""
    for sign, patience in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)
