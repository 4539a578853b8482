"""The measuring process: its result, its progress, and what becomes of one that fails, crashes or hangs."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from implementations.measuring import isolate
from implementations.results.records import Measured, to_json


def child(script: str, timeout: float = 30.0) -> tuple[Measured, list[tuple[int, int, str]]]:
    told: list[tuple[int, int, str]] = []
    head = "import json, os, subprocess, sys, time\n"
    command = [sys.executable, "-c", head + script]
    result = isolate.run(Measured, "jax_scan", command, timeout, lambda *said: told.append(said))
    return result, told


def say(**event: Any) -> str:
    return f"print({json.dumps(event)!r}, flush=True)\n"


RIGHT = to_json(Measured(name="jax_scan"))
OK = say(event="result", result=RIGHT)


def test_child_result_and_progress_among_other_output() -> None:
    noise = "print('a framework says hello'); print('{}'); print('[1]'); print('17', file=sys.stderr)\n"
    result, told = child(noise + say(event="progress", done=1, total=3, what="rolled N=64") + OK)
    assert result == Measured(name="jax_scan")
    assert told == [(1, 3, "rolled N=64"), (3, 3, "ok")]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("raise ValueError('the words of it')", "ValueError: the words of it\nexit status 1"),
        ("sys.exit(0)", "exit status 0, no result"),
        ("os.kill(os.getpid(), 9)", "exit status -9, no result"),
        (say(event="result", result=RIGHT | {"name": "tf_while"}), "no result"),
        (say(event="result", result=RIGHT | {"sises": []}), "its result is not what is expected: .* fields: sises"),
    ],
)
def test_child_failure_becomes_a_reason(script: str, words: str) -> None:
    result, _ = child(script)
    assert result.status == "failed"
    assert re.search(words, result.reason)


def test_child_crash_after_its_result_is_a_problem() -> None:
    result, _ = child(OK + "os.kill(os.getpid(), 11)")
    assert result.problems == ("ended by signal SIGSEGV after its result",)


def test_child_that_hangs_is_given_up_with_all_that_it_started(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    grandchild = f"import time\nwhile True: open({str(alive)!r}, 'w').write(str(time.time())); time.sleep(0.05)"
    result, _ = child(f"subprocess.Popen([sys.executable, '-c', {grandchild!r}]); time.sleep(60)", timeout=1.0)
    assert result.reason.endswith("given up after 1 s, at the start")
    time.sleep(0.2)
    last = alive.read_text()
    time.sleep(0.3)
    assert alive.read_text() == last
