"""A row of a check: it runs the stack, then says what is wrong with what came out. What it raises is its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from implementations.check.candidate import Candidate
from implementations.check.comparator import assert_close
from implementations.check.dialect import ops_of

Make = Callable[..., Any]  # of the operations `o` of dialect.py: a function of arrays, which calls o.scan


class Row(NamedTuple):
    section: str
    name: str
    run: Callable[[Candidate], Any]  # raises what the stack raises
    wrong: Callable[[Any], str]  # what is wrong with what `run` returned, in words
    needs: tuple[str, ...] = ()  # what a stack need not have: arguments of scan_layers, unroll_layers


def dense(candidate: Candidate) -> Callable[[Any, Any], Any]:
    """The dense stack of a candidate, as a function of (w, x)."""
    matvec = ops_of(candidate).matvec
    return lambda w, x: candidate.scan_layers(lambda c, w: (matvec(w, c), None), w, x)[0]


def unlike(right: Callable[[], Any], found: Any) -> str:
    return first([partial(assert_close, "", found, right())])


def first(assertions: Iterable[Callable[[], None]]) -> str:
    """The words of the first that does not hold."""
    for holds in assertions:
        try:
            holds()
        except AssertionError as error:
            return str(error).removeprefix(", ")
    return ""


def words(error: BaseException) -> str:
    """The kind of an error, and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
