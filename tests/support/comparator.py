"""Is a result right? Structure, type, shape, dtype, finiteness, then values; each message stands alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from implementations.interface import Implementation
from reference.cases import Case
from reference.error_bound import MAX_RATIO, Bound, sharp_sd, worst_ratio
from reference.stack import oracle

LEAVES = ("y", "dweights", "dx")


def assert_case(who: str, case: Case, results: Any) -> None:
    """`results` are (y, dweights, dx) of `who` for `case`, as NumPy arrays: equal if the case is exact, else in bound.

    Raises: AssertionError "who, case, dtype, leaf: observed ..., allowed ...".
    """
    dtype = case.x.dtype
    where = f"{who}, {case.name}, {dtype}"
    assert isinstance(results, tuple), f"{where}: observed a {type(results).__name__}, allowed a tuple"
    assert len(results) == len(LEAVES), f"{where}: observed {len(results)} results, allowed {len(LEAVES)}"
    allowed = sharp_sd(*case.inputs, dtype.name)
    if case.exact:
        allowed = Bound(*(np.zeros_like(sd) for sd in allowed))
    limit = 0.0 if case.exact else MAX_RATIO
    for leaf, actual, exact, sd in zip(LEAVES, results, oracle(*case.inputs), allowed, strict=True):
        at = f"{where}, {leaf}"
        assert isinstance(actual, np.ndarray), f"{at}: observed a {type(actual).__name__}, allowed a numpy.ndarray"
        assert actual.shape == exact.shape, f"{at}: observed shape {actual.shape}, allowed {exact.shape}"
        assert actual.dtype == dtype, f"{at}: observed dtype {actual.dtype}, allowed {dtype}"
        assert np.isfinite(actual.astype(np.float64)).all(), f"{at}: observed NaN or infinity, allowed finite numbers"
        ratio = worst_ratio(actual, exact, sd)
        assert ratio <= limit, f"{at}: observed {ratio:.3g} sd, allowed {limit:g}"


def gradient(implementation: Implementation, apply: Callable[..., Any], case: Case) -> tuple[np.ndarray, ...]:
    """(y, dweights, dx) of `apply` by the framework's ordinary reverse mode, from and to NumPy."""
    results = implementation.gradient(apply)(*map(implementation.from_numpy, case.inputs))
    return tuple(map(implementation.to_numpy, results))
