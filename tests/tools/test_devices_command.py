"""`python -m implementations devices`: what it says, writes and refuses, of results that are given."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from implementations import compare
from implementations.devices import command, on_paper
from implementations.report import figures, tables_devices
from implementations.results import deviations
from implementations.results.records import OnDevices, from_json, to_json
from tests.support.synthetic import Page, page, results, way


def test_two_layers_of_a_hundred_bytes_on_four_devices():
    found = [OnDevices(name="jax_scan", size=4, ways=(way(2), way(8)))]
    sent, held = tables_devices.tables(found)
    assert sent.title == "On 4 devices: what is sent for one layer"
    assert sent.rows == [["fully sharded", "2 all-gather, 1 reduce-scatter"]]
    assert held.rows == [["fully sharded", "25 %", "10 %, 10 %"]]
    figure = figures.held(found)
    assert "fully sharded: 70 B at N = 2, 280 B at N = 8" in figure.svg
    assert "the whole stack: 200 B at N = 2, 800 B at N = 8" in figure.svg
    assert "At the largest N none reaches that of the stack." in figure.caption


def test_a_device_that_holds_as_much_as_the_stack_is_said():
    found = [OnDevices(name="jax_scan", size=4, ways=(way(2), way(8, temp_bytes=75)))]
    assert "As much as the stack: fully sharded in jax_scan." in figures.held(found).caption


@pytest.mark.parametrize(
    ("wrong", "temp_bytes", "status"), [("", 10, 0), ("dparams: observed ...", 10, 1), ("", 100, 1)]
)
def test_what_is_written_and_how_it_ends(wrong, temp_bytes, status, tmp_path, monkeypatch, capsys):
    found = OnDevices(name="jax_scan", size=4, ways=(way(4), way(8, wrong, temp_bytes)))
    monkeypatch.setattr(command, "on_devices", lambda *_: found)
    asked = ["--size", "4", "--depths", "4", "8", "--implementations", "jax_scan", "--out", str(tmp_path)]
    assert command.main(asked) == status
    assert [from_json(OnDevices, one) for one in json.loads((tmp_path / "devices.json").read_text())] == [found]
    assert "What one device holds" in (tmp_path / "index.html").read_text()
    said = capsys.readouterr().out
    assert ("✗ jax_scan: fully sharded" in said) == bool(status)


def test_temporaries_that_are_not_known_are_not_none():
    found = [OnDevices(name="jax_scan", size=4, ways=(replace(way(2), temp_bytes=None),))]
    assert tables_devices.tables(found)[1].rows == [["fully sharded", "25 %", "–"]]
    assert "fully sharded" not in figures.held(found).svg


def test_what_lies_in_the_folder_of_the_report_is_on_the_page_of_the_comparison(tmp_path):
    assert compare.on_devices(tmp_path) == ()
    found = results().devices
    (tmp_path / "devices").mkdir()
    (written := tmp_path / "devices" / "devices.json").write_text(json.dumps([to_json(one) for one in found]))
    assert compare.on_devices(tmp_path) == found
    written.write_text('[{"name": "jax_scan"}]')
    with pytest.raises(SystemExit, match=r"devices\.json: OnDevices: missing fields: install"):
        compare.on_devices(tmp_path)


def test_the_page_of_the_comparison_folds_it():
    text, without = (page(replace(results(), devices=devices)) for devices in (results().devices, ()))
    parsed = Page(text)
    assert parsed.open == []
    (section,) = re.findall(r'<section id="devices"><details>.*?</section>', text)
    assert "On 4 devices: what is sent for one layer" in section
    assert section.count("2 all-gather, 1 reduce-scatter") == 3
    assert "devices" not in re.findall(r'<section id="(.*?)"', without)


def test_what_is_wrong_on_devices_is_a_deviation_of_the_comparison():
    wrong = OnDevices(name="jax_scan", size=4, ways=(way(4), way(8, "dparams: observed ...")))
    said = deviations.deviations(replace(results(), devices=(wrong,)))
    assert said == ["jax_scan, on devices: fully sharded, N = 8: dparams: observed ..."]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--size", "4", "--depths", "6"], "--depths: expected multiples of 4, for as many stages, got 6"),
        (["--ways", "sideways"], "got sideways"),
        (["--size", "3"], "invalid choice: 3"),
    ],
)
def test_what_is_refused(asked, words, capsys):
    with pytest.raises(SystemExit):
        command.main(asked)
    assert words in " ".join(capsys.readouterr().err.split())


def test_on_paper_every_way_holds_the_same_in_all():
    """One layer of four weights of 2 x 2 and so on, on 2 devices: what is cut is cut in two, and sent thrice."""
    sizes = {"d": 2, "h": 2, "g": 2, "e": 1, "f": 2}
    whole = 2 * 2 + 7 * 4  # two scales of 2, and query, key, value, out, gate, up, down of 4
    assert on_paper.fully_sharded(sizes, 2, width=1) == (whole // 2, whole, 3 * whole)
    assert on_paper.tensor_parallel(sizes, 2, carry=5, width=1) == (4 + 14, 4 + 14, 20)
    assert on_paper.both(sizes, 4, 2, carry=5, width=1) == (9, 18, 3 * 18 + 20)
    assert on_paper.pipeline(sizes, 2, carry=5, depth=4, width=1) == (16, 32, 5)
