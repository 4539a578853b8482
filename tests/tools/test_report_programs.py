"""The general stack in the comparison: what is measured, its laws, tables and figures; the linearity of run time."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from implementations.check.dialect import flat
from implementations.measuring import modes, programs
from implementations.report import figures, html, tables
from implementations.report.table import BAD
from implementations.results import deviations, summary
from implementations.results.records import Results
from reference.stack import tree_map
from tests.conftest import loaded
from tests.support.synthetic import Page, changed, drawn, page, printed, results, spoilt, with_all
from tests.support.synthetic import programs as general


def spoil(program: str, N: int, **change: Any) -> Results:
    """Right results but for one size of jax_scan."""
    (i,) = (i for i, size in enumerate(general()) if (size.name, size.N) == (program, N))
    return spoilt("programs", i, **change)


def table(found: Results, name: str) -> dict[str, list[str]]:
    """Program -> the other cells, of jax_scan."""
    shown = next(table for table in tables.tables(found) if table.name == name)
    return {row[1]: row[2:] for row in shown.rows if row[0] == "jax_scan"}


# The laws


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (spoil("hvp_layers", 1023, captured=501), "hvp_layers of mlp, d = 64, float32: captured size changes with N"),
        (spoil("forward", 64, compiled=499), "forward of mlp, .*: compiled size changes with N"),
        (
            spoil("gradient, remat=True", 23, lowered=501),
            "gradient, remat=True of mlp, .*: lowered size changes",
        ),
        (spoil("gradient, remat=4", 1023, compiled=531), "gradient, remat=4 of mlp, .*: compiled size is above 530"),
        (spoil("gradient, unroll=4", 64, lowered=531), "gradient, unroll=4 of mlp, .*: lowered size is above 530"),
        (spoil("hvp_layers", 23, loops=0), "hvp_layers of mlp, .*: loops: expected at least 1"),
        (spoil("gradient, unroll=4", 64, loops=0), "gradient, unroll=4 of mlp, .*: loops: expected at least 1"),
        (spoil("gradient, unrolled", 4, compiled=200), "gradient, unrolled of mlp, .*: compiled size does not grow"),
        (spoil("gradient, unrolled", 4, loops=1), "gradient, unrolled of mlp, .*: loops: expected none"),
    ],
)
def test_each_violated_law_is_found_said_and_an_error(found: Results, words: str) -> None:
    said = deviations.deviations(found)
    assert len(said) == 1
    assert re.match(f"jax_scan: {words}", said[0])
    assert "Not as declared" in page(found)


def test_several_layers_a_step_may_be_smaller_but_not_larger() -> None:
    assert deviations.deviations(results()) == []
    assert deviations.deviations(spoil("gradient, remat=4", 64, compiled=1)) == []
    # Below 2k the loop may be gone, and the size is another program's.
    assert deviations.deviations(spoil("gradient, remat=4", 6, compiled=5000)) == []


def test_the_dense_stack_and_a_general_stack_of_dense_layers_are_two_programs() -> None:
    """Which a default run measures: their counts differ."""
    of_dense = tuple(replace(size, layer="dense") for size in general())
    assert deviations.deviations(spoilt(programs=of_dense)) == []


def test_the_constant_is_the_size_at_the_first_of_the_largest_remainders() -> None:
    one = spoil("gradient, remat=4", 23, compiled=540).implementations[0]
    grouped = next(program for program in summary.programs(one) if program.of.name == "gradient, remat=4")
    assert grouped.constant("compiled") == 540
    assert grouped.constant("lowered") == 530


# Tables and figures


def test_table_shows_one_count_or_the_range_and_marks_what_is_wrong() -> None:
    right = table(results(), "programs")
    assert right["hvp_layers"] == ["mlp", "500", "500", "500", "1"]
    assert right["gradient, unrolled"] == ["mlp", "400 [4]", "400 [4]", "400 [4]", "0"]
    assert right["gradient, remat=4"][1:4] == ["500–900"] * 3
    assert table(spoil("hvp_layers", 64, compiled=501), "programs")["hvp_layers"][3] == f"500–501 {BAD}"
    wrong = table(spoil("gradient, remat=4", 64, captured=950), "programs")
    assert wrong["gradient, remat=4"][1] == f"530–950 {BAD}"


def test_table_shows_what_a_layer_adds_in_carries() -> None:
    shown = table(results(), "remat")
    assert {program: cells[-1] for program, cells in shown.items()} == {
        "gradient": "16",
        "gradient, remat=True": "1",
        "gradient, remat=4": "0.25",
        "gradient, unroll=4": "16",
        "gradient, unrolled": "16",
    }
    assert shown["gradient, remat=True"][2] == "256 B"


def test_memory_is_compared_between_depths_of_one_remainder() -> None:
    """Another remainder is another program, with other memory: here a megabyte that no layer has added."""
    found = spoil("gradient, remat=4", 64, temp_bytes=1_000_000)
    assert table(found, "remat")["gradient, remat=4"][-1] == "0.25"


def test_figures_show_each_program_and_each_choice_of_remat() -> None:
    sizes, memory = drawn()["programs"], drawn()["remat"]
    for figure in (sizes, memory):
        assert Page(figure.panels[0]).open == []
    assert "hvp_layers: 500 at N = 23, 500 at N = 1023" in sizes.panels[0]
    assert "unrolled" not in sizes.panels[0]
    assert "gradient, remat=True: 10.9 kB at N = 23, 267 kB at N = 1023" in memory.panels[0]
    assert "unrolled: " in memory.panels[0]
    assert sizes.caption.startswith("Each derivative, batch and choice of remat is one program of one size")
    assert "jax_scan: remat=False 16, remat=True 1, remat=4 0.25" in memory.caption


def test_captions_are_computed() -> None:
    wrong = figures.figures(spoil("hvp_layers", 1023, compiled=501))["programs"].caption
    assert wrong.startswith("Not of one size or below one: hvp_layers of mlp in jax_scan.")


def test_a_figure_without_a_python_loop_explains_none() -> None:
    text = html.page(results(), {name: drawn()[name] for name in ("programs", "remat")})
    sizes, memory = (text.partition(f'id="{name}"')[2].partition("</figcaption>")[0] for name in ("programs", "remat"))
    assert "the Python loop" not in sizes
    assert "the Python loop" in memory


def test_page_without_programs_has_no_section_of_them() -> None:
    found = with_all(results(), programs=(), linear=())
    shown = figures.figures(found)
    assert not {"programs", "remat"} & set(shown)
    text = html.page(found, shown)
    assert Page(text).open == []
    assert 'id="programs"' not in text
    assert 'id="remat"' not in text


def test_one_implementation_without_programs_says_so() -> None:
    found = changed(results(), "implementations", 1, programs=())
    panel = figures.figures(found)["programs"].panels[1]
    assert "torch_compile: compiled: instructions of torch_compile: not measured." in panel


def test_linearity_is_a_ratio_with_its_spread() -> None:
    found = spoilt("linear", 1, run_seconds={"rolled": (1e-3, 1.1e-3, 1.2e-3)})
    shown = next(table for table in tables.tables(found) if table.name == "run")
    cells = {row[0]: row for row in shown.rows if row[1] == "1024 / 256"}
    assert cells["jax_scan"][5] == "4.3 ±5%"
    assert cells["tf_while"][5] == "4"
    assert "1024 / 256" in printed(found)


# What is measured


@pytest.mark.parametrize("mode", ["default", "full"])
def test_depths_suit_the_laws(mode: str) -> None:
    chosen = modes.MODES[mode]
    K = programs.K
    assert {N % K for N in chosen.program_depths} >= {K - 1}  # the largest remainder, at the smallest N of all
    assert min((*chosen.program_depths, *chosen.stepped)) % K == K - 1
    same = [N for N in chosen.program_depths if N % K == K - 1]
    assert len(same) >= 2  # for the memory that a layer adds
    for layer, names in chosen.programs.items():
        assert set(names) <= set(programs.NAMES)
        params, carry = programs.inputs(layer, ("params", "carry"), min(chosen.program_depths))
        assert min(array.size for array in flat(params)) >= 1000
        assert len(carry) * min(chosen.program_depths) >= 1000  # the carries of all layers


def test_programs_are_what_their_names_say() -> None:
    implementation = loaded("jax_scan")
    made = {program.of.name: program for program in programs.programs(implementation, "mlp")}
    assert tuple(made) == programs.NAMES

    def run(name: str) -> list[np.ndarray]:
        program = made[name]
        gradient = program.of.program == "gradient"
        inputs = (*program.inputs, "carry") if gradient else program.inputs
        apply = implementation.gradient(program.apply) if gradient else program.apply
        given = tree_map(implementation.from_numpy, programs.inputs("mlp", inputs, 3))
        return flat(tree_map(implementation.to_numpy, implementation.compile(apply)(*given)))

    y, *gradients = run("gradient")
    for same in (name for name in made if name.startswith("gradient") or name == "vjp_layers"):
        for one, other in zip([y, *gradients], run(same), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run("forward")[0], y, rtol=1e-6)
    np.testing.assert_allclose(run("jvp_layers")[0], y, rtol=1e-6)
    assert [array.shape for array in run("vmap_vjp_layers")] == [
        (programs.B, *array.shape) for array in [y, *gradients]
    ]
    assert [array.shape for array in run("hvp_layers")] == [array.shape for array in gradients] * 2
