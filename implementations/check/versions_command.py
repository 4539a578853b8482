"""`python -m implementations versions`: the quick comparison and the framework's tests, in other releases of it."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from implementations import NAMES, REQUIRES, ROOT, files
from implementations.report.table import BAD, Table, in_markdown, renderable
from implementations.results.records import Release, Results, from_json, to_json
from reference.releases import TESTED

# What a release of a framework pins by itself: of these pip chooses the version, of all others constraints.txt has it.
FREE = {"jax", "jaxlib", "torch", "tensorflow", "keras", "numpy", "ml_dtypes", "protobuf", "optax", "tensorboard"}
TESTS = {"jax": "jax", "torch": "torch", "tensorflow": "tf_"}  # words in the names of its tests and of their files
ROOM = 12e9  # bytes: torch from a package index comes with several GB of CUDA


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m implementations versions",
        description="Run the quick comparison and the framework's tests in releases of it, each in an environment of "
        "its own, made in .venv-versions. One takes 10 to 40 minutes, and torch several GB.",
        epilog="Writes PACKAGE-RELEASE.json for each, and a table of all that are there. Exit status 1: one that ran "
        "has a failure.",
    )
    known = [f"{package}=={release}" for package, releases in TESTED.items() for release in releases]
    made.add_argument("releases", nargs="*", default=known, help=f"as PACKAGE==RELEASE. Default: {' '.join(known)}")
    made.add_argument("--readme", action="store_true", help="write the table into implementations/README.md too")
    made.add_argument("--out", type=Path, default=Path("report/versions"), metavar="FOLDER")
    made.add_argument("--timeout", type=float, default=5400.0, metavar="SECONDS", help="for each; default: 5400")
    return made


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    asked = [tuple(text.split("==")) for text in options.releases]
    for each in asked:
        if len(each) != 2 or each[0] not in TESTED:
            parser().error(f"releases: expected PACKAGE==RELEASE of {', '.join(TESTED)}, got {'=='.join(each)}")
    options.out.mkdir(parents=True, exist_ok=True)
    ran = []
    for package, release in asked:
        print(f"{package} {release} ...", flush=True)
        start = time.monotonic()
        found = run(package, release, options.out.resolve(), options.timeout)
        found = replace(found, seconds=time.monotonic() - start, date=datetime.now(UTC).strftime("%Y-%m-%d"))
        ran.append(found)
        files.replace(options.out / f"{package}-{release}.json", json.dumps(to_json(found), indent=1) + "\n")
    every = [from_json(Release, json.loads(path.read_text())) for path in sorted(options.out.glob("*-*.json"))]
    Console(width=120).print(renderable(table(every)))
    if options.readme:
        files.replace_block(ROOT / "implementations" / "README.md", "versions", in_markdown(table(every)))
    return int(any(not found.is_green for found in ran if found.status != "not run"))


def run(package: str, release: str, out: Path, timeout: float) -> Release:
    found = Release(package=package, release=release)
    folder = ROOT / ".venv-versions" / f"{package}-{release}"
    if not folder.exists() and shutil.disk_usage(ROOT).free < ROOM:
        return replace(found, status="not run", reason=f"less than {ROOM / 1e9:.0f} GB of room")
    try:
        python = installed(package, release, folder)
        versions = json.loads(subprocess.check_output([python, "-m", "pip", "list", "--format=json"], text=True))
        free = {each["name"]: each["version"] for each in versions if each["name"].replace("-", "_") in FREE}
        name = next(name for name in NAMES if REQUIRES[name] == package)
        comparison, report = out / f"{package}-{release}", out / f"{package}-{release}.xml"
        measure = [python, "-m", "implementations", "--quick", "--implementations", name, "--out", str(comparison)]
        test = [python, "-m", "pytest", "-q", "-k", TESTS[package], f"--junitxml={report}"]
        for path in (comparison / "results.json", report):  # of an earlier run
            path.unlink(missing_ok=True)
        with (out / f"{package}-{release}.log").open("w") as log:
            for command in (measure, test):  # what they find is in the files that they write
                subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, timeout=timeout, check=False)
        results = from_json(Results, json.loads((comparison / "results.json").read_text()))
        passed, failed = outcomes(report)
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        return replace(found, status="failed", reason=f"{type(error).__name__}: {error}")
    return replace(found, versions=free, deviations=results.deviations, passed=passed, failed=failed)


def installed(package: str, release: str, folder: Path) -> str:
    """The Python of an environment that has that release, what pip chooses for it, and the rest as constrained."""
    python = str(folder / "bin" / "python")
    ready = folder / ".ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        constraints = folder / "constraints.txt"
        lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        files.replace(constraints, "".join(f"{line}\n" for line in lines if line.partition("==")[0] not in FREE))
        pip = [python, "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
        # Not the extra of the framework itself: its range is what has been found green, and others are to be tried too.
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extra = project["optional-dependencies"][package]
        beside = [text for text in extra if re.split("[<>=]", text)[0] not in (package, "jaxlib")]
        subprocess.run([*pip, ".[test]", *beside, f"{package}=={release}"], cwd=ROOT, check=True)
        ready.touch()
    return python


def outcomes(report: Path) -> tuple[int, dict[str, str]]:
    """How many tests passed, and the first words of those that did not."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    wrong = {case: [*case.findall("failure"), *case.findall("error")] for case in cases}
    failed = {
        f"{case.get('classname')}::{case.get('name')}": re.sub(r"\s+", " ", found[0].get("message", ""))[:200]
        for case, found in wrong.items()
        if found
    }
    return sum(not found and case.find("skipped") is None for case, found in wrong.items()), failed


def table(found: Sequence[Release]) -> Table:
    rows = []
    for each in found:
        others = [f"{name} {version}" for name, version in each.versions.items() if name != each.package]
        wrong = [each.reason] if each.reason else [*each.deviations, *(f"{k}: {v}" for k, v in each.failed.items())]
        comparison = f"{len(each.deviations)} deviations {BAD}" if each.deviations else "as declared"
        tests = f"{each.passed} passed" + (f", {len(each.failed)} failed {BAD}" if each.failed else "")
        cells = [comparison, tests] if each.status == "ok" else [each.status, ""]
        rows.append([f"{each.package} {each.release}", ", ".join(others), *cells, "".join(wrong[:1]), each.date])
    columns = ("release", "with", "comparison", "its tests", "what is wrong", "seen")
    return Table("versions", "The releases that work", columns, "llllll", rows)
