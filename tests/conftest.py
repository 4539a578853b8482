"""What all tests share: the pinned environment, and each implementation that is installed here as `implementation`."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import resource
import sys

from implementations.environment import pin

# Before any framework is imported. One BLAS thread: on two shared cores, two threads of it wait for each other.
pin()
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # likewise torch

# Compilers make small objects by the million: to look through them as often as Python does is a tenth of the time.
gc.set_threshold(100_000, 50, 100)

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from safetensors.numpy import save  # noqa: E402

from implementations import NAMES, REQUIRES, load  # noqa: E402
from tests.support.checkpoints import checkpoint  # noqa: E402

# Two processes run the tests, each file as a whole in one of them, one framework after the other: programs compiled for
# one test serve the next. What takes longest comes first.
SLOWEST_FIRST = ("test_program_size", "test_layers", "test_training_parity", "test_capabilities", "test_composition")


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="also what is left out for its time")


def pytest_collection_modifyitems(config, items):
    def left_out(item):
        """`thorough` marks a test for all frameworks, `thorough(name)` for that one."""
        marks = [] if config.getoption("--thorough") else item.iter_markers("thorough")
        return any(not mark.args or any(name in item.name for name in mark.args) for mark in marks)

    config.hook.pytest_deselected(items=list(filter(left_out, items)))
    items[:] = [item for item in items if not left_out(item)]

    def place(item):
        file, name = item.path.stem, next((name for name in NAMES if name in item.name), "")
        return SLOWEST_FIRST.index(file) if file in SLOWEST_FIRST else len(SLOWEST_FIRST), file, name

    items.sort(key=place)


_peak = 0.0


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_file():
    """What a file has compiled serves no other, and would keep gigabytes. To look for it takes seconds each time."""
    yield
    if "torch_compile" in sys.modules:
        sys.modules["torch"]._dynamo.reset()
        importlib.import_module("torch_compile.programs")._programs.clear()
    global _peak
    if (peak := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) > 1.1 * _peak:
        _peak = peak
        if "jax" in sys.modules:
            sys.modules["jax"].clear_caches()
        gc.collect()


settings.register_profile("bounded", derandomize=True, deadline=None, max_examples=15)
settings.load_profile("bounded")


@pytest.fixture(params=NAMES, scope="session")
def implementation(request):
    """Each framework folder in turn; a framework that is not installed is skipped (`make test` installs all three)."""
    return loaded(request.param)


def loaded(name):
    if importlib.util.find_spec(REQUIRES[name]) is None:
        pytest.skip(f"{REQUIRES[name]} is not installed")
    module = load(name)
    if name == "tf_while":
        import tensorflow as tf

        tf.get_logger().setLevel("ERROR")  # the tests trace often, by intent
    return module


def _torch_backend(implementation, monkeypatch, backend):
    if implementation.__name__ == "torch_compile":
        monkeypatch.setattr(importlib.import_module("torch_compile.edges"), "BACKEND", backend)


@pytest.fixture
def without_inductor(implementation, monkeypatch):
    """torch programs stop short of Inductor, which takes seconds for each: for tests that it is not the point of."""
    _torch_backend(implementation, monkeypatch, "aot_eager")


@pytest.fixture
def captured_only(implementation, monkeypatch):
    """torch programs are captured, and run as captured: twice as quick again, for tests with a program each."""
    _torch_backend(implementation, monkeypatch, "eager")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(save(checkpoint(), {"format": "pt"}))
    return path


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out.safetensors"
