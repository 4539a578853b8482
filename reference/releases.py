"""The releases of the frameworks that the tests hold, and what is said of a name that another release does not have."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator

# The oldest and the newest: pyproject.toml has the same, and `make versions` runs them.
TESTED = {"jax": ("0.10.2", "0.10.2"), "torch": ("2.13.0", "2.13.0"), "tensorflow": ("2.21.0", "2.21.0")}


@contextlib.contextmanager
def names_of(package: str) -> Iterator[None]:
    """Around imports of what `package` does not call public.

    Raises:
        ImportError: a name is gone; the message says which, in which release, and which releases have it.
    """
    try:
        yield
    except (ImportError, AttributeError) as error:
        oldest, newest = TESTED[package]
        what = str(error).partition(" (")[0]  # without the place of a file
        release = importlib.metadata.version(package)
        raise ImportError(f"{package} {release}: {what}; tested with {package} {oldest} to {newest}") from error
