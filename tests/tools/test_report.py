"""The comparison as a program: tables, figures, page, files and exit status, on synthetic results."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pytest

from implementations import NAMES, capabilities, compare, files
from implementations.measuring import isolate, training_check
from implementations.report import figures, html, tables
from implementations.report.table import BAD
from implementations.results import deviations
from implementations.results.records import Measured, Results, from_json, to_json
from tests.support.synthetic import (
    Page,
    changed,
    drawn,
    measured,
    page,
    printed,
    results,
    spoilt,
    trained,
    with_all,
)

# The page


def test_page_is_well_formed_and_holds_everything() -> None:
    text = html.page(results(), drawn())
    parsed = Page(text)
    assert parsed.open == []
    for name in (*NAMES, *(f"framework of {name}" for name in NAMES), *capabilities.TABLE):
        assert escape(name) in text
    for figure in (figure for name, figure in drawn().items() if name != "overview"):
        assert len(figure.panels) % len(NAMES) == 0
        assert all(panel in text for panel in figure.panels)
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_figure_has_an_alternative_text_with_its_numbers() -> None:
    text = html.page(results(), drawn())
    labels = [attributes for tag, attributes in Page(text).elements if tag == "svg"]
    assert labels
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in labels)
    label = next(str(svg["aria-label"]) for svg in labels if "compiled" in str(svg["aria-label"]))
    assert "rolled: 38 at N = 2, 38 at N = 1024" in label
    assert "unrolled: 22 at N = 2, 642 at N = 64" in label
    assert all(part in label for part in ("jax_scan", "1.2.3", "d = 64", "float32", "instructions of jax_scan"))


def test_page_loads_nothing() -> None:
    parsed = Page(text := html.page(results(), drawn()))
    assert not {"script", "link", "img", "iframe", "object", "embed"} & {tag for tag, _ in parsed.elements}
    for tag, attributes in parsed.elements:
        assert "src" not in attributes
        assert "srcset" not in attributes
        reference = attributes.get("href") or attributes.get("xlink:href") or ""
        assert tag == "a" or not reference or reference.startswith("#")
    assert not re.search(r"url\((?!#)|@import", text)


def test_page_follows_the_theme_and_the_width() -> None:
    text = html.page(results(), drawn())
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert "#00000" not in text.replace("#000000", "")  # every colour that was drawn has become a variable
    for figure in drawn().values():
        assert "prefers-color-scheme:dark" in figure.svg  # a file has no page around it
        assert figure.svg.startswith("<svg ")


def test_headline_is_computed() -> None:
    assert html.claim(results()).startswith("1,024 layers compile to exactly as many operations as 2 in jax_scan, ")
    other = html.claim(spoilt("sizes", 7, compiled=39))
    assert "Not so, or not measured, in jax_scan." in other
    assert "jax_scan," not in other.partition(";")[0]


def test_the_first_screen_answers_three_questions():
    text = html.page(results(), {})
    answers = re.findall(r"<dt>(Is it equal\?|Is it one size\?)</dt><dd>(\w+)", text)  # cost: test_report_bench.py
    assert answers == [("Is it equal?", "Yes"), ("Is it one size?", "1")]
    assert text.index("Is it one size?") < text.index("<h2>")
    off = replace(results().ran[0], numerics=(replace(results().ran[0].numerics[0], ok=False),))
    assert "No: 1 of 1 comparisons with NumPy float64 are" in page(replace(results(), implementations=(off,)))


def test_same_results_same_page_and_captions_are_computed() -> None:
    assert figures.figures(results())["compile-time"] == drawn()["compile-time"]
    assert "Every rolled line is flat" in drawn()["graph-size"].caption
    other = figures.figures(spoilt("sizes", 7, compiled=39))
    assert "Not every rolled line is flat: jax_scan." in other["graph-size"].caption


# Missing data


@pytest.mark.parametrize("key", ["captured", "lowered", "compiled", "loops", "temp_bytes"])
def test_null_sizes_break_nothing(key: str) -> None:
    found = without(results(), 1, key)
    assert Page(page(found)).open == []
    assert deviations.deviations(found) == []
    if key == "temp_bytes":
        assert "Not reported by torch_compile." in printed(found)


def without(found: Results, i: int, key: str) -> Results:
    """In the sizes of an implementation nothing is known of that."""
    sizes = found.implementations[i].sizes
    return changed(found, "implementations", i, sizes=tuple(changed(size, **{key: None}) for size in sizes))


EMPTY = Measured(name="torch_compile")
BLOCKS = [key for key, value in vars(EMPTY).items() if not value and key not in ("reason", "install", "asked_for")]


@pytest.mark.parametrize("block", BLOCKS)
def test_an_empty_block_breaks_nothing(block: str) -> None:
    found = changed(results(), "implementations", 1, **{block: getattr(EMPTY, block)})
    assert Page(page(found)).open == []
    assert "torch_compile" in printed(found)


def test_figures_say_what_is_missing() -> None:
    (_, silent, _) = without(results(), 1, "temp_bytes").implementations
    crashed = Measured(name="tf_while", status="failed", reason="it crashed")
    found = figures.figures(results(Measured(name="jax_scan"), silent, crashed))
    said = [
        re.findall(r">(not measured|not reported by this framework|failed)<", svg)
        for svg in found["temporary-memory"].panels
    ]
    assert said == [["not measured"], ["not reported by this framework"], ["failed"]]
    assert "tf_while: compile time: failed." in found["compile-time"].panels[2]


def test_quick_results_without_gradients_have_no_empty_columns() -> None:
    one = measured("jax_scan")
    sizes, times = (tuple(each for each in block if each.program == "forward") for block in (one.sizes, one.times))
    found = with_all(results(), sizes=sizes, times=times, linear=())
    shown = {table.name: table for table in tables.tables(found)}
    for name in ("sizes", "compile", "run", "memory"):
        assert not any("gradient" in column for column in shown[name].columns)


@pytest.mark.parametrize("status", ["failed", "not run"])
def test_a_lost_implementation_costs_its_own_column_only(status: str) -> None:
    lost = Measured(name="torch_compile", status=status, reason="the reason of it", install="pip install torch")
    found = results(measured("jax_scan"), lost, measured("tf_while"))
    for shown in (page(found), printed(found)):
        assert "the reason of it" in shown
        assert "pip install torch" in shown
    whole = {table.name: table for table in tables.tables(results())}
    for table in tables.tables(found):
        if table.name not in ("provenance", "numerics", "checkpoint-pairs", "capabilities"):
            assert table.rows == [row for row in whole[table.name].rows if row[0] != "torch_compile"]
    matrix = next(table for table in tables.tables(found) if table.name == "capabilities")
    assert {row[2] for row in matrix.rows} == {status}
    assert {row[1] for row in matrix.rows} >= {"yes"}
    assert bool(deviations.deviations(found)) == (status == "failed")


def test_nothing_ran() -> None:
    found = results(Measured(name="jax_scan", status="not run", reason="no jax"))
    assert "nothing can be claimed" in html.page(found)  # without figures of nothing
    assert deviations.deviations(found) == ["no implementation ran"]


# The terminal


@pytest.mark.parametrize("width", [100, 60])
def test_tables_fit_and_cut_nothing(width: int) -> None:
    found = spoilt(units={"compiled": "optimised HLO instructions of the whole module"})
    flags = "XLA_FLAGS=" + "--a_flag_that_is_very_long=true " * 8
    found = replace(found, provenance={**found.provenance, "environment": flags})
    text = printed(found, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for table in tables.tables(found) if width == 100 else ():
        for row in table.rows:
            for word in (word for cell in row for word in cell.split() if len(word) < 8):
                assert word in text


@pytest.mark.parametrize(
    ("version", "words"), [("2.13.0+cpu", "torch 2.13.0+cpu"), ("2.99.0", "torch 2.99.0 (tested: 2.13.0, 2.14.1)")]
)
def test_a_release_that_is_not_tested_is_said(version: str, words: str) -> None:
    found = results(replace(results().ran[0], versions={"torch": version}, settings={}))
    assert tables.tables(found)[0].rows[-1] == ["jax_scan", words]


def test_provenance_stands_before_any_number() -> None:
    assert tables.tables(results())[0].name == "provenance"
    assert printed(results()).index("a processor, 2 cores") < printed(results()).index("1.25")


def test_what_is_not_as_declared_is_marked_in_the_tables() -> None:
    found = spoilt("numerics", 0, ratio=7.5, ok=False)
    text = printed(changed(found, "implementations", 1, "sizes", 7, lowered=39))
    assert f"7.50 {BAD}" in text
    assert f"38–39 {BAD}" in text


# The verdict and the exit status

ROLLED, TWIN = (
    f"jax_scan: {program} of the dense stack, d = 64, float32" for program in ("forward", "forward, unrolled")
)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (spoilt("numerics", 0, ratio=7.5, ok=False), "jax_scan: y of case gaussian_deep .* error 7.5, allowed 4"),
        (spoilt("numerics", 0, ratio=None, ok=False), "jax_scan: y of case gaussian_deep .* error None"),
        (spoilt("numerics", -1, ok=False), "jax_scan: dx of case permutations .* not equal"),
        (spoilt("recompiles", 0, programs=6), "jax_scan: N = 0, 1, 2, 3 .*: 6 programs, declared 3"),
        (
            spoilt("sizes", 7, compiled=39),
            f"{ROLLED}: compiled size changes with N: .*N = 1024: 39",
        ),
        (spoilt("sizes", 7, loops=0), f"{ROLLED}: loops: expected at least 1: N = 1024: 0"),
        (spoilt("sizes", 8, loops=1), f"{TWIN}: loops: expected none: N = 2: 1"),
        (
            spoilt("sizes", 11, compiled=22),
            f"{TWIN}: compiled size does not grow with N: N = 2: 22, .*",
        ),
        (
            spoilt("sizes", 11, captured=700),
            f"{TWIN}: captured size does not grow by a constant: .*",
        ),
    ],
)
def test_each_deviation_is_found_and_said(found: Results, words: str) -> None:
    said = deviations.deviations(found)
    assert len(said) == 1
    assert re.match(words, said[0])
    assert "Not as declared" in page(found)


def test_smaller_programs_below_two_layers_are_no_deviation() -> None:
    assert deviations.deviations(results()) == []


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`python -m implementations ARGUMENTS` with `found` in place of the measuring processes."""

    def main(arguments: list[str], found: Any = measured, draw: Any = lambda _: {}) -> tuple[int, Path]:
        monkeypatch.setattr(isolate, "measure", lambda name, *_: found(name))
        monkeypatch.setattr(training_check, "right", trained)
        monkeypatch.setattr(figures, "figures", draw)
        return compare.main([*arguments, "--out", str(tmp_path / "report")]), tmp_path / "report"

    handler = signal.getsignal(signal.SIGTERM)
    yield main
    signal.signal(signal.SIGTERM, handler)


def test_run_writes_page_data_and_figures(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status, folder = run([], draw=lambda _: drawn())
    assert status == 0
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert found["schema_version"] == 4
    assert [one["name"] for one in found["implementations"]] == list(NAMES)
    assert html.page(from_json(Results, found), drawn()) == (folder / "index.html").read_text(encoding="utf-8")
    assert {path.stem for path in (folder / "figures").iterdir()} == set(drawn())
    assert not list(folder.rglob("*.tmp"))
    assert "Everything observed is as declared." in capsys.readouterr().out


def not_run(name: str) -> Measured:
    return Measured(name=name, status="not run", reason="not installed")


def missing(name: str) -> Measured:
    return not_run(name) if name == "tf_while" else measured(name)


def test_exit_status_of_a_missing_framework(run: Any) -> None:
    assert run([], missing)[0] == 0
    assert run(["--implementations", "jax_scan"], missing)[0] == 0
    assert run(["--implementations", "jax_scan,tf_while"], missing)[0] == 1
    assert run(["--implementations", "jax_scan", "--implementations", "tf_while"], missing)[0] == 1
    assert run([], not_run)[0] == 1


def test_exit_status_of_a_crash_and_of_a_problem(run: Any) -> None:
    assert run([], lambda name: Measured(name=name, status="failed", reason="it crashed"))[0] == 1
    assert run([], lambda name: replace(measured(name), problems=("something odd",)))[0] == 1


def test_numbers_that_json_has_not_become_null(run: Any) -> None:
    def infinite(name: str) -> Measured:
        """As it comes out of the measuring process."""
        return from_json(Measured, to_json(changed(measured(name), "numerics", 0, ratio=float("inf"), ok=False)))

    status, folder = run([], infinite)
    assert status == 1
    assert "Infinity" not in (folder / "results.json").read_text(encoding="utf-8")
    assert "not finite" in (folder / "index.html").read_text(encoding="utf-8")


def test_interrupted_run_leaves_what_was_there(run: Any) -> None:
    def interrupted(name: str) -> Measured:
        raise KeyboardInterrupt

    _, folder = run([])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    status, _ = run([], interrupted)
    assert status == 130
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "arguments",
    [["--implementations", "keras"], ["--implementations", ","], ["--depths", "2,x"], ["--quick", "--full"]],
)
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare.main(arguments)
    assert arguments[0] in capsys.readouterr().err


# Files


def test_replace_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    files.replace(path, "old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.replace(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    with pytest.raises(UnicodeEncodeError):
        files.replace(path, "half \ud800")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]
    files.replace(path, "new")
    assert path.read_text(encoding="utf-8") == "new"
