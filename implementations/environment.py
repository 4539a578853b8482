"""The switches that numbers depend on, set before a framework is imported: by every measurement and by the tests."""

from __future__ import annotations

import os

ENVIRONMENT = {
    "JAX_ENABLE_X64": "1",  # float64 is float64
    "NVIDIA_TF32_OVERRIDE": "0",  # float32 products are float32 on a GPU too, in all three
    "TF_CPP_MIN_LOG_LEVEL": "2",  # errors only
    "KINETO_LOG_LEVEL": "5",
}


def pin() -> None:
    """Set ENVIRONMENT where the user has not set the same name already."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
