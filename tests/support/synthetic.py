"""Synthetic results of a comparison in which everything is right, and what reads the pages and tables made of them."""

from __future__ import annotations

import functools
import io
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from rich.console import Console

from implementations import NAMES, compare
from implementations.interface import LEVELS
from implementations.report import figures, html, tables
from implementations.report.table import renderable
from implementations.results.records import (
    DENSE,
    PROGRAMS,
    Checkpoint,
    Comparison,
    Embeddings,
    Hidden,
    Measured,
    OnDevices,
    Pair,
    Recompiles,
    Results,
    Size,
    Time,
    Trained,
    Training,
    Way,
)

DEPTHS, UNROLLED_DEPTHS = (2, 3, 8, 64, 512, 1024), (2, 3, 8, 64)


def measured(name: str) -> Measured:
    """What `implementations.measuring.measure` prints for an implementation that does everything right."""
    return Measured(
        name=name,
        versions={f"framework of {name}": "1.2.3"},
        settings={"device": "cpu", "threads": "2"},
        units={"captured": "equations", "lowered": "operations", "compiled": f"instructions of {name}"},
        numerics=tuple(
            Comparison(case=case, dtype=dtype, N=1024, d=16, quantity=q, ratio=ratio, allowed=4.0, exact=exact, ok=True)
            for case, ratio, exact in (("gaussian_deep", 1.25, False), ("permutations", 0.0, True))
            for dtype in ("float32", "bfloat16")
            for q in ("y", "dweights", "dx")
        ),
        sizes=dense_sizes(),
        times=dense_times(),
        linear=tuple(dense_time("gradient", n, {"rolled": 1e-6 * n}) for n in (256, 1024)),
        programs=programs(),
        checkpoint=checkpoint(),
        training=training(1.0000002),
        bench=bench(),
        recompiles=(Recompiles(what="N = 0, 1, 2, 3 called as it stands", programs=3, declared=3),),
        seconds=1.5,
    )


# form -> depths: the rolled one also where a compiler drops the loop
DENSE_DEPTHS = {"rolled": (0, 1, *DEPTHS), "unrolled": UNROLLED_DEPTHS, "fori_loop": (2, 64)}


def dense_sizes() -> tuple[Size, ...]:
    found = []
    for program in PROGRAMS:
        for form, depths in DENSE_DEPTHS.items():
            of, rolled = Size(program=program, layer=DENSE, form=form, d=64, carry_bytes=256), form != "unrolled"
            for n in depths:
                levels = dict.fromkeys(LEVELS, (9 if n < 2 else 38) if rolled else 10 * n + 2)
                found.append(of.counted(n, {**levels, "loops": int(rolled and n > 1), "temp_bytes": 16_700}))
    return tuple(found)


def dense_times() -> tuple[Time, ...]:
    found = []
    for program in PROGRAMS:
        for n in DENSE_DEPTHS["rolled"]:
            forms = [form for form, depths in DENSE_DEPTHS.items() if n in depths]
            seconds = {**dict.fromkeys(forms, 1e-6 * (n + 1)), "limit": 5e-7 * (n + 1)}
            found.append(dense_time(program, n, seconds, dict.fromkeys(forms, (0.1, 0.11, 0.12))))
    return tuple(found)


def dense_time(program: str, N: int, seconds: dict[str, float], compiled: Any = None) -> Time:
    rounds: dict[str, tuple[float, ...]] = {form: (second,) * 3 for form, second in seconds.items()}
    return Time(
        program=program, layer="dense", N=N, sizes={"d": 64}, run_seconds=rounds, compile_seconds=compiled or {}
    )


def programs() -> tuple[Size, ...]:
    """The general stack: of one size; with k = 4 layers a step or a group smaller where k divides N; its twin grows."""
    found = []
    options: tuple[dict[str, Any], ...] = (
        {"program": "forward"},
        {"program": "hvp_layers"},
        {"program": "gradient"},
        {"program": "gradient", "remat": True},
        {"program": "gradient", "remat": 4},
        {"program": "gradient", "unroll": 4},
        {"program": "gradient", "form": "unrolled"},
    )
    for own in options:
        of = Size(layer="mlp", d=64, carry_bytes=256, **own)
        k, unrolled = max(of.unroll, int(of.remat)), of.form == "unrolled"
        for n in (2, 4) if unrolled else (6, 23, 64, 1023) if k > 1 else (23, 64, 1023):
            count = 100 * n if unrolled else 500 + 10 * (n % k) if n >= 2 * k else 900
            carries = n * {False: 16, True: 1, 4: 0.25}[of.remat]
            memory = {"loops": int(not unrolled), "temp_bytes": int(5000 + 256 * carries)}
            found.append(of.counted(n, dict.fromkeys(LEVELS, count) | memory))
    return tuple(found)


def checkpoint() -> Checkpoint:
    """A trained network that every implementation runs as NumPy does; of one size at 6 and 48 layers."""
    pairs = (("A first sentence.", "Another one."), ("A first sentence.", "One of the same meaning."), ("Und?", ""))
    sizes = []
    for form, n, program in (
        *(("rolled", n, program) for n in (6, 48) for program in PROGRAMS),
        ("unrolled", 6, "forward"),
    ):
        times = 1 + PROGRAMS.index(program)
        levels = dict.fromkeys(LEVELS, (70 if form == "rolled" else 400) * times)
        of = Size(program=program, layer="all-MiniLM-L6-v2", form=form, d=384, carry_bytes=4)
        sizes.append(of.counted(n, levels | {"loops": times * (form == "rolled")}))
    return Checkpoint(
        model="all-MiniLM-L6-v2",
        sentences=28,
        tokens=558,
        hidden=tuple(Hidden(layer=i, ulps=2.2, numpy_ulps=2.0, allowed=16.0) for i in range(6)),
        embeddings=Embeddings(difference=2.1e-7, cosine=0.9999999999988, allowed=0.999999),
        pairs=tuple(
            Pair(one=one, other=other, similarity=s, reference=s)
            for (one, other), s in zip(pairs, (0.1046, 0.666, -0.25), strict=True)
        ),
        sizes=tuple(sizes),
        seconds=10.5,
    )


def bench() -> tuple[Time, ...]:
    """Quiet rows, in which the rolled form takes 1.25 times its limit, half as long as its twin, a quarter of raw."""
    return (
        bench_row("forward", compile_seconds={"rolled": (0.1, 0.05), "unrolled": (2.0, 1.5)}, peak_bytes=2**20),
        bench_row("gradient", raw=None, skipped={"raw loop": "raises ValueError"}, peak_bytes=3 * 2**27),
        bench_row("gradient", d=256, batch=32, raw=None, limit="product"),
        bench_row("forward", dtype="bfloat16", raw=None),
        bench_row("training step", d=256, raw=None),
        bench_row("forward", layer="transformer_encoder", d=64, N=16, batch=2, raw=None, limit="product"),
    )


def bench_row(program: str, *, d: int = 1024, N: int = 64, raw: float | None = 5.0, **more: Any) -> Time:
    seconds = {"limit": 1.0, "rolled": 1.25, "unrolled": 2.5} | ({"raw loop": raw, "other loop": 1.5} if raw else {})
    rounds = (0.98, 1.0, 1.02, 1.0, 1.0)  # what slows the machine slows all of a round
    at: dict[str, Any] = {"layer": "dense", "limit": "read", "weights_bytes": N * d * d * 4, "load": (0.1, 0.9)}
    run_seconds = {form: tuple(1e-3 * s * r for r in rounds) for form, s in seconds.items()}
    return Time(**at | {"program": program, "N": N, "sizes": {"d": d}, "run_seconds": run_seconds} | more)


def training(off: float) -> Training:
    """Losses that fall from 4 to 2.4 in 50 steps, all of them off by a factor, as the norms of four layers are."""
    losses = tuple((4 - 0.8 * step / 25) * off for step in range(50))
    return Training(losses=losses, weight_norms=(8.0 * off,) * 4, seconds=3.5)


def trained() -> Trained:
    """What `training_check.right` returns: NumPy in float32 is nearer than what is measured."""
    sizes = {"N": 4, "d": 32, "B": 4, "T": 32}
    return Trained(sizes=sizes, float64=training(1.0), float32=training(0.9999999))


def results(*found: Measured) -> Results:
    known = {"date": "2026-01-02 03:04 UTC", "command": "python -m implementations", "cpu": "a processor, 2 cores"}
    devices = tuple(OnDevices(name=name, size=4, versions={"it": "1.2"}, ways=(way(2), way(8))) for name in NAMES)
    every = found or [measured(name) for name in NAMES]
    return compare.merge("default", known, every, 12.3, training=trained(), devices=devices)


def way(N: int, wrong: str = "", temp_bytes: int = 10) -> Way:
    """Layers of a hundred bytes, cut over four devices."""
    sent = {"all-gather": 2, "reduce-scatter": 1, "outside": 3}
    sizes = {"whole_bytes": 100 * N, "param_bytes": 25 * N, "temp_bytes": temp_bytes * N}
    return Way(way="fully sharded", N=N, wrong=wrong, collectives=sent, **sizes)


def changed(record: Any, *path: Any, **fields: Any) -> Any:
    """The record with other fields: its own, or those of the one to which the path of names and indices leads."""
    if not path:
        return replace(record, **fields)
    first, *rest = path
    if isinstance(record, tuple):
        parts = list(record)
        parts[first] = changed(parts[first], *rest, **fields)
        return tuple(parts)
    return replace(record, **{first: changed(getattr(record, first), *rest, **fields)})


def spoilt(*path: Any, **fields: Any) -> Results:
    """Right results but for what `changed` changes in jax_scan."""
    found: Results = changed(results(), "implementations", 0, *path, **fields)
    return found


def with_all(found: Results, **fields: Any) -> Results:
    """Every implementation with the same in those fields."""
    return replace(found, implementations=tuple(replace(one, **fields) for one in found.implementations))


@functools.cache  # two seconds
def drawn() -> dict[str, figures.Figure]:
    return figures.figures(results())


def page(found: Results) -> str:
    """The page without its figures."""
    return html.page(found, {})


def printed(found: Results, width: int = 100) -> str:
    console = Console(width=width, file=(text := io.StringIO()), force_terminal=False)
    for table in tables.tables(found):
        console.print(renderable(table))
    return text.getvalue()


class Page(HTMLParser):
    """Notes every element, and that each is closed in the order of opening."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
