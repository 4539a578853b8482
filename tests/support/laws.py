"""The laws of graph size, as assertions over {N: graph_size(...)}; each message says what was counted where.

Records may lack "temp_bytes", for which torch takes seconds: the law of memory needs two that have it.
"""

from __future__ import annotations

from itertools import pairwise

from implementations.interface import LEVELS

Sizes = dict[int, dict[str, int]]


def assert_constant(who: str, sizes: Sizes, loops: int) -> None:
    """Rolled: exactly the same count at every level for all N, and at least `loops` loops after compilation."""
    for level in LEVELS:
        counts = counted(who, sizes, level)
        assert len(set(counts.values())) == 1, f"{who}, {level}: observed {counts}, allowed one count for all N"
    assert_loops(who, sizes, loops)


def assert_bounded(who: str, sizes: Sizes, rolled: dict[str, int], times: int, loops: int) -> None:
    """Several layers a step: at each level at most `times` as many as `rolled`, whatever N is, and loops are left."""
    for level in LEVELS:
        counts, limit = counted(who, sizes, level), times * rolled[level]
        assert max(counts.values()) <= limit, f"{who}, {level}: observed {counts}, allowed {limit} for all N"
    assert_loops(who, sizes, loops)


def assert_loops(who: str, sizes: Sizes, loops: int) -> None:
    left = counted(who, sizes, "loops")
    assert min(left.values()) >= loops, f"{who}, compiled: observed loops {left}, allowed no fewer than {loops}"


def assert_grows(who: str, sizes: Sizes) -> None:
    """Unrolled: captured grows by the same amount a layer, compiled strictly, and no loop is left."""
    depths = sorted(sizes)
    steps = list(pairwise(depths))
    captured = {(sizes[M]["captured"] - sizes[N]["captured"]) / (M - N) for N, M in steps}
    assert len(captured) == 1, f"{who}, captured: observed growth a layer {captured}, allowed one amount"
    assert min(captured) > 0, f"{who}, captured: observed growth a layer {captured}, allowed more than 0"
    compiled = [sizes[N]["compiled"] for N in depths]
    assert all(a < b for a, b in pairwise(compiled)), (
        f"{who}, compiled: observed {dict(zip(depths, compiled, strict=True))}, allowed strict growth"
    )
    left = {N: size["loops"] for N, size in sizes.items()}
    assert not any(left.values()), f"{who}, compiled: observed loops {left}, allowed none"


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
