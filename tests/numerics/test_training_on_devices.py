"""The small language model trains alike on many devices: its losses, and the per-layer file of its sharded layers."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest

from implementations import NAMES
from implementations.devices.command import command
from reference import training
from reference.error_bound import allowed_so_far, worst_so_far
from tests.conftest import loaded

SIZES = {"jax_scan": 8, "torch_compile": 4, "tf_while": 4}  # devices
STEPS = 20


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.thorough) if name == "torch_compile" else name for name in NAMES]
)
def test_losses_are_those_of_one_device_and_the_file_that_of_any_number(name):
    loaded(name)
    program = ["-m", "tests.support.train_on_devices"]
    run = command(name, SIZES[name], program, [name, str(SIZES[name]), str(STEPS)])
    done = subprocess.run(run, capture_output=True, text=True, timeout=600, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"losses"')]
    assert lines, done.stderr[-2000:]
    found = json.loads(lines[-1])
    exact, yardstick = (training.train(d).losses[:STEPS] for d in ("float64", "float32"))
    observed = worst_so_far(np.array(found["losses"]), exact)
    assert (observed <= allowed_so_far(exact, yardstick, "float64")).all(), observed[-1]
    assert found["is_same_file"]
