"""The law of graph size, in one place: the verdict, the report and the tests ask here.

From N = 2 on; below, a compiler drops the loop. With one layer a step a rolled program has the same count at every
level for all N, and a loop is left. With k layers a step or a group the remainder of N by k counts, so no count is
above that at the largest remainder. The unrolled twin, the control, grows strictly, captured by the same amount for
each layer, and has no loop. What users do instead is under no law.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from implementations.interface import LEVELS
from implementations.results.records import FORMS, OnDevices, Size, Way

LOOPS = "loops"


@dataclass(frozen=True)
class Counted:
    """One program at every N at which it was counted, in order of N."""

    sizes: Mapping[int, Size]

    @property
    def of(self) -> Size:
        """At the smallest N."""
        return next(iter(self.sizes.values()))

    @property
    def k(self) -> int:
        """Layers a step or a group."""
        return max(self.of.unroll, int(self.of.remat))

    def values(self, key: str) -> dict[int, int]:
        """N -> what was counted there, also below N = 2."""
        found = {n: getattr(size, key) for n, size in self.sizes.items()}
        return {n: value for n, value in found.items() if value is not None}

    def counts(self, key: str) -> dict[int, int]:
        """Those under the law."""
        return {n: value for n, value in self.values(key).items() if n >= 2}

    def constant(self, key: str) -> int | None:
        """What the count may be at all N: with one layer a step the first count; with k, the one at the first N >= 2k
        that leaves the largest remainder, which is the longest program."""
        counts = {n: count for n, count in self.counts(key).items() if n >= 2 * self.k or self.k == 1}
        return counts[max(counts, key=lambda n: (n % self.k, -n))] if counts else None

    def broken(self, key: str, loops: int = 1) -> str:
        """How the counts at a level, or those of loops, break the law, in words; nothing where they keep it."""
        counts = self.counts(key)
        if not counts or self.of.form not in FORMS:
            return ""
        rolled, constant, said = self.of.form == "rolled", self.constant(key), ""
        if key == LOOPS:
            counts = {n: count for n, count in counts.items() if (count < loops if rolled else count > 0)}
            said = f"loops: expected {f'at least {loops}' if rolled else 'none'}" if counts else ""
        elif not rolled:
            steps = {(counts[b] - counts[a]) / (b - a) for a, b in pairwise(counts)}
            if any(step <= 0 for step in steps):
                said = f"{key} size does not grow with N"
            elif key == "captured" and len(steps) > 1:
                said = f"{key} size does not grow by a constant"
        elif self.k == 1:
            said = f"{key} size changes with N" if len({*counts.values()}) > 1 else ""
        elif constant is not None and max(count for n, count in counts.items() if n >= 2 * self.k) > constant:
            said = f"{key} size is above {constant}"
        return said and f"{said}: {', '.join(f'N = {n}: {count}' for n, count in counts.items())}"


def program(sizes: Iterable[Size], form: str, name: str) -> Counted:
    """The one of that form and name; without sizes where it was not counted."""
    own = [size for size in sizes if (size.form, size.program) == (form, name)]
    return Counted({size.N: size for size in sorted(own, key=lambda size: size.N)})


def programs(sizes: Iterable[Size]) -> list[Counted]:
    """All of them, in the order in which they were measured."""
    found: dict[Size, dict[int, Size]] = {}
    for size in sizes:
        of = replace(size, N=0, captured=None, lowered=None, compiled=None, loops=None, temp_bytes=None)
        found.setdefault(of, {})[size.N] = size
    return [Counted(dict(sorted(own.items()))) for own in found.values()]


def broken_laws(sizes: Iterable[Size], loops: int = 1, keys: Sequence[str] = (*LEVELS, LOOPS)) -> list[str]:
    """Each program and level that breaks the law, in words; so many `loops` must be left of a rolled program."""
    return [
        f"{program.of.name} of {program.of.layer}, {program.of.setting}: {said}"
        for program in programs(sizes)
        for key in keys
        if (said := program.broken(key, loops))
    ]


def broken_on_devices(found: OnDevices) -> list[str]:
    """What is wrong on many devices, in words: numbers, counts that change with N, temporaries that hold whole layers.

    Where each layer is whole on a device while it runs, one more layer must add less than its own size to what the
    program holds: what has been gathered, or copied to sum up its gradient, or read in each tick of a pipeline, is not
    kept. (Not of the decoder, whose activations alone may be more.)"""
    if found.status != "ok":
        return [f"{found.status}: {found.reason}"]
    broken = [f"{one.way}, N = {one.N}: {one.wrong}" for one in found.ways if one.wrong]
    by_way: dict[str, list[Way]] = {}
    for one in found.ways:
        by_way.setdefault(one.way, []).append(one)
    for way, each in by_way.items():
        first, last = each[0], each[-1]
        # What is left over of N layers is beside the loop; and in TensorFlow the zeros of the few layers of a stage are
        # one operation, not two.
        varies = way.endswith("=3") or (found.name == "tf_while" and way == "pipeline")
        for key in ("collectives",) if varies else ("collectives", "operations"):
            if any(_inside(getattr(one, key)) != _inside(getattr(first, key)) for one in each):
                counts = ", ".join(f"N = {one.N}: {getattr(one, key)}" for one in each)
                broken.append(f"{way}: {key} change with N: {counts}")
        is_whole = way == "pipeline" or (way.startswith(("data", "fully")) and "decoder" not in way)
        if is_whole and None not in (first.temp_bytes, last.temp_bytes) and last.N > first.N:
            added, layer = (getattr(last, key) - getattr(first, key) for key in ("temp_bytes", "whole_bytes"))
            if added >= layer:
                broken.append(f"{way}: {last.N - first.N} layers add {added} bytes of temporaries, and have {layer}")
    return broken


def _inside(counts: object) -> object:
    """Of collectives those in loops."""
    return {kind: n for kind, n in counts.items() if kind != "outside"} if isinstance(counts, dict) else counts
