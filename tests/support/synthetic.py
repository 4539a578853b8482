"""Synthetic results of a comparison in which everything is right, and what reads the pages and tables made of them."""

from __future__ import annotations

import functools
import io
from html.parser import HTMLParser
from typing import Any

from rich.console import Console

from implementations import NAMES, compare
from implementations.report import figures, html, tables

DEPTHS, UNROLLED_DEPTHS = (2, 3, 8, 64, 512, 1024), (2, 3, 8, 64)
QUANTITIES = ("y", "dweights", "dx")


def measured(name: str) -> dict[str, Any]:
    """What `implementations.measure` prints for an implementation that does everything right."""
    sizes, times = [], []
    for gradient in (False, True):
        for form, depths in (("rolled", (0, 1, *DEPTHS)), ("unrolled", UNROLLED_DEPTHS), ("fori_loop", (2, 64))):
            for n in depths:
                rolled = form != "unrolled"
                count = (9 if n < 2 else 38) if rolled else 10 * n + 2
                at: dict[str, Any] = {"form": form, "N": n, "d": 64, "dtype": "float32", "gradient": gradient}
                levels = {"captured": count, "lowered": count, "compiled": count}
                sizes.append({**at, **levels, "loops": int(rolled and n > 1), "temp_bytes": 16_700})
                seconds = {"compile_seconds": [0.1, 0.11, 0.12], "run_seconds": [1e-6 * (n + 1)] * 3}
                times.append({**at, **seconds, "read_seconds": [5e-7 * (n + 1)] * 3 if rolled else []})
    case_size = {"N": 1024, "d": 16}
    return {
        "name": name,
        "status": "ok",
        "versions": {f"framework of {name}": "1.2.3"},
        "settings": {"device": "cpu", "threads": "2"},
        "units": {"captured": "equations", "lowered": "operations", "compiled": f"instructions of {name}"},
        "numerics": [
            {
                "case": case,
                "dtype": dtype,
                **case_size,
                "quantity": q,
                "ratio": ratio,
                "allowed": 4.0,
                "exact": exact,
                "ok": True,
            }
            for case, ratio, exact in (("gaussian_deep", 1.25, False), ("permutations", 0.0, True))
            for dtype in ("float32", "bfloat16")
            for q in QUANTITIES
        ],
        "sizes": sizes,
        "times": times,
        "linear": [{"form": "rolled", "N": n, "run_seconds": [1e-6 * n] * 3} for n in (256, 1024)],
        "programs": programs(),
        "checkpoint": checkpoint(),
        "training": training(1.0000002),
        "bench": bench(),
        "recompiles": [{"what": "N = 0, 1, 2, 3 called as it stands", "programs": 3, "declared": 3, "ok": True}],
        "problems": [],
        "seconds": 1.5,
    }


def programs() -> list[dict[str, Any]]:
    """The general stack: of one size; with k = 4 layers a step or a group smaller where k divides N; its twin grows."""
    found: list[dict[str, Any]] = []
    for name, form, unroll, remat in (
        ("forward", "rolled", 1, False),
        ("hvp_layers", "rolled", 1, False),
        ("gradient", "rolled", 1, False),
        ("gradient, remat=True", "rolled", 1, True),
        ("gradient, remat=4", "rolled", 1, 4),
        ("gradient, unroll=4", "rolled", 4, False),
        ("gradient, unrolled", "unrolled", 1, False),
    ):
        for n in (2, 4) if form == "unrolled" else (6, 23, 64, 1023):
            k = max(unroll, int(remat))
            count = 100 * n if form == "unrolled" else 500 + 10 * (n % k) if n >= 2 * k else 900
            carries = n * {False: 16, True: 1, 4: 0.25}[remat]
            found.append(
                {
                    "program": name,
                    "form": form,
                    "unroll": unroll,
                    "remat": remat,
                    "layer": "mlp",
                    "N": n,
                    "d": 64,
                    "dtype": "float32",
                    "carry_bytes": 256,
                    "loops": int(form == "rolled"),
                    "captured": count,
                    "lowered": count,
                    "compiled": count,
                    "temp_bytes": int(5000 + 256 * carries),
                }
            )
    return [record for record in found if record["N"] != 6 or max(record["unroll"], int(record["remat"])) > 1]


def checkpoint() -> dict[str, Any]:
    """A trained network that every implementation runs as NumPy does; of one size at 6 and 48 layers."""
    pairs = (("A first sentence.", "Another one."), ("A first sentence.", "One of the same meaning."), ("Und?", ""))
    return {
        "status": "ok",
        "model": "all-MiniLM-L6-v2",
        "sentences": 28,
        "tokens": 558,
        "hidden": [{"layer": i, "ulps": 2.2, "numpy_ulps": 2.0, "allowed": 16.0} for i in range(6)],
        "embeddings": {"difference": 2.1e-7, "cosine": 0.9999999999988, "allowed": 0.999999},
        "pairs": [
            {"one": one, "other": other, "similarity": s, "reference": s}
            for (one, other), s in zip(pairs, (0.1046, 0.666, -0.25), strict=True)
        ],
        "sizes": [
            {
                "form": form,
                "N": n,
                "gradient": gradient,
                "loops": (1 + gradient) * (form == "rolled"),
                **dict.fromkeys(
                    ("captured", "lowered", "compiled"), (70 if form == "rolled" else 400) * (1 + gradient)
                ),
            }
            for form, n, gradient in (
                *(("rolled", n, gradient) for n in (6, 48) for gradient in (False, True)),
                ("unrolled", 6, False),
            )
        ],
        "seconds": 10.5,
    }


def bench() -> list[dict[str, Any]]:
    """Quiet rows, in which the rolled form takes 1.25 times its limit, half as long as its twin, a quarter of raw."""
    return [
        bench_row("forward", compile_seconds={"rolled": [0.1, 0.05], "unrolled": [2.0, 1.5]}, peak_bytes=2**20),
        bench_row("gradient", raw=None, skipped={"raw loop": "raises ValueError"}, peak_bytes=3 * 2**27),
        bench_row("gradient", d=256, batch=32, raw=None, limit="product"),
        bench_row("forward", dtype="bfloat16", raw=None),
        bench_row("training step", d=256, raw=None),
        bench_row("forward", layer="transformer_encoder", d=64, N=16, batch=2, raw=None, limit="product"),
    ]


def bench_row(
    program: str,
    *,
    layer: str = "dense",
    d: int = 1024,
    N: int = 64,
    batch: int = 0,
    dtype: str = "float32",
    limit: str = "read",
    raw: float | None = 5.0,
    **more: Any,
) -> dict[str, Any]:
    seconds = {"limit": 1.0, "rolled": 1.25, "unrolled": 2.5} | ({"raw loop": raw, "other loop": 1.5} if raw else {})
    rounds = [0.98, 1.0, 1.02, 1.0, 1.0]  # what slows the machine slows all of a round
    row: dict[str, Any] = {"layer": layer, "N": N, "sizes": {"d": d}, "batch": batch, "dtype": dtype}
    row |= {"program": program, "limit": limit, "tries": 1, "compile_seconds": {}, "skipped": {}}
    row |= {"weights_bytes": N * d * d * 4, "peak_bytes": None, "load": [0.1, 0.9]}
    return row | {"run_seconds": {form: [1e-3 * s * r for r in rounds] for form, s in seconds.items()}} | more


def training(off: float) -> dict[str, Any]:
    """Losses that fall from 4 to 2.4 in 50 steps, all of them off by a factor, as the norms of four layers are."""
    losses = [(4 - 0.8 * step / 25) * off for step in range(51)][:50]
    return {"status": "ok", "losses": losses, "weight_norms": [8.0 * off] * 4, "seconds": 3.5}


def trained() -> dict[str, Any]:
    """What `implementations.training_check.right` returns: NumPy in float32 is nearer than what is measured."""
    return {"N": 4, "d": 32, "B": 4, "T": 32, "float64": training(1.0), "float32": training(0.9999999)}


def results(*found: dict[str, Any]) -> dict[str, Any]:
    known = {"date": "2026-01-02 03:04 UTC", "command": "python -m implementations", "cpu": "a processor, 2 cores"}
    return compare.merge("default", known, list(found or [measured(name) for name in NAMES]), 12.3, trained())


@functools.cache  # two seconds
def drawn() -> dict[str, figures.Figure]:
    return figures.figures(results())


def page(found: dict[str, Any]) -> str:
    """The page without its figures."""
    return html.page(found, {})


def printed(found: dict[str, Any], width: int = 100) -> str:
    console = Console(width=width, file=(text := io.StringIO()), force_terminal=False)
    for table in tables.tables(found):
        console.print(tables.renderable(table))
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
