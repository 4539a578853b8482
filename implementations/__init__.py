"""The contract of a framework folder and the comparison of all of them. Imports no framework at module level."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from implementations.interface import Implementation

ROOT = Path(__file__).resolve().parents[1]  # where commands run
NAMES = ("jax_scan", "torch_compile", "tf_while")

# What each folder needs, as pip names them: the word of advice when it is missing.
REQUIRES = {"jax_scan": "jax", "torch_compile": "torch", "tf_while": "tensorflow"}


def load(name: str) -> Implementation:
    """Import the framework folder `name`: the only place where one is imported by its name.

    Raises:
        ValueError: "implementation: expected one of jax_scan, torch_compile, tf_while, got ..."
        ModuleNotFoundError: the framework is not installed; the message ends with the command that installs it.
    """
    if name not in NAMES:
        raise ValueError(f"implementation: expected one of {', '.join(NAMES)}, got {name!r}")
    try:
        return cast(Implementation, importlib.import_module(name))
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == REQUIRES[name]:
            raise ModuleNotFoundError(
                f"{name} needs {REQUIRES[name]}: pip install --constraint constraints.txt {REQUIRES[name]}",
                name=error.name,
            ) from error
        raise
