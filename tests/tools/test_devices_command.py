"""`python -m implementations devices`: what it says, writes and refuses, of results that are given."""

from __future__ import annotations

import json

import pytest

from implementations.devices import command, on_paper
from implementations.results.records import OnDevices, Way, from_json


def way(N, wrong="", temp_bytes=10):
    sent = {"all-gather": 2, "reduce-scatter": 1, "outside": 3}
    return Way(
        way="fully sharded",
        N=N,
        wrong=wrong,
        collectives=sent,
        whole_bytes=100 * N,
        param_bytes=25 * N,
        temp_bytes=temp_bytes * N,
    )


def test_two_layers_of_a_hundred_bytes_on_four_devices():
    found = [OnDevices(name="jax_scan", size=4, ways=(way(2), way(8)))]
    assert command.collectives(found).rows == [["fully sharded", "2 all-gather, 1 reduce-scatter"]]
    assert command.memory(found).rows == [["fully sharded", "25 %", "10 %, 10 %"]]
    assert "70 B at N = 2, 280 B at N = 8" in command.held(found).svg


@pytest.mark.parametrize(
    ("wrong", "temp_bytes", "status"), [("", 10, 0), ("dparams: observed ...", 10, 1), ("", 100, 1)]
)
def test_what_is_written_and_how_it_ends(wrong, temp_bytes, status, tmp_path, monkeypatch, capsys):
    found = OnDevices(name="jax_scan", size=4, ways=(way(4), way(8, wrong, temp_bytes)))
    monkeypatch.setattr(command, "on_devices", lambda *_: found)
    asked = ["--size", "4", "--depths", "4", "8", "--implementations", "jax_scan", "--out", str(tmp_path)]
    assert command.main(asked) == status
    assert [from_json(OnDevices, one) for one in json.loads((tmp_path / "devices.json").read_text())] == [found]
    assert "No device holds the whole stack" in (tmp_path / "index.html").read_text()
    said = capsys.readouterr().out
    assert ("✗ jax_scan: fully sharded" in said) == bool(status)


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
