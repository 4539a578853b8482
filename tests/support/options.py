"""Options of a stack, so chosen that any two values of two different options meet in some row."""

from __future__ import annotations

import random
from itertools import combinations, product
from typing import NamedTuple


class Options(NamedTuple):
    N: int
    reverse: bool
    unroll: int
    remat: bool | int
    dtype: str

    def __str__(self):
        return "-".join(f"{name}={value}" for name, value in self._asdict().items())

    @property
    def keywords(self):
        return {"reverse": self.reverse, "unroll": self.unroll, "remat": self.remat}


# 2 and 3 divide some depths and not others, and are more layers than the shallowest have.
VALUES = {
    "N": (0, 1, 2, 6, 7),
    "reverse": (False, True),
    "unroll": (1, 2, 3),
    "remat": (False, True, 3),
    "dtype": ("float32", "float64"),
}


def pairs(row):
    return set(combinations(enumerate(row), 2))


def _rows():
    """Greedily: each row is the first of those that bring the most new pairs."""
    everything = list(product(*VALUES.values()))
    random.Random(0).shuffle(everything)  # so that what is left to choose varies too
    missing = set().union(*map(pairs, everything))
    while missing:
        row = max(everything, key=lambda row: len(pairs(row) & missing))
        missing -= pairs(row)
        yield Options._make(row)


ROWS = tuple(_rows())
