"""The bench, and the worth of a scan: ratios, noise, what is left out, crossovers; and how it is measured."""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import mmap
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias
from unittest.mock import Mock

import numpy as np
import pytest
from rich.console import Console

from implementations import compare
from implementations.check.dialect import flat
from implementations.measuring import bench, bench_command, isolate, measure, modes, timing
from implementations.report import figures, html, tables
from implementations.report.table import NONE, Table, renderable
from implementations.results import bench_facts, deviations, worth
from implementations.results.records import Case, Measured, Results, Time, from_json, to_json
from reference import layers
from reference.shapes import PARAMS
from reference.stack import tree_map
from tests.conftest import loaded
from tests.support.synthetic import Page, bench_row, drawn, measured, page, printed, results, spoilt, with_all
from tests.support.synthetic import bench as bench_rows


def shown(found: Results, name: str) -> Table:
    return next(table for table in tables.tables(found) if table.name == name)


def only_bench(name: str, rows: tuple[Time, ...]) -> Measured:
    one = measured(name)
    return Measured(name=name, versions=one.versions, settings=one.settings, units=one.units, bench=rows)


def rows_of(*rows: Time) -> Results:
    """Results of a bench of jax_scan alone."""
    return compare.merge("bench", {"cpu": "a processor"}, [only_bench("jax_scan", rows)], 1.0)


def cells(*rows: Time) -> list[list[str]]:
    return [row[1:] for row in shown(rows_of(*rows), "bench").rows]


def noisy(row: Time, form: str, by: float = 0.4) -> Time:
    """The form in every second round slower by that factor: so is every second part of the rounds."""
    shaken = tuple(second * (1 + by * (i % 2)) for i, second in enumerate(row.run_seconds[form]))
    return replace(row, run_seconds=row.run_seconds | {form: shaken})


def without(row: Time, form: str, **change: Any) -> Time:
    """That form was not timed."""
    seconds = {other: own for other, own in row.run_seconds.items() if other != form}
    return replace(row, run_seconds=seconds, **change)


# The table


def test_ratios_are_of_the_medians_of_the_rolled_form_and_another() -> None:
    """Every round is slower or faster as a whole: the ratios have no spread."""
    assert cells(bench_row("forward")) == [["dense forward", "1024, 64", "19.5 µs", "1.25", "0.5", "0.25"]]
    assert cells(bench_row("gradient", batch=32))[0][:2] == ["dense gradient", "1024, 64 ×32"]
    assert cells(bench_row("forward", dtype="bfloat16"))[0][1] == "1024, 64 bfloat16"


def test_a_small_spread_is_shown() -> None:
    assert cells(noisy(bench_row("forward"), "rolled", 0.1))[0][3].endswith(" ±5%")


def test_what_is_noisy_is_said_in_place_of_a_figure_and_of_nothing_else() -> None:
    rolled = cells(noisy(bench_row("forward"), "rolled"))[0]
    assert rolled[2:] == ["too noisy"] * 4
    assert cells(noisy(bench_row("forward"), "unrolled"))[0][2:] == ["19.5 µs", "1.25", "too noisy", "0.25"]
    assert cells(noisy(bench_row("forward"), "raw loop"))[0][2:] == ["19.5 µs", "1.25", "0.5", "too noisy"]
    both = noisy(noisy(bench_row("forward"), "rolled"), "unrolled")
    assert cells(both)[0][4] == "too noisy"  # their ratio is quiet, but what each of them takes is not known
    assert "above 15%" in shown(rows_of(both), "bench").note


def test_what_was_left_out_is_a_dash_with_its_reason() -> None:
    row = bench_row("gradient", d=64, N=256, skipped={"unrolled": "would compile for about 140 s"})
    row = without(row, "unrolled")
    found = rows_of(row, bench_row("forward"))
    first = shown(found, "bench").rows[0]
    assert first[1:] == ["dense gradient", "64, 256", "4.88 µs", "1.25", NONE, "0.25"]
    assert (
        "Not run: jax_scan, dense, gradient, d = 64, N = 256, unrolled: would compile for about 140 s."
        in shown(found, "bench").note
    )
    assert "Not run" not in shown(rows_of(bench_row("forward")), "bench").note


def test_a_training_step_is_the_first_timing_with_a_row_for_each_form() -> None:
    compiled = {"rolled": (2.0,), "unrolled": (8.0,), "raw loop": (1.0,), "other loop": (4.0,)}
    step = bench_row("training step", layer="mlp", d=256, N=8, batch=128, limit="product", compile_seconds=compiled)
    step = without(step, "limit")
    missing = without(step, "other loop", skipped={"other loop": "raises ValueError"})
    found = rows_of(step)
    table = shown(found, "steps")
    assert "Sizes: mlp N 8, d 256, batch 128; float32." in table.note
    assert [row[1] for row in table.rows] == ["mlp", "", "", ""]
    assert [row[2:] for row in table.rows] == [
        ["rolled", "1.25 ms", NONE, "2 s", NONE],
        ["unrolled", "2.5 ms", "0.5", "8 s", "0.25"],
        ["raw loop", "5 ms", "0.25", "1 s", "2.00"],
        ["other loop", "1.5 ms", "0.833", "4 s", "0.50"],
    ]
    assert len(shown(rows_of(missing), "steps").rows) == 3
    assert "Not run: jax_scan, mlp, other loop: raises ValueError." in shown(rows_of(missing), "steps").note
    assert html.claim(found) == "The time of a training step over that of its unrolled twin: 0.5 in jax_scan (mlp)."
    assert not any(table.name == "bench" for table in tables.tables(found))  # it has no limit worth a line
    everything = spoilt(bench=(*bench_rows(), step))
    timings = [
        name for name in re.findall(r'<section id="([^"]*)"', page(everything)) if name in ("steps", "compile", "run")
    ]
    assert timings == ["steps", "compile", "run"]
    assert "0.5×</dt><dd>time of a training step, rolled against unrolled: mlp, 8 layers" in page(everything)
    assert "<dt>What does it cost me?</dt><dd>A training step of 8 layers of mlp takes 0.5" in page(everything)


def test_alternatives_stand_beside_the_rolled_form() -> None:
    failed = bench_row("gradient", skipped={"raw loop": "raises ValueError"}, raw=None)
    found = rows_of(bench_row("forward"), bench_row("forward", d=64, N=256), failed)
    table = shown(found, "bench-alternatives")
    assert table.columns == ("implementation", "form", "1024, 64", "64, 256")
    assert [row[1:] for row in table.rows] == [
        ["raw loop", "4", "4"],
        ["other loop", "1.2", "1.2"],
        ["raw loop, gradient", NONE, NONE],
    ]


def test_peaks_are_in_multiples_of_the_weights() -> None:
    found = rows_of(bench_row("gradient", peak_bytes=384 * 2**20), bench_row("forward", peak_bytes=None))
    (row,) = shown(found, "bench-memory").rows
    assert row[-3:] == ["268 MB", "403 MB", "1.50"]


def test_compile_times_are_cold_and_warm_and_a_twin_left_out_is_a_dash() -> None:
    both = bench_row("forward", compile_seconds={"rolled": (0.5, 0.25), "unrolled": (20.0, 10.0)})
    found = rows_of(both, bench_row("gradient", compile_seconds={"rolled": (0.5, 0.25)}), bench_row("forward"))
    assert [row[3:] for row in shown(found, "bench-compile").rows] == [
        ["500 ms", "250 ms", "20 s", "10 s"],
        ["500 ms", "250 ms", NONE, NONE],
    ]


def test_bench_fits_the_terminal_at_its_widest() -> None:
    """Ratios of five digits with a spread of two, the longest names: no name of an implementation is broken."""
    widest = tuple(
        noisy(bench_row(program, layer=layer, batch=32, dtype="bfloat16", raw=1.296), "rolled", 0.24)
        for layer, program in (("dense", "training step"), ("transformer_encoder", "gradient"))
    )
    found = with_all(results(), bench=widest)
    console = Console(width=100, file=(text := io.StringIO()), force_terminal=False)
    console.print(renderable(shown(found, "bench")))
    assert max(map(len, text.getvalue().splitlines())) <= 100
    assert "…" not in text.getvalue()
    for name in ("implementation", "torch_compile", "1.28 ±12%", "0.984 ±12%", "µs", "unrolled"):
        assert name in text.getvalue(), text.getvalue()


# The page and the command


def test_page_and_terminal_of_a_whole_run_have_the_sections() -> None:
    text = html.page(results(), drawn())
    for section in ("bench", "worth"):
        assert f'id="{section}"' in text
    assert "Peak memory of the process" in text
    assert "1.25×" in text  # on the cards
    assert "As fast as memory allows" in printed(results())


def test_a_run_without_bench_has_no_section_of_it() -> None:
    found = with_all(results(), bench=())
    assert 'id="bench"' not in page(found)
    assert 'id="worth"' in page(found)


def test_a_run_of_the_bench_alone_has_nothing_else() -> None:
    found = rows_of(bench_row("forward", d=64), bench_row("forward"), noisy(bench_row("forward", N=65), "rolled"))
    assert figures.figures(found) == {}
    assert [t.name for t in tables.tables(found)] == ["provenance", "bench", "bench-alternatives"]
    text = html.page(found)
    assert Page(text).open == []
    # of what reads most, and is a figure
    assert "once: 1.25 in jax_scan (dense, forward, d = 1024, N = 64)." in html.claim(found)
    assert "Times are not judged." in text
    assert found.deviations == ()


def test_command_measures_the_bench_and_writes_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def one(name: str, arguments: list[str], timeout: float, _: Any) -> Measured:
        asked.append((name, arguments, timeout))
        return only_bench(name, bench_rows())

    asked: list[Any] = []
    monkeypatch.setattr(isolate, "measure", one)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    options = ["--implementations", "jax_scan", "--layers", "mlp,dense", "--out", str(tmp_path), "--timeout", "7"]
    assert bench_command.main(options) == 0
    assert asked == [("jax_scan", ["--mode", "bench", "--layers", "mlp,dense"], 7.0)]
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert found["mode"] == "bench"
    assert found["provenance"]["command"] == (
        "python -m implementations bench --implementations jax_scan --layers mlp,dense"
    )
    assert "over" in capsys.readouterr().out
    assert (tmp_path / "index.html").exists()
    assert bench_command.parser().parse_args([]).out == Path("report/bench")
    with pytest.raises(SystemExit):
        bench_command.parser().parse_args(["--layers", "mlp,no_layer"])
    assert "expected some of dense, mlp," in capsys.readouterr().err


# When is a scan worth it?


def timed(**costs: dict[int, tuple[float, float]]) -> Results:
    """Results of jax_scan whose forms compile and run for so many seconds: form -> N -> (compile, run)."""
    at: dict[str, Any] = {"program": "forward", "layer": "dense", "sizes": {"d": 64}}
    times = tuple(
        Time(**at, N=n, compile_seconds={form: (c, c, 9 * c)}, run_seconds={form: (r, r, 9 * r)})
        for form, own in costs.items()
        for n, (c, r) in own.items()
    )
    return results(replace(measured("jax_scan"), times=times))


# Rolled compiles for 1 s and runs for 20 µs a layer; unrolled compiles for 0.3 s and 10 µs a layer.
CROSSING = timed(
    rolled={n: (1.0, 2e-5 * max(n, 1)) for n in (0, 1, 2, 4, 16, 64, 256)},
    unrolled={n: (0.3 * max(n, 1), 1e-5 * max(n, 1)) for n in (0, 1, 2, 4, 16, 64)},
)


def test_crossovers_are_computed_for_each_number_of_calls() -> None:
    one = CROSSING.implementations[0]
    assert [str(worth.worth(one, "forward", calls)) for calls in (1, 100, 10_000, 10**7)] == [
        *("from N = 4", "from N = 4", "from N = 16", "never")  # at 10,000 calls and N = 4: 1.8 s against 1.6 s
    ]
    assert worth.costs(one, "rolled", "forward", 100)[16] == pytest.approx(1.032)
    assert worth.worth(one, "forward", 1) == worth.Worth((1, 2, 4, 16, 64), 4)
    assert worth.worth(one, "gradient", 1) is None
    assert shown(CROSSING, "worth").rows == [["jax_scan", "forward", "from N = 4", "from N = 4", "from N = 16"]]
    assert "N = 1, 2, 4, 16, 64." in shown(CROSSING, "worth").note


@pytest.mark.parametrize(
    ("rolled", "unrolled", "words"),
    [
        ({1: 2.0, 2: 1.0, 4: 2.0, 8: 1.0}, {1: 3.0, 2: 2.0, 4: 1.0, 8: 2.0}, "from N = 8"),  # not for good at 1 and 2
        ({1: 1.0, 2: 1.0}, {1: 2.0, 2: 2.0}, "at every N"),
        ({1: 1.0, 2: 1.0}, {1: 2.0, 2: 1.0}, "never"),  # no less is not less
        ({1: 1.0, 2: 1.0, 4: 9.0}, {1: 0.5, 2: 2.0}, "from N = 2"),
        ({1: 1.0}, {2: 1.0}, ""),
        ({4: 2.0}, {4: 1.0}, ""),  # one depth tells of no other
    ],
)
def test_crossover_is_where_it_stays(rolled: dict[int, float], unrolled: dict[int, float], words: str) -> None:
    assert str(worth.crossover(rolled, unrolled) or "") == words


def test_figure_marks_the_crossovers() -> None:
    figure = figures.figures(CROSSING)["worth"]
    assert len(figure.panels) == len(worth.CALLS)
    for panel in figure.panels:
        assert Page(panel).open == []
    assert "rolled costs less from N = 4 on" in figure.panels[0]
    assert "rolled costs less from N = 16 on" in figure.panels[2]
    assert "rolled: 1 s at N = 1, 1.01 s at N = 256; unrolled: 300 ms at N = 1, 19.2 s at N = 64" in figure.panels[0]
    said = "1 call: from N = 4 in jax_scan; 100 calls: from N = 4 in jax_scan; 10,000 calls: from N = 16 in jax_scan."
    assert figure.caption.endswith(f"the scan costs less, for {said}")
    never = drawn()["worth"]  # of equal times
    assert "costs less" not in never.panels[0]
    assert "1 call: never in jax_scan, never in torch_compile" in never.caption


def test_no_law_is_about_one_layer() -> None:
    """The full run has it for the table above; a compiler may make of it what it likes."""
    assert modes.DEPTHS[0] == 1
    sizes = measured("jax_scan").sizes
    twins = [size for size in sizes if (size.form, size.N) == ("unrolled", 2)]
    shallow = tuple(replace(size, N=1, captured=99, compiled=99, loops=1) for size in twins)
    assert deviations.deviations(spoilt(sizes=sizes + shallow)) == []
    # the control: at N = 2 each of these is one
    deep = tuple(replace(size, N=2) if size.N == 1 else size for size in sizes + shallow)
    assert len(deviations.deviations(spoilt(sizes=deep))) > 3


# What is measured


def dense(program: str, **more: Any) -> Case:
    return Case(layer="dense", N=3, sizes={"d": 8}, program=program, **more)


STEP = Case(layer="mlp", N=3, sizes={"d": 8, "f": 16}, batch=4, program="training step")


@functools.cache
def benched() -> Measured:
    """jax_scan measured on small cases of every kind, quickly."""
    encoder = {"d": 8, "h": 2, "e": 4, "f": 16, "T": 5}
    small = (
        dense("forward"),
        dense("gradient"),
        dense("forward", dtype="bfloat16"),
        dense("forward", batch=4),
        Case(layer="transformer_encoder", N=2, sizes=encoder, batch=2, program="gradient"),
        STEP,
    )
    told: list[tuple[int, int]] = []
    mode = replace(modes.MODES["bench"], bench=small, bench_seconds=0.01)
    found = measure.measure("jax_scan", mode, lambda done, total, _: told.append((done, total)))
    assert told == [(i, len(told)) for i in range(len(told))]
    return found


def test_measured_rows_have_all_forms_and_their_shape() -> None:
    implementation = loaded("jax_scan")
    found = benched()
    forward, gradient, half, batch, encoder, step = found.bench
    first = {"limit", "rolled", "unrolled"}
    raw = {name for name in implementation.ALTERNATIVES if name.startswith("raw ")}
    assert {*forward.run_seconds, *forward.skipped} == first | set(implementation.ALTERNATIVES)
    assert {*gradient.run_seconds, *gradient.skipped} == first | raw
    assert all(set(row.run_seconds) == first for row in (half, batch, encoder))
    assert set(step.run_seconds) == set(step.compile_seconds) == {*implementation.LAYER_FORMS}
    assert [row.limit for row in found.bench] == ["read"] * 3 + ["product"] * 2 + [None]
    for row in found.bench:
        assert len({len(seconds) for seconds in row.run_seconds.values()}) == 1
        assert min(second for seconds in row.run_seconds.values() for second in seconds) > 0
        assert len(row.load) == 2
    assert {len(seconds) for row in found.bench[:-1] for seconds in row.compile_seconds.values()} == {2}
    timed = [set(row.compile_seconds) for row in found.bench[:-1]]
    assert timed == [{"rolled", "unrolled"}] * 2 + [set(), {"rolled", "unrolled"}, set()]
    assert [row.weights_bytes for row in found.bench[:3]] == [3 * 64 * 4, 3 * 64 * 4, 3 * 64 * 2]
    assert encoder.weights_bytes == 2 * (4 * 8 * 8 + 2 * 8 * 16) * 4
    assert (found.numerics, found.sizes, found.times, found.recompiles) == ((), (), (), ())
    assert from_json(Measured, json.loads(json.dumps(to_json(found)))) == found
    assert Page(page(compare.merge("bench", {}, [found], 1.0))).open == []


def test_programs_of_the_bench_are_right() -> None:
    """Rolled, unrolled and the product of the matrices by NumPy agree; a step goes down the gradient."""
    implementation = loaded("jax_scan")
    for case in (dense("forward"), dense("forward", batch=4)):
        posed = bench.problem(implementation, case)
        chosen = bench.forms(implementation, case, posed.mask)
        x, (weights,) = implementation.to_numpy(posed.x), posed.weights
        expected = functools.reduce(lambda y, w: y @ w if case.batch else w @ y, weights, x)
        for form in ("rolled", "unrolled"):
            apply, compiler = chosen[form]
            y = bench.program(implementation, case, apply, compiler, posed)()
            np.testing.assert_allclose(implementation.to_numpy(y), expected, rtol=1e-4, atol=1e-5)
            run = {
                name: bench.program(implementation, replace(case, program=name), apply, compiler, posed)()
                for name in ("gradient", "training step")
            }
            stepped = weights - bench.RATE * implementation.to_numpy(run["gradient"][1])
            np.testing.assert_allclose(implementation.to_numpy(run["training step"]), stepped, rtol=1e-6)
            assert np.abs(stepped - weights).max() > 0


@pytest.mark.torch_backend("aot_eager")
def test_a_training_step_is_the_same_in_every_form(implementation: Any) -> None:
    """Of NumPy's gradient, by hand: rolled, unrolled, and what users do instead."""
    posed = bench.problem(implementation, STEP)
    stacked = tree_map(implementation.to_numpy, posed.params)
    each = [tree_map(lambda array, i=i: array[i].astype(np.float64), stacked) for i in range(STEP.N)]
    carries = [implementation.to_numpy(posed.x).astype(np.float64)]
    for own in each:
        carries.append(layers.mlp(carries[-1], own)[0])
    gradients: list[Any] = []
    dcarry = implementation.to_numpy(posed.cotangent).astype(np.float64)
    for carry, own in zip(carries[-2::-1], each[::-1], strict=True):
        dcarry, dparams = layers.mlp_vjp(carry, own, dcarry)
        gradients.insert(0, dparams)
    chosen = bench.forms(implementation, STEP, posed.mask)
    assert list(chosen)[:2] == ["rolled", "unrolled"]
    for form, (apply, compiler) in chosen.items():
        stepped = bench.program(implementation, STEP, apply, compiler, posed)()
        for got, before, *after in zip(*map(flat, (stepped, stacked, *gradients)), strict=True):
            moved = (before - implementation.to_numpy(got)) / bench.RATE
            np.testing.assert_allclose(moved, np.stack(after), rtol=1e-4, atol=5e-4, err_msg=form)


def fake(compile_seconds: Any) -> Any:
    """An implementation whose forms do nothing, but compile for so long, by N."""
    same = {name: lambda array: array for name in ("from_numpy", "to_numpy", "wait", "compile")}

    def alternative(weights: Any, x: Any) -> Any:
        return x

    def fails(weights: Any, x: Any) -> Any:
        raise ValueError("no gradient of this")

    parts = {
        "scan_layers": None,
        "unroll_layers": None,
        "scan_apply_layers": lambda weights, x: x,
        "unroll_apply_layers": lambda weights, x: x + 0,
        "ALTERNATIVES": {
            "raw loop": (fails, None),
            "loop": (alternative, same["compile"]),
            "eager": (alternative, None),
        },
    }
    implementation = SimpleNamespace(**(same | parts), settings=lambda: {"device": "cpu"})

    def seconds(apply: Any, weights: Any, x: Any, cotangent: Any = None, times: int = 1) -> list[float]:
        form = "unrolled" if apply is implementation.unroll_apply_layers else "loop" if apply is alternative else ""
        return [compile_seconds(form, len(weights))] * times

    implementation.compile_seconds = seconds
    return implementation


def test_what_would_compile_for_long_is_left_out_and_what_fails_is_said() -> None:
    def compile_seconds(form: str, N: int) -> float:
        return {"unrolled": 0.5 * N, "loop": 10.0}.get(form, 1.0)

    case = replace(dense("forward"), N=256)
    row = bench.measure_case(fake(compile_seconds), case, 60.0, 0.01, lambda _: None)
    # a loop compiles as long for 16 layers as for 8: it is not left out
    assert row.skipped == {"unrolled": "would compile for about 128 s", "raw loop": "raises ValueError"}
    assert set(row.run_seconds) == {"limit", "rolled", "loop", "eager"}
    assert row.compile_seconds == {"rolled": (1.0, 1.0)}
    patient = bench.measure_case(fake(compile_seconds), case, 130.0, 0.01, lambda _: None)
    assert "unrolled" in patient.run_seconds
    assert patient.compile_seconds == {"rolled": (1.0, 1.0), "unrolled": (128.0, 128.0)}


Seconds: TypeAlias = dict[str, tuple[float, ...]]


def test_the_quietest_try_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    loud, calmer, quiet = (noisy(bench_row("forward"), "rolled", by).run_seconds for by in (2.0, 0.6, 0.1))

    def kept(*tries: Seconds, budget: float = 60.0) -> tuple[Seconds, int]:
        monkeypatch.setattr(bench, "interleave", Mock(side_effect=tries))
        return bench.quietest({}, lambda value: value, budget)

    assert kept(quiet, loud) == (quiet, 1)
    assert kept(loud, quiet, calmer) == (quiet, 2)
    assert kept(loud, calmer, loud, quiet) == (calmer, 3)
    assert kept(loud, quiet, budget=0.0) == (loud, 1)  # no time for another


def test_what_the_first_call_takes_beyond_the_second_is_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, waited = iter([10.0, 15.0, 16.0]), Mock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timing.first_call(lambda: "array", waited) == 4.0
    assert [call.args for call in waited.call_args_list] == [("array",)] * 2


def test_peak_of_the_process_is_what_a_call_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)  # through all that the tests have compiled: seconds each time

    def call() -> None:
        """64 MiB of new pages, gone again: an allocator may have as much at hand, and then nothing grows."""
        np.frombuffer(mmap.mmap(-1, 2**26), np.uint8).fill(1)

    peaks = [peak for peak in (timing.peak_bytes(call) for _ in range(2)) if peak is not None]
    if not peaks:
        pytest.skip("this machine does not say")
    # the larger: the system may take other pages back meanwhile
    assert 0.9 < max(peaks) / 2**26 < 1.25  # the system counts in lots of pages
    small = timing.peak_bytes(lambda: None)
    assert small is not None
    assert small < 2**24  # the peak before is forgotten


def test_cases_are_those_of_the_bench_and_of_a_full_run() -> None:
    assert {name: len(mode.bench) for name, mode in modes.MODES.items() if len(mode.bench) != len(bench.CASES)} == {
        "quick": 0, "default": 1,
    }  # fmt: skip
    assert {case.layer for case in bench.TRAINED} == {*PARAMS} - {"dense"}
    assert len(bench.CASES) == len({(c.layer, c.N, *c.sizes.items(), c.batch, c.dtype, c.program) for c in bench.CASES})
    largest = max(case.N * case.sizes["d"] ** 2 * 4 for case in bench.CASES if case.layer == "dense")
    assert largest == bench.PEAK_BYTES
    assert bench_facts.NOISY == 0.15
    assert importlib.util.find_spec("implementations.measuring.bench_command")
