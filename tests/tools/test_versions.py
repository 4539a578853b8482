"""The releases of the frameworks: what is declared of them, and what a run in one of them says."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections import namedtuple
from dataclasses import replace
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from implementations import ROOT
from implementations.check import versions_command
from implementations.results.records import Release, from_json, to_json
from reference.releases import TESTED, names_of
from tests.support import synthetic

GREEN = Release(
    package="jax", release="0.10.2", versions={"jax": "0.10.2", "numpy": "2.4.6"}, passed=1200, date="today"
)
RED = Release(package="torch", release="9.0", passed=3, failed={"tests.test_a::test_b[torch]": "no such operator"})
REPORT = """<testsuites><testsuite>
  <testcase classname="tests.size.test_a" name="test_b[jax_scan]"/>
  <testcase classname="tests.size.test_a" name="test_c[jax_scan]"><skipped message="xfail"/></testcase>
  <testcase classname="tests.size.test_a" name="test_d[jax_scan]"><failure message="8 == 7&#10; more"/></testcase>
  <testcase classname="tests.size.test_e" name="test_f[jax_scan]"><error message="no fixture"/></testcase>
</testsuite></testsuites>"""


def test_the_ranges_are_the_tested_releases():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split("\n")[1:] if line)
    for package, releases in TESTED.items():
        [needed] = [r for r in map(Requirement, project["optional-dependencies"][package]) if r.name == package]
        assert list(releases) == sorted(releases, key=Version)
        assert all(needed.specifier.contains(release) for release in releases)
        bounds = {spec.operator: spec.version for spec in needed.specifier}
        assert bounds[">="] in (releases[0], releases[0].removesuffix(".0"))
        major, minor = Version(releases[-1]).release[:2]
        assert bounds["<"] == f"{major}.{minor + 1}"
        assert pins[package] in releases


def test_the_workflow_runs_every_release_but_the_pinned_ones():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    [row] = re.findall(r"release: \[(.*)\]", text)
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    every = {f"{package}=={release}" for package, releases in TESTED.items() for release in releases}
    assert set(re.findall(r'"(.*?)"', row)) == every - set(pinned)


@pytest.mark.parametrize(
    "code", ["from pip import no_such_name", "import pip.no_such_module", "import pip; pip.no_such_attribute"]
)
def test_a_name_that_is_gone_is_said_with_its_release(monkeypatch, code):
    monkeypatch.setitem(TESTED, "pip", ("1.0", "2.0"))
    with (
        pytest.raises(ImportError, match=r"pip \d+\.\S+: .*no_such_\w+.*; tested with pip 1\.0, 2\.0$"),
        names_of("pip"),
    ):
        exec(code)


def test_outcomes_counts_what_passed_and_keeps_the_words_of_what_did_not(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    failed = {
        "tests.size.test_a::test_d[jax_scan]": "8 == 7 more",
        "tests.size.test_e::test_f[jax_scan]": "no fixture",
    }
    assert versions_command.outcomes(report) == (1, failed)


def test_table():
    assert versions_command.table([GREEN, RED]).rows == [
        ["jax 0.10.2", "numpy 2.4.6", "as declared", "1200 passed", "", "today"],
        ["torch 9.0", "", "as declared", "3 passed, 1 failed ✗", "tests.test_a::test_b[torch]: no such operator", ""],
    ]
    assert GREEN.is_green
    assert not RED.is_green
    assert not Release(package="jax", release="0.10.2").is_green  # no test ran


def test_where_there_is_no_room_nothing_is_installed(tmp_path, monkeypatch, capsys):
    disk = namedtuple("disk", "free")
    monkeypatch.setattr(versions_command, "shutil", SimpleNamespace(disk_usage=lambda _: disk(1e9)))
    monkeypatch.setattr(versions_command, "ROOT", tmp_path)
    assert versions_command.main(["torch==2.14.1", "--out", str(tmp_path)]) == 0
    assert "less than 12 GB of room" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["torch-2.14.1.json"]


# In place of the Python of an environment: it writes what the comparison and the tests would.
STUB = """#!{python}
import pathlib, sys
if "pip" in sys.argv:
    print('[{{"name": "jax", "version": "0.9.2"}}, {{"name": "rich", "version": "15"}}]')
elif "--out" in sys.argv:
    out = pathlib.Path(sys.argv[-1])
    out.mkdir(exist_ok=True)
    (out / "results.json").write_text(pathlib.Path({results!r}).read_text())
elif {tests_run}:
    pathlib.Path(sys.argv[-1].removeprefix("--junitxml=")).write_text({report!r})
"""


@pytest.mark.parametrize(("tests_run", "words"), [(True, "1 passed, 2 failed"), (False, "FileNotFoundError")])
def test_a_run_is_what_its_files_say_and_not_those_of_an_earlier_one(tmp_path, monkeypatch, capsys, tests_run, words):
    results, python = tmp_path / "results", tmp_path / "python"
    results.write_text(json.dumps(to_json(replace(synthetic.results(), deviations=("one",)))))
    text = STUB.format(python=sys.executable, results=str(results), report=REPORT, tests_run=tests_run)
    python.write_text(text)
    python.chmod(0o755)
    monkeypatch.setattr(versions_command, "installed", lambda *_: str(python))
    (tmp_path / "jax-0.9.2.xml").write_text(REPORT.replace("failure", "skipped"))
    assert versions_command.main(["jax==0.9.2", "--out", str(tmp_path)]) == 1
    assert words in re.sub(r"\s+", " ", capsys.readouterr().out)
    found = from_json(Release, json.loads((tmp_path / "jax-0.9.2.json").read_text()))
    assert (found.versions, found.deviations) == (({"jax": "0.9.2"}, ("one",)) if tests_run else ({}, ()))


@pytest.mark.parametrize("text", ["torch", "numpy==2.4.6"])
def test_another_package_is_refused(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        versions_command.main([text])
    assert f"releases: expected PACKAGE==RELEASE of jax, torch, tensorflow, got {text}" in capsys.readouterr().err
