"""The training in the comparison: its verdict, its table, its figure, on synthetic losses; and how it is measured."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from implementations.measuring import modes, training_check
from implementations.report import figures, html, tables
from implementations.report.table import BAD
from implementations.results import deviations, summary
from implementations.results.records import Results, Training, from_json, to_json
from reference import training
from reference.error_bound import FLOOR, FORMATS, MULTIPLE
from tests.support.synthetic import Page, changed, drawn, page, printed, results, spoilt, trained, with_all
from tests.support.synthetic import training as synthetic_training


def off(losses: tuple[float | None, ...], step: int, factor: float | None) -> tuple[float | None, ...]:
    """The losses with that of one step, from 1 on, times a factor, or None for what is not finite."""
    one = losses[step - 1]
    return (*losses[: step - 1], one and factor and one * factor, *losses[step:])


def spoil(step: int, factor: float | None) -> Results:
    """Right results but for one loss of jax_scan."""
    return spoilt("training", losses=off(synthetic_training(1.0000002).losses, step, factor))


def row(found: Results, name: str = "jax_scan") -> list[str]:
    table = next(table for table in tables.tables(found) if table.name == "training")
    return next(row[1:] for row in table.rows if row[0] == name)


# The verdict


def test_what_is_within_the_multiple_is_as_declared() -> None:
    assert deviations.deviations(results()) == []
    run = summary.trained(results(), results().implementations[0])
    assert run is not None
    # 1e-7 in NumPy: the floor of a few ulps is above MULTIPLE times that
    assert MULTIPLE * 1e-7 < run.allowed[0] == pytest.approx(FLOOR * 2 * FORMATS["float32"].u)
    assert run.off[-1] == pytest.approx(2e-7, rel=1e-6)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (spoil(7, 1 + 2e-6), "jax_scan: loss at step 7 of training: off by 2.2e-06, allowed 9.5e-07"),
        (spoil(1, 1.1), "jax_scan: loss at step 1 of training: off by 0.1, allowed 9.5e-07"),
        (spoil(50, None), "jax_scan: loss at step 50 of training: not finite"),
    ],
)
def test_a_loss_that_is_off_is_found_said_and_marked(found: Results, words: str) -> None:
    assert deviations.deviations(found) == [words]
    assert "Not as declared" in page(found)
    assert row(found)[3].endswith(BAD)
    assert BAD not in row(found, "tf_while")[3]


def test_what_numpy_is_off_by_raises_what_is_allowed_from_that_step_on() -> None:
    found = changed(results(), "training", "float32", losses=off(trained().float32.losses, 10, 1 + 1e-6))
    for step, count in ((9, 1), (10, 0), (50, 0)):
        losses = off(synthetic_training(1.0000002).losses, step, 1 + 5e-6)
        wrong = changed(found, "implementations", 2, "training", losses=losses)
        assert len(deviations.deviations(wrong)) == count, step


# Table, figure, page


def test_table_shows_losses_and_how_far_they_are_off() -> None:
    assert row(results()) == ["50", "4.0000", "2.4320", "2.0e-07", "1.0e-07", "9.5e-07", "2.0e-07"]
    assert "2.4320" in printed(results())
    assert row(spoil(50, None))[2:4] == ["not finite", f"not finite {BAD}"]


def test_figure_shows_both_curves_and_all_deviations() -> None:
    figure = drawn()["training"]
    losses, deviations = figure.panels[0], figure.panels[3]
    for panel in figure.panels:
        assert Page(panel).open == []
    assert "jax_scan float32: 4 at step 1, 2.43 at step 50; NumPy float64: 4 at step 1, 2.43 at step 50" in losses
    assert "jax_scan float32: 2e-07 at step 1, 2e-07 at step 50" in deviations
    assert "NumPy float32: 1e-07 at step 1, 1e-07 at step 50; allowed: 9.5e-07 at step 1" in deviations
    assert "against the steps (step · N = 4, d = 32, B = 4, T = 32)" in losses
    assert "after 50 steps, off from NumPy float64 by 2e-07 in jax_scan" in figure.caption
    assert 'id="training"' in html.page(results(), drawn())


def test_a_run_without_training_has_no_section_of_it() -> None:
    found = with_all(replace(results(), training=None), training=None)
    shown = figures.figures(found)
    assert "training" not in shown
    assert 'id="training"' not in html.page(found, shown)
    assert deviations.deviations(found) == []


def test_one_implementation_without_its_optimizer_says_so() -> None:
    reason = "No module named 'optax'"
    found = spoilt(training=Training(status="not run", reason=reason, install="pip install optax"))
    assert row(found)[0] == "not run"
    assert "Not run: No module named &#x27;optax&#x27;: pip install optax" in page(found)
    assert ">not run<" in figures.figures(found)["training"].panels[0]
    assert deviations.deviations(found) == []


# What is measured


def fake(train: Any) -> Any:
    """An implementation whose arrays are NumPy's."""
    same = {name: lambda array: array for name in ("from_numpy", "to_numpy")}
    return SimpleNamespace(train=train, layer_norms=training.layer_norms, **same)


def test_what_is_measured_is_the_training_of_the_reference() -> None:
    def train(params: Any, batches: Any, **options: Any) -> Any:
        given.append((params, batches, options))
        return training.train("float32")[:2]

    given: list[Any] = []
    said: list[str] = []
    right, own = training_check.right(), training_check.check(fake(train), True, said.append)
    ((params, batches, options),) = given
    np.testing.assert_array_equal(params["embedding"], training.init_params()["embedding"], strict=True)
    np.testing.assert_array_equal(batches, training.batches(), strict=True)
    assert options == training.OPTIONS
    assert said == ["50 steps of training"]
    one = replace(results().implementations[0], training=from_json(Training, to_json(own)))
    found = replace(results(), training=right, implementations=(one,))
    assert deviations.deviations(found) == []
    assert row(found)[3] == row(found)[4]  # as NumPy is off by: it is NumPy
    assert set(trained().sizes) <= set(right.sizes)


def test_a_missing_optimizer_is_said() -> None:
    def train(*_: Any, **__: Any) -> Any:
        raise ModuleNotFoundError("No module named 'optax'", name="optax")

    block = training_check.check(fake(train), True, lambda _: None)
    assert block.status == "not run"
    assert block.install == "pip install --constraint constraints.txt optax"


def test_a_quick_run_does_not_train() -> None:
    assert [name for name, mode in modes.MODES.items() if mode.training] == ["default", "full"]


def test_where_it_is_slow_it_is_not_run_unasked():
    block = training_check.check(fake(None), False, lambda _: None)
    assert block.status == "not run"
    assert "--full" in block.install
    assert modes.MODES["full"].slow
