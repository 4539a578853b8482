"""The capability table is what tests hold: each cell has one that `covers` it, and the READMEs show the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from implementations import NAMES, capabilities
from implementations.capabilities import TABLE, NotApplicable, declared
from tests.conftest import as_declared


def test_a_yes_is_run_a_no_fails_as_declared_and_the_rest_is_skipped():
    assert list(as_declared("forward", "jax_scan")) == []
    (skipped,) = as_declared("autocast around the stack", "jax_scan")
    assert skipped.name == "skip"
    (fails,) = as_declared("arrays that are placed, and no `on_mesh`, with the gradient", "torch_compile")
    assert (fails.name, fails.kwargs["strict"], fails.kwargs["raises"]) == ("xfail", True, TypeError)


def test_every_cell_has_a_test_and_every_mark_names_one(collected):
    files, covered = collected
    if not files.issuperset(Path(__file__).parents[1].glob("*/test_*.py")):
        pytest.skip("of the whole suite alone")
    cells = {(row, name): declared(row, name) for row in TABLE for name in NAMES}
    assert covered - cells.keys() == set(), "marks that name no row"
    asked = {cell for cell, state in cells.items() if not isinstance(state, NotApplicable)}
    assert asked - covered == set(), "rows without a test"


def test_tables_of_the_readmes_are_current():
    assert capabilities.main(["--check"]) == 0
