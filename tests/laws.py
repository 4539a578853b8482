"""The laws of graph size, as assertions over {N: graph_size(...)}; each message says what was counted where."""

from __future__ import annotations

from itertools import pairwise

from implementations.interface import LEVELS


def assert_constant(who: str, sizes: dict[int, dict[str, int]], loops: int) -> None:
    """Rolled: exactly the same count at every level for all N, and at least `loops` loops after compilation."""
    for level in LEVELS:
        counts = {N: size[level] for N, size in sizes.items()}
        assert len(set(counts.values())) == 1, f"{who}, {level}: observed {counts}, allowed one count for all N"
    left = {N: size["loops"] for N, size in sizes.items()}
    assert min(left.values()) >= loops, f"{who}, compiled: observed loops {left}, allowed no fewer than {loops}"


def assert_grows(who: str, sizes: dict[int, dict[str, int]]) -> None:
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
