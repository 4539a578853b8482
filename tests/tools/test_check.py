"""`python -m implementations check`: our stacks pass, planted mistakes are found in the row that is meant for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from implementations import ROOT, capabilities
from implementations.check import rows, rows_equal
from implementations.check.candidate import Candidate, ours, read
from implementations.check.dialect import ops_of
from implementations.check.run import verdict
from implementations.results.records import Checked, Verdict
from tests.conftest import loaded

ROWS = {row.name: row for row in rows.rows()}


def pytest_generate_tests(metafunc):
    if "own" in metafunc.fixturenames:
        metafunc.parametrize("own", ROWS if metafunc.config.getoption("--stack") else ())


def test_the_stack_of_the_option_passes(request, own):
    """With what it raises, and where."""
    (candidate, known), row = read(Path(request.config.getoption("--stack"))), ROWS[own]
    if set(row.needs) - candidate.offered:
        pytest.skip("not offered")
    if known and own in known:
        pytest.xfail(known[own])
    assert row.wrong(row.run(candidate)) == ""


@pytest.mark.torch_backend("aot_eager")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.covers(*({name} & capabilities.TABLE.keys()))) for name in ROWS],
)
def test_our_stack_passes(implementation, name):
    """Run here, so that what it raises is seen as it is: the capability table declares it."""
    row = ROWS[name]
    assert row.wrong(row.run(ours(implementation))) == ""


# Mistakes that a stack may have, each a scan made of a right one; o are the operations of the framework.


def drops_the_last_layer(o, scan):
    return lambda layer, params, init, **how: scan(layer, params[:-1], init, **how)


def runs_the_first_layer_twice(o, scan):
    return lambda layer, params, init, **how: scan(layer, params, layer(init, params[0])[0], **how)


def ignores_reverse(o, scan):
    return lambda layer, params, init, *, reverse=False, **how: scan(layer, params, init, **how)


def returns_ys_one_layer_late(o, scan):
    def run(layer, params, init, **how):
        def late(carry, p):
            new_carry, _ = layer(carry, p)
            return new_carry, layer(new_carry, p)[1]

        return scan(late, params, init, **how)

    return run


def casts_to_float32(o, scan):
    def run(layer, params, init, **how):
        def narrow(carry, p):
            carry, y = layer(carry, p)
            return o.cast(o.cast(carry, "float32"), "float64"), y

        return scan(narrow, params, init, **how)

    return run


def widens_half_precision(o, scan):
    return lambda layer, params, init, **how: scan(layer, o.cast(params, "float32"), o.cast(init, "float32"), **how)


def unrolls_itself(o, scan):
    def run(layer, params, init, **how):
        for i in range(params.shape[0]):
            init, _ = layer(init, params[i])
        return init, None

    return run


def keeps_the_weights(o, scan):
    """What depends on the carry is no slice of the stack, which could be read again."""
    return lambda layer, params, init, **how: scan(
        lambda c, p: layer(c, o.matvec(p * o.sum(c), p)), params, init, **how
    )


def takes_what_is_there(o, scan):
    def run(layer, params, init, **how):
        few = min(a.shape[0] for a in params.values())
        return scan(layer, {name: a[:few] for name, a in params.items()}, init, **how)

    return run


def has_no_gradient_of_params(o, scan):
    """The same numbers, through which no derivative goes."""
    return lambda layer, params, init, **how: scan(layer, params * 0 + o.weights, init, **how)


def has_no_layers_where_there_is_one(o, scan):
    def run(layer, params, init, **how):
        return (init, None) if params.shape[0] == 1 else scan(layer, params, init, **how)

    return run


MISTAKES = {
    drops_the_last_layer: "forward",
    runs_the_first_layer_twice: "forward",
    ignores_reverse: "reverse",
    returns_ys_one_layer_late: "what each layer returns, in layer order",
    casts_to_float32: "forward",
    widens_half_precision: "bfloat16",
    unrolls_itself: "one size at every N >= 2, forward",
    keeps_the_weights: "no copy of the weights is kept for the backward pass",
    takes_what_is_there: "parameters of unequal depth",
    has_no_gradient_of_params: "reverse mode from outside",
    has_no_layers_where_there_is_one: "N = 1",
}


@pytest.mark.torch_backend("eager")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_wrong_in_its_row(implementation, mistake):
    o = SimpleNamespace(**vars(ops_of(implementation)), weights=implementation.from_numpy(rows_equal.W))
    planted = Candidate(implementation, "planted", mistake(o, implementation.scan_layers))
    found = verdict(ROWS[MISTAKES[mistake]], planted)
    assert found.verdict == "wrong", found
    assert found.words


@pytest.mark.parametrize("found", [None, {}])
def test_no_result_is_wrong_and_no_end_of_the_check(implementation, found):
    planted = Candidate(implementation, "planted", lambda *args: (found, None))
    assert verdict(ROWS["forward"], planted).verdict == verdict(ROWS["bfloat16"], planted).verdict == "wrong"


def test_readmes_say_how_many_rows_there_are_and_adapters_are_short():
    assert f": {len(ROWS)} rows, half a minute in JAX." in (ROOT / "README.md").read_text()
    adapters = [path for path in (ROOT / "implementations" / "peers").glob("*.py") if path.stem != "__init__"]
    assert len(adapters) >= 14
    for path in adapters:
        text = path.read_text()
        assert len(text.splitlines()) <= 30, path.name
        assert '\nFRAMEWORK = "' in text
        assert "Bridged: " in text or "cloned" in text, path.name


# The command.

RIGHT = """
from jax import lax
FRAMEWORK = "jax"
def scan_layers(layer, stacked_params, init):
    return lax.scan(layer, init, stacked_params)
"""


def run(tmp_path, text, *options):
    loaded("jax_scan")
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    command = [sys.executable, "-m", "implementations", "check", str(file), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_newcomers_file(tmp_path):
    done = run(tmp_path, RIGHT, "--json", str(tmp_path / "mine.json"), "--out", str(tmp_path / "page"))
    assert done.returncode == 0, done.stderr
    verdicts = {row["row"]: row["verdict"] for row in json.loads((tmp_path / "mine.json").read_text())["rows"]}
    assert list(verdicts) == list(ROWS)
    assert verdicts["second order from outside, forward over reverse"] == "yes"
    assert {row for row, found in verdicts.items() if found != "yes"} == {
        row.name for row in ROWS.values() if row.needs
    }  # not offered
    assert "mine: the checks" in (tmp_path / "page" / "index.html").read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "mine.py: no such file"),
        ("import", "mine.py: raises SyntaxError where it is imported"),
        ("raise SystemExit(3)", "mine.py: raises SystemExit where it is imported: 3"),
        ("import no_such_library", "mine.py needs no_such_library\npip install no_such_library"),
        ("x = 1", "mine.py: FRAMEWORK: expected one of jax, torch, tensorflow, got None"),
        ("FRAMEWORK = 'mxnet'", "mine.py: FRAMEWORK: expected one of jax, torch, tensorflow, got 'mxnet'"),
        ("FRAMEWORK = 'jax'", "mine.py: scan_layers: expected a function (layer, stacked_params, init, ...), got none"),
        ("FRAMEWORK = 'jax'\nscan_layers = 3", "mine.py: scan_layers: expected a function, got 3"),
        (f"{RIGHT}KNOWN = 3", 'mine.py: KNOWN: expected row -> "wrong" or the name of an exception, got 3'),
    ],
)
def test_a_file_that_cannot_be_checked_says_why(tmp_path, text, words):
    done = run(tmp_path, text, "--json", str(tmp_path / "mine.json"))
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "mine.json").exists()


def test_where_nothing_can_be_written_is_said_before_the_run(tmp_path):
    done = run(tmp_path, "while True: pass", "--json", str(tmp_path / "none" / "mine.json"))
    assert done.returncode == 2
    assert f"--json: no such folder: {tmp_path / 'none'}" in done.stderr


@pytest.mark.parametrize("text", ["while True: pass", f"{RIGHT}\ndef scan_layers(*args):\n    while True: pass"])
def test_a_file_that_never_returns_is_given_up(tmp_path, text):
    done = run(tmp_path, text, "--timeout", "6", "--json", str(tmp_path / "mine.json"))
    assert done.returncode == 2
    assert "given up after 6 s, at" in done.stderr
    assert not (tmp_path / "mine.json").exists()


def checked(known=None, **verdicts):
    kinds = {"yes": ("yes", ""), "wrong": ("wrong", "observed 3"), "raises": ("refused", "TypeError: no")}
    found = [
        Verdict(section="s", row=row, verdict=kinds[kind][0], words=kinds[kind][1]) for row, kind in verdicts.items()
    ]
    return Checked(name="mine", rows=tuple(found), known=known)


@pytest.mark.parametrize(
    ("found", "deviations"),
    [
        (checked(a="yes", b="raises"), []),
        (checked(a="wrong"), ["a: wrong: observed 3"]),
        (checked({"a": "wrong", "b": "TypeError"}, a="wrong", b="raises"), []),
        (checked({"b": "builtins.TypeError"}, b="raises"), []),
        (checked({}, b="raises"), ["b: refused: TypeError: no"]),
        (checked({"b": "ValueError"}, b="raises"), ["b: known as ValueError, observed TypeError"]),
        (checked({"a": "wrong"}, a="yes"), ["a: known as wrong, observed yes"]),
        (checked({"c": "wrong"}, a="yes"), ["c: known, but there is no such row"]),
    ],
)
def test_what_is_known_is_strict_both_ways(found, deviations):
    assert found.deviations == deviations
