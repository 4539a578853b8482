"""The law of graph size, as assertions over {N: graph_size(...)}; `implementations/results/laws.py` states it.

And what the tests hold beside it: bounds of memory, and a stated constant for several layers a step. Sizes may lack
"temp_bytes", for which torch takes seconds: the law of memory needs two that have it.
"""

from __future__ import annotations

from collections.abc import Sequence

from implementations.interface import LEVELS
from implementations.results.laws import LOOPS, broken_laws
from implementations.results.records import Size

Sizes = dict[int, dict[str, int]]


def assert_constant(who: str, sizes: Sizes, loops: int) -> None:
    """Rolled: of one size, and at least `loops` loops are left."""
    assert_law(who, "rolled", sizes, loops)


def assert_grows(who: str, sizes: Sizes) -> None:
    assert_law(who, "unrolled", sizes)


def assert_bounded(who: str, sizes: Sizes, rolled: dict[str, int], times: int, loops: int) -> None:
    """Several layers a step: at each level at most `times` as many as `rolled`, whatever N is, and loops are left."""
    for level in LEVELS:
        counts, limit = counted(who, sizes, level), times * rolled[level]
        assert max(counts.values()) <= limit, f"{who}, {level}: observed {counts}, allowed {limit} for all N"
    assert_law(who, "rolled", sizes, loops, (LOOPS,))


def assert_law(who: str, form: str, sizes: Sizes, loops: int = 1, keys: Sequence[str] = (*LEVELS, LOOPS)) -> None:
    of = Size(program=who, layer="the stack", form=form, d=0, carry_bytes=0)
    for key in keys:
        counted(who, sizes, key)
    broken = broken_laws((of.counted(N, dict(size)) for N, size in sizes.items()), loops, keys)
    assert not broken, "; ".join(broken)


def assert_memory_a_layer(who: str, sizes: Sizes, low: float, high: float) -> None:
    """What one more layer adds to the memory of the compiled program, in bytes, is from `low` to `high`."""
    found = counted(who, sizes, "temp_bytes")
    first, last = min(found), max(found)
    a_layer = (found[last] - found[first]) / (last - first)
    assert low <= a_layer <= high, f"{who}: observed {a_layer:.1f} bytes a layer, allowed {low:.1f} to {high:.1f}"


def assert_no_copy(who: str, size: dict[str, int], stack_bytes: int) -> None:
    """The memory of the compiled program has no room for a second stack of weights."""
    found = size["temp_bytes"]
    assert found < stack_bytes / 2, f"{who}: observed {found} bytes, allowed half of the {stack_bytes} of the weights"


def counted(who: str, sizes: Sizes, level: str) -> dict[int, int]:
    counts = {N: size[level] for N, size in sizes.items() if level in size}
    assert len(counts) > 1, f"{who}, {level}: observed counts at {list(counts)}, allowed two depths or more"
    return counts
