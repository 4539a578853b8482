"""What all tests share: the pinned environment, and each implementation that is installed here as `implementation`."""

from __future__ import annotations

import importlib.util
import os

from implementations.environment import pin

# Before any framework is imported. One BLAS thread: on two shared cores, two threads of it wait for each other.
pin()
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from implementations import NAMES, REQUIRES, load  # noqa: E402

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
