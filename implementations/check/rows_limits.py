"""Rows of a check: does a stack refuse what is wrong, and is it of one size? Mistakes, graph size, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from implementations.check.candidate import Candidate
from implementations.check.dialect import from_numpy, ops_of
from implementations.check.row import Row, dense, words
from implementations.results.laws import broken_laws
from implementations.results.records import Size

N, D = 5, 3
DEPTHS, WIDTH = (2, 8, 64), 64  # of the counted stack


# Mistakes, which must not pass for results.


def mistakes() -> Iterator[Row]:
    def row(name: str, call: Callable[[Candidate, Any, Any], Any], needs: tuple[str, ...] = ()) -> Row:
        def run(candidate: Candidate) -> str:
            try:
                call(candidate, ops_of(candidate), partial(from_numpy, candidate))
            except Exception as error:
                return words(error)
            return ""

        return Row("mistakes", name, run, lambda said: "" if said else "accepted without an error", needs)

    def product(carry: Any, params: Any) -> Any:
        return carry * params["a"] * params["b"], None

    def unequal(candidate: Candidate, o: Any, of: Any) -> Any:
        return candidate.scan_layers(product, of({"a": np.ones((3, D)), "b": np.ones((4, D))}), of(np.ones(D)))

    def unequal_xs(candidate: Candidate, o: Any, of: Any) -> Any:
        layer, ones = (lambda c, p, x: (c * p * x, None)), (np.ones((3, D)), np.ones(D), np.ones((4, D)))
        return candidate.scan_layers(layer, *of(ones))

    def wider(candidate: Candidate, o: Any, of: Any) -> Any:
        return candidate.scan_layers(lambda c, p: (c * p, None), *of((np.ones((N, D)), np.ones(1))))

    def narrower(candidate: Candidate, o: Any, of: Any) -> Any:
        return candidate.scan_layers(lambda c, p: (o.cast(c, "float32"), None), *of((np.ones((N, D)), np.ones(D))))

    def another_structure(candidate: Candidate, o: Any, of: Any) -> Any:
        return candidate.scan_layers(lambda c, p: ([c[0] * p], None), of(np.ones((N, D))), (of(np.ones(D)),))

    def no_pair(candidate: Candidate, o: Any, of: Any) -> Any:
        return candidate.scan_layers(lambda c, p: c * p, *of((np.ones((N, 2)), np.ones(2))))

    yield row("parameters of unequal depth", unequal)
    yield row("xs of another depth than the parameters", unequal_xs, ("xs",))
    yield row("a carry that grows", wider)
    yield row("a carry that changes its dtype", narrower)
    yield row("a carry that changes its structure", another_structure)
    yield row("a layer that returns no pair", no_pair)


# Sizes and memory.


def sizes() -> Iterator[Row]:
    def counted(candidate: Candidate, gradient: bool) -> list[Size]:
        apply = dense(candidate)
        of = Size(program="gradient" if gradient else "forward", layer="dense", d=WIDTH, carry_bytes=4 * WIDTH)
        found = []
        for depth in DEPTHS:
            w, x = from_numpy(candidate, (np.ones((depth, WIDTH, WIDTH), np.float32), np.ones(WIDTH, np.float32)))
            cotangent, memory = (x if gradient else None), gradient and depth != DEPTHS[1]
            found.append(of.counted(depth, candidate.graph_size(apply, w, x, cotangent=cotangent, memory=memory)))
        return found

    gradients: dict[int, list[Size]] = {}  # counted once for two rows

    def of_gradient(candidate: Candidate) -> list[Size]:
        if id(candidate) not in gradients:
            gradients[id(candidate)] = counted(candidate, True)
        return gradients[id(candidate)]

    def law(sizes: list[Size]) -> str:
        return "; ".join(broken_laws(sizes))

    def copies(sizes: list[Size]) -> str:
        first, last = sizes[0], sizes[-1]
        a_layer = ((last.temp_bytes or 0) - (first.temp_bytes or 0)) / (last.N - first.N)
        weights = 4 * WIDTH * WIDTH
        said = f"one more layer adds {a_layer / of_carry:.3g} carries, its weights are {weights / of_carry:.3g}"
        return said if a_layer > weights / 2 else ""

    of_carry = 4 * WIDTH
    yield Row("sizes", "one size at every N >= 2, forward", partial(counted, gradient=False), law)
    yield Row("sizes", "one size at every N >= 2, gradient", of_gradient, law)
    yield Row("sizes", "no copy of the weights is kept for the backward pass", of_gradient, copies)
