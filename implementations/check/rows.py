"""The rows of a check, in the order in which they are shown. A name that the capability table has is that row."""

from __future__ import annotations

from implementations.check import rows_equal, rows_limits
from implementations.check.row import Row


def rows() -> list[Row]:
    return [
        *rows_equal.values(),
        *rows_equal.gradients(),
        *rows_equal.transforms_of_any_layer(),
        *rows_limits.mistakes(),
        *rows_limits.sizes(),
        *rows_equal.numerics(),
    ]
