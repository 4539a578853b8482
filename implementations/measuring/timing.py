"""How programs are timed: side by side in rounds, beside reading their weights; and the peak of the process."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from implementations.interface import Array, Implementation

SETTLE = 0.5  # seconds
Name = TypeVar("Name")
_READERS = ThreadPoolExecutor(2)


def interleave(
    programs: dict[Name, Callable[[], Any]], budget: float, wait: Callable[[Any], Any]
) -> dict[Name, tuple[float, ...]]:
    """Seconds of each call: every program once a round, so that what slows the machine slows all of them.

    In another order each round: the same program may take half as long again behind one that leaves its threads awake
    or other data in the caches.
    """
    order = random.Random(0)
    seconds: dict[Name, list[float]] = {name: [] for name in programs}
    for program in programs.values():  # compiles, and fills the caches
        wait(program())
        wait(program())
    end = time.perf_counter() + budget
    rounds = 0
    while rounds < 5 or (time.perf_counter() < end and rounds < 200):
        rounds += 1
        for name, program in order.sample(list(programs.items()), len(programs)):
            start = time.perf_counter()
            wait(program())
            seconds[name].append(time.perf_counter() - start)
    return {name: tuple(own) for name, own in seconds.items()}


def first_call(run: Callable[[], Any], wait: Callable[[Any], Any]) -> float:
    """Seconds of the first call beyond those of the second: what is traced and compiled."""
    start = time.perf_counter()
    wait(run())
    first = time.perf_counter()
    wait(run())
    return 2 * first - start - time.perf_counter()


def reader(implementation: Implementation, weights: Array) -> Callable[[], Any]:
    """The fastest of several ways to read the weights [N, d, d] once, the framework's own among them: the time that no
    stack can beat."""
    array = implementation.to_numpy(weights)
    readers: list[Callable[[], Any]] = []
    if hasattr(weights, "max"):  # TensorFlow's arrays have none
        readers.append(lambda: implementation.wait(weights.max()))
    if on_cpu(implementation):
        array = array.view(np.int16) if array.itemsize == 2 else array  # NumPy is slow at bfloat16
        words = array.reshape(-1).view(np.int64)
        halves = np.array_split(words, 2)
        readers += [lambda: words.max(), lambda: list(_READERS.map(np.max, halves)), lambda: array.sum()]
    else:
        readers.append(product(implementation, np.ones((1, array.shape[-1]), array.dtype), array))

    def seconds(read: Callable[[], Any]) -> float:
        start = time.perf_counter()
        read()
        return time.perf_counter() - start

    return min(readers, key=lambda read: min(seconds(read) for _ in range(5)))


def product(implementation: Implementation, rows: np.ndarray, weights: np.ndarray) -> Callable[[], Any]:
    """The product of rows [B, d] with one matrix of all the weights."""
    matrix = weights.reshape(rows.shape[1], -1)
    return partial(implementation.compile(lambda x, w: x @ w), *map(implementation.from_numpy, (rows, matrix)))


def on_cpu(implementation: Implementation) -> bool:
    return implementation.settings()["device"] == "cpu"


def peak_bytes(run: Callable[[], Any]) -> int | None:
    """What the process holds at most while `run` runs, beside what it held before; None where that is not to be known.

    `run` has run before: what is compiled and kept is held already.
    """
    try:
        gc.collect()
        time.sleep(SETTLE)  # JAX frees a result some time after it is dropped
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = _status()["VmRSS"]
        run()
        return _status()["VmHWM"] - before
    except (OSError, KeyError):
        return None


def _status() -> dict[str, int]:
    def lines() -> Iterator[tuple[str, int]]:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if value.endswith(" kB"):
                yield name, 1024 * int(value.split()[0])

    return dict(lines())
