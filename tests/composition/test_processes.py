"""Stacks over real processes of this machine: what is right there, and what happens to the others when one dies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from implementations.devices.command import command
from tests.conftest import loaded

pytestmark = pytest.mark.thorough  # each starts its framework two or four times
TIMEOUT = 300  # of each wait: a mistake is a hang


def torch_processes(name, size):
    program = ["-m", "tests.support.on_torch_processes"]
    run = command("torch_compile", size, program, [name, str(size)])
    return subprocess.run(run, capture_output=True, text=True, timeout=TIMEOUT, check=False)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("a_gradient_from_outside", 2),
        ("transforms", 2),
        ("two_meshes", 4),
        ("collectives_of_what_is_differentiated", 2),
        ("three_steps_of_adamw", 2),
        ("by_fully_shard", 2),
    ],
)
def test_torch_on_processes(name, size):
    """Beside what `implementations devices` runs: the largest error is a few roundings of float64."""
    loaded("torch_compile")
    run = torch_processes(name, size)
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    assert lines, run.stderr[-2000:]
    assert json.loads(lines[-1])["error"] < 1e-14


def test_a_process_of_torch_that_dies_ends_the_others_and_is_named():
    loaded("torch_compile")
    run = torch_processes("a_process_that_dies", 4)
    assert run.returncode != 0
    assert "Root Cause" in run.stderr
    assert "Signal 9 (SIGKILL)" in run.stderr.partition("Root Cause")[2]
    assert "rank      : 3" in run.stderr.partition("Root Cause")[2]


def test_a_process_of_torch_that_hangs_ends_the_others():
    """After two steps rank 3 sleeps. Gloo gives up after `devices.SECONDS`, here 10, and does not say on whom."""
    loaded("torch_compile")
    run = torch_processes("a_process_that_hangs", 4)
    assert run.returncode != 0
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    assert lines, run.stderr[-2000:]
    found = json.loads(lines[-1])
    assert "Timed out waiting 10000ms" in found["ended"]
    assert found["seconds"] < 60  # with the compiling before
    assert "Ranks 3 failed to pass monitoredBarrier" in found["missing"]


def test_a_process_of_tensorflow_that_dies_ends_the_other_and_is_named():
    """After two steps the second process kills itself; the first, which would go on, says which one is gone."""
    loaded("tf_while")
    sockets = [socket.socket() for _ in range(2)]
    for one in sockets:
        one.bind(("localhost", 0))
    cluster = {"worker": [f"localhost:{one.getsockname()[1]}" for one in sockets]}
    for one in sockets:
        one.close()

    def started(index):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        run = [sys.executable, "-m", "tests.support.on_tf_workers", ("first", "second")[index]]
        environment = {**os.environ, "TF_CONFIG": config, "TF_CPP_MIN_LOG_LEVEL": "3"}
        return subprocess.Popen(run, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    running, end = [started(index) for index in range(2)], time.monotonic() + TIMEOUT
    try:
        outputs = [one.communicate(timeout=end - time.monotonic()) for one in running]
    finally:
        for one in running:
            one.kill()
    first, second = ([json.loads(line) for line in out.splitlines()] for out, _ in outputs)
    assert [len(first), len(second)] == [4, 3], outputs
    assert running[1].returncode == -9
    assert max(first[0]["error"], second[0]["error"]) < 1e-14  # of the gradient of each one's parts
    assert first[-1]["ended"] in ("UnavailableError", "AbortedError")
    assert "/job:worker/replica:0/task:1" in first[-1]["words"]
    assert first[-1]["seconds"] < 30
