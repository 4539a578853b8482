"""What all tests share: the pinned environment, each implementation that is installed here as `implementation`, and
`covers`, which says of a test what rows of the capability table it holds.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import resource
import sys
from pathlib import Path

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
from implementations.capabilities import TABLE, No, NotApplicable, declared, exception  # noqa: E402
from tests.support.checkpoints import checkpoint  # noqa: E402

# Two processes run the tests, each file as a whole in one of them, one framework after the other: programs compiled for
# one test serve the next. What takes longest comes first.
SLOWEST_FIRST = ("test_program_size", "test_layers", "test_training_parity", "test_composition")
_files: set[Path] = set()
_cells: set[tuple[str, str]] = set()


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="also what is left out for its time")
    parser.addoption("--stack", help="a file as for `python -m implementations check`: tests/tools/test_check.py on it")


def pytest_configure(config):
    for mark in (
        "covers(row, ..., of=name): rows of the capability table that the test holds, for one framework or for each",
        "torch_backend(name): what compiles torch's programs in place of Inductor, which takes seconds for each",
    ):
        config.addinivalue_line("markers", mark)


def covered_by(item):
    """(row, framework) for each cell of the capability table that a test holds."""
    name = item.callspec.params.get("implementation") if hasattr(item, "callspec") else None
    return [(row, mark.kwargs.get("of", name)) for mark in item.iter_markers("covers") for row in mark.args]


def as_declared(row, name):
    """What is expected of a test of that cell: strictly the exception of a `No`; nothing where it is not applicable."""
    if row not in TABLE or name not in NAMES:  # which tests/house/test_capabilities.py says
        return
    state = declared(row, name)
    if isinstance(state, NotApplicable):
        yield pytest.mark.skip(reason=f"not applicable: {state.reason}")
    if isinstance(state, No) and importlib.util.find_spec(REQUIRES[name]):
        yield pytest.mark.xfail(strict=True, raises=exception(state), reason=f"{state.reason}: {state.link}")


def pytest_collection_modifyitems(config, items):
    def left_out(item):
        """`thorough` marks a test for all frameworks, `thorough(name)` for that one."""
        marks = [] if config.getoption("--thorough") else item.iter_markers("thorough")
        return any(not mark.args or any(name in item.name for name in mark.args) for mark in marks)

    _files.update(item.path for item in items)
    config.hook.pytest_deselected(items=list(filter(left_out, items)))
    items[:] = [item for item in items if not left_out(item)]
    for item in items:
        _cells.update(covered_by(item))
        for mark in (mark for cell in covered_by(item) for mark in as_declared(*cell)):
            item.add_marker(mark)

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


def raw(reason, raises=AssertionError):
    """A defect of a framework, as it is without us."""
    return pytest.mark.xfail(strict=True, raises=raises, reason=reason)


def loaded(name):
    if importlib.util.find_spec(REQUIRES[name]) is None:
        pytest.skip(f"{REQUIRES[name]} is not installed")
    module = load(name)
    if name == "tf_while":
        import tensorflow as tf

        tf.get_logger().setLevel("ERROR")  # the tests trace often, by intent
    return module


@pytest.fixture
def collected():
    """The files that tests were found in, and the cells (row, framework) of the capability table that they cover."""
    return _files, _cells


@pytest.fixture(autouse=True)
def _torch_backend(request, monkeypatch):
    """As `torch_backend` says: "eager" runs what is captured, "aot_eager" its forward and backward as lowered."""
    mark = request.node.get_closest_marker("torch_backend")
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if mark and params.get("implementation", "torch_compile") == "torch_compile" and importlib.util.find_spec("torch"):
        monkeypatch.setattr("torch_compile.edges.BACKEND", *mark.args)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(save(checkpoint(), {"format": "pt"}))
    return path


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out.safetensors"
